"""The state of an adapted model is W, A and B, merged or not; copies are models of their own."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from blocklora_lib.adapters.attach import AdapterSet, attach, attach_linear, find_adapters
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.core.schema import AdapterError

CONFIG = AdapterConfig(kind="lora", rank=2, dropout=0.0, targets=("q", "k", "v", "o"))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


pytestmark = pytest.mark.filterwarnings("ignore:the adapters are merged, and the state")


class Net(nn.Module):
    """Attention with packed and with separate weights, linear layers, some parameters frozen."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.norm = nn.LayerNorm(8)
        for i, parameter in enumerate(self.parameters()):
            parameter.requires_grad_(i % 3 > 0)

    def forward(self, x):
        x = self.attn(x, x, x, need_weights=False)[0]
        x = self.cross(x, x[..., :6], x[..., :4], need_weights=False)[0]
        return self.norm(self.mlp(x))


X = torch.randn(2, 3, 8, generator=seeded(9))


def adapted(seed: int = 0) -> tuple[nn.Module, list[AdapterSet]]:
    model = Net(seed).eval()
    sets = [
        attach(model, CONFIG, seeded(seed)),
        attach_linear(model, "mlp.*", CONFIG, seeded(seed)),
    ]
    generator = seeded(seed + 50)
    with torch.no_grad():
        for adapters in sets:
            for adapter in adapters.adapters.values():
                adapter.B.normal_(0, 0.3, generator=generator)
    return model, sets


def flags(model: nn.Module) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in model.named_parameters()}


def merge(sets: list[AdapterSet]) -> None:
    for adapters in sets:
        adapters.merge()


def unmerge(sets: list[AdapterSet]) -> None:
    for adapters in sets:
        adapters.unmerge()


def save(sets: list[AdapterSet], folder) -> None:
    for i, adapters in enumerate(sets):
        adapters.save(folder / str(i))


def assert_bits(a: dict, b: dict) -> None:
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # float32, two orders of summation


# state


def test_the_state_is_the_same_merged_or_not():
    model, sets = adapted()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    merge(sets)
    with pytest.warns(UserWarning, match="the state is that of the model unmerged"):
        assert_bits(model.state_dict(), before)
    assert_bits(dict(model.state_dict(prefix="a.")), {f"a.{name}": t for name, t in before.items()})
    assert_bits(
        nn.ModuleDict({"inner": model}).state_dict(), {f"inner.{n}": t for n, t in before.items()}
    )
    assert_bits(
        model.attn.state_dict(), {n[5:]: t for n, t in before.items() if n.startswith("attn.")}
    )
    stored = dict(model.state_dict(keep_vars=True))
    assert_bits(stored, before)
    unmerge(sets)
    assert_bits(model.state_dict(), before)


@pytest.mark.parametrize("from_merged", [False, True])
@pytest.mark.parametrize("into_merged", [False, True])
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_moves_between_merged_and_unmerged(from_merged, into_merged, assign):
    source, its_sets = adapted(1)
    expected = source(X)
    if from_merged:
        merge(its_sets)
    model, sets = adapted(2)
    if into_merged:
        merge(sets)
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    assert str(model.load_state_dict(state, assign=assign)) == "<All keys matched successfully>"
    assert [s.merged for s in sets] == [into_merged] * 2
    close(model(X), expected)
    unmerge(sets)
    close(model(X), expected)
    assert_bits(model.state_dict(), state)
    merge(sets)
    close(model(X), expected)


def test_part_of_a_state_loaded_while_merged():
    model, sets = adapted(1)
    merge(sets)
    plain = Net(3).state_dict()
    model.load_state_dict(plain, strict=False)  # W of another model, the adapters stay
    unmerged, others = adapted(1)
    unmerged.load_state_dict(plain, strict=False)
    close(model(X), unmerged(X))
    some = {name: t for name, t in adapted(4)[0].state_dict().items() if ".adapters.o." in name}
    assert len(some) == 4
    model.load_state_dict(some, strict=False)  # adapters alone, of the output projections alone
    unmerged.load_state_dict(some, strict=False)
    close(model(X), unmerged(X))
    unmerge(sets)
    assert_bits(model.state_dict(), unmerged.state_dict())
    assert torch.equal(model(X), unmerged(X))
    with pytest.raises(RuntimeError, match=r"Missing key.*adapters"):
        model.load_state_dict(plain)
    del others


