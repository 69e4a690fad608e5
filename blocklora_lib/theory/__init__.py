"""Models and experiments of the theory: work of a tower, memory, codes, trajectories, subspaces."""
