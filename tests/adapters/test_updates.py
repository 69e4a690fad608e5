"""The update ΔW: the fast path against loops over blocks and closed forms, in every kind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from adapted_layers import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from blocklora_lib.adapters.updates import Adapter, AdapterConfig, AdapterError, make_adapter
from blocklora_lib.layers.dropped import draw_noise, dropped_projection, mask

CASES = [
    dict(kind="lora", rank=4),  # the base line
    dict(kind="block_lora", rank=4, n_blocks=1),  # must be LoRA
    dict(kind="block_lora", rank=2, n_blocks=2),  # the paper's default
    dict(kind="block_lora", rank=8, n_blocks=4),
    dict(
        kind="block_lora", rank=2, n_blocks=8, reading="block_rank"
    ),  # named by the paper, not cut from r = 2
    dict(kind="block_lora", rank=2, n_blocks=8, reading="input"),
    dict(kind="block_lora", rank=3, n_blocks=4, reading="input", scaling="rank", alpha=16),
    dict(kind="frozen_a", rank=4, n_blocks=2),
    dict(kind="frozen_a", rank=2, n_blocks=2, reading="input"),
    dict(kind="collapsed", rank=4, n_blocks=2),
    dict(kind="collapsed", rank=2, n_blocks=4, reading="block_rank"),
    dict(kind="block_lora", rank=2, n_blocks=2, init="normal", init_scale=3.0),
]


def build(
    d_in: int = 16, d_out: int = 24, seed: int = 0, random_b: bool = True, **settings
) -> Adapter:
    """An adapter in float64 with a random B, so that comparisons see every factor."""
    adapter = make_adapter(
        AdapterConfig(**{"dropout": 0.0, **settings}), d_in, d_out, seeded(seed)
    ).double()
    if random_b:
        with torch.no_grad():
            adapter.B.normal_(generator=seeded(seed + 1))
    return adapter


def loop_over_blocks(config: AdapterConfig, adapter: Adapter, x: torch.Tensor) -> torch.Tensor:
    """The oracle: x ΔWᵀ by a loop over blocks, from the stored tensors alone."""
    n, s = (
        config.n_blocks,
        config.alpha / (config.rank if config.scaling == "rank" else math.sqrt(config.rank)),
    )
    if config.kind in ("lora", "collapsed"):
        return s * ((x @ adapter.A.T) @ adapter.B.T)
    y = torch.zeros(*x.shape[:-1], adapter.d_out, dtype=x.dtype)
    for i in range(n):
        if config.reading == "input":
            width = adapter.d_in // n
            y = y + s * ((x[..., i * width : (i + 1) * width] @ adapter.A_s.T) @ adapter.B.T)
        else:
            y = y + s * ((x @ adapter.A_s.T) @ adapter.B[i].T)
    return y


@pytest.mark.parametrize("settings", CASES, ids=lambda c: "-".join(map(str, c.values())))
def test_forward_is_the_definition(settings):
    adapter = build(**settings)
    x = torch.randn(5, 7, 16, generator=seeded(3), dtype=torch.float64)
    atol = 1e-12  # float64, sums of at most 128 terms of size about 10
    torch.testing.assert_close(adapter(x), x @ adapter.delta_weight().T, rtol=0, atol=atol)
    torch.testing.assert_close(
        adapter(x), loop_over_blocks(AdapterConfig(**settings), adapter, x), rtol=0, atol=atol
    )


@pytest.mark.slow
@given(
    kind=st.sampled_from(["block_lora", "frozen_a"]),
    reading=st.sampled_from(["total_rank", "block_rank", "input"]),
    width=st.integers(1, 3),
    n=st.integers(1, 4),
    d_block=st.integers(1, 5),
    d_out=st.integers(1, 9),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_forward_gradient_and_count(kind, reading, width, n, d_block, d_out, seed):
    rank = width * n if reading == "total_rank" else width
    d_in = d_block * n
    config = AdapterConfig(kind=kind, rank=rank, n_blocks=n, reading=reading, dropout=0.0)
    adapter = build(d_in, d_out, seed, kind=kind, rank=rank, n_blocks=n, reading=reading)
    x = torch.randn(4, d_in, generator=seeded(seed), dtype=torch.float64, requires_grad=True)
    fast, loop = adapter(x), loop_over_blocks(config, adapter, x)
    torch.testing.assert_close(fast, loop, rtol=0, atol=1e-11)  # float64, at most 20 terms
    weights = torch.randn(fast.shape, generator=seeded(seed + 5), dtype=torch.float64)
    wanted = [x, *adapter.parameters()]
    for mine, other in zip(
        torch.autograd.grad((fast * weights).sum(), wanted),
        torch.autograd.grad((loop * weights).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-11)
    in_a = {"total_rank": d_in * rank // n, "block_rank": d_in * rank, "input": d_in * rank // n}[
        reading
    ]
    in_b = d_out * rank * (n if reading == "block_rank" else 1)
    assert adapter.num_parameters() == in_b + (0 if kind == "frozen_a" else in_a)
    assert torch.linalg.matrix_rank(adapter.delta_weight()) <= config.block_rank


@pytest.mark.parametrize("reading", ["total_rank", "block_rank", "input"])
@pytest.mark.parametrize("scaling", ["rank", "sqrt_rank"])
def test_one_block_is_lora_bit_for_bit(reading, scaling):
    shared = dict(rank=4, scaling=scaling, random_b=False, seed=11)
    lora = build(kind="lora", **shared).float()
    block = build(kind="block_lora", n_blocks=1, reading=reading, **shared).float()
    b = torch.randn(24, 4, generator=seeded(2))
    with torch.no_grad():
        lora.B.copy_(b)
        block.B.copy_(b.view_as(block.B))
    x = torch.randn(9, 16, generator=seeded(3))
    assert torch.equal(lora.A, block.A_s)
    assert torch.equal(lora(x), block(x))
    assert torch.equal(lora.delta_weight(), block.delta_weight())
    assert lora.num_parameters() == block.num_parameters()


def test_the_start_is_clip_loras():
    # the same generator gives nn.init's bits; the bound is 1/sqrt(d_in), in the reading 'input' too
    expected = nn.init.kaiming_uniform_(torch.empty(4, 16), a=math.sqrt(5), generator=seeded(5))
    adapter = make_adapter(AdapterConfig(kind="lora", rank=4), 16, 24, seeded(5))
    assert torch.equal(adapter.A, expected)
    assert not adapter.B.any()
    along_input = AdapterConfig(kind="block_lora", rank=8, n_blocks=4, reading="input")
    start = make_adapter(along_input, 4096, 8, seeded()).A_s
    assert 0.99 / math.sqrt(4096) < start.abs().max() <= 1 / math.sqrt(4096)


def test_the_start_is_deterministic_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    config = AdapterConfig(kind="block_lora", rank=4, n_blocks=2)
    first, second = (make_adapter(config, 16, 8, seeded(7)) for _ in range(2))
    assert torch.equal(first.A_s, second.A_s)
    assert torch.equal(before, torch.get_rng_state())


def test_init_scale_scales_both_starts():
    for init in ("kaiming", "normal"):
        one, three = (
            make_adapter(AdapterConfig(kind="lora", init=init, init_scale=s), 64, 8, seeded(1)).A
            for s in (1, 3)
        )
        torch.testing.assert_close(three, 3 * one)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        (dict(kind="lora", rank=2), 1 / math.sqrt(2)),  # CLIP-LoRA's code
        (dict(kind="lora", rank=4, alpha=8, scaling="rank"), 2.0),  # LoRA's paper
        (
            dict(kind="block_lora", rank=2, n_blocks=2),
            1 / math.sqrt(2),
        ),  # the total rank, not the block's
        (dict(kind="collapsed", rank=8, n_blocks=4), 1 / math.sqrt(8)),  # Block-LoRA's scale
        (dict(kind="block_lora", rank=2, n_blocks=8, reading="block_rank"), 1 / math.sqrt(2)),
    ],
)
def test_scale(settings, scale):
    assert AdapterConfig(**settings).scale == pytest.approx(scale, rel=1e-15)


def test_frozen_a_trains_b_only_and_keeps_a():
    adapter = make_adapter(AdapterConfig(kind="frozen_a", rank=4, n_blocks=2), 16, 24, seeded())
    assert [name for name, _ in adapter.named_parameters()] == ["B"]
    assert set(adapter.state_dict()) == {"A_s", "B"}


def test_block_loras_steps_are_the_collapsed_forms():
    """The B_i stay equal; one B with n times the rate and 1/n of the decay takes the same steps."""
    n, lr, decay = 4, 1e-3, 1e-2
    block = build(kind="block_lora", rank=8, n_blocks=n, random_b=False)
    one = build(kind="collapsed", rank=8, n_blocks=n, random_b=False)
    x = torch.randn(32, 16, generator=seeded(4), dtype=torch.float64)
    y = torch.randn(32, 24, generator=seeded(5), dtype=torch.float64)
    ratio = one.up_lr_ratio
    assert ratio == n
    groups = [dict(params=[one.A], lr=lr, weight_decay=decay)]
    groups += [dict(params=[one.B], lr=lr * ratio, weight_decay=decay / ratio)]
    optimizers = [
        torch.optim.AdamW(block.parameters(), lr=lr, weight_decay=decay),
        torch.optim.AdamW(groups),
    ]
    for _ in range(50):
        for adapter, optimizer in zip((block, one), optimizers, strict=True):
            optimizer.zero_grad()
            (adapter(x) - y).square().mean().backward()
            optimizer.step()
    assert torch.equal(block.B, block.B[:1].expand_as(block.B))
    # float64
    torch.testing.assert_close(block.delta_weight(), one.delta_weight(), rtol=0, atol=1e-12)


# precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_stay_in_float32(dtype):
    adapter = build(kind="block_lora", rank=2, n_blocks=2).float()
    exact = adapter.B.clone()
    adapter.to(dtype)
    assert torch.equal(adapter.B, exact)  # not rounded on the way
    y = adapter(torch.randn(3, 16, generator=seeded()).to(dtype))
    assert y.dtype == dtype
    assert adapter.double().B.dtype == torch.float64
    assert adapter(torch.randn(3, 16)).dtype == torch.float32


def test_autocast_leaves_the_adapters_precision():
    adapter = build(kind="block_lora", rank=2, n_blocks=2).float()
    x = torch.randn(64, 16, generator=seeded(6))
    with torch.autocast("cpu", torch.bfloat16):
        y = adapter(x)
    assert torch.equal(y, adapter(x))


# dropout


@pytest.mark.parametrize("p", [0.25, 0.1, 0.5, 1 / 256, 0.9999999])
def test_dropout_keeps_each_number_with_the_right_probability(p):
    torch.manual_seed(0)
    noise, threshold, rounded = draw_noise((3, 400, 256), p, torch.device("cpu"))
    kept = mask(noise, threshold, torch.empty(0))
    assert abs(rounded - p) <= 2**-16
    sigma = math.sqrt(p * (1 - p) / kept.numel())
    assert abs(1 - kept.mean() - p) < 5 * sigma + 2**-16  # five standard errors
    columns = kept.reshape(-1, 8).mean(0)  # every byte of a draw is as good as another
    assert (columns - kept.mean()).abs().max() < 5 * sigma * math.sqrt(8) + 2**-16


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 4])
def test_dropped_projection_is_dropout_then_projection(n):
    x = torch.randn(6, 8, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    downs = torch.randn(3, 2, 8 // n, generator=seeded(2), dtype=torch.float64, requires_grad=True)

    def fast(x, downs):
        torch.manual_seed(5)
        return dropped_projection(x, downs, 0.25, n)

    def plain(x, downs):
        torch.manual_seed(5)
        noise, threshold, p = draw_noise((3, 6, 8), 0.25, x.device)
        dropped = x * (noise >= threshold) / (1 - p)
        return torch.stack(
            [sum(b @ a.T for b in d.chunk(n, -1)) for d, a in zip(dropped, downs, strict=True)]
        )

    torch.testing.assert_close(fast(x, downs), plain(x, downs), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(fast, (x, downs))
    same = torch.ones(3, 2, 8 // n, dtype=torch.float64)
    first, second, third = fast(torch.ones(6, 8, dtype=torch.float64), same)
    assert not torch.equal(first, second)  # a mask for each adapter
    assert not torch.equal(second, third)


@pytest.mark.slow
def test_dropout_is_unbiased_repeatable_and_off_in_eval():
    adapter = build(kind="block_lora", rank=2, n_blocks=2, dropout=0.25)
    x = torch.randn(4, 16, generator=seeded(1), dtype=torch.float64)
    torch.manual_seed(3)
    first = adapter(x)
    torch.manual_seed(3)
    assert torch.equal(first, adapter(x))
    draws = torch.stack([adapter(x) for _ in range(4000)])
    expected = adapter.eval()(x)
    error = (draws.mean(0) - expected).abs() / (draws.std(0) / math.sqrt(4000))
    assert error.max() < 5  # standard errors, 96 numbers
    assert torch.equal(adapter(x), expected)


# what cannot be


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            dict(kind="block_lora", rank=2, n_blocks=4),
            ["rank=2", "n_blocks=4", "block_rank", "1, 2"],
        ),
        (dict(kind="block_lora", rank=6, n_blocks=4), ["rank=6", "1, 2, 3, 6"]),
        (dict(kind="lora", n_blocks=2), ["n_blocks=2", "block_lora"]),
        (dict(kind="collapsed", n_blocks=2, reading="input"), ["input", "block_lora"]),
        (dict(targets=("q", "x")), ["'x'", "q, k, v, o"]),
        (dict(towers=("image",)), ["'image'", "vision, text"]),
        (dict(targets=()), ["targets is empty"]),
        (dict(layers=()), ["layers is empty", "all"]),
        (dict(rank=0), ["greater than or equal to 1"]),
        (dict(dropout=1.0), ["less than 1"]),
        (dict(alfa=2), ["alfa"]),  # a typo is no default
        (dict(rank=True), ["rank=True is no number"]),  # which Python takes for 1
        (dict(rank="4"), ["rank='4' is no number"]),
        (dict(alpha=True), ["alpha=True is no number"]),
        (dict(layers=(True,)), ["layers=(True,) is no number"]),
        (dict(layers="0"), ["layers='0' is no number"]),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ValidationError) as error:
        AdapterConfig(**settings)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_input_that_cannot_be_cut():
    config = AdapterConfig(kind="block_lora", rank=2, n_blocks=8, reading="input")
    with pytest.raises(
        AdapterError, match=r"d_in=12 cannot be cut into n_blocks=8.*1, 2, 3, 4, 6, 12"
    ):
        make_adapter(config, 12, 8)


def test_settings_have_one_form():
    assert AdapterConfig(targets=["v", "q"]) == AdapterConfig(targets=("q", "v"))
    assert AdapterConfig(rank=np.int64(4), alpha=2) == AdapterConfig(rank=4.0, alpha=2.0)
    assert AdapterConfig(kind="lora").n_blocks == 1
    assert AdapterConfig(kind="frozen_a").n_blocks == 2
    config = AdapterConfig(
        kind="block_lora", rank=8, n_blocks=4, reading="block_rank", layers=(0, -1)
    )
    assert AdapterConfig.model_validate_json(config.model_dump_json()) == config
    assert (config.block_rank, config.total_rank) == (8, 32)
    assert hash(config)
