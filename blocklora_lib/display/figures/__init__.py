"""Figures: pure functions of a frame, one module a subject; `display.style` has what all share.

Knows what its room knows.
"""
