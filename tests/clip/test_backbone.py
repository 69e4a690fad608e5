"""The backbone's fast paths against open_clip's own, its text handling, and bad checkpoints."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from blocklora_lib.clip.backbone import Backbone, BackboneSpec, load_backbone, with_checksum
from blocklora_lib.clip.tokenizers import prompt_length
from blocklora_lib.clip.towers import TextTower, encode_images
from blocklora_lib.weights import files as weights
from blocklora_lib.weights.obtain import network

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
        dict(
            vision_cfg=dict(pool_type="avg")
        ),  # every token is pooled: the last block may not be cut short
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
    pixels = torch.randint(
        256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    mean, std = (
        torch.tensor(open_clip.OPENAI_DATASET_MEAN),
        torch.tensor(open_clip.OPENAI_DATASET_STD),
    )
    expected = (pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    # values to 2.7, two roundings
    assert torch.allclose(backbone.preprocess(pixels), expected, atol=2e-6)
    assert backbone.preprocess(pixels[..., :20, :24]).shape == (3, 3, 32, 32)


@pytest.mark.slow
def test_random_weights_are_always_the_same_and_leave_torchs_stream_alone(tiny_clip):
    state = torch.get_rng_state()
    a, b = (load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cpu") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not any(p.requires_grad for p in a.parameters())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_backbones_give_float32_features(tiny_clip, precision):
    half = load_backbone(
        BackboneSpec(name=tiny_clip, pretrained="none", precision=precision), "cpu"
    )
    full = load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cpu")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert half.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    for a, b in (
        (half.encode_images(images), full.encode_images(images)),
        (half.encode_prompts(half.tokenize(PROMPTS)), full.encode_prompts(full.tokenize(PROMPTS))),
    ):
        assert a.dtype == torch.float32
        assert torch.allclose(a, b, atol=0.03)  # bfloat16 keeps 8 bits


def test_a_float16_checkpoint_is_read_into_float32_and_its_checksum_is_checked(
    tmp_path, tiny_clip, backbone
):
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
        (
            dict(name="vit-b-16", pretrained="none"),
            "unknown backbone 'vit-b-16'; did you mean 'ViT-B-16'",
        ),
        (
            dict(name="ViT-B/16", pretrained="none"),
            "unknown backbone 'ViT-B/16'; did you mean 'ViT-B-16'",
        ),
        (
            dict(name="pocketclip", pretrained="none"),
            "unknown backbone 'pocketclip'; did you mean 'PocketCLIP'",
        ),
        (
            dict(name="hf-hub:timm/ViT-B-16-SigLIP", pretrained="none"),
            "needs? open_clip's name of the architecture: "
            "say name: ViT-B-16-SigLIP, pretrained: webli",
        ),
        (
            dict(name="hf-hub:me/mine", pretrained="none"),
            "and pretrained: the checkpoint's path or its folder",
        ),
        (
            dict(name="local-dir:/tmp", pretrained="none"),
            "and pretrained: the checkpoint's path or its folder",
        ),
        (dict(name="local-dir:", pretrained="none"), "names a place"),
        (
            dict(name="ViT-B-32", pretrained="opanai"),
            "unknown weights 'opanai' .* did you mean 'openai'",
        ),
        (dict(name="ViT-B-32", pretrained="bundled"), "ViT-B-32 has no bundled weights"),
        (
            dict(name="ViT-B-32", pretrained="weights.pt"),
            r"weights\.pt \(/.*\) of ViT-B-32 is missing",
        ),
    ],
)
def test_bad_backbones_say_what_to_do(tiny_clip, spec, says):
    with pytest.raises((ValueError, OSError), match=says):
        load_backbone(BackboneSpec(**spec), "cpu")


def test_names_are_judged_alike_whatever_was_loaded_before(tiny_clip):
    # open_clip now knows 'pocketclip'
    load_backbone(BackboneSpec(name="PocketCLIP", pretrained="none"), "cpu")
    with pytest.raises(ValueError, match="unknown backbone 'pocketclip'"):
        load_backbone(BackboneSpec(name="pocketclip", pretrained="none"), "cpu")


def test_missing_bundled_weights_are_named(tmp_path, monkeypatch):
    (tmp_path / "pocketclip.json").write_text("{}")
    monkeypatch.setattr(weights, "POCKET_MODEL", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"pocketclip\.safetensors of PocketCLIP is missing"
    ):
        with_checksum(BackboneSpec(name="PocketCLIP", pretrained="bundled"))


def test_a_checkpoint_of_another_model_is_refused(tmp_path, tiny_clip):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(
        ValueError, match=f"is not of {tiny_clip}: it lacks .* has beside 1 tensors"
    ):
        load_backbone(BackboneSpec(name=tiny_clip, pretrained=str(path)), "cpu")


def test_pocketclip_has_the_agreed_shape():
    pocket = load_backbone(BackboneSpec(name="PocketCLIP", pretrained="none"), "cpu")
    assert pocket.resolution == 64
    assert pocket.encode_prompts(pocket.tokenize(PROMPTS)).shape == (3, 384)
    assert pocket.model.visual.positional_embedding.shape == (17, 192)
    assert pocket.tokenize(PROMPTS).shape == (3, 32)


# --- tokenizers of Hugging Face, as SigLIP, CLIPA and the multilingual models have them

WORDS = ["<pad>", "</s>", "<s>", "[CLS]", "<unk>", "a", "photo", "of", "cat", "."]


def word_tokenizer(folder, start_and_end: bool):
    """A tokenizer of ten words, saved as a folder of the hub's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if start_and_end:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 1)]
        )
    else:
        inner.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
    tokens = dict(
        unk_token="<unk>", pad_token="<pad>", eos_token="</s>", bos_token="<s>", cls_token="[CLS]"
    )
    PreTrainedTokenizerFast(tokenizer_object=inner, **tokens).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("mode", ["start and end", "end only", "clips"])
