"""What the library is given and asks to write: numbers that are not here, names, types, tensors."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from adapted_layers import LAYERS, adapt, inputs, linear, moved, seeded
from safetensors.torch import load_file
from torch import nn

from blocklora_lib import AdapterConfig, AdapterSet, attach, attach_linear
from blocklora_lib.adapters.attach import find_adapters
from blocklora_lib.adapters.formats.peft_export import export_peft
from blocklora_lib.adapters.formats.peft_import import import_peft
from blocklora_lib.core.schema import AdapterError
from blocklora_lib.layers.trained_on import READ, weights_told
from blocklora_lib.runs.kept import KEY

C = AdapterConfig(rank=4, n_blocks=2, dropout=0.0)
VERA = AdapterConfig(kind="vera", rank=4, dropout=0.0)
CLOSE = dict(rtol=1e-6, atol=1e-6)  # float32, sums of at most 6 terms


# numbers that are not here (yet)


def vera_by_hand(x: torch.Tensor, layer: nn.Linear, d: torch.Tensor, b: torch.Tensor):
    """x Wᵀ + c + x (diag(b) B diag(d) A)ᵀ in float64; A and B drawn as VeRA's text says."""
    drawn = seeded(0)
    a = torch.empty(VERA.rank, layer.in_features).uniform_(
        -math.sqrt(6 / layer.in_features), math.sqrt(6 / layer.in_features), generator=drawn
    )
    up = torch.empty(layer.out_features, VERA.rank).uniform_(
        -math.sqrt(6 / VERA.rank), math.sqrt(6 / VERA.rank), generator=drawn
    )
    delta = b.double().diag() @ up.double() @ d.double().diag() @ a.double()
    return x.double() @ (layer.weight.double() + delta).T + layer.bias.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["to_empty", "assign", "assign, inference_mode", "moved there"])
def test_vera_that_was_on_meta_has_its_matrices(how, dtype):
    source = moved(attach_linear(linear(6, 4, 5), "*", VERA))
    if dtype == torch.float64:
        source.double()
    state, x = source.model.state_dict(), torch.randn(3, 6)
    with torch.device("meta"):
        model = linear(6, 4, 5)
    if how == "moved there":
        model = copy.deepcopy(source.model).to("meta")
    else:
        adapters = attach_linear(model, "*", VERA)
        if dtype == torch.float64:
            adapters.double()
    with torch.inference_mode("inference" in how):
        if "assign" in how:
            model.load_state_dict(state, assign=True)
        else:
            model.to_empty(device="cpu").load_state_dict(state)
    assert torch.equal(model(x), source.model(x))
    found = x
    for each in model:
        found = vera_by_hand(found, each, each.adapters["weight"].d, each.adapters["weight"].b)
    torch.testing.assert_close(model(x).double(), found, **CLOSE)
    if dtype == torch.float32:
        model(x).sum().backward()
        assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)


def test_what_has_no_numbers_is_not_written(tmp_path):
    with torch.device("meta"):
        model = linear(6, 4)
    for config in (C, VERA):
        adapters = attach_linear(model, "0", config)
        for write in (adapters.save, lambda path, own=adapters: export_peft(own, path)):
            with pytest.raises(AdapterError, match=r"^0\.weight\.\w+ lies on the device meta"):
                write(tmp_path / "a")
        adapters.detach()
    assert not (tmp_path / "a").exists()


