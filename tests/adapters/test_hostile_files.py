"""Adapter files of strangers: one sentence, before memory is asked for or a model changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from blocklora_lib.adapters import fitting
from blocklora_lib.adapters.attach import AdapterSet, attach_linear
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.adapters.formats.peft_export import export_peft_file
from blocklora_lib.core.schema import AdapterError
from blocklora_lib.layers.trained_on import SUM, TENSORS_SUM, tensors_told

CONFIG = AdapterConfig(kind="lora", rank=2, n_blocks=1)


def model(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))


@pytest.fixture
def whole(tmp_path) -> tuple[dict[str, str], dict[str, torch.Tensor], Path]:
    """Metadata and tensors of a true file, and where to write another, with no checksum in it."""
    from safetensors import safe_open

    attach_linear(model(), ["0", "1"], CONFIG).save(tmp_path / "true.safetensors")
    with safe_open(tmp_path / "true.safetensors", framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = {k: v for k, v in opened.metadata().items() if k not in (SUM, TENSORS_SUM)}
        return metadata, tensors, tmp_path / "evil.safetensors"


def refused(path: Path, says: str, onto: nn.Module | None = None) -> None:
    onto = onto or model()
    before = [(name, p.requires_grad) for name, p in onto.named_parameters()]
    with pytest.raises(AdapterError, match=says) as told:
        AdapterSet.load(path, onto)
    assert str(path) in str(told.value)
    assert len(str(told.value)) < 2000
    assert [(name, p.requires_grad) for name, p in onto.named_parameters()] == before


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("sites", '["0", "1"]', "damaged"),
        ("sites", '{"0": 1}', "damaged"),
        ("sites", '{"0": ["linear"]}', "damaged"),
        ("sites", '{"0": "pickle"}', "damaged"),
        ("sites", "null", "damaged"),
        ("sites", '{"": "linear"}', "unexpected"),
        ("sites", '{"0": "attention", "1": "attention"}', "unexpected|attention"),
        ("sites", "{}", "unexpected, the model has no such place"),
        (
            "sites",
            '{"0": "linear", "1": "linear", "2": "linear"}',
            "name places that the model has not: 2",
        ),
        (
            "sites",
            json.dumps({str(i): "linear" for i in range(100_000)}),
            "has not: 10, 100, 1000, 10000, 10001, 10002 and 99992 more",
        ),
        ("config", '{"kind": "lora", "rank": true, "n_blocks": 1}', "rank=True is no number"),
        ("sites", DEEP, "nested too deeply"),
        ("config", DEEP, "nested too deeply"),
        ("extra", DEEP, "nested too deeply"),
        ("extra", '{"a": 1}', "damaged"),
        ("config", '{"kind": "lora", "rank": 1000000000, "n_blocks": 1}', "damaged"),
        ("config", '{"kind": "lora", "rank": 2.5, "n_blocks": 1}', "damaged"),
        ("config", '{"kind": "lora", "rank": NaN, "n_blocks": 1}', "NaN is no number of JSON"),
        ("config", '{"kind": "lora", "rank": 2, "rank": 2, "n_blocks": 1}', "stands twice"),
        ("config", '{"kind": "lora", "alpha": 1e999, "n_blocks": 1}', "damaged"),
        ("config", '{"kind": "lora", "alpha": 1e300, "n_blocks": 1}', "alpha: .*less than"),
        ("config", json.dumps({"towers": ["x" * 200_000]}), "damaged .*towers names"),
        ("config", json.dumps({"layers": [0.5] * 3000}), "damaged .*layers"),
        ("format_version", "9", "format_version"),
    ],
    ids=lambda x: str(x)[:60],
)
def test_metadata_of_strangers_are_one_sentence(whole, key, text, says):
    metadata, tensors, path = whole
    save_file(tensors, path, metadata | {key: text})
    refused(path, says)


# a file that was changed since it was written


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'alpha\\":1.0', b'alpha\\":9.0', "the metadata of .* were changed since it was written"),
        (b'dropout\\":0.25', b'dropout\\":0.75', "the metadata of"),
        (b"siamese", b"persian", "the metadata of"),
        (b'"0.weight.A"', b'"1.weight.A"', "the header: the key '1.weight.A' stands twice|damaged"),
        (b'"library_version":"', b'"library_version":"9', "the metadata of|damaged"),
        (b'"tensors_sha256":"', b'"tensors_sha999":"', "the metadata of"),
        (bytes(4), b"\0\0\x80\x3f", "the tensors of .* were changed since it was written; save"),
    ],
    ids=["alpha", "dropout", "extra", "name", "version", "no sum of tensors", "a number"],
)
def test_a_file_that_was_changed_by_hand_is_refused(tmp_path, old, new, says):
    path, extra = tmp_path / "a.safetensors", {"classes": "siamese, poodle"}
    config = CONFIG.model_copy(update={"alpha": 1.0, "dropout": 0.25})
    attach_linear(model(), ["0", "1"], config).save(path, extra)
    AdapterSet.load(path, model())
    data = path.read_bytes()
    at = data.rindex(old) if len(old) == 4 else data.index(old)
    path.write_bytes(data[:at] + new + data[at + len(old) :])
    refused(path, says)
    with pytest.raises(AdapterError, match=says):
        export_peft_file(path, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_tensors_that_are_exchanged_are_refused(whole):
    metadata, tensors, path = whole
    sums = {TENSORS_SUM: tensors_told(tensors)}
    save_file(tensors, path, metadata | sums)
    AdapterSet.load(path, model())
    names = ("0.weight.A", "1.weight.A")
    swapped = tensors | dict(zip(names, (tensors[name] for name in reversed(names)), strict=True))
    save_file(swapped, path, metadata | sums)
    refused(path, "the tensors of .* were changed since it was written")


def test_a_file_of_before_that_states_no_checksum_is_read(whole):
    metadata, tensors, path = whole
    save_file(tensors, path, metadata)
    loaded = AdapterSet.load(path, model()).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_sum_of_tensors_is_of_their_bytes_formats_shapes_and_names(dtype):
    a, empty = torch.arange(6.0).to(dtype).view(2, 3), torch.empty(0, dtype=dtype)
    told = tensors_told({"a": a, "b": empty})
    assert told == tensors_told({"b": empty, "a": a.T.contiguous().T})
    others = ({"a": a.view(3, 2), "b": empty}, {"a": a, "c": empty}, {"a": -a, "b": empty})
    assert told not in [tensors_told(other) for other in others]
    assert told != tensors_told({"a": a.double().half(), "b": empty}) or dtype == torch.float16


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, -1e13])
def test_what_is_no_number_is_refused(whole, value):
    metadata, tensors, path = whole
    next(iter(tensors.values()))[0, 0] = value
    save_file(tensors, path, metadata)
    refused(path, "holds values that are not finite")


@pytest.mark.parametrize("kind", ["lora", "block_lora", "dora", "vera"])
def test_shapes_are_compared_before_memory_is_asked_for(whole, monkeypatch, kind):
    metadata, tensors, path = whole
    config = {"kind": kind, "rank": 2048, "n_blocks": 1}
    save_file(tensors, path, metadata | {"config": json.dumps(config)})
    if kind == "vera":  # a file holds two vectors of it, what is drawn is as large as the weight
        refused(path, "missing in the file|would be an adapter", model(64))
        return
    onto, built = model(1100), []
    monkeypatch.setattr(fitting, "make_adapter", lambda *_: built.append(1))
    refused(path, "rank=2048 at 2 places are 9,011,200 numbers at least, the file holds 64", onto)
    assert not built


def test_numbers_that_do_not_fit_are_not_read(whole, monkeypatch):
    """A hole of 1 GiB in a small file: shapes are looked at first, in the header."""
    metadata, _, path = whole
    size = 2**30
    tensor = {"dtype": "F32", "shape": [2, size // 8], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": metadata, "0.weight.A": tensor}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    monkeypatch.setattr(torch.Tensor, "isfinite", None)  # would read them
    refused(path, r"0\.weight\.A: shape \(2, 134217728\) in the file, \(2, 8\) in the model")


def test_a_deep_header_is_damaged(tmp_path):
    header = (b'{"a":' * 60_000 + b"1" + b"}" * 60_000).ljust(480_008)
    path = tmp_path / "deep.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    refused(path, "is damaged or no safetensors file")
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    refused(path, "is damaged or no safetensors file")


def test_a_header_with_a_long_text_is_one_sentence(tmp_path):
    head = json.dumps({"a": "x" * 200_000}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    refused(tmp_path / "a.safetensors", "damaged or no safetensors file")


def test_a_name_that_stands_twice_is_not_read_as_its_last(whole):
    metadata, tensors, path = whole
    save_file(tensors, path, metadata)
    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    twice = header.replace(b'"config":', b'"config":"{}","config":')
    path.write_bytes(len(twice).to_bytes(8, "little") + twice + content[8 + len(header) :])
    refused(path, "the key 'config' stands twice")


@pytest.mark.parametrize("what", ["dimensions", "tensors", "words"])
def test_headers_without_end_are_one_sentence(whole, what):
    metadata, _, path = whole
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = {"__metadata__": metadata, "0.weight.A": empty | {"shape": [1] * 1000 + [0]}}
    if what == "tensors":
        header |= {f"t{i}": empty for i in range(150_000)}
    if what == "words":
        header["__metadata__"] = metadata | {"extra": "x" * 10**7}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    refused(path, "1001 dimensions" if what == "dimensions" else r"its header has [\d,]+ bytes")
    if what == "words":
        words = {"format_version": "v" * 9999, "library_version": "w" * 9999}
        save_file({}, path, metadata | words)
        refused(path, "this library reads '1'")
