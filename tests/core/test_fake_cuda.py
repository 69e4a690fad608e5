"""The library and the notebooks on a GPU that is not there: no device error, a CPU's numbers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_cuda import CUDA, CudaTensor, fake_cuda
from torch import nn
from torch.utils.checkpoint import checkpoint

from blocklora_lib.clip.recomputation import recomputed


@pytest.fixture
def gpu():
    with fake_cuda() as found:
        yield found


def rows(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


REFUSED = {
    "add": lambda here, there: here + there,
    "add, the other way": lambda here, there: there + here,
    "add in place": lambda here, there: here.clone().add_(there),
    "add to the CPU": lambda here, there: there.clone().add_(here),
    "matmul": lambda here, there: here @ there.T,
    "addmm": lambda here, there: torch.addmm(there[:, :3], here, here.T),
    "linear": lambda here, there: F.linear(here, there),
    "layer on the CPU": lambda here, there: nn.Linear(4, 2)(here),
    "images of the CPU": lambda here, there: nn.Linear(4, 2).to("cuda")(there),
    "cross_entropy": lambda here, there: F.cross_entropy(here, torch.tensor([0, 1, 2])),
    "embedding": lambda here, there: F.embedding(torch.tensor([0, 1]), here),
    "cat": lambda here, there: torch.cat([here, there]),
    "stack": lambda here, there: torch.stack([there, here]),
    "where": lambda here, there: torch.where(there > 0, here, here),
    "equal": lambda here, there: torch.equal(here, there),
    "compare": lambda here, there: here.argmax(-1) == there.argmax(-1),
    "gather": lambda here, there: here.gather(1, torch.zeros(3, 1, dtype=torch.int64)),
    "index_select": lambda here, there: here.index_select(0, torch.tensor([1])),
    "bmm": lambda here, there: torch.bmm(here[None], there.T[None]),
    "attention": lambda here, there: F.scaled_dot_product_attention(here, there, there),
    "index of the GPU into the CPU": lambda here, there: there[here.argmax(0)],
    "mask of the GPU into the CPU": lambda here, there: there[here > 0],
    "write rows of the CPU": lambda here, there: here.clone().__setitem__(
        torch.tensor([0]), there[:1]
    ),
    "out": lambda here, there: torch.add(here, here, out=there.clone()),
    "normal_ by a CPU generator": lambda here, there: here.clone().normal_(
        generator=torch.Generator()
    ),
    "randn by a CPU generator": lambda here, there: torch.randn(
        2, generator=torch.Generator(), device="cuda"
    ),
    "randint by a CPU generator": lambda here, there: torch.randint(
        3, (2,), generator=torch.Generator(), device=CUDA
    ),
    "dropout mask of the CPU": lambda here, there: here * torch.empty(3, 4).bernoulli_(0.5),
    "torch.tensor beside it": lambda here, there: here + torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "torch.arange beside it": lambda here, there: here[:, 0] + torch.arange(3),
    "a number of the GPU beside rows of the CPU": lambda here, there: there * here.sum(),
    "new statistics": lambda here, there: torch.addcmul(torch.zeros(4), here, torch.ones(4)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_the_stand_in_refuses_what_a_gpu_refuses(gpu, what):
    with pytest.raises(
        RuntimeError, match=r"same device|to be on cuda:0|device type for generator"
    ):
        REFUSED[what](rows(3, 4).to("cuda"), rows(3, 4))


@pytest.mark.parametrize(
    "convert", [lambda t: t.numpy(), np.asarray, np.array, lambda t: torch.from_numpy(t.numpy())]
)
def test_it_is_no_array(gpu, convert):
    with pytest.raises(TypeError, match=r"Tensor\.cpu"):
        convert(rows(3).to("cuda"))


TAKEN = {
    "a CPU's index": lambda x, to: x[torch.tensor([0, 2])],
    "a CPU's mask": lambda x, to: x[torch.tensor([True, False, True])],
    "a number": lambda x, to: x * torch.tensor(2.0) + 1,
    "copy_": lambda x, to: torch.zeros_like(x).copy_(torch.ones(3, 4)),
    "writing a number": lambda x, to: x.clone().masked_fill_(x > 0, torch.tensor(1.0)),
    "setitem": lambda x, to: x.clone().index_put_((torch.tensor([0]),), torch.tensor(1.0)),
    "attention": lambda x, to: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    "layer": lambda x, to: F.linear(x, to(torch.ones(2, 4)), to(torch.zeros(2))),
}


@pytest.mark.parametrize("what", TAKEN)
def test_it_takes_what_a_gpu_takes_with_a_cpus_numbers(gpu, what):
    x = rows(3, 4)
    found = TAKEN[what](x.to("cuda"), lambda t: t.to("cuda"))
    assert found.device == CUDA
    # float32; a CPU's fused attention adds up in another order
    torch.testing.assert_close(found.cpu(), TAKEN[what](x, lambda t: t), rtol=1e-6, atol=1e-6)


def test_a_module_that_moves_keeps_its_parameters_and_trains(gpu):
    there = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    here = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    here.load_state_dict(there.state_dict())
    parameters = list(here.parameters())
    assert here.to("cuda") is here
    assert all(a is b for a, b in zip(parameters, here.parameters(), strict=True))
    for model in (here, there):
        x = rows(3, 4).to(next(model.parameters()).device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for p, q in zip(here.parameters(), there.parameters(), strict=True):
        assert isinstance(p, CudaTensor)
        assert torch.equal(p.cpu(), q)


def test_a_parameter_holds_what_its_data_is_set_to(gpu):
    layer, kept = nn.Linear(4, 2).to("cuda"), rows(2, 4)
    before = layer.weight.data
    layer.weight.data = kept.to("cuda")
    assert torch.equal(layer.weight.cpu(), kept)
    assert not torch.equal(before.cpu(), kept)
    with torch.no_grad():
        layer.weight.data.mul_(2)  # the same memory
    assert torch.equal(layer.weight.detach().cpu(), 2 * kept)
    assert torch.equal(
        layer(rows(3, 4).to("cuda")).cpu(), F.linear(rows(3, 4), 2 * kept, layer.bias.cpu())
    )
    with pytest.raises(NotImplementedError):
        layer.weight.data = kept


def test_its_generator_is_not_the_cpus(gpu):
    x, state = rows(3, 4).to("cuda"), torch.get_rng_state()
    first = F.dropout(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.cpu(), F.dropout(x).cpu())
    torch.manual_seed(5)
    once = torch.rand(4, device="cuda").cpu()
    torch.manual_seed(5)
    assert torch.equal(torch.rand(4, device="cuda").cpu(), once)
    with torch.random.fork_rng(devices=[CUDA]):
        inner = torch.rand(4, device="cuda").cpu()
    assert torch.equal(torch.rand(4, device="cuda").cpu(), inner)


def test_recomputed_keeps_the_masks_of_a_gpu_and_a_call_without_a_tensor_does_not(gpu):
    """torch keeps a GPU's state only for a tensor that is an argument, not one inside an object."""

    def gradient(call):
        gpu.manual_seed(3)
        w = torch.ones(64, device="cuda", requires_grad=True)
        x = SimpleNamespace(x=rows(64).to("cuda"))
        call(lambda packed: F.dropout(packed.x * w).square(), x).sum().backward()
        return w.grad.cpu()

    kept = gradient(lambda function, x: function(x))
    assert torch.equal(gradient(lambda function, x: recomputed(function, x, CUDA)), kept)
    assert not torch.equal(
        gradient(lambda function, x: checkpoint(function, x, use_reentrant=False)), kept
    )
