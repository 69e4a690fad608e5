"""The codec gives back the very same adapter, its length obeys Kraft, training helps."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.theory.compression import (
    AdapterCode,
    CodedAdapters,
    CodeSpace,
    code_length_bits,
    decode,
    dequantise,
    encode,
    fit_symbols,
    quantise,
    restore,
)

PLACEMENTS = tuple(
    AdapterConfig(kind="frozen_a", rank=rank, n_blocks=1, targets=targets, dropout=0.0)
    for rank, targets in ((1, ("o",)), (2, ("q", "v")), (1, ("q", "k", "v", "o")))
)
SPACE = CodeSpace(PLACEMENTS, (1, 4, 9), (2, 3, 5), (0.5, 1.0), seed=3)


@st.composite
def codes(draw):
    levels, k = draw(st.sampled_from(SPACE.levels)), draw(st.sampled_from(SPACE.dimensions))
    symbols = draw(st.lists(st.integers(0, levels - 1), min_size=k, max_size=k))
    return AdapterCode(
        draw(st.sampled_from(PLACEMENTS)),
        levels,
        draw(st.sampled_from(SPACE.scales)),
        tuple(symbols),
    )


def attention():
    torch.manual_seed(0)
    return nn.MultiheadAttention(8, 2, batch_first=True)


@given(codes())
def test_decode_gives_back_the_code(code):
    content = encode(code, SPACE)
    assert decode(content, SPACE) == code
    assert 8 * (len(content) - 1) < code_length_bits(code, SPACE) <= 8 * len(content)


@settings(max_examples=20)
@given(codes())
def test_bytes_alone_give_back_the_very_same_adapter(code):
    first = restore(code, SPACE, attention())
    again = restore(decode(encode(code, SPACE), SPACE), SPACE, attention())
    there, here = first.adapters.state_dict(), again.adapters.state_dict()
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name], here[name]) for name in there)
    assert code.levels % 2 or any(
        t.abs().max() > 0 for name, t in here.items() if name.endswith("B")
    )


@given(codes())
def test_length_is_the_header_and_the_symbols(code):
    header = 2 + 2 + 2 + 1  # of 3, 3, 3 and 2 choices
    assert code_length_bits(code, SPACE) == header + math.ceil(
        code.dimension * math.log2(code.levels)
    )


def test_all_codes_together_satisfy_kraft_and_differ():
    space = CodeSpace(PLACEMENTS[:2], (1, 3), (2, 3), (1.0,))
    total, seen = 0.0, set()
    for placement, k, levels in itertools.product(space.placements, space.dimensions, space.levels):
        for symbols in itertools.product(range(levels), repeat=k):
            code = AdapterCode(placement, levels, 1.0, symbols)
            bits = code_length_bits(code, space)
            seen.add(format(int.from_bytes(encode(code, space), "big") >> -bits % 8, f"0{bits}b"))
            total += 2.0**-bits
    assert len(seen) == 2 * (2 + 3 + 8 + 27)
    assert total <= 1
    ordered = sorted(seen)  # no code is the beginning of another one
    assert not any(b.startswith(a) for a, b in itertools.pairwise(ordered))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.integers(2, 9), st.floats(0.1, 3))
def test_quantise_takes_the_nearest_level(values, levels, scale):
    grid = scale * (np.arange(levels) - (levels - 1) / 2)
    nearest = np.abs(np.asarray(values)[:, None] - grid).min(axis=1)
    ours = dequantise(quantise(np.asarray(values), levels, scale), levels, scale)
    assert np.abs(ours - values) == pytest.approx(nearest, abs=1e-9)


def test_the_gradient_of_z_is_autograds():
    layer, x = attention(), torch.randn(2, 3, 8)
    coded = CodedAdapters(layer, PLACEMENTS[1], 4, seed=1)
    symbols, levels, scale, step = np.array([0, 2, 1, 2]), 3, 0.5, 1e-3
    losses = []
    for change in (-step, step):  # central difference in the third coordinate
        z = np.array(dequantise(symbols, levels, 1.0))
        z[2] += change
        coded.write(z + (levels - 1) / 2, levels, scale)
        losses.append(layer(x, x, x)[0].square().sum())
    coded.write(symbols, levels, scale)
    layer(x, x, x)[0].square().sum().backward()
    assert coded.pull_back(scale)[2].item() == pytest.approx(
        (losses[1] - losses[0]).item() / (2 * step), rel=2e-2, abs=1e-3
    )


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_training_finds_better_symbols_than_the_start_and_reports_their_score(levels):
    layer = attention()
    x, y = torch.randn(24, 3, 8, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 2
    coded = CodedAdapters(layer, PLACEMENTS[2], 6, seed=2)

    def objective():
        scores = layer(x, x, x)[0].mean(1)[:, :2]
        return int((scores.argmax(1) != y).sum()), nn.functional.cross_entropy(scores, y)

    coded.write(quantise(np.zeros(6), levels, 1.0), levels, 4.0)
    start = objective()
    symbols, score = fit_symbols(coded, levels, 4.0, objective, steps=30)
    wrong, loss = objective()  # the best symbols are the ones left on the model
    assert score == (wrong, pytest.approx(loss.item()))
    assert score < (start[0], start[1].item())
    assert symbols.min() >= 0
    assert symbols.max() < levels
    before = layer.in_proj_weight.clone()
    coded.close()
    assert type(layer) is nn.MultiheadAttention
    assert torch.equal(layer.in_proj_weight, before)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: CodeSpace(PLACEMENTS, (), (3,), (1.0,)), "dimensions"),
        (lambda: CodeSpace(PLACEMENTS, (4, 4), (3,), (1.0,)), "twice"),
        (lambda: CodeSpace(PLACEMENTS, (4,), (1,), (1.0,)), r"levels=\[1\]"),
        (lambda: CodeSpace((AdapterConfig(kind="lora"),), (4,), (3,), (1.0,)), "lora"),
        (lambda: encode(AdapterCode(PLACEMENTS[0], 3, 1.0, (3,)), SPACE), "0..2"),
        (
            lambda: encode(AdapterCode(PLACEMENTS[0], 3, 7.0, (1,)), SPACE),
            "7.0 is not in the code space",
        ),
        (lambda: decode(b"", SPACE), "no code"),
        (
            lambda: decode(encode(AdapterCode(PLACEMENTS[0], 3, 1.0, (1,) * 9), SPACE)[:2], SPACE),
            "cut off",
        ),
    ],
)
def test_bad_input_is_refused_with_a_way_out(call, names):
    with pytest.raises(ValueError, match=names):
        call()
