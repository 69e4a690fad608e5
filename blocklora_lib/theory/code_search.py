"""The search for short codes of adapters, with and without a prior from half of the data.

A bound of `bounds.occam_bound` needs three numbers of a code: its bits, its wrong answers on the
sample, and the size of the sample. The search may look at the sample as often as it likes, since
only what a code says is paid for; what is scored is decoded from the code's bytes alone.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..adapters.config import AdapterConfig
from ..clip.backbone import Backbone
from ..core.devices import repeatable
from ..data.sampling import draw
from ..learning.contract import Context
from ..methods import get_method
from ..runs.profile import Profile
from ..runs.workbench import Workbench
from . import compression

# (whether each answer is right, cross-entropy) of the adapter that is now on
_Scorer = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Choice:
    """What a code says before its symbols: where adapters sit, k, L and Δ."""

    placement: AdapterConfig
    dimension: int
    levels: int
    scale: float

    @property
    def payload(self) -> float:
        """Bits of k symbols of L levels: what choices are ordered by."""
        return self.dimension * math.log2(self.levels)

    @property
    def universal_header(self) -> int:
        """Bits of a header for whatever could have been tried, and not for a declared space alone.

        Elias's (1975) gamma code of rank, k, L and ten times Δ, and a bit for each of q, k, v, o.
        """
        numbers = (self.placement.rank, self.dimension, self.levels, round(10 * self.scale))
        return 4 + sum(2 * number.bit_length() - 1 for number in numbers)

    def __str__(self) -> str:
        targets = "".join(self.placement.targets)
        return f"{targets} r={self.placement.rank}, k={self.dimension}, L={self.levels}"


@dataclass(frozen=True)
class Sample:
    """A data set's images that may be learnt from (train, then val) and its test images, as pixels.

    tokens: the prompts of its classes.
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Search:
    """Steps of Adam and sweeps of `compression.fit_symbols`, for which nothing is paid."""

    space: compression.CodeSpace
    steps: int = 150
    sweeps: int = 2
    seed: int = 1  # of the draw and the training of the half


def search_codes(
    bench: Workbench,
    profile: Profile,
    sets: Sequence[str],
    search: Search,
    tried: Sequence[Choice],
    smallest: Choice,
) -> list[dict[str, object]]:
    """Return a row for zero-shot, for each code that is tried, and for two with a prior from half.

    The last two of a set: Block-LoRA as the profile trains it, on half of the sample, scored on the
    rest; and the code `smallest` on top of it. Columns: dataset, setting, prior ("fixed beforehand"
    or "from the data"), bits (of the code), samples, wrong (of the sample), better and worse
    (images that it alone, or zero-shot alone, has right), test_error, and decodes: whether the
    code's bytes gave back the very same adapter (None without a code). With a progress bar.
    """
    from tqdm import tqdm

    backbone = bench.backbone(profile.backbone)
    other = copy.deepcopy(backbone)  # of the half
    rows, total = [], len(sets) * (len(tried) + 3)
    with repeatable(bench.place), tqdm(total=total, desc="codes", unit="code") as bar:
        for name in sets:
            sample = _sample(bench, backbone, name)
            drawn = _half(sample, bench.dataset(name).labels("train"), search.seed)
            model = _model(backbone, sample, torch.ones(len(sample.labels), dtype=torch.bool))
            found = itertools.chain(
                _fixed_beforehand(model, search, tried),
                _from_the_data(model, other, profile, sample, drawn, search, smallest),
            )
            for row in found:
                rows.append({"dataset": name, **row})
                bar.update()
    return rows


def _sample(bench: Workbench, backbone: Backbone, name: str) -> Sample:
    data: Any = bench.dataset(name)  # bundled: the images of a split are one tensor
    splits = [split for split in ("train", "val") if data.manifest.counts.get(split, 0)]
    images, labels = (torch.cat([of(s) for s in splits]) for of in (data.images, data.labels))
    tokens = backbone.tokenize(data.prompts)
    return Sample(images, labels, data.images("test"), data.labels("test"), tokens)


