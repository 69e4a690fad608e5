"""What is computed in another way on a GPU is the same: here by a CPU's kernels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fake_cuda import CudaTensor, fake_cuda
from torch import nn

from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.adapters.updates import make_adapter
from blocklora_lib.core.seeding import generator
from blocklora_lib.layers import frozen
from blocklora_lib.layers.dropped import sum_blocks
from blocklora_lib.layers.sequences import Layout, attend
from blocklora_lib.layers.side_by_side import FactorsAhead, updated_product


@pytest.fixture
def gpu():
    with fake_cuda() as found:
        yield found


def adapters(m=3, d=8, **settings):
    config = AdapterConfig(**{"rank": 2, "n_blocks": 2, "dropout": 0.25, **settings})
    made = [make_adapter(config, d, 6, generator(i, "adapter")) for i in range(m)]
    for i, adapter in enumerate(made):
        adapter.B.data = torch.randn(adapter.B.shape, generator=generator(i, "B"))
    return made


def by_definition(x, weight, bias, made, kept):
    """[x Wᵀ + b + (x ∘ M_j / (1 - p)) ΔW_jᵀ] with the masks given, (m, T, E)."""
    parts = []
    for w, b, adapter, mask in zip(weight.chunk(3), bias.chunk(3), made, kept, strict=True):
        down, up = adapter.factors()
        hidden = sum_blocks(x.float() * mask / (1 - adapter.dropout), adapter.input_blocks) @ down.T
        base = F.linear(x, w, b).float()
        parts.append((base + adapter.scale * hidden @ up.T).to(x.dtype))
    return torch.cat(parts, -1)


@pytest.mark.parametrize("settings", [{}, {"kind": "lora", "n_blocks": 1}, {"reading": "input"},
                                      {"kind": "frozen_a"}, {"kind": "collapsed"}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ahead", [False, True])
def test_the_product_of_a_gpu_has_the_values_and_gradients_of_its_definition(
    gpu, settings, dtype, ahead
):
    made, masks = adapters(**settings), []
    draw = torch.native_dropout

    def drawn(*given):
        found = draw(*given)
        masks.append(found[1].held)
        return found

    x = torch.randn(5, 8, generator=generator(1, "x")).to(dtype)
    weight = torch.randn(18, 8, generator=generator(1, "w")).to(dtype)
    bias = torch.randn(18, generator=generator(1, "b")).to(dtype)
    grad = torch.randn(5, 18, generator=generator(1, "g")).to(dtype)
    there = [adapter.to("cuda") for adapter in adapters(**settings)]
    x_there = x.to("cuda").requires_grad_()
    together = FactorsAhead()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "native_dropout", drawn)
        given = weight.to("cuda"), bias.to("cuda"), there
        for _ in range(2 if ahead else 1):
            masks.clear()
            if ahead:
                with together:
                    found = updated_product(x_there, *given)
            else:
                found = updated_product(x_there, *given)
    found.backward(grad.to("cuda"))
    x = x.requires_grad_()
    expected = by_definition(x, weight, bias, made, masks[0])
    expected.backward(grad)
    rounding = 1e-5 if dtype == torch.float32 else 3e-2  # bfloat16 has 8 bits, and sums of it round
    torch.testing.assert_close(found.cpu(), expected, rtol=rounding, atol=rounding)
    torch.testing.assert_close(x_there.grad.cpu(), x.grad, rtol=rounding, atol=4 * rounding)
    for a, b in zip(made, there, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert isinstance(q.grad, CudaTensor)
            torch.testing.assert_close(q.grad.cpu(), p.grad, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("groups", [((2, 3), (1, 4), (2, 6)), ((3, 4),)])
def test_attention_of_any_lengths_at_once_is_that_of_each_length(gpu, groups, pooled):
    layout = Layout(groups, causal=True)
    tokens = sum(layout.sizes)
    lengths = [length for n, length in groups for _ in range(n)]
    last = torch.tensor(lengths).cumsum(0) - 1
    qkv = torch.randn(tokens, 3, 2, 4, generator=generator(1, "qkv"))
    found = []
    for device in ("cpu", "cuda"):
        x = qkv.to(device).detach().requires_grad_()
        context = attend(x, layout, last.to(device) if pooled else None)
        context.square().sum().backward()
        found.append((context.detach().cpu(), x.grad.cpu()))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_quick_gelu_within_the_products(gpu, bias):
    from open_clip.transformer import QuickGELU

    torch.manual_seed(1)
    mlp = nn.Sequential(nn.Linear(4, 16, bias), QuickGELU(), nn.Linear(16, 4, bias))
    mlp = mlp.requires_grad_(False)
    found = []
    for device in ("cpu", "cuda"):
        mlp = mlp.to(device)
        x = torch.randn(3, 4, generator=generator(1, "x")).to(device).detach().requires_grad_()
        y = frozen.frozen_mlp(mlp, x, quick=True)
        y.square().sum().backward()
        with torch.no_grad():
            again = frozen.frozen_mlp(mlp, x, quick=True)
        found.append((y.detach().cpu(), x.grad.cpu(), again.cpu()))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight", [0.5, 1 / 3])
def test_a_norm_in_half_precision_only_where_its_weights_lose_nothing(gpu, weight):
    from open_clip.transformer import LayerNormFp32

    norm = LayerNormFp32(6).requires_grad_(False)
    norm.weight.fill_(weight)
    x = torch.randn(3, 6, generator=generator(1, "x")).to(torch.bfloat16)
    expected = norm(x)
    there = norm.to("cuda")
    found = frozen.frozen_norm(there, x.to("cuda"))
    assert (frozen.kept(there.weight, torch.bfloat16, frozen._exactly) is False) == (weight != 0.5)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0.02)
    norm.weight.fill_(0.25)  # what was kept is made anew
    torch.testing.assert_close(
        frozen.frozen_norm(norm, x.to("cuda")).cpu().float(), expected.float() * 0.25 / weight,
        rtol=2e-2, atol=0.02,
    )  # fmt: skip
