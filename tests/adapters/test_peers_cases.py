"""What peers' tests know of adapters on layers of any name, and of files that are none."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from blocklora_lib.adapters.attach import AdapterSet, attach, attach_linear
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.adapters.formats.peft_export import export_peft
from blocklora_lib.adapters.formats.peft_import import import_peft
from blocklora_lib.core.schema import AdapterError
from blocklora_lib.weights.checkpoints import BadCheckpoint, read_checkpoint

peft = pytest.importorskip("peft")

E = 4
X = torch.randn(3, E, generator=torch.Generator().manual_seed(1))
CLOSE = 1e-6  # float32, relative to the largest output
LORA = AdapterConfig(kind="lora", rank=2, n_blocks=1)


class Chain(nn.Module):
    """Linear layers of these names in a row, in folders of modules where a name has points."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names = names
        for name in names:
            *folders, last = name.split(".")
            at: nn.Module = self
            for folder in folders:
                if not hasattr(at, folder):
                    at.add_module(folder, nn.Module())
                at = getattr(at, folder)
            at.add_module(last, nn.Linear(E, E))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = x + self.get_submodule(name)(x)
        return x


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= CLOSE * expected.abs().max()


def trained_by_peft(model: nn.Module, folder, **settings) -> torch.Tensor:
    """Write a checkpoint of stock peft whose B is not zero, and return what its model computes."""
    config = peft.LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, **settings)
    wrapped = peft.get_peft_model(model, config).eval()
    wrapped.save_pretrained(folder)
    with torch.no_grad():
        return wrapped(X)


def imported(folder, model: nn.Module) -> torch.Tensor:
    import_peft(folder, model)
    with torch.no_grad():
        return model.eval()(X)


# peft's test_low_level_api: names that hold the words of its keys, or are those words; and ours
NAMES = [
    *("foo_lora", "lora_foo", "lora_A", "lora_B", "weight_foo", "foo_weight", "bias_foo", "A", "B"),
    *("base_model", "base_layer", "default", "lora_magnitude_vector", "model.model"),
]


@pytest.mark.slow
@pytest.mark.parametrize("use_dora", [False, True])
def test_layers_that_are_named_like_parts_of_a_file(use_dora, tmp_path):
    config = LORA.model_copy(update={"kind": "dora"}) if use_dora else LORA
    plain = Chain(*NAMES)(X)
    for name in [*NAMES, "*"]:  # one at a time, too: none takes another's tensors
        model = Chain(*NAMES)
        adapters = attach_linear(model, name, config, torch.Generator().manual_seed(2))
        assert len(adapters.sites) == (len(NAMES) if name == "*" else 1)
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.add_(0.5)
        expected = model.eval()(X).detach()
        assert (expected - plain).abs().max() > 1e-3
        adapters.save(tmp_path / "a.safetensors")
        AdapterSet.load(tmp_path / "a.safetensors", again := Chain(*NAMES).eval())
        torch.testing.assert_close(again(X), expected, rtol=0, atol=0)
        folder = export_peft(adapters, tmp_path / f"of {NAMES.index(name) if name in NAMES else 0}")
        theirs = peft.PeftModel.from_pretrained(Chain(*NAMES), folder).eval()
        assert_close(theirs(X), expected)
        assert_close(imported(folder, Chain(*NAMES)), expected)


# peft's TestRankAndAlphaPattern: which of the layers called foo a pattern means
NESTED = ["foo", "bar", "module.foo", "module.foobar", "module.module.foo", "module.module.barfoo"]


@pytest.mark.parametrize(
    "patterns",
    [
        {"bla": 1},
        {"foo": 1},
        {"^foo": 1},
        {"^module.foo": 1},
        {"module.foo": 1},
        {"^module.module.foo": 3, "^module.foo": 1},
        {".*foo": 3},
        {"foo": 3, "module.foo": 1},  # the first that fits
    ],
    ids=str,
)
def test_which_layers_a_pattern_of_ranks_means(patterns, tmp_path):
    alphas = {name: 2 * rank for name, rank in patterns.items()}
    expected = trained_by_peft(Chain(*NESTED), tmp_path, target_modules="all-linear",
                               rank_pattern=patterns, alpha_pattern=alphas)  # fmt: skip
    assert_close(imported(tmp_path, Chain(*NESTED)), expected)