def test_prompts_that_do_not_fit_are_refused_by_every_tokenizer(backbone, tmp_path, mode):
    tokenizer = open_clip.tokenizer.HFTokenizer(
        word_tokenizer(tmp_path, mode == "start and end"),
        context_length=8,
        tokenizer_mode="clips" if mode == "clips" else None,
    )
    ours = Backbone(backbone.model, tokenizer, backbone.spec)
    around = {"start and end": 2, "end only": 1, "clips": 3}[mode]
    for words in range(1, 12):
        prompt = " ".join(["a"] * words)
        assert prompt_length(tokenizer, prompt) == words + around
        if words + around <= 8:
            tokens = ours.tokenize(["cat", prompt])
            assert tokens.shape == (2, 8)
            assert int((tokens[1] == WORDS.index("a")).sum()) == words  # none was cut
        else:
            with pytest.raises(
                ValueError, match=rf"prompt 'a .*' has {words + around} tokens, .* reads 8; shorten"
            ):
                ours.tokenize(["cat", prompt])


def test_siglips_own_tokenizer_is_counted_too(tmp_path):
    from transformers import AutoTokenizer

    # its vocabulary is on the network
    tokenizer = object.__new__(open_clip.tokenizer.SigLipTokenizer)
    tokenizer.tokenizer = AutoTokenizer.from_pretrained(word_tokenizer(tmp_path, False))
    tokenizer.context_length = 8
    assert prompt_length(tokenizer, "A photo, of a CAT!") == 6  # it takes capitals and marks away
    assert int((tokenizer(["A photo, of a CAT!"])[0] != 0).sum()) == 6


def test_a_tokenizer_of_an_unknown_kind_is_refused(backbone):
    with pytest.raises(TypeError, match="whether prompts fit a function cannot be told"):
        Backbone(backbone.model, lambda texts: torch.zeros(1, 8), backbone.spec).tokenize(["a"])


def hub_text_config(tiny_clip, tower, tokenizer):
    """The tiny CLIP with a text tower and a tokenizer of Hugging Face."""
    text = dict(
        hf_model_name=tower,
        hf_tokenizer_name=tokenizer,
        hf_pooler_type="mean_pooler",
        context_length=8,
    )
    return open_clip.get_model_config(tiny_clip) | {"text_cfg": text}