@pytest.mark.parametrize("part", ["attn", "cross", "attn.out_proj", "mlp.0", "mlp"])
def test_a_part_loaded_by_itself_while_merged(part):
    model, sets = adapted(1)
    merge(sets)
    source = adapted(2)[0].get_submodule(part).state_dict()
    model.get_submodule(part).load_state_dict(source)
    unmerged, _ = adapted(1)
    unmerged.get_submodule(part).load_state_dict(source)
    close(model(X), unmerged(X))
    unmerge(sets)
    assert_bits(model.state_dict(), unmerged.state_dict())


def test_a_refused_load_while_merged_leaves_a_merged_model():
    model, sets = adapted(1)
    expected, state = model(X), {n: t.clone() for n, t in model.state_dict().items()}
    merge(sets)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(state | {"attn.in_proj_weight": torch.zeros(3, 3)})
    close(model(X), expected)
    unmerge(sets)
    assert_bits(model.state_dict(), state)


def test_merging_for_good_changes_the_state():
    model, sets = adapted()
    expected = model(X)
    plain = {n: p.shape for n, p in Net().named_parameters()}
    for adapters in sets:
        adapters.merge_and_unload()
    assert {n: p.shape for n, p in model.named_parameters()} == plain
    other = Net(5).eval()
    other.load_state_dict(model.state_dict())
    close(other(X), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_merged_model_that_moves(dtype):
    moved, plain = adapted(1), adapted(1)
    merge(moved[1])
    moved[0].to(dtype)
    plain[0].to(dtype)
    state = moved[0].state_dict()
    assert_bits(state, plain[0].state_dict())
    unmerge(moved[1])
    assert_bits(moved[0].state_dict(), plain[0].state_dict())
    assert torch.equal(moved[0](X.to(dtype)), plain[0](X.to(dtype)))


def step_of_sgd(model):
    weight = model.mlp[0].weight.requires_grad_(True)
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], 0.1).step()


def swapped_rows(model):
    model.mlp[0].weight.data = model.mlp[0].weight.data.flip(0)


