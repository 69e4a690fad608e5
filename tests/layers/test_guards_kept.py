"""What is around adapted layers holds whatever happens: parts taken off, interrupts, hooks, FSDP.

Expected outputs are computed in float64 from W + s A ΣB, by stock modules.
"""

from __future__ import annotations

import contextlib
import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from blocklora_lib.adapters.attach import AdapterSet, attach, attach_linear, find_adapters
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.core.schema import AdapterError

CONFIG = AdapterConfig(kind="block_lora", rank=4, n_blocks=2, dropout=0.0)
DROPS = CONFIG.model_copy(update={"dropout": 0.25})


def begun(adapters: AdapterSet) -> AdapterSet:
    """Adapters whose B are random numbers."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for adapter in adapters.adapters.values():
            adapter.B.normal_(0, 0.3, generator=generator)
    return adapters


def adapted_weight(layer: nn.Linear) -> torch.Tensor:
    """W + s A ΣB in float64, written out."""
    adapter = layer.adapters["weight"]
    delta = sum(b.double() @ adapter.A_s.double() for b in adapter.B)
    return (layer._parameters["weight"].double() + adapter.scale * delta).detach()


def product(layer: nn.Linear, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.double() @ weight.T + layer.bias.double()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)  # float32


def trains(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad and "adapters" not in n}


# parts that are taken off


@pytest.mark.parametrize("ran", [False, True])
def test_the_rest_goes_on_when_a_part_is_taken_off(ran):
    model, x = nn.Sequential(nn.Sequential(nn.Linear(6, 6)), nn.Linear(6, 4)), torch.randn(3, 6)
    adapters = begun(attach_linear(model, "*", CONFIG))
    if ran:
        model(x)
    find_adapters(model[0])[0].detach()
    weight = adapted_weight(model[1])
    close(model(x), product(model[1], model[0](x), weight))
    assert find_adapters(model)[0].adapters.keys() == {"1.weight"}
    find_adapters(model[1])[0].detach()
    close(model(x), product(model[1], model[0](x), model[1].weight.double()))
    adapters.detach()
    assert len(trains(model)) == 4
    assert not model._forward_hooks


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual, self.text = nn.Sequential(nn.Linear(6, 6)), nn.Sequential(nn.Linear(6, 6))


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("first", ["part", "whole"])
def test_what_two_sets_froze_stays_frozen_until_both_are_off(first, copied):
    model = Towers()
    model.text[0].bias.requires_grad_(False)
    before, visual = trains(model), {"visual.0.weight", "visual.0.bias"}
    part = attach_linear(model.visual, "0", CONFIG)
    whole = attach_linear(model, "text.0", CONFIG)
    if copied:
        model = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        (part,), whole = find_adapters(model.visual), find_adapters(model)[1]
    if first == "part":
        part.detach()
        assert trains(model) == set()
        whole.detach()
    else:
        whole.detach()
        assert trains(model) == before - visual
        part.detach()
    assert trains(model) == before
    assert not [key for m in model.modules() for key in vars(m) if "adapters" in key]


def test_a_part_shared_with_what_stays_frozen_waits_for_it():
    model = Towers()
    model.text.bias = model.visual.bias = nn.Parameter(torch.zeros(6))
    part = attach_linear(model.visual, "0", CONFIG)
    whole = attach_linear(model, "text.0", CONFIG)
    whole.detach()
    assert not model.text.bias.requires_grad
    part.detach()
    assert model.text.bias.requires_grad


# forwards that end in another way


class Reads(nn.Module):
    """Reads the weight of its second layer; `hook` is called in between."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.hook = nn.Linear(6, 6), nn.Linear(6, 6), lambda: None

    def forward(self, x):
        with contextlib.suppress(ValueError):
            x = self.a(x)
        self.hook()
        return F.linear(x, self.b.weight, self.b.bias)


def stop() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("then", ["a read", "a forward"])
def test_an_interrupt_ends_a_forward(then):
    model, x = Reads(), torch.randn(3, 6)
    adapters = begun(attach_linear(model, ["a", "b"], CONFIG))
    model.hook = stop
    with pytest.raises(KeyboardInterrupt):
        model(x)
    model.hook = lambda: None
    if then == "a read":
        assert model.b.weight is model.b._parameters["weight"]
    hidden = product(model.a, x, adapted_weight(model.a))
    close(model(x), product(model.b, hidden, adapted_weight(model.b)))
    assert model.b.weight is model.b._parameters["weight"]
    model.forward = lambda x: x  # reaches none: the outermost module is known as such again
    with pytest.raises(AdapterError, match="reached none"):
        model(x)
    adapters.detach()


def test_a_copy_that_is_made_within_a_forward_does_not_run():
    model, copies = Reads(), []
    attach_linear(model, ["a", "b"], CONFIG)
    model.a.register_forward_hook(lambda *_: copies.append(copy.deepcopy(model)))
    model(torch.randn(3, 6))
    assert isinstance(copies[0].b.weight, nn.Parameter)


