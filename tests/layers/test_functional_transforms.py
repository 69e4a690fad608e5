"""PyTorch's own powers over adapted models: torch.func, higher derivatives, tracing, hooks."""

from __future__ import annotations

import io
import warnings

import pytest
import torch
from adapted_layers import KINDS, LAYERS, as_function, build, inputs, restated
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import save_on_cpu
from torch.func import grad, jacfwd, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.adapters.updates import make_adapter
from blocklora_lib.layers import side_by_side
from blocklora_lib.layers.dropped import dropped_projection
from blocklora_lib.layers.frozen import frozen_linear, frozen_mlp

EXACT = 1e-11  # float64, sums of at most a hundred terms


@pytest.fixture(autouse=True)
def _plain_attention():
    """PyTorch's fused attention has no second derivative, with adapters or without."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def closures(layer: str, kind: str = "total_rank", dtype=torch.float32):
    """Return parameters and loss(parameters, x), by the adapted model and restated."""
    model, adapters = build(layer, kind, dtype=dtype)
    parameters, adapted = as_function(model, lambda model, x: model(x))
    _, plain = as_function(model, restated)
    assert len(parameters) == len(list(adapters.parameters()))

    def adapted_loss(parameters, x):
        return adapted(parameters, x).square().mean().sin()

    def restated_loss(parameters, x):
        return plain(parameters, x).square().mean().sin()

    return parameters, adapted_loss, restated_loss


def assert_same(ours, theirs, tolerance):
    ours, theirs = (torch.utils._pytree.tree_leaves(x) for x in (ours, theirs))
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= tolerance * (b.norm() + 1e-3)


def per_sample(loss, parameters, x):
    return vmap(grad(loss), in_dims=(None, 0))(parameters, x)


def over_models(loss, parameters, x):
    stacked = {n: torch.stack([p, p / 2, -p]) for n, p in parameters.items()}
    return vmap(loss, in_dims=(0, None))(stacked, x), vmap(grad(loss), in_dims=(0, None))(
        stacked, x
    )


def tangents(loss, parameters, x):
    ones = {n: torch.ones_like(p) for n, p in parameters.items()}
    return jvp(loss, (parameters, x), (ones, x.cos()))


def jacobians(loss, parameters, x):
    both = jacrev(loss, argnums=(0, 1))(parameters, x), jacfwd(loss, argnums=1)(parameters, x)
    assert_same(both[0][1], both[1], 1e-4)
    return both


def hessian_products(loss, parameters, x):
    """Forward over reverse and reverse over reverse."""
    direction = x.cos()
    return (
        jvp(lambda x: grad(loss, argnums=1)(parameters, x), (x,), (direction,)),
        grad(lambda p: (grad(loss, argnums=1)(p, x) * direction).sum())(parameters),
    )


def gradient_penalty(loss, parameters, x):
    parameters = {n: p.clone().requires_grad_() for n, p in parameters.items()}
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(parameters, x), x, create_graph=True)
    return torch.autograd.grad(g.square().sum(), [x, *parameters.values()])


def functional_hessian(loss, parameters, x):
    x = x[:1, :2]
    return torch.autograd.functional.hessian(lambda x: loss(parameters, x), x)


def batched_backward(loss, parameters, x):
    parameters = {n: p.clone().requires_grad_() for n, p in parameters.items()}
    x = x.clone().requires_grad_()
    several = torch.tensor([1.0, 2.0, -1.0], dtype=x.dtype)
    out = loss(parameters, x)
    return torch.autograd.grad(out, [x, *parameters.values()], several, is_grads_batched=True)


def forward_mode(loss, parameters, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(loss(parameters, forward_ad.make_dual(x, x.cos())))


def twice_retained(loss, parameters, x):
    x = x.clone().requires_grad_()
    out = loss(parameters, x)
    first = torch.autograd.grad(out, x, retain_graph=True)
    second = torch.autograd.grad(out, x)
    assert torch.equal(*first, *second)
    return first


def kept_on_the_cpu(loss, parameters, x):
    parameters = {n: p.clone().requires_grad_() for n, p in parameters.items()}
    with save_on_cpu(), torch.autograd.detect_anomaly(check_nan=True):
        return torch.autograd.grad(loss(parameters, x), list(parameters.values()))


POWERS = [
    per_sample,
    over_models,
    tangents,
    jacobians,
    hessian_products,
    gradient_penalty,
    functional_hessian,
    batched_backward,
    forward_mode,
    twice_retained,
    kept_on_the_cpu,
]


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("power", POWERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["oneDNN", "elsewhere"])
def test_a_power_of_pytorch(power, layer, dtype):
    parameters, ours, theirs = closures(layer, dtype=dtype)
    x = inputs(dtype)
    tolerance = 2e-4 if dtype == torch.float32 else EXACT
    with warnings.catch_warnings():
        # a kernel that vmap does not know
        warnings.filterwarnings("error", message=".*performance drop.*")
        found = power(ours, parameters, x)
    assert_same(found, power(theirs, parameters, x), tolerance)


@pytest.mark.parametrize(
    "power", [per_sample, over_models, gradient_penalty], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_them(power, kind):
    parameters, ours, theirs = closures("self", kind, torch.float64)
    x = inputs(torch.float64)
    assert_same(power(ours, parameters, x), power(theirs, parameters, x), EXACT)


# derivatives written by hand, one by one


def frozen_mlp_of(x, quick):
    torch.manual_seed(0)
    mlp = (
        nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 3)).to(x.dtype).requires_grad_(False)
    )
    return frozen_mlp(mlp, x, quick)


def dropped(x, downs, n):
    torch.manual_seed(0)
    return dropped_projection(x, downs, 0.5, n)


@pytest.mark.parametrize("case", ["mlp", "quick mlp", "dropout", "dropout of blocks"])
def test_first_and_second_derivatives_by_differences(case):
    random = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True)

    function, arguments = {
        "mlp": (lambda x: frozen_mlp_of(x, False), (draw(2, 3),)),
        "quick mlp": (lambda x: frozen_mlp_of(x, True), (draw(2, 3),)),
        "dropout": (lambda x, downs: dropped(x, downs, 1), (draw(3, 4), draw(2, 2, 4))),
        "dropout of blocks": (lambda x, downs: dropped(x, downs, 2), (draw(3, 4), draw(2, 2, 2))),
    }[case]
    assert torch.autograd.gradcheck(function, arguments, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, arguments, check_batched_grad=True)


@pytest.mark.parametrize("quick", [False, True])
def test_a_frozen_product_in_float32_has_second_derivatives(quick):
    x, results = inputs().flatten(0, 1)[:, :3].clone().requires_grad_(), []
    for dtype in (torch.float32, torch.float64):
        (g,) = torch.autograd.grad(
            frozen_mlp_of(x.to(dtype), quick).square().sum(), x, create_graph=True
        )
        results.append(torch.autograd.grad((g**3).sum(), x)[0])
    assert_same(results[0], results[1], 1e-4)


def test_a_weight_changed_in_place_before_backward_is_an_error():
    weight, x = torch.randn(4, 3), torch.randn(2, 3, requires_grad=True)
    y = frozen_linear(x, weight)
    weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# dropout under vmap: PyTorch's own rule for randomness


@pytest.mark.parametrize("layer", LAYERS)
def test_dropout_asks_how_random_vmap_is(layer):
    model, _ = build(layer, dropout=0.5)
    x = inputs(batch=1).expand(4, -1, -1)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(model)(x)
    same, different = (vmap(model, randomness=how)(x) for how in ("same", "different"))
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])
    zero = model.eval()(inputs(batch=1))[0]
    assert not torch.allclose(same[0], zero)  # it did fall


# tracing, export, compilers


@pytest.mark.slow
@pytest.mark.parametrize("merged", [False, True], ids=["adapted", "merged"])
@pytest.mark.parametrize("layer", LAYERS)
def test_traced_and_exported(layer, merged):
    model, adapters = build(layer)
    model.eval()
    if merged:
        adapters.merge()
    expected = model(inputs()).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, inputs())
        exported = (
            torch.export.export(model, (inputs(),), strict=s).module() for s in (False, True)
        )
        programs = [traced, *exported]
    for program in programs:
        assert_same(program(inputs()), expected, 1e-5)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_of_an_adapted_model_is_one_that_onnx_knows(layer, kind):
    """By all that torch converts itself; where `onnx` is installed, by the whole export."""
    model, _ = build(layer, kind)
    model.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, inputs())
        assert "aten::block_diag" not in str(traced.inlined_graph)
        assert_same(traced(inputs()), model(inputs()).detach(), 1e-5)
        try:
            torch.onnx.export(model, (inputs(),), io.BytesIO(), dynamo=False)
        except torch.onnx.OnnxExporterError as error:
            assert "onnx is not installed" in str(error)  # noqa: PT017  the graph is converted


@pytest.mark.parametrize("targets", ["qkv", "qv", "k", "v"])
def test_a_traced_block_diagonal_is_the_matrix_that_it_is_elsewhere(targets, monkeypatch):
    config = AdapterConfig(kind="lora", rank=2, n_blocks=1)
    updates = [make_adapter(config, 6, 5) if t in targets else None for t in "qkv"]
    for update in filter(None, updates):
        torch.nn.init.normal_(update.B)
        update.eval()
    hidden, matrix = side_by_side._factored(torch.ones(3, 6), updates)
    monkeypatch.setattr(side_by_side, "is_traced", lambda: True)
    again, traced = side_by_side._factored(torch.ones(3, 6), updates)
    assert torch.equal(again, hidden)
    assert torch.equal(traced, matrix)


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_exported_for_any_batch(layer):
    model, _ = build(layer)
    model.eval()
    any_batch = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (inputs(),), dynamic_shapes=any_batch).module()
    more = torch.cat([inputs(), inputs().flip(0)[:1]])
    assert_same(program(more), model(more), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "backend"), [("self", "eager"), ("linear", "aot_eager")])
def test_compiled_in_training(layer, backend):
    model, adapters = build(layer)
    results = []
    torch._dynamo.reset()
    for forward in (torch.compile(model, backend=backend, fullgraph=True), model):
        loss = forward(inputs()).square().sum()
        results.append((loss, *torch.autograd.grad(loss, list(adapters.parameters()))))
    assert_same(*results, 1e-4)
