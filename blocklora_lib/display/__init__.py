"""How results look: one style, tables, and figures as pure functions of a frame.

Knows analysis. Nothing here trains, reads a store or judges; no torch.
"""
