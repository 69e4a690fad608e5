"""Runs: from a profile to specs, from a spec to a record, and the store that keeps records.

Read spec, profile, grid, execute, record, store, standing. Knows methods and all below. A
listing needs no torch.
"""
