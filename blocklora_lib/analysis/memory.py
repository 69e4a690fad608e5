"""Measured memory of the forms of a model, beside the base model's."""

from __future__ import annotations

import pandas as pd

MIB = 2**20


def above_base(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with how far weights and peak lie above the base's, in MiB.

    frame: batch, form (one of them "base"), weights_bytes, peak_bytes, a row for each repeat.
    Further columns: base_peak, the median of the base's repeats at that batch size, peak_above
    and weights_above.
    """
    base = frame[frame["form"] == "base"].groupby("batch")[["peak_bytes", "weights_bytes"]].median()
    peak, weights = (frame["batch"].map(base[column]) for column in base)
    return frame.assign(
        base_peak=peak / MIB,
        peak_above=(frame["peak_bytes"] - peak) / MIB,
        weights_above=(frame["weights_bytes"] - weights) / MIB,
    )
