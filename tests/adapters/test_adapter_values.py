"""Values that are none, and sizes that no machine has, are refused in one sentence."""

from __future__ import annotations

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from blocklora_lib.adapters.attach import AdapterSet, attach, attach_linear
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.adapters.files import FORMAT
from blocklora_lib.adapters.formats.peft_export import export_peft
from blocklora_lib.adapters.formats.peft_import import import_peft
from blocklora_lib.core.schema import AdapterError, Strict, explain
from blocklora_lib.learning.evaluation import evaluate_images
from blocklora_lib.learning.method import Predictor

CONFIG = AdapterConfig(kind="lora", rank=2, dropout=0.0)
METADATA = {
    "format": FORMAT,
    "format_version": "1",
    "config": CONFIG.model_dump_json(),
    "sites": '{"0": "linear"}',
    "extra": "{}",
}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4))


def adapted_file(path, tensors: dict | None = None, **metadata: str):
    """An adapter file with other values than the library would write."""
    if tensors is None:
        attach_linear(model(), "0", CONFIG).save(path)
        tensors = load_file(path)
    save_file(tensors, path, METADATA | metadata)
    return path


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(alpha=math.inf), "alpha"),
        (dict(alpha=1e300), "alpha"),  # no float32: a failure of the machine, tried again
        (dict(init_scale=1e308), "init_scale"),
        (dict(alpha=math.nan), "alpha"),
        (dict(init_scale=math.inf), "init_scale"),
        (dict(dropout=math.nan), "dropout"),
        (dict(rank=1_000_000_007, n_blocks=2), "rank"),
        (dict(rank=10**30, n_blocks=7), "rank"),
        (dict(rank=2, n_blocks=10**9, reading="block_rank"), "n_blocks"),
        (
            dict(rank=65521, n_blocks=2),
            "use n_blocks in (1, 65521)",
        ),  # a prime: what divides it is named
    ],
)
def test_settings_that_are_no_numbers_or_too_large(settings, words):
    with pytest.raises(ValidationError) as error:
        AdapterConfig(**settings)
    assert words in explain(error.value)
    assert "\n" not in explain(error.value)


