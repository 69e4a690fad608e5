"""transformers' CLIPModel, SiglipModel and BlipModel: attention found by its structure."""

from __future__ import annotations

import copy

import pytest
import torch
from adapted_layers import seeded
from torch import nn

from blocklora_lib.adapters.attach import AdapterSet, attach, attach_linear
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.adapters.formats.peft_export import export_peft
from blocklora_lib.adapters.formats.peft_import import import_peft
from blocklora_lib.core.schema import AdapterError

transformers = pytest.importorskip("transformers")

CONFIG = AdapterConfig(rank=4, n_blocks=2, dropout=0.0)
SMALL = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
TEXT = SMALL | dict(
    vocab_size=50, max_position_embeddings=8, bos_token_id=1, eos_token_id=2, pad_token_id=0
)
VISION = SMALL | dict(image_size=32, patch_size=16)
SPLIT = ["q_proj", "k_proj", "v_proj"]
BERT = ["attention.self.query", "attention.self.key", "attention.self.value"]
# class, its towers' blocks, and names of q, k, v in them, written by hand
MODELS = {
    "CLIP": ("vision_model.encoder.layers", SPLIT, "text_model.encoder.layers", SPLIT),
    "Siglip": ("vision_model.encoder.layers", SPLIT, "text_model.encoder.layers", SPLIT),
    "Blip": ("vision_model.encoder.layers", ["qkv"], "text_model.encoder.layer", BERT),
}


def build(kind: str, which: str = "Model", **text) -> nn.Module:
    sizes = dict(text_config=TEXT | text, vision_config=VISION)
    more = {} if kind == "Siglip" else dict(projection_dim=16)
    if kind == "Blip":
        more["image_text_hidden_size"] = 16
    config = getattr(transformers, f"{kind}Config")(**sizes, **more)
    torch.manual_seed(0)
    return getattr(transformers, kind + which)(config).double().eval()


def names_of(kind: str, towers: str = "vision text") -> list[str]:
    vision, image_names, text, text_names = MODELS[kind]
    of_attention = "" if text_names is BERT else "self_attn."
    return [
        f"{blocks}.{i}.{prefix}{name}"
        for tower, blocks, prefix, names in (
            ("vision", vision, "self_attn.", image_names),
            ("text", text, of_attention, text_names),
        )
        if tower in towers
        for i in range(2)
        for name in names
    ]


def outputs(model: nn.Module) -> torch.Tensor:
    images = torch.randn(2, 3, 32, 32, generator=seeded(1), dtype=torch.float64)
    tokens = torch.randint(3, 50, (3, 8), generator=seeded(2))
    tokens[:, -1] = 2  # the end of the text
    return model(input_ids=tokens, pixel_values=images).logits_per_image


def randomize(adapters: AdapterSet) -> AdapterSet:
    generator = seeded(3)
    with torch.no_grad():
        for adapter in adapters.adapters.values():
            adapter.B.normal_(0, 0.3, generator=generator)
    return adapters.double()


@pytest.mark.slow  # the first imports transformers
@pytest.mark.parametrize("kind", MODELS)
def test_attach_is_attaching_by_names_and_by_hand(kind, tmp_path):
    """The same sites, the same draw; W + s A_s Σ B_i in plain weights gives the same outputs."""
    plain = build(kind)
    found, named, hand = (copy.deepcopy(plain) for _ in range(3))
    ours = randomize(attach(found, CONFIG, seeded()))
    randomize(attach_linear(named, names_of(kind), CONFIG, seeded()))
    assert {name for name, _ in ours.sites} == set(names_of(kind))
    with torch.no_grad():
        for name, adapter in ours.adapters.items():
            update = adapter.scale * (adapter.B[0] + adapter.B[1]) @ adapter.A_s
            hand.get_parameter(name).add_(update)
        # float64, sums of at most 64 terms
        tight = dict(rtol=1e-10, atol=1e-12)
        expected = outputs(hand)
        assert (expected - outputs(plain)).abs().max() > 1e-3
        torch.testing.assert_close(outputs(found), expected, **tight)
        torch.testing.assert_close(outputs(named), outputs(found), rtol=0, atol=0)
        ours.save(tmp_path / "a.safetensors")
        loaded = AdapterSet.load(tmp_path / "a.safetensors", copy.deepcopy(plain))
        torch.testing.assert_close(outputs(loaded.model), outputs(found), rtol=0, atol=0)
        before = outputs(found)
        torch.testing.assert_close(outputs(ours.merge().model), before, **tight)
        ours.unmerge()
    outputs(found.train()).square().sum().backward()
    for name, adapter in ours.adapters.items():
        for key, parameter in adapter.named_parameters():
            assert parameter.grad.abs().max() > 0, (name, key)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(towers=("text",)), names_of("CLIP", "text")),
        (dict(layers=(-1,)), [name for name in names_of("CLIP") if ".1." in name]),
        (
            dict(targets=("o",), towers=("vision",)),
            [f"vision_model.encoder.layers.{i}.self_attn.out_proj" for i in (0, 1)],
        ),
    ],
)
def test_towers_layers_and_targets_are_those_of_the_config(settings, expected):
    adapters = attach(build("CLIP"), CONFIG.model_copy(update=settings), seeded())
    assert sorted(name for name, _ in adapters.sites) == sorted(expected)


