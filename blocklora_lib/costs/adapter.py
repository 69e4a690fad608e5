"""Closed forms of what one adapter costs: parameters, multiply-adds, forming ΔW. No torch.

Notation: a projection d_in -> d_out sees x of T tokens. A_s is c x b and Σ B_i is b x d_out, where

    b = r/n   (reading "total_rank"),  b = r       ("block_rank", "input"),
    c = d_in  (all but "input"),       c = d_in/n  ("input": x = [x_1 .. x_n] is summed).

A product of p x q with q x s is p q s multiply-adds; torch's FLOP counter counts each as 2. Only
products are counted, here as there: additions, masks, norms, activations and softmax are left out.

The orders of computing s x A_s Σ B_i are those of `ways.py`. LoRA's relatives have one:

    dora     x Wᵀ again besides, and B A for the length of the rows of W + s B A
    pissa    besides, the two products of the start, x A₀ B₀, which have no gradient of their own
    vera     as LoRA; B and A are formed anew, by multiplying b and d in
"""

from __future__ import annotations

from collections.abc import Sequence

from ..adapters.config import CUT, AdapterConfig
from ..core.schema import AdapterError
from .ways import ORDERS, Order

ALONE = ("dora", "pissa")  # kinds of which each adapter is computed by itself in attention
FORMING: tuple[Order, ...] = ("sum_first", "loop")  # the orders in which ΔW itself is formed


def shared_width(config: AdapterConfig, d_in: int) -> int:
    """Return c, the rows of A_s: d_in, or d_in/n where the cut runs along the input."""
    if config.reading != "input" or config.kind not in CUT:
        return d_in
    if d_in % config.n_blocks:
        raise AdapterError(
            f"d_in={d_in} cannot be cut into n_blocks={config.n_blocks} equal inputs; "
            "use a divisor, or reading='total_rank' or 'block_rank'"
        )
    return d_in // config.n_blocks


def up_matrices(config: AdapterConfig) -> int:
    """Return how many B are stored: n; one for LoRA, the collapsed form, and the cut along d_in."""
    return 1 if config.reading == "input" else blocks(config)


def blocks(config: AdapterConfig) -> int:
    """Return n, how many terms a loop has: one for kinds without blocks, such as LoRA."""
    return config.n_blocks if config.kind in CUT else 1


def products(config: AdapterConfig, order: Order) -> tuple[int, int]:
    """Return how often the product with A_s, and the one with B, is computed in a forward pass."""
    n = blocks(config)
    if order == "loop_once":
        return (n, 1) if config.reading == "input" else (1, n)
    return (n, n) if order == "loop" else (1, 1)


def trains_a(config: AdapterConfig) -> bool:
    """Whether A is trained: in all kinds but 'w/o A'."""
    return config.kind != "frozen_a"


def parameters(config: AdapterConfig, d_in: int, d_out: int) -> int:
    """Trainable numbers: c b + n b d_out, without c b for 'w/o A', with one B for what stores one.

    LoRA              r (d_in + d_out)
    Block-LoRA        d_in r/n + r d_out    (total_rank)
                      d_in r + n r d_out    (block_rank)
                      d_in r/n + r d_out    (input)
    w/o A             the second term alone
    collapsed         (d_in + d_out) r/n    (total_rank),  (d_in + d_out) r  (block_rank)
    PiSSA, DoRA       LoRA's;  d_out more
    VeRA              r + d_out
    """
    b = config.block_rank
    if config.kind == "vera":
        return b + d_out
    down = shared_width(config, d_in) * b if trains_a(config) else 0
    return down + up_matrices(config) * b * d_out + d_out * (config.kind == "dora")


def parameter_saving(n_blocks: int) -> float:
    """Share of LoRA's parameters that sharing A saves where d_in = d_out: (1 - 1/n)/2 < 1/2.

    total_rank  1 - (d r/n + r d)/(2 r d)
    block_rank  1 - (d r + n r d)/(2 n r d), which is the same
    """
    return (1 - 1 / n_blocks) / 2


def forward_multiply_adds(
    config: AdapterConfig, d_in: int, d_out: int, tokens: int, order: Order = "sum_first"
) -> int:
    """Multiply-adds of x ΔWᵀ on T tokens.

    sum_first   T c b + T b d_out           h = x A_s, then h Σ B_i; plain: the same
    loop        n (T c b + T b d_out)       the same two products for each of the n blocks
    loop_once   T c b + n T b d_out         (input: n T c b + T b d_out)
    dense       b d_in d_out + T d_in d_out forming ΔW, then x ΔWᵀ
    DoRA        T d_in d_out + b d_in d_out more;  PiSSA: twice as many
    """
    _check(order, _orders(config))
    b, c = config.block_rank, shared_width(config, d_in)
    if order == "dense":
        return b * d_in * d_out + tokens * d_in * d_out
    downs, ups = products(config, order)
    thin = downs * tokens * c * b + ups * tokens * b * d_out
    more = {"dora": (tokens + b) * d_in * d_out, "pissa": thin}
    return thin + more.get(config.kind, 0)


