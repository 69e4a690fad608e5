"""Closed forms of what whole towers cost in a training step, weights and adapters. No torch.

A step is forward through both towers, cosine logits, and backward to the adapters. A frozen
projection y = x Wᵀ needs ∂L/∂x = g W in backward, one product, and no gradient of W; nothing at all
below the first adapted layer, f. For N sequences of L tokens (T = N L), width E, MLP width M, one
block forward is

    4 T E²  (q, k, v, o)   +   2 T E M  (MLP)   +   2 N L² E  (q kᵀ, and the weights times v)

and its backward costs the projections and the MLP again and the attention products twice. Layer f
itself sends no gradient below: its q, k, v projections are not run backwards.

`towers.py` runs less than a whole tower, and this is counted as run: text stops at the end of each
prompt (here prompts have one length; with several, the parts of each length add up), and the last
block computes one query and one output a sequence. So are adapters "as executed": `attention.py`
takes the m adapters of q, k, v together, their A side by side (T c m b) and their B as a block
diagonal (T m b · 3 E), m times as wide as three separate products would need when m = 3; in the
last block q apart, k and v together.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..adapters.config import AdapterConfig
from ..clip.architectures import ClipArchitecture, Tower
from .adapter import ALONE, backward_multiply_adds, forward_multiply_adds, shared_width, trains_a
from .ways import Order


@dataclass(frozen=True)
class Work:
    """Multiply-adds of a part of a step."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.forward + other.forward, self.backward + other.backward)

    @property
    def total(self) -> int:
        """Multiply-adds of both passes."""
        return self.forward + self.backward


def frozen_work(
    tower: Tower, config: AdapterConfig, sequences: int, tokens: int | None = None
) -> Work:
    """Multiply-adds of frozen weights and of attention, backward down to the first adapted layer.

    tokens: of a sequence as run, at most tower.tokens (a prompt stops at its end of text).
    """
    n, length, e = sequences, _length(tower, tokens), tower.width
    adapted = tower.adapted_layers(config)
    first = adapted[0] if adapted else tower.layers  # no adapters: no gradient anywhere
    pixels = n * (tower.tokens - 1) * tower.inputs * e if tower.kind == "vision" else 0
    head = n * e * tower.embed_dim
    work = Work(pixels + head, head if adapted else 0)
    for layer in range(tower.layers):
        work += _block(tower, n, length, config.targets, layer, first)
    return work


def whole_work(tower: Tower, sequences: int, tokens: int | None = None, shared: int = 0) -> Work:
    """As `frozen_work`, backward through every block: what is trained stands at the tower's input,
    or in a norm of its first block.

    shared: so many tokens at the beginning are the same in all sequences, and are run once.
    """
    n, length, e = sequences, _length(tower, tokens), tower.width
    pixels = n * (tower.tokens - 1) * tower.inputs * e if tower.kind == "vision" else 0
    work = Work(pixels + n * e * tower.embed_dim, n * e * tower.embed_dim)
    for layer in range(tower.layers):
        work += _block(tower, n, length, (), layer, -1, shared)
    return work


def _block(
    tower: Tower,
    n: int,
    length: int,
    targets: tuple[str, ...],
    layer: int,
    first: int,
    shared: int = 0,
) -> Work:
    """One block: q, k, v, attention, o, MLP. The last has one query and one output a sequence."""
    t, e, last = n * (length - shared) + shared, tower.width, layer == tower.layers - 1
    rows = n if last else t
    projections, out, mlp = (rows + 2 * t) * e * e, rows * e * e, 2 * rows * e * tower.mlp_width
    # of attention: q kᵀ, or its weights times v; what is shared sees itself alone
    product = (n * (1 if last else length - shared) * length + (0 if last else shared**2)) * e
    forward = projections + out + mlp + 2 * product
    if layer < first:
        return Work(forward, 0)
    if layer > first:
        return Work(forward, projections + out + mlp + 4 * product)
    q, kv = "q" in targets, bool({"k", "v"} & set(targets))
    if not last:  # there q, k and v are one tensor
        q = kv = q or kv
    # gradient of the weights of attention, then of q, and of k and v, which are one tensor
    return Work(forward, mlp + out * (q or kv) + product * ((q or kv) + q + 2 * kv))