def register(tmp_path, name, config):
    (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    return BackboneSpec(name=name, pretrained="none")


def test_a_text_tower_of_hugging_face_works_from_its_folder(tmp_path, tiny_clip):
    from transformers import BertConfig

    folder = word_tokenizer(tmp_path / "tower", True)
    size = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertConfig(vocab_size=len(WORDS), max_position_embeddings=8, **size).save_pretrained(folder)
    spec = register(tmp_path, "TinyBert", hub_text_config(tiny_clip, folder, folder))
    model = load_backbone(spec, "cpu")
    tokens = model.tokenize(["a photo of a cat .", "cat"])
    expected = F.normalize(model.model.encode_text(tokens), dim=-1)
    torch.testing.assert_close(model.encode_prompts(tokens), expected)
    save_file(
        {k: v.contiguous() for k, v in model.model.state_dict().items()}, tmp_path / "c.safetensors"
    )
    given = spec.model_copy(update={"pretrained": str(tmp_path / "c.safetensors")})
    torch.testing.assert_close(load_backbone(given, "cpu").encode_prompts(tokens), expected)


def test_a_text_tower_whose_config_is_in_half_precision(tmp_path, tiny_clip):
    """open_clip's test_hf_text_encoder_ignores_config_pinned_dtype, which its 3.3.0 has not."""
    from transformers import BertConfig

    folder = word_tokenizer(tmp_path / "tower", True)
    size = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=8, **size)
    config.dtype = torch.float16
    config.save_pretrained(folder)
    spec = register(tmp_path, "HalfBert", hub_text_config(tiny_clip, folder, folder))
    model = load_backbone(spec, "cpu")
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.float32}
    assert model.encode_prompts(model.tokenize(["a photo of a cat ."])).isfinite().all()


def test_parts_of_hugging_face_that_are_not_here_are_one_sentence(tmp_path, tiny_clip):
    folder = word_tokenizer(tmp_path / "tower", True)
    no_tower = register(tmp_path, "NoTower", hub_text_config(tiny_clip, "nobody/no-tower", folder))
    config = open_clip.get_model_config(tiny_clip)
    config["text_cfg"]["hf_tokenizer_name"] = "nobody/no-tokenizer"
    no_tokenizer = register(tmp_path, "NoTokenizer", config)
    for spec, what in ((no_tower, "architecture"), (no_tokenizer, "tokenizer")):
        with (
            network(False),
            pytest.raises(RuntimeError, match=f"the {what} of backbone {spec.name} could not") as e,
        ):
            load_backbone(spec, "cpu")
        assert "blocklora weights fetch --profile" in str(e.value)
        assert "\n" not in str(e.value)


@pytest.mark.slow
def test_a_scale_with_an_axis_and_a_bias_give_the_same_answers(tmp_path, tiny_clip):
    """SigLIP's logits have a bias, the same for every class; CLIP's do not."""
    config = open_clip.get_model_config(tiny_clip)
    config |= {
        "custom_text": True,
        "init_logit_bias": -10,
        "init_logit_scale": 2.5,
        "nonscalar_logit_scale": True,
    }
    model = load_backbone(register(tmp_path, "TinyBias", config), "cpu")
    assert model.logit_scale.shape == ()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = model.tokenize(PROMPTS)
    with torch.no_grad():
        theirs = model.model.get_logits(images, tokens)[0]
        ours = model.logit_scale * model.encode_images(images) @ model.encode_prompts(tokens).T
    torch.testing.assert_close(ours - 10, theirs)
    state = {k: v.contiguous() for k, v in model.model.state_dict().items() if k != "logit_bias"}
    # a CLIP's checkpoint has no bias: none is made of it
    save_file(state, tmp_path / "c.safetensors")
    spec = BackboneSpec(name="TinyBias", pretrained=str(tmp_path / "c.safetensors"))
    assert float(load_backbone(spec, "cpu").model.logit_bias) == 0


def test_a_captioners_two_towers_are_encoded_as_open_clip_does(tmp_path, tiny_clip):
    config = open_clip.get_model_config(tiny_clip)
    config["vision_cfg"] |= {
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    }
    config["text_cfg"] |= {"embed_cls": True, "output_tokens": True}
    many = dict(
        context_length=16, vocab_size=49408, width=16, heads=2, layers=1, attn_pooler_heads=2
    )
    config |= {"custom_text": True, "multimodal_cfg": many}
    model = load_backbone(register(tmp_path, "TinyCoCa", config), "cpu")
    assert type(model.model).__name__ == "CoCa"
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = model.tokenize(PROMPTS)
    with torch.no_grad():
        theirs = model.model.encode_image(images), model.model.encode_text(tokens)
        torch.testing.assert_close(model.encode_images(images), theirs[0], rtol=0, atol=ATOL)
        torch.testing.assert_close(model.encode_prompts(tokens), theirs[1], rtol=0, atol=ATOL)
