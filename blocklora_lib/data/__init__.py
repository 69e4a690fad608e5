"""Datasets on disk: where they lie, items, checks, miniatures, downloads and draws.  No torch in here."""
