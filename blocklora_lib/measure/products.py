"""The matrix products that a training step cannot do without, and the time they take alone.

The minimal step: prompts without padding (and the common prefix once, if shared), the last block
for the pooled token alone, no gradient of frozen weights, none below the first adapted layer,
adapters in the order (x A) B with the A of q, k, v side by side. A frozen product of T tokens is m
x k times k x n. Attention products are batches of L x L per head, the half that a causal mask would
spare included. Counted from the architecture alone: nothing is run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from ..clip.architectures import ClipArchitecture, Tower
from ..layers.frozen import frozen_linear
from .timing import median_interval

GROUPS = ("frozen", "attention", "adapters")


@dataclass(frozen=True)
class Product:
    """batch times (m x k)(k x n). transposed: the right factor lies n x k, as in linear layers."""

    group: str
    m: int
    k: int
    n: int
    batch: int = 1
    transposed: bool = True

    @property
    def flops(self) -> int:
        """Two for each multiply-add."""
        return 2 * self.batch * self.m * self.k * self.n

    def prepared(self, device: torch.device) -> Callable[[], Tensor]:
        """Return a function that computes it on numbers of its own, by the step's kernel."""
        if self.batch > 1:
            left = torch.randn(self.batch, self.m, self.k, device=device)
            right = torch.randn(self.batch, self.k, self.n, device=device)
            return lambda: torch.bmm(left, right)
        left = torch.randn(self.m, self.k, device=device)
        weight = torch.randn(self.n, self.k, device=device)
        right = weight.t() if self.transposed else torch.randn(self.k, self.n, device=device)
        if self.group == "adapters":
            return lambda: torch.mm(left, right)
        return lambda: frozen_linear(left, right.t())


def step_products(
    architecture: ClipArchitecture,
    lengths: Sequence[int],
    images: int,
    prefix: int = 0,
    rank: int = 1,
) -> Counter[Product]:
    """Return {product: how often} of one step, adapters on q, k, v of every block of both towers.

    lengths: tokens of each prompt, end of text included; prefix: so many first tokens are encoded
    once for all (0: for each prompt); rank: width of the adapter's bottleneck, r/n for Block-LoRA.
    """
    vision, text = architecture.vision, architecture.text
    rows = sum(lengths) - prefix * (len(lengths) - 1)
    shapes = Counter((length - prefix, length) for length in lengths)  # queries, keys of attention
    if prefix:
        shapes[prefix, prefix] += 1
    alike = Counter({(vision.tokens, vision.tokens): images})
    found = _tower(vision, images * vision.tokens, alike, Counter({vision.tokens: images}), rank)
    patches = images * (vision.tokens - 1)
    found[Product("frozen", patches, vision.inputs, vision.width)] += 1
    found += _tower(text, rows, shapes, Counter(lengths), rank)
    e = vision.embed_dim
    found[Product("frozen", images, e, len(lengths))] += 1  # cosines, and backward to both towers
    found[Product("frozen", images, len(lengths), e, transposed=False)] += 1
    found[Product("frozen", len(lengths), images, e, transposed=False)] += 1
    return found


