"""The price of a leak: what Tip-Adapter-F seems to gain when epoch and grid are chosen on test.

Its released code takes the epoch that is best on the test set (gaopengcuhk/Tip-Adapter@d0e2d6f
main.py; its author says so in issue 11), and on ImageNet searches α and β there. These accuracies
are no results: no record holds them, and no ranking has them.

Where validation images are few, or of other kinds than the test images, much of the gain is what
better ones would have gained: Chess has 24, of two sets of pieces, which are in neither train nor
test.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ..core.devices import repeatable
from ..runs.contexts import run_context
from ..runs.record import RunRecord
from ..runs.workbench import Workbench

METHOD = "tip_adapter_f"


def price_of_test_choice(records: Iterable[RunRecord], bench: Workbench) -> pd.DataFrame:
    """Train each Tip-Adapter-F again, and look at the test images after every epoch.

    Columns: dataset, shots, seed; accuracy, of the last epoch and of α and β that validation
    images chose, as its record has it; epoch, of the best epoch at these; both, of the best epoch
    and the best α and β of the grid (0 to 1). Rate, α and β that validation chose are the record's.
    """
    return pd.DataFrame([_looked_at(record, bench) for record in records])


def _looked_at(record: RunRecord, bench: Workbench) -> dict[str, Any]:
    result: Any = record.result  # of a run that is done
    spec, method = record.spec, record.spec.method.load()
    context = run_context(spec, bench, bench.check(spec))
    dataset = bench.dataset(spec.dataset)
    labels = dataset.labels("test").to(context.backbone.device)
    with repeatable(context.backbone.device, spec.deterministic, spec.backbone.tf32):
        test = bench.features.features(context.backbone, bench.source(dataset, "test"))
        prompts = context.prompts(context.tokens)
        picked = result.choice.settings if result.choice else {}
        one = {name: getattr(method.settings, name)[0] for name in method.settings.grid} | picked
        kept: list[Tensor] = []
        method.train(context, one["lr"], lambda step, keys: kept.append(keys.clone()))
        kept = kept[len(kept) // method.settings.epochs - 1 :: len(kept) // method.settings.epochs]

        def accuracies(betas: Iterable[float], alphas: Iterable[float]) -> Tensor:
            """(epochs, α x β)"""
            rows = []
            for keys in kept:
                score = method.scores(context, keys)
                answers = [score(b, a)(test, prompts).argmax(-1) for b in betas for a in alphas]
                rows.append((torch.stack(answers) == labels).float().mean(-1))
            return torch.stack(rows)

        at_choice = accuracies([one["beta"]], [one["alpha"]])[:, 0]
        everywhere = accuracies(method.settings.beta, method.settings.alpha)
    return {
        "dataset": spec.dataset,
        "shots": spec.shots,
        "seed": spec.seed,
        "accuracy": at_choice[-1].item(),
        "epoch": at_choice.max().item(),
        "both": everywhere.max().item(),
    }