@pytest.mark.parametrize("target", ["linear", "attention"])
def test_an_adapter_larger_than_memory_is_refused_before_the_model_changes(target):
    with torch.device("meta"):
        layer = nn.Linear(4096, 4096) if target == "linear" else nn.MultiheadAttention(4096, 8)
    config = AdapterConfig(kind="lora", rank=65536, dropout=0.0)
    with pytest.raises(
        AdapterError, match=r"rank=65536.* 536,870,912 numbers .*4096 x 4096.*smaller rank"
    ):
        attach_linear(layer, "*", config) if target == "linear" else attach(layer, config)
    assert type(layer) in (nn.Linear, nn.MultiheadAttention)
    assert all(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.fill_(math.nan), "0.weight.B of .* not finite"),
        (lambda t: t.index_fill_(0, torch.tensor(1), -math.inf), "0.weight.B of .* not finite"),
        (lambda t: t.long(), "0.weight.B of .* is torch.int64"),
        (lambda t: t.bool(), "torch.bool"),
        (lambda t: t.to(torch.complex64), "torch.complex64"),
        (lambda t: t.to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (lambda t: t[:0], r"shape \(0, 2\) in the file, \(4, 2\) in the model"),
        (lambda t: t.T.contiguous(), r"shape \(2, 4\) in the file"),
    ],
)
def test_tensors_of_a_file_that_are_no_adapters(change, words, tmp_path):
    adapted_file(tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    tensors["0.weight.B"] = change(tensors["0.weight.B"])
    plain = model()
    with pytest.raises(AdapterError, match=words) as error:
        AdapterSet.load(adapted_file(tmp_path / "a.safetensors", tensors), plain)
    assert "\n" not in str(error.value)
    assert type(plain[0]) is nn.Linear


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_load_exactly(dtype, tmp_path):
    tensors = {"0.weight.A": torch.randn(2, 6).to(dtype), "0.weight.B": torch.randn(4, 2).to(dtype)}
    loaded = AdapterSet.load(
        adapted_file(tmp_path / "a.safetensors", tensors), model()
    ).state_dict()
    assert all(
        torch.equal(loaded[name], tensor.to(loaded[name].dtype)) for name, tensor in tensors.items()
    )
    assert {t.dtype for t in loaded.values()} == {
        torch.float64 if dtype == torch.float64 else torch.float32
    }


def test_one_tensor_in_double_keeps_its_bits(tmp_path):
    tensors = {
        "0.weight.A": torch.randn(2, 6, dtype=torch.float64),
        "0.weight.B": torch.randn(4, 2),
    }
    loaded = AdapterSet.load(
        adapted_file(tmp_path / "a.safetensors", tensors), model()
    ).state_dict()
    assert all(torch.equal(loaded[name], tensor.double()) for name, tensor in tensors.items())


def test_neighbours_of_one_in_double_are_computed_with_it(tmp_path):
    attention, x = nn.MultiheadAttention(8, 2), torch.randn(4, 8)
    adapters = attach(attention, CONFIG)
    for adapter in adapters.adapters.values():
        nn.init.normal_(adapter.B)
    expected = attention(x, x, x)[0]
    adapters.adapters["k"].double()
    adapters.save(tmp_path / "a.safetensors")
    adapters.detach()
    AdapterSet.load(tmp_path / "a.safetensors", attention)
    torch.testing.assert_close(attention(x, x, x)[0], expected)


def test_adapters_that_share_their_numbers_are_saved(tmp_path):
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    adapters = attach_linear(layers, ["0", "1"], CONFIG)
    first, second = adapters.adapters.values()
    second.A, second.B = first.A, first.B
    nn.init.normal_(first.B)
    expected, x = copy.deepcopy(layers), torch.randn(3, 4)
    adapters.save(tmp_path / "a.safetensors")
    export_peft(adapters, tmp_path / "peft")
    for read, name in ((AdapterSet.load, "a.safetensors"), (import_peft, "peft")):
        adapters.detach()
        adapters = read(tmp_path / name, layers)
        torch.testing.assert_close(layers(x), expected(x))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (dict(config=METADATA["config"].replace('"alpha":1.0', '"alpha":Infinity')), "Infinity"),
        (dict(config=METADATA["config"].replace('"alpha":1.0', '"alpha":1e999')), "damaged"),
        (dict(config=METADATA["config"].replace('"rank":2', '"rank":1000000007')), "rank"),
        (dict(config="[]"), "damaged"),
        (dict(sites='{"0": "convolution"}'), "attention"),
        (dict(sites='["0"]'), "damaged"),
        (dict(sites='{"0": "linear", "0": "linear"}'), "twice"),
        (dict(extra='{"a": 1}'), "damaged"),
        (dict(extra="["), "damaged"),
    ],
)
def test_metadata_that_say_nothing(metadata, words, tmp_path):
    path = adapted_file(tmp_path / "a.safetensors", **metadata)
    with pytest.raises(AdapterError, match=words) as error:
        AdapterSet.load(path, model())
    assert "\n" not in str(error.value)


def test_adapters_that_are_not_finite_are_not_saved(tmp_path):
    adapters = attach_linear(model(), "0", CONFIG)
    with torch.no_grad():
        adapters.adapters["0.weight"].B[0, 0] = math.nan
    with pytest.raises(AdapterError, match=r"0\.weight\.B of .* not finite"):
        adapters.save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_merging_would_not_hold_is_refused_by_name_and_nothing_is_merged():
    half = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4)).half()
    adapters = attach_linear(half, ["0", "1"], CONFIG)
    with torch.no_grad():
        for adapter in adapters.adapters.values():
            adapter.B.fill_(1.0)
        adapters.adapters["1.weight"].B.fill_(3e5)  # float16 ends at 65504
    before = [p.clone() for p in half.parameters()]
    with pytest.raises(
        AdapterError, match=r"1\.weight: W \+ ΔW is not finite in torch\.float16; .*wider"
    ) as error:
        adapters.merge()
    assert "\n" not in str(error.value)
    assert not adapters.merged
    assert all(torch.equal(a, b) for a, b in zip(before, half.parameters(), strict=True))
    with pytest.raises(AdapterError, match="not finite"):
        adapters.merge_and_unload()
    adapters.detach()
    assert {type(m) for m in half} == {nn.Linear}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrap", "prefix"), [(nn.DataParallel, "module."), (torch.compile, "_orig_mod.")]
)
def test_files_of_wrapped_models_say_so_shortly(wrap, prefix, tmp_path):
    path, many = tmp_path / "a.safetensors", [nn.Linear(4, 4) for _ in range(30)]
    attach_linear(wrap(nn.Sequential(*many)), "*", CONFIG).save(path)
    plain = nn.Sequential(*[nn.Linear(4, 4) for _ in range(30)])
    with pytest.raises(
        AdapterError, match=rf"saved from a wrapped model .*'{prefix}'.*save from"
    ) as error:
        AdapterSet.load(path, plain)
    assert len(str(error.value)) < 300
    attach_linear(plain, "*", CONFIG).save(path)
    with pytest.raises(
        AdapterError, match=rf"the model is wrapped .*'{prefix}'.*load into"
    ) as error:
        AdapterSet.load(path, wrap(nn.Sequential(*[nn.Linear(4, 4) for _ in range(30)])))
    assert len(str(error.value)) < 300


