"""How results look: one style, tables, and figures as pure functions of a frame.

Knows analysis, and costs for the names of ways. Nothing here trains, reads a store or judges; no
torch.
"""