def adapter_work(
    tower: Tower,
    config: AdapterConfig,
    sequences: int,
    tokens: int | None = None,
    order: Order = "sum_first",
) -> Work:
    """Multiply-adds of all adapters of a tower: what an adapted step costs more than a frozen one.

    "sum_first" is as the library executes it, neighbours among q, k, v together; in any other
    order, and of a kind in ALONE, each adapter is by itself.
    """
    n, length = sequences, _length(tower, tokens)
    adapted = tower.adapted_layers(config)
    fused = order == "sum_first" and config.kind not in ALONE
    work = Work()
    for layer in adapted:
        deeper, last = layer > adapted[0], layer == tower.layers - 1
        for group, queries in projected_together(last) if fused else ():
            if m := len(set(group) & set(config.targets)):
                work += _fused(
                    config, tower.width, n if queries else n * length, m, len(group), deeper
                )
        for target in ("o",) if fused else "qkvo":
            if target in config.targets:
                rows = n if last and target in "qo" else n * length
                # the context that o sees has a gradient as soon as q, k or v has an adapter
                needs = deeper or (target == "o" and len(config.targets) > 1)
                size = (config, tower.width, tower.width, rows, order)
                work += Work(forward_multiply_adds(*size), backward_multiply_adds(*size, needs))
    return work


def projected_together(last: bool) -> tuple[tuple[str, bool], ...]:
    """Return the targets whose projections are one product, and whether it is of queries alone."""
    return (("q", True), ("kv", False)) if last else (("qkv", False),)


def _fused(
    config: AdapterConfig, e: int, rows: int, m: int, parts: int, x_needs_grad: bool
) -> Work:
    """h = x [A_q A_k A_v], T c m b, and h times the block diagonal of the Σ B_i, T m b · 3 E.

    m: adapters; parts: projections side by side, of E each.
    """
    b, c, a = config.block_rank, shared_width(config, e), trains_a(config)
    down, up = rows * c * m * b, rows * m * b * parts * e
    return Work(down + up, up * (1 + (a or x_needs_grad)) + down * (a + x_needs_grad))


def logits_work(
    architecture: ClipArchitecture, config: AdapterConfig, images: int, classes: int
) -> Work:
    """Cosine logits, images x classes: B e C, and a product in backward for each adapted tower."""
    product = images * classes * architecture.vision.embed_dim
    return Work(product, product * sum(bool(t.adapted_layers(config)) for t in architecture.towers))


def step_work(
    architecture: ClipArchitecture,
    config: AdapterConfig,
    images: int,
    classes: int,
    text_tokens: int | None = None,
    order: Order = "sum_first",
) -> dict[str, Work]:
    """Return the parts of one training step: vision, text, vision adapters, text adapters, logits.

    text_tokens: of a prompt. A text tower without adapters is encoded before training and costs a
    step nothing.
    """
    parts: dict[str, Work] = {}
    for tower, sequences, tokens in (
        (architecture.vision, images, None),
        (architecture.text, classes, text_tokens),
    ):
        runs = tower.kind == "vision" or bool(tower.adapted_layers(config))
        parts[tower.kind] = frozen_work(tower, config, sequences, tokens) if runs else Work()
        parts[f"{tower.kind} adapters"] = adapter_work(tower, config, sequences, tokens, order)
    return parts | {"logits": logits_work(architecture, config, images, classes)}


def total_work(parts: dict[str, Work]) -> Work:
    """Add up the parts."""
    return sum(parts.values(), Work())


def _length(tower: Tower, tokens: int | None) -> int:
    length = tower.tokens if tokens is None else tokens
    if not 0 < length <= tower.tokens or (tower.kind == "vision" and length != tower.tokens):
        raise ValueError(
            f"tokens={tokens} of the {tower.kind} tower: use "
            + (f"{tower.tokens}" if tower.kind == "vision" else f"1 to {tower.tokens}")
        )
    return length
