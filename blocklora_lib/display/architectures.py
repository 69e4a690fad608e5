"""The table of architectures: where adapters go in each family, and what was seen there."""

from __future__ import annotations

from typing import Any

import pandas as pd

from .tables import Table, plain


def architectures(frame: pd.DataFrame) -> Table:
    """Return a row for each tower of `measure.architectures`, whose columns say what they mean."""
    seen = frame.to_dict("records")
    errors = frame[["by_hand", "merged", "loaded"]].astype(float).max(axis=1, skipna=False)
    shown = {
        "family": frame["family"],
        "open_clip's config, tower": frame["config"] + ", " + frame["tower"],
        "adapters on": frame["where"].fillna("–"),
        "by": frame["how"],
        "with gradient, moved by a step": [_shares(row) for row in seen],
        "merged, loaded, by hand: largest error": ["–" if e != e else f"{e:.0e}" for e in errors],
        "all right": ["yes" if row["right"] is True else "no" for row in seen],
        "why attach refuses": frame["refusal"].replace("", "–"),
    }
    return Table(frame, (table := plain(pd.DataFrame(shown))).shown, table.latex)


def _shares(row: dict[str, Any]) -> str:
    if pd.isna(whole := row["adapters"]):
        return "–"
    return f"{row['gradients']:.0f}, {row['moved']:.0f} of {whole:.0f}"
