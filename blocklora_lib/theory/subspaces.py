"""What one shared down-projection can fit: targets ΔW, closed-form floors, many small trainings.

A linear regression y = x (W + Z)ᵀ with isotropic x asks for the update Z: d_out x d_in. The excess
risk of an update ΔW is ‖ΔW - Z‖² (Frobenius), so the best one of a function class is a projection,
known in closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from ..adapters.config import AdapterConfig
from ..adapters.updates import make_adapter
from ..core.seeding import generator
from ..learning.loop import cosine_lr


def orthogonal_groups(
    d_in: int, d_out: int, directions: int, seed: int, decay: float = 1.0
) -> Tensor:
    """Return Z = Σ_j decay^j v_j u_jᵀ: (d_out, d_in), u_j and v_j orthonormal, j from 0.

    Without decay all singular values are equal. Cut into groups, the u_j span feature spaces
    orthogonal to each other, one for each group of labels.
    """
    draw = generator(seed, "orthogonal groups")
    inputs, outputs = (
        torch.linalg.qr(torch.randn(d, directions, generator=draw, dtype=torch.float64))[0]
        for d in (d_in, d_out)
    )
    return outputs * decay ** torch.arange(directions, dtype=torch.float64) @ inputs.T


def repeated_along_the_input(
    d_in: int, d_out: int, directions: int, n_blocks: int, seed: int
) -> Tensor:
    """Return Z = [M, .., M] / √n, M of `orthogonal_groups`: it reads the sum of n input blocks."""
    one_block = orthogonal_groups(d_in // n_blocks, d_out, directions, seed)
    return torch.cat([one_block] * n_blocks, dim=1) / n_blocks**0.5


def floor(target: Tensor, config: AdapterConfig) -> float:
    """Return min ‖ΔW - Z‖² / ‖Z‖² over all updates ΔW that the adapter can take.

    Readings "total_rank" and "block_rank", Eckart and Young: all but the first b = block_rank
    singular directions of Z stay. Reading "input": ΔW = M J, J = [I, .., I], M (d_out, d_in/n) of
    rank r; J Jᵀ = n I, ‖ΔW - Z‖² = ‖Z‖² - ‖Z Jᵀ/√n‖² + ‖√n M - Z Jᵀ/√n‖²: the first r directions of
    Z Jᵀ/√n are fitted.
    """
    reachable, width = target, config.block_rank
    if config.reading == "input":
        n = config.n_blocks
        reachable = target.unflatten(1, (n, -1)).sum(1) / n**0.5
    fitted = torch.linalg.svdvals(reachable)[:width].square().sum()
    return max(0.0, 1 - (fitted / target.square().sum()).item())


def cut_risk(target: Tensor, width: int, samples: int, sigma: float) -> float:
    """Return the risk of least squares on N samples of noise σ, cut to rank b, about, over ‖Z‖².

    σ² b (d_in + d_out - b) / (N - d_in - 1) + Σ_{k > b} s_k²: the noise that lies in the tangent
    space of matrices of rank b, and the tail of Z. Exact at full rank, and to first order in σ
    where s_b is far above the noise and s_{b+1}. N > d_in + 1.
    """
    d_out, d_in = target.shape
    if samples <= d_in + 1:
        raise ValueError(
            f"samples={samples} of d_in={d_in}; least squares has a finite risk from "
            f"{d_in + 2} samples on"
        )
    width = min(width, d_in, d_out)  # a wider one cuts nothing
    noise = sigma**2 * width * (d_in + d_out - width) / (samples - d_in - 1)
    values = torch.linalg.svdvals(target).square()
    return (noise + values[width:].sum().item()) / values.sum().item()


def smaller_lora(config: AdapterConfig) -> AdapterConfig:
    """Return LoRA of the width of A_s, scale s kept: the control without blocks and their rate."""
    return AdapterConfig(
        kind="lora",
        rank=config.block_rank,
        alpha=config.scale * config.block_rank,
        scaling="rank",
        dropout=config.dropout,
    )


def train_many(
    config: AdapterConfig,
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    steps: int,
    lr: float,
    seed: int = 1,
) -> Tensor:
    """Fit K adapters to K regressions at once, by Adam along a cosine; return ΔW: (K, d_out, d_in).

    x: (K, N, d_in), y: (K, N, d_out), without the frozen product; weights: (K, N) of the
    samples in the mean. Adam works coordinate by coordinate, so one optimizer of stacked
    parameters is K optimizers.
    """
    d_in, d_out = x.shape[-1], y.shape[-1]
    draws = (generator(seed + k, "adapter") for k in range(len(x)))
    adapters = [
        make_adapter(config, d_in, d_out, draw).double().to(x.device).eval() for draw in draws
    ]
    stacked, _ = stack_module_state(adapters)
    one, ratio = adapters[0], adapters[0].up_lr_ratio
    groups = [
        {"params": [p], "lr": lr * (ratio if name == "B" else 1)} for name, p in stacked.items()
    ]
    optimizer = torch.optim.Adam(groups)
    rates = [group["lr"] for group in optimizer.param_groups]

    def outputs(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(one, parameters, (x,))

    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * cosine_lr(step, steps, 1.0, 0.0)
        errors = (vmap(outputs)(stacked, x) - y).square().mean(-1)
        optimizer.zero_grad()
        ((errors * weights).sum(1) / weights.sum(1)).sum().backward()
        optimizer.step()
    with torch.no_grad():  # ΔW from its action on the unit inputs
        unit = torch.eye(d_in, dtype=torch.float64, device=x.device).expand(len(x), -1, -1)
        return vmap(outputs)(stacked, unit).mT


def remaining(updates: Tensor, target: Tensor) -> list[float]:
    """Return ‖ΔW - Z‖² / ‖Z‖² of each update: 0 is a perfect fit, 1 no better than no update."""
    return ((updates - target).square().sum((-2, -1)) / target.square().sum((-2, -1))).tolist()