@pytest.mark.parametrize("where", ["a", "the model"])
def test_a_hook_that_raises_before_ours_leaves_the_notes_right(where):
    model, x = Reads().eval(), torch.randn(3, 6)

    def refuse(module, args):
        raise ValueError("no")

    hook = (model.a if where == "a" else model).register_forward_pre_hook(refuse)
    begun(attach_linear(model, ["a", "b"], CONFIG))
    if where == "a":  # whose error the model catches
        close(model(x), product(model.b, x, adapted_weight(model.b)))
    else:
        with pytest.raises(ValueError, match="no"):
            model(x)
    assert model.b.weight is model.b._parameters["weight"]
    hook.remove()
    hidden = product(model.a, x, adapted_weight(model.a))
    close(model(x), product(model.b, hidden, adapted_weight(model.b)))


# ways round


class Block(nn.Module):
    def __init__(self, skips):
        super().__init__()
        self.fc, self.skips = nn.Linear(6, 6), skips

    def forward(self, x):
        return x if self.skips else x + self.fc(x)


class CallsItself(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x, times=2):
        return self(self.fc(x), times - 1) if times else x


def test_parts_may_be_skipped_but_not_all_of_what_is_called_from_outside():
    model, x = nn.Sequential(Block(False), Block(True)), torch.randn(3, 6)
    begun(attach_linear(model, "*", CONFIG))
    close(model(x), x.double() + product(model[0].fc, x, adapted_weight(model[0].fc)))
    model[0].skips = True
    with pytest.raises(AdapterError, match=r"^Sequential ran in training and reached none"):
        model(x)
    with pytest.raises(AdapterError, match=r"^1 \(Block\) ran in training and reached none"):
        model[1](x)


def test_a_module_that_calls_itself_has_a_last_call_that_reaches_nothing():
    model, x = CallsItself(), torch.randn(3, 6)
    begun(attach_linear(model, "fc", CONFIG))
    weight = adapted_weight(model.fc)
    close(model(x), product(model.fc, product(model.fc, x, weight), weight))
    with pytest.raises(AdapterError, match="reached none"):
        model(x, times=0)


# what a weight is asked for


@pytest.mark.parametrize(
    "like",
    [torch.Tensor.to, torch.Tensor.type_as, torch.Tensor.expand_as, torch.Tensor.view_as],
    ids=lambda f: f.__name__,
)
def test_a_format_or_shape_that_is_taken_from_a_weight_is_no_use_of_it(like):
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc, self.calls = nn.Linear(6, 6), nn.Linear(6, 6), True

        def forward(self, x):
            x = like(self.a(x), self.fc.weight)
            return self.fc(x) if self.calls else x

    model, x = Asks(), torch.randn(6, 6)
    begun(attach_linear(model, "fc", DROPS)).adapters["fc.weight"].eval()
    expected = product(
        model.fc, product(model.a, x, model.a.weight.double()), adapted_weight(model.fc)
    )
    close(model(x), expected)
    model.train()
    model.a.requires_grad_()
    model(x).sum().backward()
    assert model.fc.adapters["weight"].B.grad.abs().max() > 0
    model.calls = False
    with pytest.raises(AdapterError, match="reached none"):
        model(x)


@pytest.mark.slow
def test_dropout_on_a_read_weight_under_the_compiler():
    """It falls there as in eager mode; a graph of all has no room for it, which is said."""
    torch._dynamo.reset()
    model, x = Reads(), torch.randn(3, 6)
    adapters = begun(attach_linear(model, ["a", "b"], DROPS))
    compiled = torch.compile(model, backend="eager")
    twice = [compiled(x) for _ in range(2)]
    assert not torch.equal(*twice)
    twice[0].sum().backward()
    assert all(p.grad.abs().max() > 0 for p in adapters.parameters())
    close(compiled.eval()(x), model(x).double())
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"b: its weight is read .* no fullgraph=True"):
        torch.compile(model.train(), backend="eager", fullgraph=True)(x)


# sharded


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("each", [False, True], ids=["whole", "each layer"])
@pytest.mark.parametrize("kind", ["linear", "attention"])
def test_a_model_wrapped_by_fsdp_after_attach_trains_as_without(kind, each, tmp_path):
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    torch.manual_seed(0)
    if kind == "linear":
        model, x, unit = nn.Sequential(Reads(), Reads()), torch.randn(3, 6), Reads
        attach_linear(model, "*", CONFIG)
    else:
        unit, x = nn.TransformerEncoderLayer, torch.randn(2, 5, 8)
        model = nn.Sequential(*(unit(8, 2, 16, 0.0, batch_first=True) for _ in range(2)))
        attach(model, CONFIG.model_copy(update={"targets": ("q", "k", "v", "o")}))
    begun(find_adapters(model)[0])
    plain = copy.deepcopy(model)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        policy = ModuleWrapPolicy({unit}) if each else None
        sharded = FullyShardedDataParallel(
            model, use_orig_params=True, device_id=torch.device("cpu"), auto_wrap_policy=policy
        )
        outputs = []
        for run in (plain, sharded):
            optimizer = torch.optim.SGD([p for p in run.parameters() if p.requires_grad], 0.1)
            outputs.append([])
            for _ in range(2):
                optimizer.zero_grad()
                outputs[-1].append(run(x))
                outputs[-1][-1].square().mean().backward()
                optimizer.step()
    finally:
        torch.distributed.destroy_process_group()
    for ours, theirs in zip(*outputs, strict=True):
        torch.testing.assert_close(theirs, ours)
    assert not torch.equal(*outputs[0])  # it did train
