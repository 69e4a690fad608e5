"""DoRA, PiSSA and VeRA: against their equations written out, and against the peft library."""

from __future__ import annotations

import math

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from blocklora_lib.adapters.attach import AdapterSet, attach, attach_linear
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.core.schema import AdapterError
from blocklora_lib.layers import dropped as dropping

D_IN, D_OUT, T = 8, 6, 5
SCALE = 1 / math.sqrt(2)  # of rank 2
FORMS = {
    "dora": dict(kind="dora", rank=2),
    "pissa": dict(kind="pissa", rank=2),
    "vera": dict(kind="vera", rank=4),
}


def layer(dtype=torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D_IN, D_OUT)).to(dtype)


def adapted(kind, dropout=0.0, dtype=torch.float64, **settings):
    """A layer with an adapter whose trained numbers are all moved away from their start."""
    model = layer(dtype)
    adapters = attach_linear(model, "0", AdapterConfig(dropout=dropout, **FORMS[kind] | settings))
    if dtype == torch.float64:
        adapters.double()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in adapters.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=random, dtype=torch.float64))
    return model, adapters, adapters.adapters["0.weight"]


def rows(dtype=torch.float64, grad=False):
    x = torch.randn(T, D_IN, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x.to(dtype).requires_grad_(grad)


def written_out(kind, adapter, w, bias, x, dropped):
    """The layer by its equation. x: as the frozen weight sees it, dropped: as the adapter does."""
    frozen = x @ w.T + bias
    if kind == "dora":
        v = w + SCALE * adapter.B @ adapter.A
        length = v.detach().square().sum(1, keepdim=True).sqrt()
        new = adapter.magnitude[:, None] * v / length
        return frozen + dropped @ (new - w).T
    if kind == "pissa":
        residual = w - SCALE * adapter.B_0 @ adapter.A_0
        return x @ residual.T + bias + dropped @ (SCALE * adapter.B @ adapter.A).T
    delta = torch.diag(adapter.b) @ adapter.B @ torch.diag(adapter.d) @ adapter.A
    return frozen + dropped @ delta.T


def drop(x, p, seed=7):
    """Dropout with the masks that the adapter draws."""
    torch.manual_seed(seed)
    noise, threshold, p = dropping.draw_noise((1, *x.shape), p, x.device)
    return x * (noise[0] >= threshold) / (1 - p)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("kind", FORMS)
def test_outputs_and_gradients_are_the_equations(kind, dropout):
    model, adapters, adapter = adapted(kind, dropout)
    w, bias, x = model[0].weight.detach(), model[0].bias.detach(), rows(grad=True)
    torch.manual_seed(7)
    found = model(x)
    expected = written_out(kind, adapter, w, bias, x, drop(x, dropout) if dropout else x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    wanted = [x, *adapters.parameters()]
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)).double()
    for ours, theirs in zip(
        torch.autograd.grad((found * slope).sum(), wanted),
        torch.autograd.grad((expected * slope).sum(), wanted),
        strict=True,
    ):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    model.eval()
    kept = model(x).detach()
    torch.testing.assert_close(kept, written_out(kind, adapter, w, bias, x, x), rtol=0, atol=1e-12)
    adapters.merge()
    torch.testing.assert_close(model(x), kept, rtol=0, atol=1e-12)
    adapters.unmerge()
    assert torch.equal(model[0].weight, w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", FORMS)
def test_the_start_is_the_frozen_model_bit_for_bit(kind, dtype):
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(D_IN, 2, batch_first=True).to(dtype).eval()
    x = torch.randn(3, T, D_IN).to(dtype)
    adapters = attach(mha, AdapterConfig(**FORMS[kind], targets=("q", "k", "v", "o"), dropout=0.0))
    before, weight = mha(x, x, x)[0], mha.in_proj_weight.clone()
    adapters.merge()
    assert torch.equal(mha.in_proj_weight, weight)
    base = adapters.detach()(x, x, x)[0]
    assert (before - base).abs().max() <= 2 * torch.finfo(dtype).eps  # two kernels of attention


@pytest.mark.parametrize("kind", FORMS)
def test_a_file_has_all_that_the_update_needs(kind, tmp_path, monkeypatch):
    model, adapters, _ = adapted(kind, dtype=torch.float32)
    x = rows(torch.float32)
    expected = model.eval()(x).detach()
    adapters.save(tmp_path / "a.safetensors")
    own = {"dora": "A B magnitude", "pissa": "A B A_0 B_0", "vera": "b d"}[kind].split()
    assert sorted(load_file(tmp_path / "a.safetensors")) == sorted(f"0.weight.{n}" for n in own)
    # what a file holds is not computed again
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: pytest.fail("computed again"))
    other = layer().eval()
    loaded = AdapterSet.load(tmp_path / "a.safetensors", other)
    assert torch.equal(other(x), expected)
    assert loaded.config == adapters.config
    loaded.merge()
    torch.testing.assert_close(other(x), expected)


# peft


def with_peft(kind, dropout=0.0):
    from peft import LoraConfig, VeraConfig, get_peft_model

    common = dict(target_modules=["0"], r=FORMS[kind]["rank"])
    if kind == "vera":
        config = VeraConfig(**common, vera_dropout=dropout, projection_prng_key=0)
    else:
        how = {"dora": dict(use_dora=True), "pissa": dict(init_lora_weights="pissa")}[kind]
        config = LoraConfig(**common, lora_alpha=1, use_rslora=True, lora_dropout=dropout, **how)
    model = get_peft_model(layer(), config)
    return model, model.base_model.model[0]


