"""What is measured: paired times, peaks of memory, counted operations.

Knows runs and all below. Nothing here draws or judges.
"""