def test_a_pattern_whose_order_its_file_lost_is_refused_and_not_guessed_at(tmp_path):
    """peft sorts its settings, and takes the first pattern that fits: it cannot load this either"""
    patterns = {"module.foo": 1, "foo": 3}
    trained_by_peft(Chain(*NESTED), tmp_path, target_modules="all-linear", rank_pattern=patterns)
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(Chain(*NESTED), tmp_path)
    with pytest.raises(AdapterError, match=r"module\.foo has rank 1 in the tensors, and 3 by"):
        import_peft(tmp_path, Chain(*NESTED))


def test_a_name_that_ends_like_another_is_not_adapted_with_it(tmp_path):
    """peft's test_get_peft_modules_module_name_is_suffix_of_another_module"""
    names = [f"{kind}blocks.{i}.query" for kind in ("", "single_") for i in range(2)]
    model = Chain(*names)
    adapters = attach_linear(model, "blocks.*.query", LORA)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.fill_(0.5)
    folder = export_peft(adapters, tmp_path)
    theirs = peft.PeftModel.from_pretrained(Chain(*names), folder).eval()
    assert {n.split(".lora_A")[0] for n in theirs.state_dict() if ".lora_A." in n} == {
        f"base_model.model.{name}" for name in names[:2]
    }
    assert_close(theirs(X), model.eval()(X))


def test_a_checkpoint_of_an_old_peft_and_one_with_other_keys(tmp_path):
    """peft 0.2 wrote these settings; 0.9 and 0.11 name DoRA's magnitude otherwise (peft's
    test_dora_save_and_load_remapping); a state_dict of torch is no checkpoint of peft's.
    """
    expected = trained_by_peft(Chain("fc", "out"), tmp_path, target_modules=["fc"])
    settings, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    old = dict(peft_type="LORA", r=2, lora_alpha=3, lora_dropout=0.0, target_modules=["fc"],
               bias="none", enable_lora=None, fan_in_fan_out=False, inference_mode=True,
               merge_weights=False, modules_to_save=None, task_type=None,
               base_model_name_or_path="x")  # fmt: skip
    settings.write_text(json.dumps(old))
    assert_close(imported(tmp_path, Chain("fc", "out")), expected)
    named = {k.replace(".weight", ".default.weight"): v for k, v in load_file(weights).items()}
    save_file(named, weights)
    with pytest.raises(AdapterError, match=r"fc\.lora_A\.default\.weight"):
        import_peft(tmp_path, Chain("fc", "out"))
    expected = trained_by_peft(Chain("fc", "out"), tmp_path, target_modules=["fc"], use_dora=True)
    tensors = load_file(weights)
    for ends in ("lora_magnitude_vector", "lora_magnitude_vector.weight"):
        renamed = {
            f"{k.partition('lora_magnitude')[0]}{ends}" if "magnitude" in k else k: v
            for k, v in tensors.items()
        }
        save_file(renamed, weights)
        assert_close(imported(tmp_path, Chain("fc", "out")), expected)


def test_adapted_attention_shows_what_it_showed():
    """peft's test_mha_exposes_attributes and test_mha_merge_masks_method: pytorch's encoder reads
    them.
    """
    model = nn.ModuleDict({"mha": nn.MultiheadAttention(8, 2)})
    names = ["embed_dim", "kdim", "vdim", "num_heads", "head_dim", "dropout", "batch_first"]
    names += ["_qkv_same_embed_dim", "bias_k", "bias_v", "add_zero_attn", "in_proj_bias"]
    names += ["in_proj_weight", "out_proj", "training"]
    before = {name: getattr(model["mha"], name) for name in names}
    masks = torch.randint(0, 2, (5, 5)), torch.randint(0, 2, (5, 5)), torch.rand(5, 5, 8)
    merged = model["mha"].merge_masks(*masks)
    attach(model, LORA)
    for name, value in before.items():
        assert getattr(model["mha"], name) is value, name
    again = model["mha"].merge_masks(*masks)
    assert torch.equal(again[0], merged[0])
    assert again[1] == merged[1]