def names(kind, theirs):
    """Our name of each of peft's trained numbers."""
    if kind == "vera":
        return {"b": theirs.vera_lambda_b["default"], "d": theirs.vera_lambda_d["default"]}
    found = {"A": theirs.lora_A["default"].weight, "B": theirs.lora_B["default"].weight}
    if kind == "dora":
        found["magnitude"] = theirs.lora_magnitude_vector["default"].weight
    return found


class SameMasks(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        return drop(x, self.p)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("kind", FORMS)
def test_peft_computes_the_same(kind, dropout, tmp_path):
    """Our file's numbers in peft's layer: outputs, gradients and merged weights."""
    model, adapters, adapter = adapted(kind, dropout, torch.float32)
    adapters.save(tmp_path / "a.safetensors")
    kept = load_file(tmp_path / "a.safetensors")
    peft, theirs = with_peft(kind, dropout)
    trained = names(kind, theirs)
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(kept[f"0.weight.{name}"])
    if dropout:
        place = theirs.vera_dropout if kind == "vera" else theirs.lora_dropout
        place["default"] = SameMasks(dropout)
    peft.train()
    x = rows(torch.float32)
    slope = torch.randn(T, D_OUT, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(7)
    found, expected = model(x), peft(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad((found * slope).sum(), [getattr(adapter, n) for n in trained])
    reference = torch.autograd.grad((expected * slope).sum(), list(trained.values()))
    for mine, their in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5)
    adapters.merge()
    torch.testing.assert_close(
        model[0].weight, peft.merge_and_unload()[0].weight, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", FORMS)
def test_peft_starts_from_the_same(kind):
    adapters = attach_linear(layer(), "0", AdapterConfig(**FORMS[kind], dropout=0.0))
    adapter, (_, theirs) = adapters.adapters["0.weight"], with_peft(kind)
    trained = names(kind, theirs)
    if kind == "vera":
        assert torch.equal(adapter.A, theirs.vera_A["default"])
        assert torch.equal(adapter.B, theirs.vera_B["default"])
    if kind == "dora":
        trained.pop("A")  # drawn by another generator
    for name, p in trained.items():
        torch.testing.assert_close(getattr(adapter, name), p, rtol=1e-5, atol=1e-6)
    if kind == "pissa":
        residual = layer()[0].weight - SCALE * adapter.B_0 @ adapter.A_0
        torch.testing.assert_close(residual, theirs.base_layer.weight, rtol=1e-5, atol=1e-6)


# counts, and what cannot be


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        (dict(kind="dora", rank=2), 184_320 + 36 * (768 + 512)),
        (dict(kind="pissa", rank=2), 184_320),
        (dict(kind="vera", rank=256), 36 * 2 * 256 + 36 * (768 + 512)),
    ],
)
def test_vit_b_16_has_as_many_numbers_to_train(settings, numbers):
    with torch.device("meta"):
        model = CLIP(**open_clip.get_model_config("ViT-B-16-quickgelu"))
    adapters = attach(model, AdapterConfig(**settings))
    assert adapters.num_parameters() == numbers
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == numbers


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(kind="dora", n_blocks=2), "kind='dora' has one block, not n_blocks=2"),
        (dict(kind="pissa", init="normal"), "init='normal' says nothing to kind='pissa'"),
        (dict(kind="pissa", init_scale=2.0), "it starts from W's singular vectors; leave it out"),
        (dict(kind="vera", alpha=2.0), "alpha=2.0 says nothing to kind='vera'"),
        (dict(kind="vera", scaling="rank"), "its random matrices are fixed; leave it out"),
    ],
)
def test_settings_that_say_nothing(settings, says):
    with pytest.raises(ValidationError) as error:
        AdapterConfig(**settings)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("kind", "rank", "change", "says"),
    [
        ("dora", 2, lambda w: w[1].zero_(), r"0.weight: .* that of row 1 is 0; use kind='lora'"),
        ("dora", 2, lambda w: w[2].fill_(math.nan), "that of row 2 is nan"),
        ("pissa", 2, lambda w: w[2].fill_(math.inf), "which is not finite; repair the weights"),
        ("pissa", 7, lambda w: w, "rank=7: a weight of 6 x 8 has 6 singular values"),
    ],
)
def test_weights_that_give_no_start(kind, rank, change, says):
    model = layer()
    with torch.no_grad():
        change(model[0].weight)
    with pytest.raises(AdapterError, match=says) as error:
        attach_linear(model, "0", AdapterConfig(kind=kind, rank=rank))
    assert "\n" not in str(error.value)
    assert type(model[0]) is nn.Linear
    assert model[0].weight.requires_grad


def test_layers_of_one_shape_hold_one_draw():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(d, 8) for d in (8, 8, 6)))
    adapters = attach_linear(model, "*", AdapterConfig(**FORMS["vera"], dropout=0.0)).adapters
    first, second, other = adapters.values()
    assert first.A is second.A
    assert first.B is second.B
    assert first.b is not second.b
    assert other.A.shape == (4, 6)


def test_dora_asks_for_the_weight():
    _, _, adapter = adapted("dora")
    for ask in (adapter.delta_weight, lambda: adapter.update(rows())):
        with pytest.raises(AdapterError, match="depends on W; ask"):
            ask()
    assert F.linear(rows(), adapter.delta_on(layer(torch.float64)[0].weight)).shape == (T, D_OUT)
