"""Figures: pure functions of a frame.  One module a subject; `plotting` has what all share."""