def test_layers_are_counted_by_blocks_and_not_by_the_experts_in_them():
    """peft's test_layers_to_transform_filters_by_layer_not_expert_index"""
    names = [
        f"model.layers.{i}.{part}"
        for i in range(4)
        for part in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "experts.0.up", "experts.1.up")
    ]
    adapters = attach(Chain(*names), AdapterConfig(kind="lora", rank=2, layers=(1,)))
    assert [name for name, _ in adapters.sites] == names[5:8]


def bytes_of(header: bytes | str, data: bytes = bytes(16), length: int | None = None) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def header(shape="[2,2]", offsets="[0,16]", dtype="F32", name="x") -> str:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


# safetensors' tests of its reader (tensor.rs), which its Python side does not repeat
MALFORMED = {
    "nothing": b"",
    "half a length": b"<\0\0\0",
    "a length alone": bytes_of("", b"", 60),
    "longer than the file": bytes_of("{}", b"", 2**63),
    "no UTF-8": bytes_of(b"\xff", b""),
    "no JSON": bytes_of("{", b""),
    "ten tensors on the same bytes": bytes_of(
        "{" + ",".join(header(name=f"x{i}") for i in range(10)) + "}"
    ),
    "bytes left over": bytes_of("{" + header() + "}", bytes(16) + b"another file"),
    "bytes missing": bytes_of("{" + header() + "}", bytes(14)),
    "a hole before": bytes_of("{" + header(offsets="[16,32]") + "}", bytes(32)),
    "a shape of other bytes": bytes_of("{" + header(offsets="[0,4]") + "}", bytes(4)),
    "a shape beyond 64 bits": bytes_of("{" + header("[2,18446744073709551614]") + "}"),
    "a size beyond 64 bits": bytes_of("{" + header("[2,9223372036854775807]") + "}"),
    "an unknown format": bytes_of("{" + header(dtype="F128") + "}"),
    "metadata that are no text": bytes_of('{"__metadata__":{"format":1}}', b""),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_safetensors_file_is_one_sentence_for_every_reader(case, tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(MALFORMED[case])
    settings = dict(peft_type="LORA", r=2, lora_alpha=2)
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    for read, error in (
        (lambda: AdapterSet.load(path, Chain("fc")), AdapterError),
        (lambda: import_peft(tmp_path, Chain("fc")), AdapterError),
        (lambda: read_checkpoint(path), BadCheckpoint),
    ):
        with pytest.raises(error, match=r"damaged|cut short|empty") as told:
            read()
        assert str(path) in str(told.value)
        assert "\n" not in str(told.value)
        assert len(str(told.value)) < 600


def test_honest_files_may_be_padded_and_hold_single_numbers(tmp_path):
    """safetensors' test_whitespace_padded_header, of writers that align what follows to a page,
    and test_empty_shapes_allowed.
    """
    path = tmp_path / "x.safetensors"
    # at 15,392 = 0x3c20 its length begins " <", as a web page does
    for pad in ("\t\n", " " * 4096, " " * (0x3C20 - len(header("[]", "[0,4]")) - 4)):
        path.write_bytes(bytes_of(pad + "{" + header("[]", "[0,4]") + "}\r ", bytes(4)))
        assert read_checkpoint(path).state["x"].shape == ()
    adapters = attach_linear(Chain("fc"), "fc", LORA)
    adapters.save(path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    path.write_bytes(bytes_of(b"\n\t " + data[8 : 8 + length] + b"\r\n  ", data[8 + length :]))
    AdapterSet.load(path, Chain("fc"))
