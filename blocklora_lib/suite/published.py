"""A notebook's tables beside published numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from ..claims.published import Setting, other_methods, same_method

if TYPE_CHECKING:
    from .notebook import Notebook
from ..claims.published_tables import UNCERTAINTY, others_table, same_table


def beside_published(
    nb: Notebook, ours: pd.DataFrame, setting: Setting, titles: Mapping[str, str] | None = None
) -> None:
    """Export and show both tables of a notebook; nothing at all if its profile's numbers stand
    alone.

    ours: a summary as `tables.few_shot_summary` makes it, `dataset` being the set evaluated on.
    """
    if not nb.profile.published:
        return
    titles = dict(titles or {})
    same = same_method(ours, setting, nb.profile)
    text = (
        "Ours beside published values of the same method, top-1 accuracy (%). Sources that differ "
    )
    nb.table(same_table(same, titles), "published", f"{text}stand one by one. {UNCERTAINTY}")
    others = other_methods(ours, setting, nb.profile)
    if len(others):
        label = others["method_label"].iloc[0]
        text = f"{label} beside other methods as published, top-1 accuracy (%), and {label} minus "
        text += f"each, in points. {UNCERTAINTY}"
        nb.table(others_table(others, titles), "published_others", text)
