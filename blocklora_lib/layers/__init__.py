"""Layers whose weight is W + ΔW in every way that a model may use it, or that are refused; frozen
products.

What makes adapters safe on models of any kind. Knows core; of an update it knows what `Update`
says, never which.
"""