@dataclass(frozen=True)
class _Model:
    """What scores the adapter that is now on a backbone: on some sampled, and the test images."""

    backbone: Backbone
    sampled: _Scorer
    test: _Scorer
    zero_shot: Tensor  # its right answers on the sampled

    def score(self) -> tuple[int, Tensor]:
        right, loss = self.sampled()
        return int((~right).sum()), loss

    @torch.no_grad()
    def row(self, setting: str, prior: str, bits: int = 0) -> dict[str, object]:
        right, test = self.sampled()[0], self.test()[0]
        found = {"setting": setting, "prior": prior, "bits": bits, "samples": len(right)}
        found |= {"wrong": int((~right).sum()), "better": int((right & ~self.zero_shot).sum())}
        found |= {"worse": int((self.zero_shot & ~right).sum())}
        return found | {"test_error": int((~test).sum()) / len(test)}


def _model(
    backbone: Backbone, sample: Sample, chosen: Tensor, zero_shot: Tensor | None = None
) -> _Model:
    """Return what scores on the chosen images of the sample; features are computed once.

    zero_shot: its right answers there; None: what the backbone has right as it is now.
    """
    sampled = _scorer(backbone, sample.tokens, sample.images[chosen], sample.labels[chosen])
    test = _scorer(backbone, sample.tokens, sample.test_images, sample.test_labels)
    if zero_shot is None:
        with torch.no_grad():
            zero_shot = sampled()[0]
    return _Model(backbone, sampled, test, zero_shot)


def _scorer(backbone: Backbone, tokens: Tensor, images: Tensor, labels: Tensor) -> _Scorer:
    with torch.no_grad():
        parts = [backbone.encode_images(backbone.preprocess(part)) for part in images.split(250)]
    features = torch.cat(parts)
    labels = labels.to(features.device)

    def score() -> tuple[Tensor, Tensor]:
        scores = backbone.logit_scale * features @ backbone.encode_prompts(tokens).T
        return scores.argmax(1) == labels, cross_entropy(scores, labels)

    return score


def _fixed_beforehand(
    model: _Model, search: Search, tried: Sequence[Choice]
) -> Iterator[dict[str, object]]:
    yield {**model.row("zero-shot", "fixed beforehand"), "decodes": None}
    for choice in tried:
        yield _code(model, search, choice, str(choice), "fixed beforehand")


def _code(
    model: _Model, search: Search, choice: Choice, setting: str, prior: str
) -> dict[str, object]:
    """Find symbols, write the code to bytes, and score what is decoded from the bytes alone."""
    where, levels, scale, space = choice.placement, choice.levels, choice.scale, search.space
    coded = compression.CodedAdapters(model.backbone.model, where, choice.dimension, space.seed)
    symbols, best = compression.fit_symbols(
        coded, levels, scale, model.score, search.steps, sweeps=search.sweeps
    )
    coded.close()
    described = compression.AdapterCode(where, levels, scale, tuple(symbols.tolist()))
    code = compression.decode(compression.encode(described, space), space)
    again = compression.restore(code, space, model.backbone.model)
    row = model.row(setting, prior, compression.code_length_bits(code, space))
    again.close()
    return {**row, "decodes": row["wrong"] == best[0] and code == described}


def _half(sample: Sample, train: Tensor, seed: int) -> Tensor:
    """Return half of the images of each class, of the train split, which the sample begins with."""
    return draw(train, int(sample.labels.bincount().min()) // 2, seed)


def _from_the_data(
    whole: _Model,
    other: Backbone,
    profile: Profile,
    sample: Sample,
    drawn: Tensor,
    search: Search,
    smallest: Choice,
) -> Iterator[dict[str, object]]:
    """Train on all but the images that are drawn, and score on these."""
    backbone = whole.backbone
    rest = torch.zeros(len(sample.labels), dtype=torch.bool).index_fill(0, drawn, True)
    shots = len(drawn) // len(sample.tokens)
    entry = profile.entry("block_lora")
    images, training = backbone.resize(sample.images[~rest]), profile.training_of(entry)
    labels = sample.labels[~rest].to(images.device)
    context = Context(backbone, sample.tokens, images, labels, training, shots, search.seed)
    method = get_method(entry.registry_name)
    predictor = method(method.Settings.model_validate(entry.settings)).fit(context)
    with predictor.inference():  # W + ΔW, in a model of their own
        other.model.load_state_dict(dict(backbone.model.named_parameters()), strict=False)
    predictor.close()
    zero_shot = whole.zero_shot[rest.to(whole.zero_shot.device)]
    model = _model(other, sample, rest, zero_shot)
    yield {**model.row("half: Block-LoRA", "from the data"), "decodes": None}
    yield _code(model, search, smallest, f"half + {smallest}", "from the data")
