"""What a training step needs in memory, by component, as closed forms. No torch.

`kept_bytes` says what autograd keeps between forward and backward for a tower as the library runs
it, number by number (the CPU's fused attention). `step_memory` adds the rest of a step, in every
`StepWay`. `clip_lora_code_memory` says the same of CLIP-LoRA's released code.

One block keeps, for T = N L tokens, width E, H heads, m adapters of width b on q, k, v:

    first norm       T E + 2 T          its input, and mean and 1/deviation of each token
    adapters         T E + T m b        x for ∂L/∂A, h for ∂L/∂B;  with dropout T m E bytes of noise
                     m b E + 3 m b E    the A side by side, the block diagonal of the Σ B_i
    attention        3 T E + T E + T H  q, k, v, the context, and the log-sum of each row of weights
    second norm      T E + 2 T
    MLP              T M                the GELU's input

A frozen projection keeps nothing: its input is needed for the gradient of its weight alone. In half
precision q, k, v, the context and the MLP take 2 bytes a number; norms and adapters work on float32
copies of their inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..adapters.config import AdapterConfig
from ..clip.architectures import ClipArchitecture, Tower
from .adapter import ALONE, is_summed, parameters, shared_width, trains_a
from .step import projected_together
from .ways import OUR_STEPS, StepWay

FLOAT, INDEX = 4, 8  # bytes of a float32 and of an int64
GIB = 2**30


def kept_bytes(
    tower: Tower,
    config: AdapterConfig,
    sequences: float,
    tokens: float | None = None,
    size: int = FLOAT,
) -> float:
    """Bytes that autograd keeps of one tower in training, parameters excluded.

    Exactly what the library's towers keep on a CPU, whose fused attention keeps no weights. size:
    bytes of a number of the frozen products, 4 in float32, 2 in half precision.
    """
    length = tower.tokens if tokens is None else tokens
    adapted = tower.adapted_layers(config)
    if not adapted:
        return 0
    kept = sum(
        _block_bytes(tower, config, sequences, length, size, layer > adapted[0], layer in adapted,
                     layer == tower.layers - 1)
        for layer in range(adapted[0], tower.layers)
    )  # fmt: skip
    rows = sequences * tower.width + 2 * sequences  # the norm of the pooled tokens
    order = INDEX * sequences if tower.kind == "text" else 0  # prompts lie sorted by length
    return kept + FLOAT * rows + order


def _block_bytes(
    tower: Tower,
    config: AdapterConfig,
    n: float,
    length: float,
    size: int,
    deeper: bool = True,
    adapted: bool = True,
    last: bool = False,
) -> float:
    """One block. deeper: its input has a gradient; last: one query and one output a sequence."""
    t, e = n * length, tower.width
    rows = n if last else t  # of queries, and of all that follows them
    targets = config.targets if adapted else ()
    kept = FLOAT * (t * e + 2 * t) if deeper else 0
    kept += INDEX * n if deeper and last else 0  # which tokens are pooled
    for group, queries in projected_together(last):
        kept += _together_bytes(config, e, rows if queries else t, targets, group, deeper, size)
    inner = deeper or bool({"q", "k", "v"} & set(targets))
    if inner:
        kept += size * 2 * (rows + t) * e + FLOAT * rows * tower.heads
    if "o" in targets:
        kept += _path_bytes(config, e, rows, inner, inner and size == FLOAT, size)
    return kept + FLOAT * (rows * e + 2 * rows) + size * rows * tower.mlp_width


def _together_bytes(
    config: AdapterConfig,
    e: int,
    t: float,
    targets: tuple[str, ...],
    group: str,
    x_needs_grad: bool,
    size: int,
) -> float:
    """The m adapters among a group of projections as one path (`side_by_side.add_updates`)."""
    m = len(set(group) & set(targets))
    if not m:
        return 0
    if config.kind in ALONE:
        copies = 1 if size == FLOAT else m  # of x in float32
        return FLOAT * t * e * copies + m * _alone_bytes(config, e, t, x_needs_grad, size)
    b, c, a = config.block_rank, shared_width(config, e), trains_a(config)
    hidden = a or x_needs_grad
    kept = FLOAT * t * m * b + FLOAT * m * b * len(group) * e * hidden
    if config.dropout:
        return kept + (FLOAT * (t * e + m * b * c) + noise_bytes(config, m * t * e)) * hidden
    return kept + FLOAT * (t * c * a + m * b * c * x_needs_grad)


def _path_bytes(
    config: AdapterConfig, e: int, t: float, x_needs_grad: bool, x_kept: bool, size: int
) -> float:
    """One adapter by itself (`Adapter.update`). x_kept: somebody else keeps the same x."""
    if config.kind in ALONE:
        return FLOAT * t * e * (not x_kept) + _alone_bytes(config, e, t, x_needs_grad, size)
    b, c, a = config.block_rank, shared_width(config, e), trains_a(config)
    hidden = a or x_needs_grad
    kept = FLOAT * t * b + FLOAT * b * e * (is_summed(config) and hidden)
    if config.kind == "vera":
        kept += FLOAT * b * e * (x_needs_grad or config.dropout > 0)
    if config.dropout:
        return kept + (FLOAT * t * e * (not x_kept) + noise_bytes(config, t * e)) * hidden
    own = c != e or not x_kept  # a sum of the blocks of x is a tensor of its own
    return kept + FLOAT * t * c * (a and own)


def _alone_bytes(config: AdapterConfig, e: int, t: float, x_needs_grad: bool, size: int) -> float:
    """What one adapter of a kind in ALONE keeps beside x: h; and DoRA x Wᵀ, B h, g and ‖V‖.

    In half precision DoRA's W is a copy in float32.
    """
    kept = FLOAT * t * config.rank + (noise_bytes(config, t * e) if config.dropout else 0)
    copy = e * e * (size != FLOAT) * x_needs_grad
    return kept + FLOAT * (2 * t * e + e * (2 + x_needs_grad) + copy) * (config.kind == "dora")


def noise_bytes(config: AdapterConfig, numbers: float) -> float:
    """One byte a number, two where p is no multiple of 1/256, in whole words of eight bytes."""
    size = 1 if (config.dropout * 2**8).is_integer() else 2
    return -(-numbers * size // 8) * 8


def head_bytes(architecture: ClipArchitecture, images: int, classes: int) -> int:
    """What unit vectors, cosine logits and cross-entropy keep, both towers adapted.

    Of either tower the embedding (N e) and its length before and after the guard against zero
    (2 N); the unit vectors that the product needs, one of them scaled; the log-softmax B x C, the
    labels, and two single numbers (the scale, and the sum of the class weights).
    """
    both, e = images + classes, architecture.vision.embed_dim
    return FLOAT * (2 * both * e + 2 * both + images * classes + 2) + INDEX * images


def step_memory(
    architecture: ClipArchitecture,
    config: AdapterConfig,
    images: int,
    classes: int,
    prompt_tokens: int,
    way: StepWay = OUR_STEPS["independent"],
) -> dict[str, int]:
    """Return the bytes of each component at the step's largest moment.

    prompt_tokens: of all prompts together, as run: C L padded, Σ L_i packed, less with a shared
    prefix (`way` does not know by how much).

    weights, adapters (the trained numbers), gradients (as many), optimizer (AdamW: twice as many),
    logits; and, of either tower, kept activations (images, prompts) and buffers of the backward
    pass (temporary).

    Backward goes through the images first, with all of the prompts' activations waiting, then
    through the prompts. In either tower the last block, small as it is, has let go of what it kept
    when the block before needs the most: gradients of the GELU's output and input, 2 T M, beside
    the residual stream's, T E. A block below the first adapter keeps nothing, and on its way
    forward holds 2 T M and 6 T E: the MLP's two; the residual stream before and after attention, q,
    k, v, and the context. Images do so while the prompts' activations wait, as if those were
    encoded first; prompts of a frozen tower before training.
    """
    numbers = sum(parameters(config, *site[3:]) for site in architecture.sites(config))
    tokens, prompts = prompt_tokens / classes, classes / way.chunks
    vision = _kept_and_moments(architecture.vision, config, images, architecture.vision.tokens, way)
    text = _kept_and_moments(architecture.text, config, prompts, tokens, way)
    waiting = text[0] if way.chunks == 1 else 0
    moments = [
        *({"images": left, "prompts": waiting, "temporary": more} for left, more in vision[1]),
        *({"images": 0, "prompts": left, "temporary": more} for left, more in text[1]),
    ]
    largest = {name: round(value) for name, value in max(moments, key=total_bytes).items()}
    logits = head_bytes(architecture, images, classes)
    return _fixed_bytes(architecture.weights * way.size, numbers, logits) | largest


def _kept_and_moments(
    tower: Tower, config: AdapterConfig, sequences: float, rows: float, way: StepWay
) -> tuple[float, list[tuple[float, float]]]:
    """Return what a tower keeps, and of the moments at which it may need most: what is left of
    that, and what is needed beside.

    rows: tokens of a sequence, a mean where prompts have lengths of their own.
    """
    tokens, size, e, last = sequences * rows, way.size, tower.width, tower.layers - 1
    first = min(tower.adapted_layers(config), default=tower.layers)
    forward = [(0.0, size * tokens * (2 * tower.mlp_width + 6 * e))] if first else []
    if first >= last:  # no block but the last, small as it is, runs backwards
        kept = kept_bytes(tower, config, sequences, rows, size)
        return kept, [*forward, (kept, 0.0)]
    temporary = size * tokens * (2 * tower.mlp_width + e)
    if way.checkpoint:  # every input waits; one block is computed again, and keeps what it keeps
        inputs = (tower.layers - first) * size * tokens * e
        again = _block_bytes(tower, config, sequences, rows, size)
        return inputs, [*forward, (inputs, again + temporary)]
    whole = kept_bytes(tower, config, sequences, rows, size)
    left = whole - _block_bytes(tower, config, sequences, rows, size, last=True)
    return whole, [*forward, (left, temporary)]


def clip_lora_code_memory(
    architecture: ClipArchitecture,
    config: AdapterConfig,
    images: int,
    classes: int,
    size: int,
    mask: int = 1,
) -> dict[str, int]:
    """The components of `step_memory` for CLIP-LoRA's released code: every position, dense B A.

    Read off the code and OpenAI's CLIP: norms in float32; q, k, v apart, each adapter with dropout
    by `nn.Dropout`, whose mask has a byte a number on a GPU and four on a CPU; it keeps the dropped
    x for ∂L/∂(B A) and B A for ∂L/∂x; QuickGELU keeps x and its sigmoid. Assumed: fused attention,
    which keeps no weights.

    size 2: float16 under autocast as released, where the four projections of attention are fresh
    nn.Linear in float32, and autocast's copies of them are kept; size 4: float32 throughout. Every
    position of every block is computed, the last block included.
    """
    numbers = sum(parameters(config, *site[3:]) for site in architecture.sites(config))
    kept, temporary, weights = [], [], FLOAT
    for tower, sequences in ((architecture.vision, images), (architecture.text, classes)):
        t, e = sequences * tower.tokens, tower.width
        kept.append(tower.layers * clip_lora_block_bytes(tower, config, t, size, mask))
        temporary.append(size * t * (3 * tower.mlp_width + e))  # QuickGELU's backward: three of 4 E
        projections = tower.layers * 4 * e * e
        weights += (tower.weights - projections) * size + projections * FLOAT
    moments = [
        {"images": kept[0], "prompts": kept[1], "temporary": temporary[0]},
        {"images": 0, "prompts": kept[1], "temporary": temporary[1]},
    ]
    largest = max(moments, key=total_bytes)
    logits = head_bytes(architecture, images, classes)
    return _fixed_bytes(weights, numbers, logits) | largest


def clip_lora_block_bytes(
    tower: Tower, config: AdapterConfig, tokens: int, size: int = FLOAT, mask: int = 1
) -> int:
    """Bytes that one inner block of CLIP-LoRA's code keeps, T tokens, dropout on."""
    t, e, m = tokens, tower.width, len(config.targets)
    norms = 2 * FLOAT * (t * e + 2 * t)
    dropped = m * t * e * (size + mask)
    attention = size * 4 * t * e + FLOAT * t * tower.heads
    matrices = m * e * e * size + (4 * e * e * size if size != FLOAT else 0)
    return norms + dropped + attention + matrices + size * 2 * t * tower.mlp_width


def _fixed_bytes(weights: int, numbers: int, logits: int) -> dict[str, int]:
    """The components that stay through a step. AdamW keeps two numbers for each trained one."""
    return {
        "weights": weights,
        "adapters": numbers * FLOAT,
        "gradients": numbers * FLOAT,
        "optimizer": 2 * numbers * FLOAT,
        "logits": logits,
    }


def total_bytes(parts: Mapping[str, Any]) -> Any:
    """Add up the components."""
    return sum(parts.values())
