"""Adapters and weights that have no numbers (yet): none is made up, and each refusal leads out."""

from __future__ import annotations

import pytest
import torch
from adapted_layers import LAYERS, E, adapt, inputs
from torch import nn

from blocklora_lib import AdapterConfig, AdapterSet, attach_linear
from blocklora_lib.core.schema import AdapterError


@pytest.fixture
def trained(tmp_path):
    """(model, its adapters' file)"""
    model = LAYERS["linear"]().eval()
    adapt(model).save(tmp_path / "a.safetensors")
    return model, tmp_path / "a.safetensors"


def empty():
    with torch.device("meta"):
        return LAYERS["linear"]().eval()


def test_a_file_is_not_loaded_into_nothing(trained):
    """Copying into meta tensors is no error of torch: the file's numbers were gone."""
    model, file = trained
    other = empty()
    with pytest.raises(AdapterError, match="the model lies on the device meta; give it its weigh"):
        AdapterSet.load(file, other)
    base = {name: t for name, t in model.state_dict().items() if "adapters." not in name}
    other.load_state_dict(base, assign=True)
    AdapterSet.load(file, other)
    assert torch.equal(other(inputs()), model(inputs()))


@pytest.mark.parametrize("layer", LAYERS)
def test_weights_that_come_after_the_adapters_run_with_no_memory_of_others(layer):
    """torch multiplies a CPU's numbers with meta's on a CPU, and returns what lay in the memory."""
    with torch.device("meta"):
        model = LAYERS[layer]()
    adapters = adapt(model)
    model(torch.empty(2, 3, E, device="meta"))  # both without numbers: shapes alone
    weights = LAYERS[layer]().state_dict()
    model.load_state_dict(weights, strict=False, assign=True)
    with pytest.raises(AdapterError, match="attach or load adapters after the weights"):
        model(inputs())
    shapes = {name: torch.randn(t.shape) for name, t in adapters.state_dict().items()}
    for name, adapter in adapters.adapters.items():
        own = {key: shapes[f"{name}.{key}".lstrip(".")] for key in adapter.state_dict()}
        adapter.load_state_dict(own, assign=True)
    assert model(inputs()).isfinite().all()


def test_memory_that_was_not_written_is_no_adapter():
    model = empty()
    adapters = attach_linear(model, "*", AdapterConfig(rank=2, n_blocks=2, dropout=0))
    model.to_empty(device="cpu")
    model.load_state_dict(LAYERS["linear"]().state_dict(), strict=False)
    assert all(p.isnan().all() for p in adapters.parameters())
    assert model(inputs()).isnan().all()
    with pytest.raises(AdapterError, match=r"W \+ ΔW is not finite"):
        adapters.merge()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_a_layer_of_no_width_is_named(shape):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(*shape))
    with pytest.raises(AdapterError, match=r"1\.weight has \d x \d numbers, none; leave it out"):
        attach_linear(model, "*", AdapterConfig(rank=2, n_blocks=2))
    assert type(model[0]) is nn.Linear
    attach_linear(model, "0", AdapterConfig(rank=2, n_blocks=2))


def test_a_script_is_asked_for_once_the_adapters_are_merged_for_good():
    model = nn.Sequential(nn.Linear(E, E), nn.GELU())
    adapters = attach_linear(model, "*", AdapterConfig(rank=2, n_blocks=2, dropout=0))
    with pytest.raises(AdapterError, match=r"0 has adapters, which torch\.jit\.script cannot"):
        torch.jit.script(model)
    plain = adapters.merge_and_unload()
    assert torch.equal(torch.jit.script(plain)(inputs()), plain(inputs()))