@pytest.fixture
def mesh():
    """One process, as a group."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # a process group
def test_shards_are_not_written_and_the_way_out_leads_out(mesh, tmp_path):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    adapters = moved(attach_linear(linear(6, 4), "0", C))
    expected = {name: t.clone() for name, t in adapters.state_dict().items()}
    fully_shard(adapters.model, mesh=mesh)
    for write in (adapters.save, lambda path: export_peft(adapters, path)):
        with pytest.raises(AdapterError, match=r"0.weight.A_s is a DTensor.*get_model_state_dict"):
            write(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    options = StateDictOptions(full_state_dict=True)
    full = get_model_state_dict(adapters.model, options=options)
    other = attach_linear(linear(6, 4), "0", C)
    other.model.load_state_dict(full)
    other.save(tmp_path / "a")
    saved = load_file(tmp_path / "a")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


def test_a_kept_file_meets_weights_that_are_not_here_with_the_sentence_of_any_other(tmp_path):
    adapters = moved(attach_linear(linear(6, 4), "0", C))
    adapters.save(tmp_path / "a", {"weights": weights_told(adapters.sites)})
    with torch.device("meta"):
        model = linear(6, 4)
    with pytest.raises(AdapterError, match="the model lies on the device meta; give it its weigh"):
        AdapterSet.load(tmp_path / "a", model)


# names of an extra that the library reads


@pytest.mark.parametrize("key", ["weights", "trained"])
def test_a_name_that_is_read_is_not_given_to_something_else(key, tmp_path):
    adapters = attach_linear(linear(6, 4), "0", C)
    with pytest.raises(AdapterError, match=rf"'{key}': 'float32 run'.* another name than"):
        adapters.save(tmp_path / "a", extra={key: "float32 run"})
    assert not (tmp_path / "a").exists()
    assert {"weights", KEY} == READ.keys()


def test_a_file_of_before_whose_extra_says_weights_is_still_read(tmp_path, monkeypatch):
    adapters = moved(attach_linear(linear(6, 4), "0", C))
    with monkeypatch.context() as before:
        before.setattr("blocklora_lib.adapters.files.check_extra", lambda extra: None)
        adapters.save(tmp_path / "a", extra={"weights": "float32 run"})
    loaded = AdapterSet.load(tmp_path / "a", linear(6, 4))
    assert loaded.extra == {"weights": "float32 run"}
    loaded.detach()
    adapters.detach()
    adapters.save(tmp_path / "b", {"weights": weights_told([("0", adapters.model[0])])})
    other = linear(6, 4)
    nn.init.zeros_(other[0].bias)
    with pytest.raises(AdapterError, match="trained on other weights"):
        AdapterSet.load(tmp_path / "b", other)
    assert AdapterSet.load(tmp_path / "b", linear(6, 4)).extra.keys() == {"weights"}


# what is done within torch.inference_mode


def each(adapters: AdapterSet) -> list[nn.Module]:
    return list(adapters.adapters.values())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("start", "move"),
    [
        (torch.float32, lambda adapters, path: adapters.double()),
        (torch.float32, lambda adapters, path: [a.to(torch.float64) for a in each(adapters)]),
        (torch.float64, lambda adapters, path: [a.float() for a in each(adapters)]),
        (torch.float64, lambda adapters, path: AdapterSet.load(path, adapters.detach())),
    ],
    ids=["double", "to", "float", "load"],
)
def test_adapters_that_were_moved_without_gradients_train(layer, start, move, tmp_path):
    """The gradient is that of adapters which were moved outside."""
    gradients = []
    for without in (False, True):
        torch.manual_seed(0)
        model = LAYERS[layer]()
        adapt(model, dtype=start).save(tmp_path / "a")
        (adapters,) = find_adapters(model)
        with torch.inference_mode(without):
            move(adapters, tmp_path / "a")
        (adapters,) = find_adapters(model)
        assert not any(p.is_inference() for p in adapters.parameters())
        model(inputs()).square().sum().backward()
        gradients.append([p.grad for p in adapters.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


def test_adapters_imported_without_gradients_train(tmp_path):
    export_peft(moved(attach_linear(linear(6, 4), "0", C)).double(), tmp_path)
    with torch.inference_mode():
        adapters = import_peft(tmp_path, linear(6, 4))
    adapters.model(torch.randn(3, 6)).sum().backward()
    assert all(p.grad.abs().max() > 0 for p in adapters.parameters())


# nested tensors


def nested(layout: torch.layout) -> torch.Tensor:
    parts = [torch.randn(rows, 6, generator=seeded(rows)) for rows in (3, 5)]
    return torch.nested.nested_tensor(parts, layout=layout)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.parametrize("kind", ["lora", "block_lora", "frozen_a", "collapsed", "pissa", "vera"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_its_parts_one_by_one(kind, layout):
    adapters = moved(attach_linear(linear(6, 4), "0", AdapterConfig(kind=kind, rank=2, dropout=0)))
    layer, x = adapters.model[0], nested(layout)
    weight = (layer.weight + adapters.adapters["0.weight"].delta_weight()).double()
    for _ in range(2):  # the second time merged
        for part, found in zip(x.unbind(), adapters.model.eval()(x).unbind(), strict=True):
            expected = part.double() @ weight.T + layer.bias.double()
            torch.testing.assert_close(found.double(), expected, **CLOSE)
        adapters.merge()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_a_nested_tensor_does_not_have_is_said():
    dropping = attach_linear(linear(6, 4), "0", C.model_copy(update={"dropout": 0.5})).model
    cut = attach_linear(linear(6, 4), "0", C.model_copy(update={"reading": "input"})).model
    for model, layout in (
        (dropping, torch.strided), (dropping, torch.jagged), (cut, torch.strided),
    ):  # fmt: skip
        with pytest.raises(AdapterError, match="takes no such nested tensor; use dropout=0"):
            model(nested(layout))
    dora = attach_linear(linear(6, 4), "0", AdapterConfig(kind="dora", rank=2, dropout=0.0)).model
    with pytest.raises(AdapterError, match="kind='dora' takes no nested tensor; use a padded one"):
        dora(nested(torch.strided))
    dropping.eval()(nested(torch.strided))
    cut(nested(torch.jagged))


# arguments of another type


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (None, "None (NoneType) is no name; give names or globs"),
        (0, "0 (int) is no name; give names or globs"),
        ([b"0"], "b'0' (bytes) is no name; give names or globs"),
        (["0", None], "None (NoneType) is no name; give names or globs"),
        (nn.Linear(6, 4), "(Linear) is no name; give names or globs"),
    ],
)
def test_names_are_names(names, words):
    model = linear(6, 4)
    with pytest.raises(AdapterError, match=re.escape(words)):
        attach_linear(model, names, C)
    assert len(attach_linear(model, (n for n in ("0", re.compile("^0$"))), C).sites) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(model="mlp"), "model is 'mlp' (str); give the nn.Module itself"),
        (dict(config=dict(rank=4)), "config is {'rank': 4} (dict); write AdapterConfig("),
        (dict(config=None), "config is None (NoneType); write AdapterConfig("),
        (dict(generator=1), "generator is 1 (int); write torch.Generator().manual_seed(1)"),
    ],
)
def test_arguments_are_of_their_types(given, words, tmp_path):
    arguments = (
        dict(model=nn.Sequential(nn.MultiheadAttention(6, 2)), config=C, generator=seeded()) | given
    )
    model, *others = arguments.values()
    for refused in (
        lambda: attach(*arguments.values()),
        lambda: attach_linear(model, "*", *others),
    ):
        with pytest.raises(AdapterError, match=re.escape(words)):
            refused()
    if "model" in given:
        export_peft(moved(attach_linear(linear(6, 4), "0", C)), tmp_path / "p")
        attach_linear(linear(6, 4), "0", C).save(tmp_path / "a")
        for load, path in ((AdapterSet.load, "a"), (import_peft, "p")):
            with pytest.raises(AdapterError, match=re.escape(words)):
                load(tmp_path / path, model)
