"""What can be proved or computed about the method: bounds, codes, trajectories, breaks, subspaces.

Knows adapters, clip, costs and learning; no records.
"""
