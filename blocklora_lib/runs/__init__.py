"""Runs: from a profile to specs, from a spec to a record, and the store that keeps records.

Read spec, experiment, profile, grid, execute, record, store, standing, rates. Knows methods and all
below. A listing needs no torch.
"""
