"""The judge of what lies beyond CLIP and beyond few-shot classification."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...analysis.comparisons import OverSets, difference_by_set, over_sets, several
from ...analysis.intervals import Interval, Question, together
from ...analysis.summaries import own_images
from ...display.tables import shots_of
from ...runs.results import MissingResults
from ..evidence import Evidence
from ..verdict import Finding
from .accuracy import MARGIN, UNFAIR, no_worse, own_rates, side_by_side, trained_shots
from .words import points, smallest

if TYPE_CHECKING:
    from pandas import DataFrame

FAMILIES = {"sigmoid": "a model of a sigmoid loss", "captioner": "a captioner"}
TASKS = {"retrieval": "retrieval of texts by images", "texts": "classification of texts"}
WAY_BACK = "text to image, first 1"  # of retrieval: asked, not trained


def beyond_clip(e: Evidence) -> Finding:
    """C15: in each other family and task Block-LoRA learns, and is not worse than LoRA.

    It learns where it is above zero-shot on what it was trained for; it is not worse where it is at
    most a point below LoRA, in a task on new classes too. Units are a family's sets (variants share
    what was trained on their source), and the draws of a task, which has one set to train on.
    """
    asked: list[tuple[Interval, Question]] = []
    told: dict[str, str] = {}
    missing = []
    for experiment, what in (FAMILIES | TASKS).items():
        try:
            runs = e.runs(experiment)
            shots = trained_shots(runs)[-1]
            runs = runs[runs["shots"].isin([0, shots])]
            side_by_side(runs, ["evaluated_on", "seed"], ["block_lora", "lora"])  # or refuse
            if "zero_shot" not in set(runs["method"]):
                raise MissingResults(
                    f"no run of zero_shot in {experiment} to compare with; list it in the profile, "
                    "then make the runs with `blocklora grid`, failed ones again with "
                    "`--retry-failed`"
                )
        except MissingResults as lacking:
            missing.append(lacking)
            continue
        own, family = own_images(runs), experiment in FAMILIES
        to_lora = _differences(own if family else runs, "lora", family)
        learnt = _differences(own, "zero_shot", family)
        asked += [(d, no_worse) for d in to_lora.values()]
        asked += [(d, Interval.above) for d in learnt.values()]
        units = "sets" if family else "draws"
        told[experiment] = (
            f"{what.capitalize()}, {shots_of(shots)}: minus LoRA {_listed(to_lora)}, minus "
            f"zero-shot {_listed(learnt)}, over {_rests_on(units, to_lora, learnt)}."
        )
        if WAY_BACK in own:
            back = _differences(own.assign(accuracy=own[WAY_BACK]), "zero_shot", family)
            told[experiment] += f" The way back, which is not trained: {_listed(back)}."
    holds = together(*asked) if asked else None
    if missing and holds is not False:  # what is there does not settle it
        raise missing[0]
    fair = own_rates(e, "block_lora", "lora")
    rates = f" Rates were chosen for classification by {e.profile.backbone.name}."
    return Finding(
        holds if fair else None,
        f"'Works': above zero-shot where it is trained, and at most {MARGIN:.0f} point below LoRA. "
        f"{' '.join(told.values())}{rates if fair else UNFAIR} No generation, no model beyond "
        "these two kinds.",
        smallest=smallest(*(d for d, _ in asked)),
        but=f"{_counted(len(told.keys() & FAMILIES), 'family', 'families')} and "
        f"{_counted(len(told.keys() & TASKS), 'task', 'tasks')}, all small",
    )


def _rests_on(units: str, *found: dict[str, OverSets]) -> str:
    each = (several(d.n, d.expected, units) for by_set in found for d in by_set.values())
    return ", then ".join(dict.fromkeys(each))


def _differences(runs: DataFrame, rival: str, over: bool) -> dict[str, OverSets]:
    """Block-LoRA minus the rival in points: over the sets, or over the seeds of each set."""
    by_set = difference_by_set(runs, "block_lora", rival)
    if over:
        return {"": over_sets(by_set)}
    return {
        r.evaluated_on: OverSets(r.mean, r.low, r.high, r.n, expected=r.expected)
        for r in by_set.itertuples()
    }


def _counted(n: int, one: str, more: str) -> str:
    return f"{('no', 'one', 'two')[n]} other {one if n == 1 else more}"


def _listed(found: dict[str, OverSets]) -> str:
    return "; ".join(points(d) + f" on {name}" * (len(found) > 1) for name, d in found.items())
