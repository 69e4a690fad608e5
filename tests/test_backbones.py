"""The backbone's fast paths against open_clip's own, its text handling, and bad checkpoints."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from blocklora_lib import weights
from blocklora_lib.backbones import BackboneSpec, load_backbone, with_checksum
from blocklora_lib.towers import TextTower, encode_images

PROMPTS = ("a photo of a cat.", "a photo of a very small yellow submarine.", "a flag.")
ATOL = 1e-6  # float32 unit rows; sums over at most some hundred terms in another order


@pytest.fixture(scope="module")
def backbone(tiny_clip):
    return load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cpu")


def reference(model, tokens):
    return F.normalize(model.encode_text(tokens), dim=-1)


def test_images_are_encoded_as_open_clip_does(backbone):
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = F.normalize(backbone.model.encode_image(images), dim=-1)
    assert torch.allclose(backbone.encode_images(images), expected, atol=ATOL)


@pytest.mark.parametrize(
    "changes",
    [
        dict(vision_cfg=dict(pool_type="avg")),  # every token is pooled: the last block may not be cut short
        dict(vision_cfg=dict(attentional_pool=True)),
        dict(text_cfg=dict(no_causal_mask=True, pool_type="last")),
        dict(custom_text=True, text_cfg=dict(embed_cls=True)),
        dict(custom_text=True),
        dict(custom_text=True, text_cfg=dict(pool_type="eos", eos_id=49407)),
        dict(text_cfg=dict(qk_norm=True), custom_text=True),
    ],
    ids=str,
)
def test_any_other_open_clip_model_gives_open_clips_features(tmp_path, tiny_clip, changes):
    config = open_clip.get_model_config(tiny_clip)
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    name = "Variant-" + "".join(c for c in str(changes) if c.isalnum())
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    model = load_backbone(BackboneSpec(name=name, pretrained="none"), "cpu").model
    tokens = open_clip.get_tokenizer(name)(list(PROMPTS))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(TextTower(model).encode(tokens), model.encode_text(tokens), atol=1e-5)
        assert torch.allclose(encode_images(model, images), model.encode_image(images), atol=1e-5)


def test_a_prompt_that_does_not_fit_is_refused(backbone):
    with pytest.raises(
        ValueError, match=r"prompt 'a a .* has 32 tokens, the text tower of TinyCLIP-test reads 16"
    ):
        backbone.tokenize(["a " * 30])


def test_pixels_are_normalised_as_open_clip_normalises(backbone):
    pixels = torch.randint(256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = torch.tensor(open_clip.OPENAI_DATASET_MEAN), torch.tensor(open_clip.OPENAI_DATASET_STD)
    expected = (pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.allclose(backbone.preprocess(pixels), expected, atol=2e-6)  # values to 2.7, two roundings
    assert backbone.preprocess(pixels[..., :20, :24]).shape == (3, 3, 32, 32)


def test_random_weights_are_always_the_same_and_leave_torchs_stream_alone(tiny_clip):
    state = torch.get_rng_state()
    a, b = (load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cpu") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not any(p.requires_grad for p in a.parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_backbones_give_float32_features(tiny_clip, precision):
    half = load_backbone(BackboneSpec(name=tiny_clip, pretrained="none", precision=precision), "cpu")
    full = load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cpu")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert half.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for a, b in (
        (half.encode_images(images), full.encode_images(images)),
        (half.encode_prompts(half.tokenize(PROMPTS)), full.encode_prompts(full.tokenize(PROMPTS))),
    ):
        assert a.dtype == torch.float32
        assert torch.allclose(a, b, atol=0.03)  # bfloat16 keeps 8 bits


def test_a_float16_checkpoint_is_read_into_float32_and_its_checksum_is_checked(tmp_path, tiny_clip, backbone):
    path = tmp_path / "weights.safetensors"
    save_file({k: v.half().contiguous() for k, v in backbone.model.state_dict().items()}, path)
    spec = with_checksum(BackboneSpec(name=tiny_clip, pretrained=str(path)))
    loaded = load_backbone(spec, "cpu")
    weight = backbone.model.text_projection
    assert torch.equal(loaded.model.text_projection, weight.half().float())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"the spec says .*restore the file"):
        load_backbone(spec, "cpu")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            dict(name="TinyCLIP-tset", pretrained="none"),
            "unknown backbone 'TinyCLIP-tset'; did you mean 'TinyCLIP-test'",
        ),
        (dict(name="ViT-B-32", pretrained="opanai"), "unknown weights 'opanai' .* did you mean 'openai'"),
        (dict(name="ViT-B-32", pretrained="bundled"), "ViT-B-32 has no bundled weights"),
        (dict(name="ViT-B-32", pretrained="weights.pt"), "checkpoint weights.pt of ViT-B-32 is missing"),
    ],
)
def test_bad_backbones_say_what_to_do(tiny_clip, spec, says):
    with pytest.raises((ValueError, OSError), match=says):
        load_backbone(BackboneSpec(**spec), "cpu")


def test_missing_bundled_weights_are_named(tmp_path, monkeypatch):
    (tmp_path / "pocketclip.json").write_text("{}")
    monkeypatch.setattr(weights, "POCKET_MODEL", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"pocketclip\.safetensors of PocketCLIP is missing"):
        with_checksum(BackboneSpec(name="PocketCLIP", pretrained="bundled"))


def test_a_checkpoint_of_another_model_is_refused(tmp_path, tiny_clip):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(RuntimeError, match=f"backbone {tiny_clip} could not be loaded"):
        load_backbone(BackboneSpec(name=tiny_clip, pretrained=str(path)), "cpu")


def test_pocketclip_has_the_agreed_shape():
    pocket = load_backbone(BackboneSpec(name="PocketCLIP", pretrained="none"), "cpu")
    assert pocket.resolution == 64
    assert pocket.encode_prompts(pocket.tokenize(PROMPTS)).shape == (3, 384)
    assert pocket.model.visual.positional_embedding.shape == (17, 192)
    assert pocket.tokenize(PROMPTS).shape == (3, 32)
