"""The public claims, one judge each, and the published numbers that they are held against.

Knows display and all below. Nothing here trains; no torch.
"""