@pytest.mark.slow
def test_lists_of_names_are_cut(tmp_path):
    path = tmp_path / "a.safetensors"
    attach_linear(nn.Sequential(*[nn.Linear(4, 4) for _ in range(300)]), "*", CONFIG).save(path)
    with pytest.raises(AdapterError, match=r"and 594 more") as error:
        AdapterSet.load(path, nn.Sequential(*[nn.ReLU() for _ in range(300)]))
    assert len(str(error.value)) < 600
    sites = {str(i): "linear" for i in range(300)}
    save_file({"x": torch.zeros(1)}, path, METADATA | {"sites": json.dumps(sites)})
    with pytest.raises(AdapterError, match=r"missing in the file: .* and 594 more"):
        AdapterSet.load(path, nn.Sequential(*[nn.Linear(4, 4) for _ in range(300)]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 150])  # in the first batch and in the second
def test_scores_that_are_not_finite_are_no_accuracy(value, where):
    images, labels = torch.randn(160, 3, 2, 2), torch.randint(0, 5, (160,))
    scores = torch.randn(160, 5)
    scores[where, 3] = value

    class Given(Predictor):
        def classifier(self, tokens):
            return None

        def logits(self, pixels, classifier):
            first = int((images == pixels[0]).flatten(1).all(1).nonzero())
            return scores[first : first + len(pixels)]

    backbone = SimpleNamespace(tokenize=lambda prompts: prompts, preprocess=lambda x: x)
    dataset = SimpleNamespace(name="flags", prompts=[])
    with pytest.raises(ValueError, match=r"scores of flags are not finite .* adapters") as error:
        evaluate_images(Given(), backbone, dataset, images, labels)
    assert "\n" not in str(error.value)
    scores[where, 3] = 0
    count = evaluate_images(Given(), backbone, dataset, images, labels)
    assert count.correct == sum(
        int(row.argmax() == truth) for row, truth in zip(scores, labels, strict=True)
    )


def test_an_error_about_a_long_value_stays_a_sentence():
    """A text of a million letters was shown whole; 1.0e-3 is no longer the only way to write it."""

    class Rate(Strict):
        lr: float

    with pytest.raises(ValidationError) as error:
        Rate(lr="x" * 10**6)
    assert explain(error.value).startswith("lr: ")
    assert len(explain(error.value)) < 200
    assert "1.0e-3" not in explain(error.value)


@pytest.mark.parametrize("name", ["scale", "dropout"])
def test_what_the_config_says_is_not_set_by_hand_on_one_adapter(name):
    """The fast path took the first one's, merging each its own, and a file the config's."""
    adapters = attach_linear(model(), "0", CONFIG)
    (adapter,) = adapters.adapters.values()
    with pytest.raises(AttributeError, match=name):
        setattr(adapter, name, 0.5)
    assert getattr(adapter, name) == getattr(CONFIG, name)


@pytest.mark.parametrize("off", ["q", "k", "v"])
def test_dropout_is_off_for_that_one_of_q_k_v_that_is_in_eval_mode(off):
    """The fast path took the first one's for all three."""
    attention = nn.MultiheadAttention(8, 2)
    adapters = attach(attention, CONFIG.model_copy(update={"dropout": 0.5})).adapters
    for adapter in adapters.values():
        nn.init.ones_(adapter.B)
    adapters[off].eval()
    x = torch.randn(4, 8)
    once, again = (attention.project_qkv(x).chunk(3, -1) for _ in range(2))
    same = [torch.equal(*both) for both in zip(once, again, strict=True)]
    assert same == [target == off for target in "qkv"]
