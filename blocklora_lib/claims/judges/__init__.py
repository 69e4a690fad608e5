"""One function a claim: from evidence to a finding. `paper_claims` says which judges which.

Knows what its room knows.
"""
