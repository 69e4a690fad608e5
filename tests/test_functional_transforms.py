"""PyTorch's own powers over adapted models: torch.func, second derivatives, forward mode, tracing, hooks."""

from __future__ import annotations

import warnings

import pytest
import torch
from adapted_layers import KINDS, LAYERS, build, inputs, restated
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import save_on_cpu
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

EXACT = 1e-11  # float64, sums of at most a hundred terms


@pytest.fixture(autouse=True, params=[True, False], ids=["onednn", "without"])
def onednn(request):
    """Without it a CPU takes the path of a GPU."""
    with torch.backends.mkldnn.flags(enabled=request.param), sdpa_kernel(SDPBackend.MATH):
        yield  # PyTorch's fused attention has no second derivative, with adapters or without


def closures(layer: str, kind: str = "total_rank", dtype=torch.float32):
    """Return parameters and loss(parameters, x), by the adapted model and restated."""
    model, adapters = build(layer, kind, dtype=dtype)
    parameters = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    assert len(parameters) == len(list(adapters.parameters()))

    class Restated(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return restated(self.model, x)

    def adapted_loss(parameters, x):
        return functional_call(model, parameters, (x,)).square().mean().sin()

    def restated_loss(parameters, x):
        prefixed = {f"model.{n}": p for n, p in parameters.items()}
        return functional_call(Restated(), prefixed, (x,)).square().mean().sin()

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
    return vmap(loss, in_dims=(0, None))(stacked, x), vmap(grad(loss), in_dims=(0, None))(stacked, x)


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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_power_of_pytorch(power, layer, dtype):
    parameters, ours, theirs = closures(layer, dtype=dtype)
    x = inputs(dtype)
    tolerance = 2e-4 if dtype == torch.float32 else EXACT
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*performance drop.*")  # a kernel that vmap does not know
        found = power(ours, parameters, x)
    assert_same(found, power(theirs, parameters, x), tolerance)


@pytest.mark.parametrize("power", [per_sample, over_models, gradient_penalty], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_them(power, kind):
    parameters, ours, theirs = closures("self", kind, torch.float64)
    x = inputs(torch.float64)
    assert_same(power(ours, parameters, x), power(theirs, parameters, x), EXACT)
