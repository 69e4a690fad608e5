"""The public claims, one judge each, and the published numbers that they are held against.

Knows runs, analysis and display. Nothing here trains; no torch.
"""
