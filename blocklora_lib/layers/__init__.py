"""Layers whose weight is W + ΔW however a model uses it, or that are refused; their products.

What makes adapters safe on models of any kind. Knows core; of an update it knows what `Update`
says, never which.
"""