CHANGES: dict = {  # which set adapts the weight, what is done to it
    "copy_": (1, lambda m: m.mlp[0].weight.data.copy_(torch.ones(12, 8))),
    "mul_ of data": (1, lambda m: m.mlp[0].weight.data.mul_(2)),
    "one number": (0, lambda m: m.attn.in_proj_weight.data[3, 5].add_(0.1)),
    "another sign": (0, lambda m: m.attn.out_proj.weight.data.neg_()),
    "step": (1, step_of_sgd),
    "other data": (1, swapped_rows),
    "another parameter": (
        1,
        lambda m: setattr(m.mlp[0], "weight", nn.Parameter(torch.ones(12, 8))),
    ),
    "before a move": (0, lambda m: (m.cross.q_proj_weight.data.zero_(), m.double(), m.float())),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_weight_changed_while_merged_is_not_lost(change):
    model, sets = adapted()
    merge(sets)
    CHANGES[change][1](model)
    held, its_set = model(X).detach(), sets[CHANGES[change][0]]
    loading = lambda: model.load_state_dict({"norm.bias": torch.zeros(8)}, strict=False)  # noqa: E731
    for forget in (its_set.unmerge, its_set.detach, model.state_dict, loading):
        with pytest.raises(
            (AdapterError, RuntimeError), match="weight was changed or replaced while it held W"
        ):
            forget()
        assert [s.merged for s in sets] == [True] * 2
    model.norm.bias.data.zero_()
    close(model(X), held)
    for adapters in sets:
        adapters.merge_and_unload()
    close(model(X), held)


# adapters that change while merged


def step_of_adam(sets):
    optimizer = torch.optim.Adam([p for s in sets for p in s.parameters()], 0.1)
    for adapters in sets:
        for parameter in adapters.parameters():
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def each_adapter(change):
    return lambda sets: [change(a) for s in sets for a in s.adapters.values()]


ADAPTER_CHANGES: dict = {
    "step": step_of_adam,
    "add_ of data": each_adapter(lambda a: a.B.data.add_(1)),
    "other data": each_adapter(lambda a: setattr(a.A, "data", a.A.data.flip(0))),
    "another parameter": each_adapter(lambda a: setattr(a, "B", nn.Parameter(a.B.detach() + 1))),
    "loaded": each_adapter(
        lambda a: a.load_state_dict({n: t * 2 for n, t in a.state_dict().items()})
    ),
    "one of them": lambda sets: sets[0].adapters["attn.o"].B.data[0].add_(1),
}


@pytest.mark.parametrize("change", ADAPTER_CHANGES)
def test_adapters_that_change_while_merged_are_merged_anew(change, tmp_path):
    model, sets = adapted()
    plain = {name: t.clone() for name, t in model.state_dict().items() if "adapters" not in name}
    merge(sets)
    before = model(X)
    ADAPTER_CHANGES[change](sets)
    assert torch.equal(model(X), before)  # as it was merged, until it is merged again
    with pytest.warns(UserWarning, match=r"have changed since they were merged .*merge\(\) again"):
        save(sets, tmp_path)
    fresh = Net().eval()
    for i in range(len(sets)):
        AdapterSet.load(tmp_path / str(i), fresh).merge()
    merge(sets)
    assert not torch.allclose(model(X), before)
    assert torch.equal(model(X), fresh(X))  # bits of what is merged for the first time
    unmerge(sets)
    assert_bits({name: model.state_dict()[name] for name in plain}, plain)
    merge(sets)
    ADAPTER_CHANGES[change](sets)
    unmerge(sets)
    expected = model(X)
    merge(sets)
    ADAPTER_CHANGES[change](sets)
    unmerged = copy.deepcopy(model)
    for adapters in find_adapters(unmerged):
        adapters.unmerge()
    for adapters in sets:
        adapters.merge_and_unload()
    close(model(X), unmerged(X))
    assert not torch.allclose(model(X), expected)


@pytest.mark.parametrize("kind", ["block_lora", "frozen_a", "dora", "pissa", "vera"])
def test_every_kind_is_merged_anew_from_w(kind):
    model = Net().eval()
    config = CONFIG.model_copy(update={"kind": kind, "n_blocks": 2 if "_" in kind else 1})
    adapters = attach(model, config, seeded(1)).merge()
    for adapter in adapters.adapters.values():
        for parameter in adapter.parameters():
            parameter.data.add_(0.1)
    merged = adapters.merge().model(X)
    close(merged, adapters.unmerge().model(X))
    assert torch.equal(adapters.merge().model(X), merged)


def test_a_second_merge_touches_nothing_where_nothing_changed():
    model, sets = adapted()
    merge(sets)
    for move in (lambda: None, model.double, model.half, model.float):
        move()
        before = [(p, p.data_ptr(), p.detach().clone()) for p in model.parameters()]
        merge(sets)
        for parameter, place, value in before:
            assert parameter.data_ptr() == place
            assert torch.equal(parameter, value)


def test_adapters_that_change_in_a_copy_or_after_a_move_are_merged_anew():
    model, sets = adapted()
    merge(sets)
    double = copy.deepcopy(model).double()
    for one, its_sets, x in ((model, sets, X), (double, find_adapters(double), X.double())):
        each_adapter(lambda a: a.B.data.add_(1))(its_sets)
        merge(its_sets)
        merged = one(x)
        unmerge(its_sets)
        close(merged, one(x))


def test_a_refused_merge_of_changed_adapters_leaves_the_model_as_it_was():
    model, sets = adapted()
    merge(sets)
    before = model(X)
    sets[0].adapters["attn.q"].B.data.fill_(float("nan"))
    sets[0].adapters["cross.v"].B.data.add_(1)
    for again in (sets[0].merge, sets[0].merge_and_unload):
        with pytest.raises(AdapterError, match=r"attn.in_proj_weight: W \+ ΔW is not finite"):
            again()
        assert torch.equal(model(X), before)
    sets[0].adapters["attn.q"].B.data.fill_(1)
    model.attn.in_proj_weight.data.add_(1)
    for again in (sets[0].merge, sets[0].merge_and_unload):
        with pytest.raises(AdapterError, match="its adapters changed, too: put them back, or load"):
            again()


# copies


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("merged", [False, True])
def test_a_copy_has_handles_of_its_own(copied, merged):
    original_flags, base = flags(Net()), Net().eval()(X)
    plain = {n: t.clone() for n, t in Net().state_dict().items()}
    model, sets = adapted()
    expected = model(X)
    if merged:
        merge(sets)
    twin = copied(model)
    handles = find_adapters(twin)
    assert [list(h.adapters) for h in handles] == [list(s.adapters) for s in sets]
    assert [h.merged for h in handles] == [merged] * 2
    assert [h.config for h in handles] == [CONFIG] * 2
    close(twin(X), expected)
    unmerge(handles)
    assert [s.merged for s in sets] == [merged] * 2
    assert torch.equal(twin(X), adapted()[0](X))
    with torch.no_grad():
        for handle in handles:
            for adapter in handle.adapters.values():
                adapter.B.zero_()
    close(twin(X), base)
    merge(handles)
    for handle in handles:
        assert handle.detach() is twin
    assert flags(twin) == original_flags
    assert_bits(twin.state_dict(), plain)
    assert [type(m) for m in twin.modules()] == [type(m) for m in Net().modules()]
    assert [sorted(vars(m)) for m in twin.modules()] == [sorted(vars(m)) for m in Net().modules()]
    assert torch.equal(twin(X), base)
    close(model(X), expected)  # the original knows nothing of all that
    for adapters in reversed(sets):
        adapters.detach()
    assert flags(model) == original_flags
    assert_bits(model.state_dict(), plain)


def test_a_copy_can_be_trained_and_merged_for_good():
    model, _ = adapted()
    twin = copy.deepcopy(model).train()
    trained = [p for handle in find_adapters(twin) for p in handle.parameters()]
    assert {id(p) for p in trained} == {id(p) for p in twin.parameters() if p.requires_grad}
    twin(X).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in trained)
    assert all(p.grad is None for p in model.parameters())
    expected = twin.eval()(X)
    for handle in find_adapters(twin):
        handle.merge_and_unload()
    close(twin(X), expected)
    assert flags(twin) == flags(Net())
    assert find_adapters(twin) == []


