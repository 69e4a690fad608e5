"""The registry of methods, and what each method's settings refuse."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from blocklora_lib import methods
from blocklora_lib.adapters.updates import AdapterConfig
from blocklora_lib.methods import MethodSpec, gda, get_method, method_names


def test_every_method_stands_under_its_own_name():
    assert {"zero_shot", "lora", "block_lora", "frozen_a", "lora_plus"} <= set(method_names())
    for name in method_names():
        method = get_method(name)
        assert method.name == name
        assert method.label
        assert method.trains in (True, False)
        spec = MethodSpec(name=name)
        assert MethodSpec(**spec.model_dump()) == spec  # complete as it is made
        assert spec.load().settings.model_dump(mode="json") == spec.model_dump()["settings"]


def test_two_files_with_a_method_of_one_name_are_refused(tmp_path, monkeypatch):
    """As when one is copied and keeps its name: either would be computed by the other's file."""
    (tmp_path / "zz_copy.py").write_bytes(Path(gda.__file__).read_bytes())
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "blocklora_lib.methods.zz_copy", raising=False)
    methods._registry.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"two methods are called 'gda'.*\.gda and .*zz_copy"):
            method_names()
    finally:
        sys.modules.pop("blocklora_lib.methods.zz_copy", None)
        methods._registry.cache_clear()


@pytest.mark.parametrize(
    ("name", "n_blocks"),
    [("lora", 1), ("block_lora", 2), ("frozen_a", 2)],  # the paper's default: r = 2, n = 2
)
def test_defaults_are_the_papers(name, n_blocks):
    settings = MethodSpec(name=name).settings
    expected = AdapterConfig(
        kind=name, rank=2, n_blocks=n_blocks, dropout=0.25, targets=("q", "k", "v")
    )
    assert AdapterConfig(**settings) == expected


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("lora", dict(rnak=2), "unknown key 'rnak'; did you mean 'rank'"),
        ("lora", dict(n_blocks=2), "has one block"),
        ("lora", dict(kind="block_lora"), "Input should be 'lora'"),
        ("block_lora", dict(rank=2, n_blocks=4), "cannot be cut"),
        ("block_lora", dict(targets=["w"]), "use some of q, k, v, o"),
        ("zero_shot", dict(rank=2), "unknown key 'rank'"),
    ],
)
def test_bad_settings_are_refused(name, settings, says):
    with pytest.raises(ValueError, match=says):
        MethodSpec(name=name, settings=settings)


def test_unknown_methods_list_the_near_ones():
    with pytest.raises(ValueError, match="unknown method 'zeroshot'; did you mean 'zero_shot'"):
        get_method("zeroshot")


def test_a_record_may_hold_a_method_that_is_no_more():
    read = MethodSpec.model_validate({"name": "gone", "settings": {"a": [1]}}, context="a record")
    assert (read.name, dict(read.settings)) == ("gone", {"a": (1,)})