def backward_multiply_adds(
    config: AdapterConfig,
    d_in: int,
    d_out: int,
    tokens: int,
    order: Order = "sum_first",
    x_needs_grad: bool = True,
) -> int:
    """Multiply-adds of the gradients, from g = ∂L/∂y (T x d_out) to x and to all that trains.

    sum_first and plain, h = x A_s, B = Σ B_i:
        ∂L/∂B   = hᵀ g        T b d_out   once: every B_i has this same gradient
        ∂L/∂h   = g Bᵀ        T b d_out   if A is trained or x needs its gradient
        ∂L/∂A_s = xᵀ ∂L/∂h    T c b       if A is trained
        ∂L/∂x   = ∂L/∂h A_sᵀ  T c b       if x needs its gradient (not in the first adapted layer)
    loop, loop_once: each as often as its product in the forward pass.
    dense, D = A_s Σ B_i:
        ∂L/∂D   = xᵀ g        T d_in d_out    a dense gradient of the size of W
        ∂L/∂B   = A_sᵀ ∂L/∂D  b d_in d_out
        ∂L/∂A_s = ∂L/∂D Bᵀ    b d_in d_out    if A is trained
        ∂L/∂x   = g Dᵀ        T d_in d_out    if x needs its gradient
    DoRA, and only if x needs its gradient: T d_in d_out more;  PiSSA: T c b + T b d_out more
    """
    _check(order, _orders(config))
    b, c, a = config.block_rank, shared_width(config, d_in), trains_a(config)
    if order == "dense":
        return tokens * d_in * d_out * (1 + x_needs_grad) + b * d_in * d_out * (1 + a)
    downs, ups = products(config, order)
    up, down = ups * tokens * b * d_out, downs * tokens * c * b
    more = {"dora": tokens * d_in * d_out, "pissa": up + down}.get(config.kind, 0)
    return up * (1 + (a or x_needs_grad)) + down * (a + x_needs_grad) + more * x_needs_grad


def is_summed(config: AdapterConfig) -> bool:
    """Whether Σ B_i is a tensor of its own: where the B_i lie side by side, even a single one."""
    return config.kind == "vera" or (config.kind in CUT and config.reading != "input")


def forming_multiply_adds(
    config: AdapterConfig, d_in: int, d_out: int, order: Order = "sum_first"
) -> int:
    """Multiply-adds of forming ΔW, d_in x d_out: the paper's O(r d²) -> O(r d²/n).

    loop        Σ_i A_s B_i     n products of c x b with b x d_out:    n c b d_out
    sum_first   A_s Σ_i B_i     one of them, after (n-1) b d_out additions (`forming_additions`)

    For d_in = d_out = d, in the readings:
        total_rank  n d (r/n) d = r d² against r d²/n
        block_rank  n r d² against r d²
        input       r d² against r d²/n: A_s has d/n rows, and ΔW is n copies of A_s B
    """
    _check(order, FORMING)
    once = shared_width(config, d_in) * config.block_rank * d_out * (1 + (config.kind == "pissa"))
    return once * (blocks(config) if order == "loop" else 1)


def forming_additions(
    config: AdapterConfig, d_in: int, d_out: int, order: Order = "sum_first"
) -> int:
    """Additions between the blocks while ΔW is formed: of the B_i, or of whole matrices (loop).

    Where the cut runs along the input nothing is added: the n blocks of ΔW stand under each other.
    """
    _check(order, FORMING)
    if up_matrices(config) == 1:
        return 0
    size = config.block_rank * d_out if order == "sum_first" else d_in * d_out
    return (blocks(config) - 1) * size


def amdahl(share: float, ratio: float) -> float:
    """Share of a step that is saved if a part that takes `share` of it takes `ratio` of its time.

    Amdahl 1967: 1 - ((1 - share) + share ratio) = share (1 - ratio); the share itself at ratio 0.
    """
    if not 0 <= share <= 1 or ratio < 0:
        raise ValueError(
            f"share={share}, ratio={ratio}: use a share from 0 to 1 and a ratio of at least 0"
        )
    return share * (1 - ratio)


def _orders(config: AdapterConfig) -> Sequence[str]:
    return ("sum_first", "plain") if config.kind in (*ALONE, "vera") else ORDERS


def _check(order: str, known: Sequence[str]) -> None:
    if order not in known:
        raise ValueError(f"order={order!r} is unknown; use one of {', '.join(known)}")
