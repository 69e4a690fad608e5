"""Closed forms of cost against torch's FLOP counter, counted parameters and what autograd keeps:
exactly.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.adapters.updates import make_adapter
from blocklora_lib.clip.architectures import PRESETS, clip_architecture, from_config, read_config
from blocklora_lib.core.schema import AdapterError, UnknownName
from blocklora_lib.costs import adapter as adapter_costs
from blocklora_lib.costs.step import (
    Work,
    adapter_work,
    frozen_work,
    logits_work,
    step_work,
    total_work,
)
from blocklora_lib.measure.counted import (
    attach_in_training,
    build_clip,
    count_multiply_adds,
    kept_bytes,
    tower_call,
)

FORMS = [
    dict(kind="lora", rank=2),
    dict(kind="block_lora", rank=2, n_blocks=1),
    dict(kind="block_lora", rank=4, n_blocks=2),
    dict(kind="block_lora", rank=8, n_blocks=8),
    dict(kind="block_lora", rank=2, n_blocks=4, reading="block_rank"),
    dict(kind="block_lora", rank=2, n_blocks=8, reading="input"),  # more blocks than ranks
    dict(kind="block_lora", rank=4, n_blocks=1, reading="input"),
    dict(kind="frozen_a", rank=4, n_blocks=2),
    dict(kind="frozen_a", rank=2, n_blocks=4, reading="block_rank"),
    dict(kind="frozen_a", rank=4, n_blocks=2, reading="input"),
    dict(kind="collapsed", rank=4, n_blocks=2),
    dict(kind="collapsed", rank=2, n_blocks=4, reading="block_rank"),
]
RELATIVES = [dict(kind="dora"), dict(kind="pissa", rank=3), dict(kind="vera", rank=8)]
IDS = ["-".join(str(v) for v in form.values()) for form in FORMS]


@st.composite
def sites(draw):
    """A form, and a projection that it can be put on."""
    form = AdapterConfig(
        **draw(st.sampled_from(FORMS)), dropout=draw(st.sampled_from([0.0, 0.25, 0.1]))
    )
    return form, 8 * draw(st.integers(1, 6)), draw(st.integers(1, 40)), draw(st.integers(1, 30))


def built(form, d_in, d_out):
    """The adapter in training, at values where no gradient vanishes."""
    adapter = make_adapter(form, d_in, d_out, torch.Generator().manual_seed(0)).train()
    with torch.no_grad():
        adapter.B.uniform_(-1, 1)
    return adapter


def in_order(adapter, form, order):
    """Evaluate the update as written in complexity.py's module docstring, by no code of the
    adapter's own.
    """
    down = adapter.A if hasattr(adapter, "A") else adapter.A_s
    ups = adapter.B if adapter.B.dim() == 3 else adapter.B[None]
    n = adapter_costs.blocks(form)

    def parts(x):
        return x.chunk(n, -1) if form.reading == "input" and n > 1 else [x] * n

    def matrix(i):
        return ups[i] if len(ups) == n else ups[0]

    def dense(x):
        if len(ups) == 1 and is_stacked(form):
            return x @ (ups[0] @ torch.cat([down] * n, 1)).T
        return x @ ((ups.sum(0) if adapter.B.dim() == 3 else ups[0]) @ down).T

    def loop(x):
        return sum(F.linear(F.linear(part, down), matrix(i)) for i, part in enumerate(parts(x)))

    def loop_once(x):
        if form.reading == "input":
            return F.linear(sum(F.linear(part, down) for part in parts(x)), ups[0])
        hidden = F.linear(x, down)
        return sum(F.linear(hidden, matrix(i)) for i in range(n))

    return {"dense": dense, "loop": loop, "loop_once": loop_once}[order]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(sites(), st.booleans())
def test_the_path_costs_what_torch_counts(site, x_needs_grad):
    form, d_in, d_out, tokens = site
    adapter, x = built(form, d_in, d_out), torch.randn(tokens, d_in, requires_grad=x_needs_grad)
    assert adapter.num_parameters() == adapter_costs.parameters(form, d_in, d_out)
    assert count_multiply_adds(lambda: adapter(x)) == (
        adapter_costs.forward_multiply_adds(form, d_in, d_out, tokens),
        adapter_costs.backward_multiply_adds(form, d_in, d_out, tokens, x_needs_grad=x_needs_grad),
    )


def is_stacked(config: AdapterConfig) -> bool:
    """Whether A is n copies of A_s under each other, a tensor of its own when ΔW is formed."""
    return config.kind in ("block_lora", "frozen_a") and config.reading == "input"


def activation_numbers(
    config: AdapterConfig,
    d_in: int,
    d_out: int,
    tokens: int,
    order: str = "sum_first",
    x_needs_grad: bool = True,
) -> int:
    """Numbers that autograd keeps for backward on the path, parameters excluded, dropout off.

    sum_first   x  (T c, for ∂L/∂A_s)  +  h  (T b, for ∂L/∂B)  +  Σ B_i  (b d_out, for ∂L/∂h)
                Σ B_i counts only where it is a sum, a new tensor; a single B is a parameter. Where
                the cut runs along the input, Σ x_i of width c = d_in/n is kept in place of x.
    loop        x once, at its full width, and n times h;  loop_once: h once
    dense       x  (T d_in, for ∂L/∂D)  +  D  (d_in d_out, for ∂L/∂x)
                +  what D is made of, parameters aside
    The path's output is no part of it: who uses it keeps it.
    """
    b, c, a = (
        config.block_rank,
        adapter_costs.shared_width(config, d_in),
        adapter_costs.trains_a(config),
    )
    summed = b * d_out if adapter_costs.is_summed(config) else 0
    if order == "dense":  # D = Bᵀ A: n copies of A_s are kept for ∂L/∂B, A itself is one
        copies = b * d_in if is_stacked(config) else 0
        return tokens * d_in + d_in * d_out * x_needs_grad + summed * a + copies
    if order == "sum_first":
        return tokens * c * a + tokens * b + summed * (a or x_needs_grad)
    return tokens * d_in * a + tokens * b * (adapter_costs.blocks(config) if order == "loop" else 1)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(sites(), st.booleans(), st.sampled_from(["loop", "loop_once", "dense"]))
def test_other_orders_give_the_same_values_at_the_stated_cost(site, x_needs_grad, order):
    form, d_in, d_out, tokens = site
    adapter, x = built(form, d_in, d_out), torch.randn(tokens, d_in, requires_grad=x_needs_grad)
    other, size = in_order(adapter, form, order), (form, d_in, d_out, tokens, order)
    torch.testing.assert_close(other(x) * form.scale, adapter.eval()(x), rtol=1e-4, atol=1e-4)
    forward = adapter_costs.forward_multiply_adds(*size)
    assert count_multiply_adds(lambda: other(x)) == (
        forward,
        adapter_costs.backward_multiply_adds(*size, x_needs_grad=x_needs_grad),
    )
    kept = kept_bytes(lambda: other(x), adapter)
    assert kept == 4 * activation_numbers(*size, x_needs_grad=x_needs_grad)


@settings(max_examples=60, deadline=None)
@given(sites(), st.booleans())
def test_the_path_keeps_what_autograd_keeps(site, x_needs_grad):
    form, d_in, d_out, tokens = site
    adapter, x = (
        built(form, d_in, d_out).eval(),
        torch.randn(tokens, d_in, requires_grad=x_needs_grad),
    )
    kept = kept_bytes(lambda: adapter(x), adapter)
    assert kept == 4 * activation_numbers(form, d_in, d_out, tokens, x_needs_grad=x_needs_grad)


@pytest.mark.parametrize("form", FORMS, ids=IDS)
def test_forming_the_update(form):
    form = AdapterConfig(**form)
    d_in, d_out, n = 16, 24, adapter_costs.blocks(form)
    adapter = built(form, d_in, d_out)
    down = (adapter.A if hasattr(adapter, "A") else adapter.A_s).detach()
    up = adapter.B.detach() if adapter.B.dim() == 3 else adapter.B.detach()[None]
    tiled = form.reading == "input"

    def loop():
        if tiled:
            return torch.cat([up[0] @ down for _ in range(n)], 1)
        return sum(b @ down for b in up)

    def sum_first():
        return (up.sum(0) @ down).repeat(1, n if tiled else 1)

    for order, function in (("loop", loop), ("sum_first", sum_first)):
        assert count_multiply_adds(function)[0] == adapter_costs.forming_multiply_adds(
            form, d_in, d_out, order
        )
        torch.testing.assert_close(
            function() * form.scale, adapter.delta_weight(), rtol=1e-4, atol=1e-5
        )


def test_forming_falls_from_r_d_squared_to_r_d_squared_over_n():
    d, r = 768, 8
    for n in (1, 2, 4, 8):
        form = AdapterConfig(kind="block_lora", rank=r, n_blocks=n)
        assert adapter_costs.forming_multiply_adds(form, d, d, "loop") == r * d * d
        assert adapter_costs.forming_multiply_adds(form, d, d) == r * d * d // n
        assert adapter_costs.forming_additions(form, d, d) == (n - 1) * (r // n) * d


def test_the_saving_in_parameters_stays_below_a_half():
    d = 768
    for n in (1, 2, 4, 8):
        lora = adapter_costs.parameters(AdapterConfig(kind="lora", rank=8), d, d)
        block = adapter_costs.parameters(AdapterConfig(kind="block_lora", rank=8, n_blocks=n), d, d)
        assert 1 - block / lora == adapter_costs.parameter_saving(n) < 0.5


@pytest.mark.parametrize("name", PRESETS)
def test_weights_of_presets(name):
    counted = sum(p.numel() for p in build_clip(name).parameters())
    assert clip_architecture(name).weights == counted


@pytest.mark.slow
@pytest.mark.parametrize("form", [*FORMS, *RELATIVES], ids=[*IDS, "dora", "pissa", "vera"])
@pytest.mark.parametrize("name", PRESETS)
def test_adapted_towers_cost_what_torch_counts(name, form):
    config = AdapterConfig(
        **form, targets=("q", "k", "v") if form["kind"] != "lora" else ("q", "v", "o")
    )
    depth = (
        None if form["kind"] == "lora" else 3
    )  # first, inner and last layer; one form at full depth
    sizes = (
        {} if depth is None else {"vision_cfg": {"layers": depth}, "text_cfg": {"layers": depth}}
    )
    architecture, model = clip_architecture(name), build_clip(name, **sizes)
    if depth:
        vision, text = (replace(tower, layers=depth) for tower in architecture.towers)
        architecture = replace(architecture, vision=vision, text=text)
    adapters = attach_in_training(model, config)
    expected = sum(
        adapter_costs.parameters(config, *site[3:]) for site in architecture.sites(config)
    )
    assert adapters.num_parameters() == expected
    assert len(adapters.adapters) == len(architecture.sites(config))
    for tower, tokens in ((architecture.vision, None), (architecture.text, 9)):
        work = frozen_work(tower, config, 3, tokens) + adapter_work(tower, config, 3, tokens)
        counted = count_multiply_adds(tower_call(model, tower.kind, 3, tokens))
        assert Work(*counted) == work, tower.kind


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_frozen_towers_cost_what_torch_counts(name):
    """Training the biases of q, k, v adds no product: what is left is the frozen weights' share."""
    architecture, model = clip_architecture(name), build_clip(name)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name.endswith("in_proj_bias"))
    for tower, tokens in ((architecture.vision, None), (architecture.text, 9)):
        counted = count_multiply_adds(tower_call(model, tower.kind, 2, tokens))
        assert Work(*counted) == frozen_work(tower, AdapterConfig(), 2, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("layers", range(5))
@pytest.mark.parametrize("targets", range(5))
def test_any_targets_and_layers(targets, layers):
    """Each of five with each of five, dropout in every other of them."""
    dropout = 0.25 * ((targets + layers) % 2)
    targets = [("q",), ("o",), ("v",), ("k", "v"), ("q", "k", "v", "o")][targets]
    layers = ["all", (0,), (-1,), (1, -1), (1,)][layers]
    config = AdapterConfig(rank=4, targets=targets, layers=layers, dropout=dropout)
    architecture, model = clip_architecture("PocketCLIP"), build_clip("PocketCLIP")
    attach_in_training(model, config)
    for tower, tokens in ((architecture.vision, None), (architecture.text, 5)):
        work = frozen_work(tower, config, 2, tokens) + adapter_work(tower, config, 2, tokens)
        assert Work(*count_multiply_adds(tower_call(model, tower.kind, 2, tokens))) == work


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("targets", [("o",), ("k", "o")])
@pytest.mark.parametrize("layers", ["all", (1, -1)])
@pytest.mark.parametrize("form", RELATIVES, ids=["dora", "pissa", "vera"])
def test_loras_relatives_cost_what_torch_counts(form, targets, layers, dropout):
    config = AdapterConfig(**form, targets=targets, layers=layers, dropout=dropout)
    architecture, model = clip_architecture("PocketCLIP"), build_clip("PocketCLIP")
    attach_in_training(model, config)
    for tower, tokens in ((architecture.vision, None), (architecture.text, 5)):
        work = frozen_work(tower, config, 2, tokens) + adapter_work(tower, config, 2, tokens)
        assert Work(*count_multiply_adds(tower_call(model, tower.kind, 2, tokens))) == work
    with pytest.raises(ValueError, match="order='loop' is unknown; use one of sum_first, plain"):
        adapter_costs.forward_multiply_adds(config, 8, 8, 3, "loop")


@pytest.mark.parametrize("form", RELATIVES, ids=["dora", "pissa", "vera"])
def test_relatives_form_their_update_at_the_stated_cost(form):
    config = AdapterConfig(**form)
    adapter, weight = built(config, 16, 24), torch.randn(24, 16)
    counted, _ = count_multiply_adds(lambda: adapter.delta_on(weight).detach())
    norm = 16 * 24 * config.rank if config.kind == "dora" else 0  # of the rows of W + s B A
    assert counted == adapter_costs.forming_multiply_adds(config, 16, 24) + norm


@pytest.mark.slow
@pytest.mark.parametrize("towers", [("vision",), ("text",), ("vision", "text")])
def test_a_step(towers):
    config = AdapterConfig(towers=towers)
    architecture, model = clip_architecture("PocketCLIP"), build_clip("PocketCLIP")
    attach_in_training(model, config)
    images, prompts = tower_call(model, "vision", 4), tower_call(model, "text", 6, 8)
    fixed = prompts().detach() if "text" not in towers else None  # encoded once, before training

    def logits():
        return images() @ (prompts() if fixed is None else fixed).T

    parts = step_work(architecture, config, 4, 6, 8)
    assert Work(*count_multiply_adds(logits)) == total_work(parts)
    assert parts["logits"] == logits_work(architecture, config, 4, 6)


def test_the_algebra_is_less_than_what_is_executed():
    """A block diagonal of m B is m times as wide as three separate products: 3 T m b E against T m
    b E.
    """
    tower, config = clip_architecture("ViT-B-16").vision, AdapterConfig()
    algebra = adapter_work(tower, config, 32, order="plain")
    assert algebra.total < adapter_work(tower, config, 32).total < 3 * algebra.total
    with pytest.raises(ValueError, match="order='fused' is unknown; use one of sum_first, plain"):
        adapter_work(tower, config, 32, order="fused")


def test_refusals():
    with pytest.raises(UnknownName, match="ViT-B-16"):
        clip_architecture("ViT-B-61")
    with pytest.raises(ValueError, match="ResNet"):
        clip_architecture("RN50")
    config = read_config("ViT-B-16")
    config["vision_cfg"] |= {"pool_type": "avg"}
    with pytest.raises(ValueError, match=r"vision_cfg\.pool_type"):
        from_config("x", config)
    with pytest.raises(ValueError, match="order='last'"):
        adapter_costs.forward_multiply_adds(AdapterConfig(), 8, 8, 1, "last")
    with pytest.raises(AdapterError, match="d_in=10"):
        adapter_costs.parameters(AdapterConfig(rank=4, n_blocks=4, reading="input"), 10, 8)
    with pytest.raises(ValueError, match="share"):
        adapter_costs.amdahl(1.2, 0.5)
    with pytest.raises(ValueError, match="1 to 77"):
        frozen_work(clip_architecture("ViT-B-16").text, AdapterConfig(), 1, 78)
    with pytest.raises(ValueError, match="12 layers"):
        clip_architecture("ViT-B-16").sites(AdapterConfig(layers=(12,)))


@pytest.mark.slow
def test_closed_forms_need_neither_torch_nor_open_clip():
    code = (
        "import sys; from blocklora_lib.clip import architectures; "
        "from blocklora_lib.costs import adapter, memory, step; "
        "architectures.clip_architecture('ViT-B-16'); "
        "print({'torch', 'open_clip'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