def test_a_copied_handle_belongs_to_a_copied_model():
    model, sets = adapted()
    expected = model(X)
    twin = copy.deepcopy(sets[0])
    assert twin.model is not model
    twin.detach()
    assert type(twin.model.attn) is nn.MultiheadAttention
    assert torch.equal(model(X), expected)
    assert not twin.sites
    assert len(sets[0].sites) == 2


def test_a_copied_part_has_a_handle_for_what_is_in_it():
    model, sets = adapted()
    part = copy.deepcopy(model.mlp)
    (handle,) = find_adapters(part)
    assert list(handle.adapters) == ["0.weight", "2.weight"]
    handle.merge()
    assert not sets[1].merged
    close(part(X), model.mlp(X))
    handle.detach()
    assert flags(part) == flags(Net().mlp)


def test_handles_of_one_model_agree():
    model, sets = adapted()
    again = find_adapters(model)
    again[0].merge()
    assert sets[0].merged
    sets[0].unmerge()
    assert not again[0].merged
    again[0].detach()
    assert not sets[0].sites
    with pytest.raises(AdapterError, match="detached"):
        sets[0].merge()
    sets[0].detach()
    sets[1].detach()
    assert flags(model) == flags(Net())


# flags


def test_flags_of_what_is_added_replaced_or_changed_in_between():
    model = Net()
    before = flags(model)
    adapters = attach(model, CONFIG)
    model.norm.bias.requires_grad_(True)
    model.head = nn.Linear(8, 3)
    model.mlp[0].bias = nn.Parameter(torch.zeros(12))
    others = attach_linear(model, "mlp.2", CONFIG)
    assert not model.head.weight.requires_grad
    adapters.detach()
    assert not any(flags(model)[name] for name in before if "adapters" not in name)
    others.detach()
    after = flags(model)
    assert {name: after[name] for name in before} == before  # the model as it was
    assert after["head.weight"]
    assert after["head.bias"]


def test_a_parameter_at_two_places_gets_its_flag_back():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5), nn.Linear(5, 5))
    model[1].weight = model[0].weight
    for trained in (True, False):
        model[0].weight.requires_grad_(trained)
        attach_linear(model, "2", CONFIG).detach()
        assert model[0].weight.requires_grad is trained


def test_attaching_in_inference_mode_can_be_trained():
    model = Net()
    with torch.inference_mode():
        adapters = attach(model, CONFIG)
    model(X).sum().backward()
    assert all(p.grad is not None for p in adapters.parameters())
    with torch.inference_mode():
        adapters.merge()
        adapters.unmerge()
        adapters.detach()
    assert flags(model) == flags(Net())
    model(X).sum().backward()


def test_an_old_forward_that_was_kept_follows_the_adapters():
    """Hooks such as accelerate's keep the bound forward and call it later."""
    model, sets = adapted()
    expected = model(X)
    for module in (model.mlp[0], model.attn):
        kept = module.forward
        module.forward = lambda *args, kept=kept, **kwargs: kept(*args, **kwargs)
    assert torch.equal(model(X), expected)
    merge(sets)
    close(model(X), expected)
    for adapters in sets:
        adapters.detach()
    assert torch.equal(model(X), Net().eval()(X))
