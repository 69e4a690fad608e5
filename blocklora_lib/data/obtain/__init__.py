"""How data sets get here: fetched, unpacked, checked, or imitated in miniature. Knows core and
data.
"""
