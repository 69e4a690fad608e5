"""Runs beside published numbers: each value with its source, how it was read, and the difference to
ours.

Only for a profile that says `published: true`; for any other nothing is read and nothing is shown.
Sources that contradict each other stand as rows of their own and are never averaged. No torch.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Literal

import pandas as pd

from ..adapters.config import AdapterConfig
from ..analysis.summaries import AVERAGE
from ..core.paths import PUBLISHED, bundled
from ..methods import get_method
from ..runs.experiment import MethodEntry
from ..runs.profile import Profile
from ..runs.results import MissingResults

Setting = Literal["few_shot", "cross_dataset", "domain_generalization"]
COLUMNS = (
    "method",
    "setting",
    "target_dataset",
    "shots",
    "backbone",
    "accuracy",
    "source",
    "how_read",
)
# our method -> how the published rows of the same method are named
ZERO_SHOT = r"CLIP(/CuPL)? zero-shot"
CLIP_LORA = r"CLIP-LoRA"
LINEAR_PROBE = r"Linear prob(e|ing)"
COMPARED = [  # columns of a comparison
    "dataset",
    "shots",
    "method",
    "method_label",
    "mean",
    "low",
    "high",
    "n",
    "expected",
    "complete",
    "published_method",
    "published",
    "published_error",
    "difference",
    "difference_low",
    "difference_high",
    "interval_covers",
    "source",
    "how_read",
    "note",
]


def read_published(path: Path = PUBLISHED) -> pd.DataFrame:
    """Return the published accuracies (%), with `error`: by how many points a value may be off as
    read.

    A digitised value is off by what its note estimates, or by the largest such estimate if it was
    computed from others; a printed one by half a unit of the last decimal that its source prints.
    """
    if not bundled(path).is_file():
        raise MissingResults(f"published numbers are missing: {path}; restore the file from git")
    rows = pd.read_csv(path, dtype={"accuracy": str}, keep_default_na=False)
    if missing := [c for c in (*COLUMNS, "metric_note") if c not in rows.columns]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; restore the file from git")
    rows["shots"] = pd.to_numeric(rows["shots"])  # empty: not stated
    decimals = (
        rows["accuracy"].str.partition(".")[2].str.len().groupby(rows["source"]).transform("max")
    )
    stated = rows["metric_note"].str.extract(r"est\. error \+-([\d.]+)")[0].astype(float)
    digitised = rows["how_read"].str.contains("digitised")
    rows["error"] = (0.5 * 10.0**-decimals).mask(digitised, stated.fillna(stated.max()))
    rows["accuracy"] = rows["accuracy"].astype(float)
    return rows


def counterparts(profile: Profile) -> dict[str, str]:
    """Return, for each of the profile's methods that others published, a pattern of its published
    name.

    CLIP-LoRA is LoRA of rank 2 on q, k, v of both towers, or Block-LoRA of one block of that rank.
    A method without adapters is published under its label, re-runs by others included; variants of
    it are not.
    """
    varied = (e for x in profile.experiments.values() for e in profile.methods_of(x))
    found = {entry.name: _counterpart(profile, entry) for entry in (*profile.methods, *varied)}
    return {name: pattern for name, pattern in found.items() if pattern}


def _counterpart(profile: Profile, entry: MethodEntry) -> str | None:
    if not get_method(entry.registry_name).trains:  # of an ensemble of prompts nothing is published
        return ZERO_SHOT if entry.registry_name == "zero_shot" else None
    config = entry.adapter_config()
    if config is None:
        if entry.name != entry.registry_name:
            return None  # a variant
        label = re.escape(get_method(entry.name).label)
        found = LINEAR_PROBE if entry.name == "linear_probe" else label
        # in brackets stands who ran it again; a user's CoOp of (M=4, ..) is a variant
        return rf"{found}( \((?!M=).*| CLIP)?$"
    as_theirs = profile.training_of(entry) == profile.training  # a rate chosen for it is not theirs
    known = entry.registry_name in ("lora", "block_lora") and as_theirs
    if not known or config.n_blocks > 1:
        return None
    one_block = {
        "kind": "lora",
        "reading": "total_rank",
    }  # with one block, kind and reading are names only
    theirs = AdapterConfig(kind="lora", rank=2).model_dump()
    return CLIP_LORA if config.model_dump() | one_block == theirs else None


def same_method(
    ours: pd.DataFrame, setting: Setting, profile: Profile, path: Path = PUBLISHED
) -> pd.DataFrame:
    """Return COMPARED: every cell of ours beside each published value of the same method, or beside
    none.

    ours: dataset (evaluated), method, method_label, shots, mean, low, high (%), n, as
    `few_shot_summary` makes it. A cell for which nothing is published has one row, without a
    published value.
    """
    if not profile.published:
        return pd.DataFrame(columns=COMPARED)
    known, named = _known(setting, profile, path, own=True), counterparts(profile)
    parts = []
    for method, cells in _cells(ours, known, setting, profile).groupby("method", sort=False):
        pattern = named.get(method)
        theirs = known[known["method"].str.match(pattern)] if pattern else known.iloc[:0]
        parts.append(
            cells.merge(theirs, on=["key", "shots"], how="left", suffixes=("", "_published"))
        )
    return _differences(pd.concat(parts, ignore_index=True))


def other_methods(
    ours: pd.DataFrame,
    setting: Setting,
    profile: Profile,
    method: str = "block_lora",
    path: Path = PUBLISHED,
) -> pd.DataFrame:
    """Return COMPARED: `method`'s cells beside every trained method that others published for that
    cell.

    A published method whose shots are not stated is listed without a difference.
    """
    if not profile.published or method not in set(ours["method"]):
        return pd.DataFrame(columns=COMPARED)
    known = _known(setting, profile, path)
    known = known[~known["method"].str.match(ZERO_SHOT)]
    cells = _cells(ours[ours["method"] == method], known, setting, profile)
    both = cells.merge(known, on=["key", "shots"], suffixes=("", "_published"))
    names = cells.drop_duplicates("key")[["key", "dataset", "method", "method_label"]]
    unstated = names.merge(known[known["shots"].isna()], on="key", suffixes=("", "_published"))
    return _differences(pd.concat([both, unstated], ignore_index=True))


def _known(setting: Setting, profile: Profile, path: Path, own: bool = False) -> pd.DataFrame:
    """Return the published rows of a setting on the profile's backbone, with the key of their set.

    own: and of few-shot learning what is the same quantity in every setting, zero-shot and the
    source itself.
    """
    rows = read_published(path)
    rows = rows.assign(key=rows["target_dataset"].map(_plain))
    backbone = _plain(profile.backbone.name.removesuffix("-quickgelu"))
    chosen = rows["setting"] == setting
    if own:
        source = rows["key"] == _plain(profile.source or "")
        chosen |= (rows["setting"] == "few_shot") & ((rows["shots"] == 0) | source)
    return rows[chosen & (rows["backbone"].map(_plain) == backbone)]


def _cells(
    ours: pd.DataFrame, known: pd.DataFrame, setting: Setting, profile: Profile
) -> pd.DataFrame:
    """Return ours with the key of each set. An average over other sets than theirs is another
    quantity.
    """
    sets = set(ours["dataset"]) - {AVERAGE} - (set() if setting == "few_shot" else {profile.source})
    average = f"average{len(sets)}"
    whole = average in set(known["key"]) and {_plain(name) for name in sets} <= set(known["key"])
    cells = ours if whole else ours[ours["dataset"] != AVERAGE]
    keys = [average if name == AVERAGE else _plain(name) for name in cells["dataset"]]
    return cells.assign(key=keys, shots=cells["shots"].astype(float))


def _plain(name: str) -> str:
    """Return a name's letters and digits: 'oxford_pets' and 'OxfordPets' are one set."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _differences(rows: pd.DataFrame) -> pd.DataFrame:
    """Add ours minus published, with an interval: that of our seeds, widened by the error of
    reading.

    The error of reading is a bound, the same for every repetition, so it is added and not pooled.
    What the published number itself varies by over seeds is stated by no source and is not in the
    interval.
    """
    half = ((rows["high"] - rows["low"]) / 2).mask(
        rows["shots"] == 0, 0.0
    )  # nothing is drawn: no spread
    rows = rows.rename(
        columns={"accuracy": "published", "error": "published_error", "metric_note": "note"}
    )
    rows["difference"] = rows["mean"] - rows["published"]
    reach = half + rows["published_error"]
    rows["difference_low"], rows["difference_high"] = (
        rows["difference"] - reach,
        rows["difference"] + reach,
    )
    rows["interval_covers"] = [
        _covered(*row) for row in zip(half, rows["published_error"], rows["shots"], strict=True)
    ]
    rows = rows.rename(columns={"method_published": "published_method"})
    text = ["published_method", "source", "how_read", "note"]
    rows[text] = rows[text].fillna("")
    rows.loc[rows["published"].isna(), "source"] = "none published"
    return rows.reindex(columns=COMPARED)


def _covered(half: float, error: float, shots: float) -> str:
    if math.isnan(error):
        return ""
    if math.isnan(half):
        return "no interval: fewer than two seeds of ours"
    return ("" if shots == 0 else "our seeds, ") + f"their reading ±{error:g}"


def cited(source: str) -> str:
    """Return a source in short: repository and commit, or the number of an issue."""
    if found := re.match(r"[\w.-]+/([\w.-]+@\w+)", source):
        return found[1]
    found = re.search(r"github\.com/[\w.-]+/([\w.-]+)/(issue|pull)s?/(\d+)", source)
    return f"{found[1]} {found[2]} {found[3]}" if found else source


def read_as(how_read: str, error: float) -> str:
    """Return how a value was read in short, with its error where reading added one."""
    how = how_read.partition(":")[0].removeprefix("read ")
    return f"{how}, ±{error:g}" if "digitised" in how else how
