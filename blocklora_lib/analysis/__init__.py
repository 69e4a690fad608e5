"""From frames of records to frames of summaries: means, intervals, tests.

Knows runs' frames. Nothing here draws; no torch.
"""
