"""PEFT checkpoints both ways, against stock peft: it loads ours, and ours loads its."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from adapted_layers import seeded
from open_clip.model import CLIP
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from blocklora_lib.adapters.attach import AdapterSet, attach, attach_linear
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.adapters.formats.peft_export import export_peft, export_peft_file
from blocklora_lib.adapters.formats.peft_import import import_peft, import_peft_file
from blocklora_lib.core.schema import AdapterError

peft = pytest.importorskip("peft")

E = 16
VISION = dict(image_size=32, patch_size=16, width=E, layers=2, head_width=8)
TEXT = dict(context_length=8, vocab_size=50, width=E, heads=2, layers=2)
# float32, relative to the largest output: the issue's bar
CLOSE = 1e-6
KINDS = {
    "lora": dict(kind="lora", rank=2),
    "lora, alpha/r": dict(kind="lora", rank=4, alpha=3.0, scaling="rank"),
    "block_lora": dict(kind="block_lora", rank=4, n_blocks=2),
    "wide blocks": dict(kind="block_lora", rank=2, n_blocks=2, reading="block_rank"),
    "cut input": dict(kind="block_lora", rank=2, n_blocks=2, reading="input"),
    "frozen_a": dict(kind="frozen_a", rank=4, n_blocks=2),
    "collapsed": dict(kind="collapsed", rank=4, n_blocks=2),
    "pissa": dict(kind="pissa", rank=2),
    "vera": dict(kind="vera", rank=4),
}
PLACES = {
    "q, k, v of attention": dict(targets=("q", "k", "v")),
    "q, v": dict(targets=("q", "v")),
    "k, o, one tower": dict(targets=("k", "o"), towers=("text",)),
    "o, last layer": dict(targets=("o",), layers=(1,)),
    "all, one layer": dict(targets=("q", "k", "v", "o"), layers=(0,)),
}


def clip() -> nn.Module:
    torch.manual_seed(0)
    return CLIP(E, VISION, TEXT).eval()


def outputs(model: nn.Module) -> torch.Tensor:
    images = torch.randn(3, 3, 32, 32, generator=seeded(1))
    tokens = torch.randint(1, 50, (4, 8), generator=seeded(2))
    with torch.no_grad():
        return torch.cat([model.encode_image(images), model.encode_text(tokens)])


def randomize(adapters: AdapterSet) -> AdapterSet:
    generator = seeded(3)
    with torch.no_grad():
        for adapter in adapters.adapters.values():
            for parameter in adapter.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(0.3 * noise)
    return adapters


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= CLOSE * expected.abs().max()


def by_stock_peft(folder) -> torch.Tensor:
    wrapped = peft.PeftModel.from_pretrained(clip(), folder)
    found = outputs(wrapped.base_model.model)
    # peft merges and unmerges at each forward of attention: again, it has to be the same
    assert_close(outputs(wrapped.base_model.model), found)
    return found


@pytest.mark.slow
def test_every_kind_and_place_computes_the_same_in_stock_peft_and_comes_back(tmp_path):
    base = outputs(clip())
    cases = [(kind, "q, k, v of attention") for kind in KINDS] + [("block_lora", p) for p in PLACES]
    for kind, place in cases:
        folder = tmp_path / f"{kind}, {place}"
        adapters = attach(clip(), AdapterConfig(**KINDS[kind], **PLACES[place]), seeded())
        expected = outputs(randomize(adapters).model)
        assert (expected - base).abs().max() > 0.01
        export_peft(adapters, folder)
        assert_close(by_stock_peft(folder), expected)
        back = import_peft(folder, clip())
        assert_close(outputs(back.model), expected)
        width = 4 if kind in ("pissa", "vera", "lora, alpha/r") else 2
        assert back.config.targets == adapters.config.targets
        assert back.config.rank == width, (kind, place)  # nothing but what was exported
        assert back.config.kind == "lora"


@pytest.mark.parametrize("kind", [*KINDS, "dora"])
def test_linear_layers_both_ways(kind, tmp_path):
    settings = KINDS.get(kind, dict(kind="dora", rank=2))
    config = AdapterConfig(**settings, dropout=0.1)
    adapters = attach_linear(clip(), ["*.mlp.c_fc", "*.0.mlp.c_proj"], config, seeded())
    expected = outputs(randomize(adapters).model)
    export_peft(adapters, tmp_path / "p")
    assert_close(by_stock_peft(tmp_path / "p"), expected)
    back = import_peft(tmp_path / "p", clip())
    assert_close(outputs(back.model), expected)
    assert back.config.dropout == 0.1
    assert back.config.kind == ("dora" if kind == "dora" else "lora")


def test_a_file_is_exported_without_its_model_and_a_checkpoint_becomes_a_file(tmp_path):
    adapters = randomize(attach(clip(), AdapterConfig(rank=4, n_blocks=2), seeded()))
    adapters.save(tmp_path / "a.safetensors")
    export_peft(adapters, tmp_path / "one")
    export_peft_file(tmp_path / "a.safetensors", tmp_path / "two")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two
    import_peft_file(tmp_path / "one", tmp_path / "b.safetensors")
    loaded = AdapterSet.load(tmp_path / "b.safetensors", clip())
    assert_close(outputs(loaded.model), outputs(adapters.model))


# what someone trains by stock peft, with the settings that change a scale or a rank
TRAINED = {
    "attention": dict(r=4, lora_alpha=6, target_modules=["attn"]),
    "attention, rslora": dict(r=4, lora_alpha=6, target_modules=["attn"], use_rslora=True),
    "image tower": dict(r=2, lora_alpha=2, target_modules=r"visual\..*\.attn"),
    "linear": dict(r=4, lora_alpha=6, target_modules=["c_fc", "c_proj"]),
    "linear, rslora, dropout": dict(
        r=4, lora_alpha=6, target_modules=["c_fc"], use_rslora=True, lora_dropout=0.2
    ),
    "ranks and scales of their own": dict(
        r=2, lora_alpha=6, target_modules=["c_fc", "c_proj"],
        rank_pattern={"c_proj": 3, r"visual.*\.0\.mlp\.c_fc": 1}, alpha_pattern={"c_proj": 5},
    ),
    "ranks of their own, rslora": dict(
        r=2, lora_alpha=6, target_modules=["c_fc", "attn"], rank_pattern={"c_fc": 3},
        use_rslora=True,
    ),
    "both": dict(r=2, lora_alpha=4, target_modules=["c_fc", "attn"]),
    "dora": dict(r=2, lora_alpha=4, target_modules=["c_fc", "c_proj"], use_dora=True),
}  # fmt: skip


@pytest.mark.parametrize("case", TRAINED)
def test_a_checkpoint_of_stock_peft_is_imported(case, tmp_path):
    wrapped = peft.get_peft_model(clip(), peft.LoraConfig(**TRAINED[case])).eval()
    generator = seeded(4)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "magnitude" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    expected = outputs(wrapped.base_model.model)
    wrapped.save_pretrained(tmp_path / "p")
    adapters = import_peft(tmp_path / "p", clip())
    assert_close(outputs(adapters.model), expected)
    import_peft_file(tmp_path / "p", tmp_path / "a.safetensors")
    assert_close(outputs(AdapterSet.load(tmp_path / "a.safetensors", clip()).model), expected)
    # and out again
    export_peft(adapters, tmp_path / "again")
    assert_close(by_stock_peft(tmp_path / "again"), expected)


def test_what_is_filled_up_with_zeros_stays_zero_in_training(tmp_path):
    """A layer of rank 1 among layers of rank 2 trains as rank 1 would."""
    settings = TRAINED["ranks and scales of their own"]
    wrapped = peft.get_peft_model(clip(), peft.LoraConfig(**settings))
    wrapped.save_pretrained(tmp_path / "p")
    adapters = import_peft(tmp_path / "p", clip())
    model = adapters.model.train()
    optimizer = torch.optim.AdamW(adapters.parameter_groups(lr=0.1))
    for _ in range(2):
        images = torch.randn(3, 3, 32, 32, generator=seeded(1))
        model.encode_image(images).square().sum().backward()
        optimizer.step()
    for name, adapter in adapters.adapters.items():
        if ".0.mlp.c_fc" in name and name.startswith("visual"):
            assert adapter.A[0].abs().max() > 0
            assert adapter.B[:, 0].abs().max() > 0
            assert not adapter.A[1:].any()
            assert not adapter.B[:, 1:].any()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    config = AdapterConfig(kind="lora", rank=2)
    return export_peft(attach_linear(clip(), "*.c_fc", config, seeded()), folder)


REFUSED = {
    "bias": dict(bias="all"),
    "lora_bias": dict(lora_bias=True),
    "modules_to_save": dict(modules_to_save=["ln_final"]),
    "layer_replication": dict(layer_replication=[[0, 2]]),
    "trainable_token_indices": dict(trainable_token_indices=[1]),
    "target_parameters": dict(target_parameters=["w"]),
    "fan_in_fan_out": dict(fan_in_fan_out=True),
    "use_qalora": dict(use_qalora=True),
    "what_comes_next_year": dict(what_comes_next_year=1),
    "peft_type='LOHA'": dict(peft_type="LOHA"),
    "init_lora_weights='pissa'": dict(init_lora_weights="pissa"),
    "has rank 2 in the tensors, and 3": dict(r=3),
    "lora_alpha of": dict(lora_alpha=0),
    "rank_pattern={'c_fc.': 2}.*unterminated": dict(rank_pattern={"c_fc(": 2}),
    "alpha_pattern='c_fc'.*no map": dict(alpha_pattern="c_fc"),
    "rank_pattern=.2.*no map": dict(rank_pattern=[2]),
    "lora_dropout|dropout": dict(lora_dropout=1.5),
    "lora_alpha of .* is 1000": dict(lora_alpha=10**400),
    "alpha_pattern with .*repeats a group": dict(alpha_pattern={"([a-z_.0-9]+)+!": 4}),
    "rank_pattern with .*repeats a group": dict(rank_pattern={"(a|aa)*c_fc!": 4}),
    "rank_pattern with .*more than three": dict(rank_pattern={".*s.*e.*r.*c_fc!": 4}),
    "rank_pattern with .{4}.*more than three of": dict(rank_pattern={".?" * 26 + "!": 4}),
    "rank_pattern with ...*choices; write": dict(rank_pattern={"(.|)" * 26 + "!": 4}),
    "with lora_magnitude_vector if use_dora": dict(use_dora=True),
}


@pytest.mark.parametrize("named", REFUSED)
def test_options_without_a_counterpart_are_refused_by_name(named, good, tmp_path):
    settings = json.loads((good / "adapter_config.json").read_text()) | REFUSED[named]
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    save_file(load_file(good / "adapter_model.safetensors"), tmp_path / "adapter_model.safetensors")
    model = clip()
    with pytest.raises(AdapterError, match=named) as error:
        import_peft(tmp_path, model)
    assert "\n" not in str(error.value)
    assert all(type(m).__name__ != "AdaptedLinear" for m in model.modules())


def test_defaults_of_stock_peft_are_no_reason_to_refuse(tmp_path):
    """Each option that its LoraConfig has, as it is when nobody sets it."""
    settings = peft.LoraConfig(r=2, target_modules=["c_fc"])
    peft.get_peft_model(clip(), settings).save_pretrained(tmp_path)
    import_peft(tmp_path, clip())


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"base_model.model.ln_final.bias": torch.zeros(E)}, "ln_final.bias.* no counterpart"),
        ({"base_model.model.conv1.lora_A.weight": torch.zeros(2, 3, 4, 4)}, "conv1 .*convolutions"),
        ({"base_model.model.nowhere.lora_A.weight": torch.zeros(2, 4),
          "base_model.model.nowhere.lora_B.weight": torch.zeros(4, 2)}, "nowhere"),
        ({"base_model.model.x.lora_A.weight": torch.full((2, 4), torch.nan)}, "not finite"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_lora_of_this_model(tensors, words, good, tmp_path):
    found = load_file(good / "adapter_model.safetensors") | tensors
    save_file(found, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((good / "adapter_config.json").read_bytes())
    with pytest.raises(AdapterError, match=words):
        import_peft(tmp_path, clip())


def test_folders_that_are_no_checkpoint(good, tmp_path):
    with pytest.raises(AdapterError, match=r"has no adapter_config\.json"):
        import_peft(tmp_path / "none", clip())
    (tmp_path / "adapter_config.json").write_bytes((good / "adapter_config.json").read_bytes())
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    weights = tmp_path / "adapter_model.safetensors"
    weights.symlink_to("a file of the hub's cache that is gone")
    with pytest.raises(AdapterError, match=r"but adapter_model\.bin, which may be pickles"):
        import_peft(tmp_path, clip())
    weights.unlink()
    weights.write_bytes(b"no")
    with pytest.raises(AdapterError, match="damaged"):
        import_peft(tmp_path, clip())


def test_a_file_of_no_numbers_is_not_exported(tmp_path):
    path = tmp_path / "a.safetensors"
    attach(clip(), AdapterConfig(rank=4, n_blocks=2), seeded()).save(path)
    with safe_open(path, framework="pt") as opened:
        metadata, tensors = opened.metadata(), {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path, metadata)
    with pytest.raises(AdapterError, match=r"a\.safetensors holds values that are not finite"):
        export_peft_file(path, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_what_peft_cannot_hold_is_refused_on_export(tmp_path):
    dora = attach(clip(), AdapterConfig(kind="dora", rank=2), seeded())
    with pytest.raises(AdapterError, match=r"kind='dora' on nn\.MultiheadAttention"):
        export_peft(dora, tmp_path / "p")
    vera = attach_linear(clip(), "*.c_fc", AdapterConfig(kind="vera", rank=2), seeded())
    vera.save(tmp_path / "vera.safetensors")
    with pytest.raises(AdapterError, match=r"kind='vera'.* load it on its model"):
        export_peft_file(tmp_path / "vera.safetensors", tmp_path / "p")
    alone = attach(nn.MultiheadAttention(E, 2), AdapterConfig(kind="lora", rank=2), seeded())
    with pytest.raises(AdapterError, match="the model itself"):
        export_peft(alone, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_release_that_may_apply_the_output_projection_once_is_not_guessed_at(tmp_path):
    config = AdapterConfig(kind="lora", rank=2, targets=("q", "o"))
    export_peft(randomize(attach(clip(), config, seeded())), tmp_path)
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    for version, refused in (("0.14.0", False), ("0.21.9", False), ("0.22.0", True), ("1.0", True)):
        path.write_text(json.dumps(settings | {"peft_version": version}))
        if refused:
            with pytest.raises(AdapterError, match=rf"written by peft {version}.* merge by peft"):
                import_peft(tmp_path, clip())
        else:
            import_peft(tmp_path, clip())


def test_layers_that_differ_between_the_towers_are_named(tmp_path):
    only = r"visual.*resblocks\.1\.attn|transformer\.resblocks\.0\.attn"
    settings = peft.LoraConfig(r=2, target_modules=only)
    peft.get_peft_model(clip(), settings).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=r"different layers in its towers .*: 0.*: 1|: 1.*: 0"):
        import_peft(tmp_path, copy.deepcopy(clip()))
