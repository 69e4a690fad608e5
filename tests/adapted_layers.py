"""Small adapted layers, and the same written out in PyTorch: a frozen layer plus x ΔWᵀ."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from blocklora_lib.adapters.attach import AdapterSet, attach, attach_linear
from blocklora_lib.adapters.config import AdapterConfig

KINDS = {
    "lora": dict(kind="lora", rank=2),
    "total_rank": dict(kind="block_lora", rank=4, n_blocks=2),
    "block_rank": dict(kind="block_lora", rank=2, n_blocks=2, reading="block_rank"),
    "input": dict(kind="block_lora", rank=2, n_blocks=2, reading="input"),
    "frozen_a": dict(kind="frozen_a", rank=4, n_blocks=2),
    "collapsed": dict(kind="collapsed", rank=4, n_blocks=2),
    "dora": dict(kind="dora", rank=2),
    "pissa": dict(kind="pissa", rank=2),
    "vera": dict(kind="vera", rank=4),
}
E, L, KEYS, N = 8, 3, 4, 2


class SelfAttention(nn.Module):
    """One attention layer over (N, L, E)."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(E, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x)[0]


class CrossAttention(SelfAttention):
    """Its keys and values are another tensor: the queries, one row further."""

    def forward(self, x: Tensor) -> Tensor:
        other = x.roll(1, -2)
        return self.attn(x, other, other)[0]


class Layer(nn.Module):
    """One linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(E, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


LAYERS = {"self": SelfAttention, "cross": CrossAttention, "linear": Layer}


def adapt(
    model: nn.Module, kind: str = "total_rank", dropout: float = 0.0, dtype=None
) -> AdapterSet:
    """Put adapters on every layer, their B not zero, in float32 unless dtype says else."""
    settings = dict(KINDS[kind], targets=("q", "k", "v", "o"), dropout=dropout)
    generator = torch.Generator().manual_seed(0)
    adapters = (
        attach_linear(model, "fc", AdapterConfig(**settings), generator)
        if isinstance(model, Layer)
        else attach(model, AdapterConfig(**settings), generator)
    )
    for i, adapter in enumerate(adapters.adapters.values()):
        up = adapter.b if kind == "vera" else adapter.B
        up.data.normal_(std=0.3, generator=torch.Generator().manual_seed(i))
    if dtype is not None:
        for adapter in adapters.adapters.values():
            adapter.to(dtype)
    return adapters


def build(layer: str, kind: str = "total_rank", dropout: float = 0.0, dtype=torch.float32):
    """Return (model, adapters); dtype is of the frozen weights, float64 of the adapters too."""
    torch.manual_seed(0)
    model = LAYERS[layer]().to(dtype)
    return model, adapt(model, kind, dropout, torch.float64 if dtype == torch.float64 else None)


def inputs(dtype=torch.float32, *, batch: int = N, grad: bool = False) -> Tensor:
    x = torch.randn(batch, L, E, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return x.to(dtype).requires_grad_(grad)


def as_function(model: nn.Module, run: Callable) -> tuple[dict[str, Tensor], Callable]:
    """Return the adapters' parameters, and run(model, x), a function of such in the model and x."""

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return run(self.model, x)

    around = Around()
    parameters = {n: p.detach().clone() for n, p in around.named_parameters() if p.requires_grad}
    return parameters, lambda parameters, x: functional_call(around, parameters, (x,))


def restated(model: nn.Module, x: Tensor) -> Tensor:
    """What `model(x)` has to be, without dropout, in operators of PyTorch that everyone knows."""
    if isinstance(model, Layer):
        return _linear(x, model.fc.weight, model.fc.bias, model.fc.adapters["weight"])
    attn, other = model.attn, x.roll(1, -2) if isinstance(model, CrossAttention) else x
    parts = zip(
        (x, other, other),
        attn.in_proj_weight.chunk(3),
        attn.in_proj_bias.chunk(3),
        "qkv",
        strict=True,
    )
    q, k, v = (
        _linear(part, weight, bias, attn.adapters[target])
        .unflatten(-1, (2, E // 2))
        .transpose(-2, -3)
        for part, weight, bias, target in parts
    )
    weights = (q @ k.mT / (E // 2) ** 0.5).softmax(-1)
    context = (weights.to(v.dtype) @ v).transpose(-2, -3).flatten(-2)
    return _linear(context, attn.out_proj.weight, attn.out_proj.bias, attn.adapters["o"])


def _linear(x: Tensor, weight: Tensor, bias: Tensor, adapter: nn.Module) -> Tensor:
    base = F.linear(x, weight, bias)
    with torch.autocast("cpu", enabled=False):  # an adapter keeps its number format
        delta = adapter.delta_on(weight)
        return (base + F.linear(x.to(delta.dtype), delta)).to(base.dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(adapters: AdapterSet) -> AdapterSet:
    """Give every trained number a random one."""
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded(3)))
    return adapters


def linear(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*map(nn.Linear, widths[:-1], widths[1:]))