def test_the_output_projection_of_bert_lies_beside_its_attention_and_cross_attention_is_left():
    config = CONFIG.model_copy(update={"targets": ("o",), "towers": ("text",)})
    adapters = attach(build("Blip"), config, seeded())
    assert [name for name, _ in adapters.sites] == [
        f"text_model.encoder.layer.{i}.attention.output.dense" for i in (0, 1)
    ]


def test_a_layer_that_computes_q_k_and_v_is_adapted_whole_or_not_at_all():
    config = CONFIG.model_copy(update={"targets": ("q", "v")})
    with pytest.raises(
        AdapterError, match=r"self_attn\.qkv computes q, k, v in one layer.* leave k "
    ):
        attach(build("Blip"), config, seeded())


def test_a_model_whose_attention_is_not_found_is_refused_with_what_it_has():
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"
    )
    with pytest.raises(
        AdapterError, match=r"no attention module at all.* layers are classifier\.\*;"
    ):
        attach(transformers.ResNetForImageClassification(config), CONFIG)


def test_that_refusal_shows_ways_that_there_are():
    small = {
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "vocab_size": 9,
        "n_positions": 8,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    gpt2 = transformers.GPT2Model(transformers.GPT2Config(**small))  # of Conv1D, and one tower
    with pytest.raises(AdapterError, match=r"GPT2Attention, its linear.* none; write .* nn.Linear"):
        attach(gpt2, CONFIG)
    with pytest.raises(AdapterError, match=r"are \*; name its linear layers with attach_linear$"):
        attach(torch.nn.Sequential(torch.nn.Linear(2, 2)), CONFIG)


def test_a_training_forward_that_reaches_no_adapter_is_an_error():
    model = build("CLIP").train()
    attach(model, CONFIG.model_copy(update={"towers": ("text",)}), seeded())
    for layer in model.text_model.encoder.layers:  # passes by what was adapted
        layer.self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(AdapterError, match="reached none of its adapted layers"):
        model.text_model(input_ids=torch.tensor([[3, 4, 2]]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Siglip", "Blip"])
def test_peft_checkpoints_of_these_models_go_both_ways(kind, tmp_path):
    peft = pytest.importorskip("peft")
    close = dict(rtol=1e-6, atol=1e-7)  # peft's adapters are float32
    with torch.no_grad():
        ours = randomize(attach(build(kind), CONFIG, seeded()))
        export_peft(ours, tmp_path / "out")
        wrapped = peft.PeftModel.from_pretrained(build(kind), tmp_path / "out").double()
        expected = outputs(ours.model)
        torch.testing.assert_close(outputs(wrapped.base_model.model), expected, **close)
        settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["query", "q_proj", "qkv"])
        wrapped = peft.get_peft_model(build(kind), settings).eval()
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=seeded(len(name)))
        wrapped.double().save_pretrained(tmp_path / "in")
        back = import_peft(tmp_path / "in", build(kind))
        expected = outputs(wrapped.base_model.model)
        torch.testing.assert_close(outputs(back.model), expected, **close)
