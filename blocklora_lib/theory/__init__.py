"""What can be proved or computed about the method: bounds, codes, trajectories, breaks, subspaces.

Knows runs and all below, to train what is looked at; it reads no records.
"""
