"""Tables of `published`: the same method value by value, and other methods in the layout of a
paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..analysis.summaries import AVERAGE
from ..display.tables import Table, booktabs, escape_latex, mean_cell
from .published import cited, read_as

UNCERTAINTY = (
    "± of a difference: the 95% interval of our mean over seeds, plus the error with which the "
    "published value was read or rounded; how that value varies over seeds is stated by no source."
)


def same_table(rows: pd.DataFrame, titles: Mapping[str, str]) -> Table:
    """Return a row for each value of `published.same_method`, then for each method without one."""
    heads = [
        "method",
        "shots",
        "set",
        "ours",
        "published",
        "difference",
        "as",
        "source",
        "read from",
    ]
    groups = []
    for label, part in rows[rows["published"].notna()].groupby("method_label", sort=False):
        groups.append(
            [
                [
                    label,
                    f"{row.shots:.0f}",
                    _title(row.dataset, titles),
                    mean_cell(row, 2),
                    _value(row),
                    _difference(row, 2),
                    row.published_method,
                    cited(row.source),
                    read_as(row.how_read, row.published_error),
                ]
                for row in _in_order(part, titles).itertuples()
            ]
        )
    groups.append(
        [
            [label, _listed(part["shots"]), _sets(part["dataset"], titles), "–", "none", *["–"] * 4]
            for label, part in rows[rows["published"].isna()].groupby("method_label", sort=False)
        ]
    )
    return _table(rows, heads, [group for group in groups if group], "lrlrrrlll")


def others_table(rows: pd.DataFrame, titles: Mapping[str, str]) -> Table:
    """Return, shots by shots, ours, then two rows a published method: its values, and ours minus
    them.

    rows: of `published.other_methods`. Columns: the sets, then their average.
    """
    sets = sorted(set(rows["dataset"]) - {AVERAGE}, key=lambda name: _title(name, titles).lower())
    sets += [AVERAGE] if AVERAGE in set(rows["dataset"]) else []
    label = rows["method_label"].iloc[0]
    groups = []
    for shots, block in rows.groupby("shots", dropna=False):
        unstated = math.isnan(shots)
        told = "not stated" if unstated else f"{shots:.0f}"
        own = {row.dataset: mean_cell(row) for row in block.itertuples()}
        group = (
            []
            if unstated
            else [[told, f"{label} (ours)", "", "", *(own.get(s, "–") for s in sets)]]
        )
        for (name, source), part in block.groupby(["published_method", "source"], sort=False):
            cells = {row.dataset: row for row in part.itertuples()}
            how = read_as(part["how_read"].iloc[0], part["published_error"].iloc[0])
            values = (_value(cells[s]) if s in cells else "–" for s in sets)
            group.append([told, name, cited(source), how, *values])
            if not unstated:
                apart = (_difference(cells[s], 1) if s in cells else "–" for s in sets)
                group.append([told, f"{label} minus {name}", "", "", *apart])
        groups.append(group)
    heads = ["shots", "method", "source", "read from", *(_title(name, titles) for name in sets)]
    return _table(rows, heads, groups, "rlll" + "r" * len(sets))


def _table(
    rows: pd.DataFrame, heads: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], align: str
) -> Table:
    shown = pd.DataFrame([row for group in groups for row in group], columns=list(heads))
    latex = [[[escape_latex(cell) for cell in row] for row in group] for group in groups]
    body = booktabs(
        [escape_latex(head) for head in heads], latex, f"@{{}}{align}@{{}}", "longtable"
    ).rstrip()
    small = r"{\scriptsize\setlength{\tabcolsep}{2pt}"
    wide = "% \\usepackage{longtable}; wide: meant for a landscape page\n"
    return Table(rows, shown, f"{wide}{small}\n{body}}}\n")


def _value(row: Any) -> str:
    # as many decimals as were read
    return f"{row.published:.{1 if row.published_error > 0.01 else 2}f}"


def _difference(row: Any, digits: int) -> str:
    if math.isnan(row.difference_low):
        return f"{row.difference:+.{digits}f}"
    half = (row.difference_high - row.difference_low) / 2
    shown = (
        f"{half:.{digits}f}" if half >= 10.0**-digits else f"{half:.1g}"
    )  # of rounding alone: not 0.00
    return f"{row.difference:+.{digits}f} ± {shown}"


def _title(name: str, titles: Mapping[str, str]) -> str:
    return titles.get(name, "Average" if name == AVERAGE else name)


def _in_order(rows: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Return rows by shots, then by set, the average last, then by source."""
    places = rows["dataset"].map(lambda name: (name == AVERAGE, _title(name, titles).lower()))
    return rows.assign(_place=places).sort_values(["shots", "_place", "source"], kind="stable")


def _listed(shots: pd.Series) -> str:
    return ", ".join(f"{k:.0f}" for k in sorted(set(shots)))


def _sets(names: pd.Series, titles: Mapping[str, str]) -> str:
    sets = sorted(set(names) - {AVERAGE})
    told = _title(sets[0], titles) if len(sets) == 1 else f"{len(sets)} sets" if sets else ""
    return " and ".join(filter(None, [told, "average" if AVERAGE in set(names) else ""]))
