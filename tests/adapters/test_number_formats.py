"""Adapted layers under other defaults, number formats and shapes: as plain PyTorch has it."""

from __future__ import annotations

import pytest
import torch
from adapted_layers import KINDS, LAYERS, E, adapt, build, inputs, restated

from blocklora_lib.adapters.attach import AdapterSet, find_adapters

ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# in float64 too the adapters are float32: each product with them is rounded so


def relative(ours, theirs):
    assert ours.dtype == theirs.dtype
    return (ours.double() - theirs.double()).norm() / theirs.double().norm()


@pytest.fixture(params=[True, False], ids=["onednn", "without"])
def onednn(request):
    """Without it a CPU takes the path of a GPU."""
    with torch.backends.mkldnn.flags(enabled=request.param):
        yield


@pytest.fixture(params=[torch.float64, torch.float16, torch.bfloat16], ids=str)
def default(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("weights", ["float32", "default"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_float32_whatever_the_default(default, kind, layer, weights, tmp_path):
    dtype = torch.float32 if weights == "float32" else default
    model = LAYERS[layer]().to(dtype)
    adapters = adapt(model, kind)
    assert {t.dtype for t in adapters.state_dict().values()} == {torch.float32}
    x = inputs(dtype, grad=True)
    y = model(x)
    assert relative(y, restated(model, x)) <= ROUNDING[dtype]
    y.double().square().sum().backward()
    assert all(p.grad.any() for p in adapters.parameters())
    assert relative(adapters.merge().model.eval()(x), y) <= ROUNDING[dtype]
    adapters.save(tmp_path / "a.safetensors")
    loaded = AdapterSet.load(tmp_path / "a.safetensors", adapters.detach())
    assert torch.equal(loaded.model(x), y)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_adapters_lie_where_the_model_does(device):
    model = LAYERS["cross"]()
    torch.set_default_device(device)
    try:
        adapters = adapt(model)
    finally:
        torch.set_default_device(None)
    assert {p.device.type for p in adapters.parameters()} == {"cpu"}
    assert model(inputs()).isfinite().all()


def test_a_model_without_numbers_is_adapted_too():
    with torch.device("meta"):
        model = LAYERS["self"]()
    adapters = adapt(model, dropout=0.5)
    y = model(torch.empty(2, 3, E, device="meta"))
    y.sum().backward()
    assert all(p.is_meta and p.grad.shape == p.shape for p in adapters.parameters())
    model.eval()
    assert adapters.merge().model(torch.empty(2, 3, E, device="meta")).shape == (2, 3, E)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_moved_model(onednn, layer, when, dtype):
    model = LAYERS[layer]()
    if when == "before":
        model.to(dtype)
    adapters = adapt(model)
    if when == "after":
        model.to(dtype)
    wide = dtype == torch.float64 and when == "after"
    assert {p.dtype for p in adapters.parameters()} == {torch.float64 if wide else torch.float32}
    x, results = inputs(dtype, grad=True), []
    for y in (model(x), restated(model, x)):
        results.append(
            (y, *torch.autograd.grad(y.double().square().sum(), [x, *adapters.parameters()]))
        )
    for ours, theirs in zip(*results, strict=True):
        assert relative(ours, theirs) <= (1e-12 if wide else ROUNDING[dtype])


SHAPES = [(0, 3, E), (2, 0, E), (1, 3, E), (3, E), (0, E)]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("layer", LAYERS)
def test_batches_of_none_and_of_one(onednn, layer, dropout):
    model, adapters = build(layer, dropout=dropout)
    plain = LAYERS[layer]()
    for training in (True, False):
        for shape in SHAPES:
            x = torch.ones(shape, requires_grad=True)
            y = model.train(training)(x)
            assert y.shape == plain(x).shape
            grads = torch.autograd.grad(y.sum(), [x, *adapters.parameters()])
            assert 0 not in shape or not any(g.any() for g in grads)


def test_an_input_that_is_a_view(onednn):
    for layer in LAYERS:
        model, adapters = build(layer)
        leaf = torch.randn(E, 3, 4, requires_grad=True)
        results = []
        for forward in (model, lambda x, model=model: restated(model, x)):
            y = forward(leaf.transpose(0, 2)[::2])
            results.append(
                (y, *torch.autograd.grad(y.square().sum(), [leaf, *adapters.parameters()]))
            )
        for ours, theirs in zip(*results, strict=True):
            assert relative(ours, theirs) <= 1e-5


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.int64, torch.complex64, torch.bool], ids=str
)
@pytest.mark.parametrize("layer", LAYERS)
def test_what_a_plain_layer_refuses_is_refused(onednn, layer, dtype):
    model, adapters = build(layer)
    refusals = []
    for _ in range(2):
        for x in (torch.ones(2, 3, E, dtype=dtype), torch.ones(2, 3, E + 1)):
            with pytest.raises((RuntimeError, AssertionError)) as refusal:
                model(x)
            refusals.append(type(refusal.value))
        if find_adapters(model):
            adapters.detach()
    assert refusals[0] == refusals[2]


def test_an_output_changed_in_place_afterwards(onednn):
    for layer in LAYERS:
        model, adapters = build(layer)
        results = []
        for forward in (model, lambda x, model=model: restated(model, x)):
            x = inputs(grad=True)
            y = forward(x * 1.0)
            y.mul_(2).add_(1)
            results.append(torch.autograd.grad(y.square().sum(), [x, *adapters.parameters()]))
        for ours, theirs in zip(*results, strict=True):
            assert relative(ours, theirs) <= 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_an_input_changed_in_place_before_backward_is_an_error(onednn, dropout):
    for layer in LAYERS:
        model, _ = build(layer, dropout=dropout)
        x = inputs()
        y = model(x)
        x.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