def _tower(
    tower: Tower, rows: int, shapes: Counter[tuple[int, int]], lengths: Counter[int], rank: int
) -> Counter[Product]:
    """Blocks and the projection to the embedding.

    shapes: {(queries, keys): sequences} of attention; lengths: {keys: sequences} of the last
    block's.
    """
    t, e, m, last = rows, tower.width, tower.mlp_width, tower.layers - 1
    deeper, pooled = min(last, 1), sum(lengths.values())
    found: Counter[Product] = Counter()

    def linear(height: int, k: int, n: int, times: int, backward: int) -> None:
        """x Wᵀ, and as often as asked ∂L/∂x = g W."""
        found[Product("frozen", height, k, n)] += times
        found[Product("frozen", height, n, k, transposed=False)] += backward

    # blocks but the last: the first one sends no gradient below its adapters
    if last:
        linear(t, e, 3 * e, last, last - 1)
        for k, n in ((e, e), (e, m), (m, e)):
            linear(t, k, n, last, last)
    # the last: keys and values of all tokens, the rest for the pooled one
    linear(pooled, e, e, 1, deeper)
    linear(t, e, 2 * e, 1, deeper)
    for k, n in ((e, e), (e, m), (m, e)):
        linear(pooled, k, n, 1, 1)
    linear(pooled, e, tower.embed_dim, 1, 1)
    head = e // tower.heads
    for (queries, keys), sequences in shapes.items():
        for product in _attention(sequences * tower.heads, queries, keys, head):
            found[product] += last
    for keys, sequences in lengths.items():
        for product in _attention(sequences * tower.heads, 1, keys, head):
            found[product] += 1
    found += _adapters(t, e, 3 * rank, last, last - 1)
    found += _adapters(pooled, e, rank, 1, deeper) + _adapters(t, e, 2 * rank, 1, deeper)
    return +found


def _attention(batch: int, queries: int, keys: int, head: int) -> list[Product]:
    """q kᵀ and weights times v; backward, two for each."""
    scores = Product("attention", queries, head, keys, batch)
    mixed = Product("attention", queries, keys, head, batch)
    to_keys = Product("attention", keys, queries, head, batch)  # ∂L/∂k, ∂L/∂v
    return [scores, mixed, scores, mixed, to_keys, to_keys]


def _adapters(rows: int, e: int, width: int, layers: int, below: int) -> Counter[Product]:
    """h = x A and h B in so many layers; backward ∂L/∂B, ∂L/∂h, ∂L/∂A, and ∂L/∂x in those `below`.

    width: the bottlenecks of the adapters that are taken together.
    """
    return Counter(
        {
            Product("adapters", rows, e, width): layers,
            Product("adapters", rows, width, e): layers,
            Product("adapters", rows, e, width, transposed=False): layers,
            Product("adapters", e, rows, width, transposed=False): 2 * layers,
            Product("adapters", rows, width, e, transposed=False): max(below, 0),
        }
    )


def squares(sides: Sequence[int]) -> dict[str, Product]:
    """Large square products: the most that the machine's matrix products reach."""
    return {f"square {side}": Product("square", side, side, side) for side in sides}


def roofline(
    seconds: pd.DataFrame,
    products: Mapping[str, tuple[Product, int]],
    step: str,
    tops: Mapping[str, Product],
) -> pd.DataFrame:
    """Return how near a step comes to its products alone: a row a group, added from the top.

    seconds: a row a round, a column each product, square, and the step. Columns: products (the
    groups taken), gflop, step_seconds, seconds_alone, step_rate and alone_rate (GFLOP/s), best_rate
    (of the squares), share = seconds_alone / step_seconds with its interval over the rounds, and
    share_of_best = step_rate / best_rate.
    """
    rows, taken = [], []
    rates = pd.concat([p.flops / seconds[name] for name, p in tops.items()], axis=1)
    best = rates.max(axis=1).median() / 1e9
    for group in GROUPS:
        taken.append(group)
        chosen = {name: (p, times) for name, (p, times) in products.items() if p.group in taken}
        alone = sum(seconds[name] * times for name, (_, times) in chosen.items())
        gflop = sum(p.flops * times for p, times in chosen.values()) / 1e9
        share, (low, high) = alone / seconds[step], median_interval(alone / seconds[step])
        rate = (gflop / seconds[step]).median()
        rows.append(
            {"products": " + ".join(taken), "gflop": gflop}
            | {"step_seconds": seconds[step].median(), "seconds_alone": alone.median()}
            | {"step_rate": rate, "alone_rate": (gflop / alone).median(), "best_rate": best}
            | {"share": share.median(), "share_low": low, "share_high": high}
            | {"share_of_best": rate / best, "rounds": len(seconds)}
        )
    return pd.DataFrame(rows)
