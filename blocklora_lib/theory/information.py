"""What a training tells of its sample, by the losses of pairs: a bound on its generalization gap.

A supersample is N pairs of images, and a fair coin U_i for each pair says which of the two is
trained on (Steinke and Zakynthinou 2020). Let ΔL_i be the 0-1 loss of image 1 less that of image 0
after training, and J a pair drawn evenly. The expected gap between the loss of those left out and
those trained on is

    E gap = E[(1 - 2 U_J) ΔL_J]  <=  sqrt(2 I(ΔL_J; U_J))  <=  sqrt(2 I(ΔL_J; U_J | J, supersample))

(Wang and Mao 2023): nothing is charged for a parameter. The last is the bound by conditional mutual
information; the coin depends on neither J nor the supersample, so that it is the looser one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..core.devices import repeatable
from ..core.seeding import generator
from ..data.sampling import draw
from ..learning.contract import Context
from ..methods import get_method
from ..runs.profile import Profile
from ..runs.workbench import Workbench


def loss_differences(
    bench: Workbench,
    profile: Profile,
    name: str,
    shots: int,
    supersamples: int,
    twice: int,
    methods: Sequence[str] = ("block_lora",),
) -> pd.DataFrame:
    """Train as the profile does on the tossed half of each pair; return the losses of both images.

    Supersample k: 2 x shots images of each class of the train split, drawn, paired and tossed for
    by seed k, which trains as well. The first `twice` of them are trained on with all coins turned
    over too, and by all methods; the others by the first one. Columns: method, supersample, pair, u
    (which image is trained on), difference (ΔL), member and left_out (their losses). With a
    progress bar.
    """
    from tqdm import tqdm

    if supersamples < 2:
        raise ValueError(
            f"supersamples={supersamples}; use at least 2, for the interval leaves one out"
        )
    rows, total = [], supersamples + twice * (2 * len(methods) - 1)
    with repeatable(bench.place), tqdm(total=total, desc="supersamples", unit="run") as bar:
        for seed in range(1, supersamples + 1):
            images, labels, context = _supersample(bench, profile, name, shots, seed)
            coins = torch.randint(2, labels.shape[:1], generator=generator(seed, "coins"))
            again = seed <= twice
            for method in methods if again else methods[:1]:
                for u in (coins, 1 - coins) if again else (coins,):
                    losses = _losses(context, profile, method, images, labels, u)
                    rows.append(_rows(method, seed, u, losses))
                    bar.update()
    return pd.concat(rows, ignore_index=True)


def _supersample(
    bench: Workbench, profile: Profile, name: str, shots: int, seed: int
) -> tuple[Tensor, Tensor, Context]:
    """Return pairs of images (N, 2, 3, H, W) and labels (N, 2), and what a training needs else."""
    backbone = bench.backbone(profile.backbone)
    data: Any = bench.dataset(name)  # bundled: the images of a split are one tensor
    chosen = draw(data.labels("train"), 2 * shots, seed)
    labels = data.labels("train")[chosen]
    order = labels.argsort(stable=True).view(-1, 2, shots).transpose(1, 2).reshape(-1, 2)
    images = data.images("train")[chosen][order]
    tokens = backbone.tokenize(data.prompts)
    context = Context(backbone, tokens, None, None, None, shots, seed)
    return images, labels[order], context


def _losses(
    context: Context, profile: Profile, method: str, images: Tensor, labels: Tensor, u: Tensor
) -> Tensor:
    """Train on image u of each pair; return the 0-1 losses of both, (N, 2)."""
    backbone, pair = context.backbone, torch.arange(len(u))
    given = backbone.resize(images[pair, u])
    entry = profile.entry(method)
    context = replace(
        context,
        images=given,
        labels=labels[pair, u].to(given.device),
        training=profile.training_of(entry),
    )
    fit = get_method(entry.registry_name)
    predictor = fit(fit.Settings.model_validate(entry.settings)).fit(context)
    with torch.inference_mode(), predictor.inference():
        seen = backbone.preprocess(images.flatten(0, 1))
        scores = predictor.logits(seen, predictor.classifier(context.tokens))
    predictor.close()
    return (scores.argmax(1).cpu() != labels.flatten()).int().view(-1, 2)


def _rows(method: str, seed: int, u: Tensor, losses: Tensor) -> pd.DataFrame:
    pair = torch.arange(len(u))
    columns = {"pair": pair, "u": u, "difference": losses[:, 1] - losses[:, 0]}
    columns |= {"member": losses[pair, u], "left_out": losses[pair, 1 - u]}
    return pd.DataFrame({k: v.numpy() for k, v in columns.items()}).assign(
        method=method, supersample=seed
    )


def information(differences: Sequence[int], u: Sequence[int]) -> float:
    """Return I(ΔL; U) of the shares that were counted, in nats."""
    joint = pd.crosstab(np.asarray(differences), np.asarray(u), normalize=True).to_numpy()
    alone = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    # of independent shares rounding leaves less than nothing
    return max(0.0, float((joint[seen] * np.log(joint[seen] / alone[seen])).sum()))


def given_the_supersample(runs: pd.DataFrame) -> float:
    """Return an estimate of I(ΔL_i; U_i | supersample) that is not too low on average, in nats.

    It takes the supersamples that were trained on twice; nan where there are none. Given a pair,
    each side of its coin was seen once: the information of these two counts is ln 2 where ΔL
    changed with the coin, else 0. It is jointly convex in the two laws of ΔL, and each count is an
    unbiased estimate of one, so that its mean is no lower than the information.
    """
    by_pair = runs.groupby(["supersample", "pair"])["difference"].agg(["nunique", "size"])
    return math.log(2) * float((by_pair.loc[by_pair["size"] == 2, "nunique"] > 1).mean())


def gap_bound(nats: float) -> float:
    """Return sqrt(2 I), the bound on the expected gap of a loss in [0, 1]."""
    return math.sqrt(2 * nats)


def error_bounds(runs: pd.DataFrame) -> dict[str, float]:
    """Return the errors of those trained on (member) and left out, and bounds on the latter.

    bound: by I(ΔL; U); conditional: given the supersample. Each is member plus `gap_bound`.
    """
    member, left_out = runs["member"].mean(), runs["left_out"].mean()
    nats = information(runs["difference"], runs["u"]), given_the_supersample(runs)
    bound, conditional = (float(member + gap_bound(each)) for each in nats)
    return {"member": member, "left_out": left_out, "bound": bound, "conditional": conditional}


def leave_one_out(runs: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield the runs without one supersample: these are independent, pairs of one are not."""
    for k in runs["supersample"].unique():
        yield runs[runs["supersample"] != k]
