"""How data sets get here: fetched, unpacked, checked, or imitated. Knows core and data."""
