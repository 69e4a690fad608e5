"""Which layers get adapters: names, halves of a model, depths and towers, written by hand."""

from __future__ import annotations

import pytest
import torch
from open_clip.transformer import Transformer
from torch import nn
from torchvision.models import VisionTransformer

from blocklora_lib.adapters.attach import attach, attach_linear
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.core.schema import AdapterError

CONFIG = AdapterConfig(rank=4, n_blocks=2, dropout=0.0)
SPLIT = ["q_proj", "k_proj", "v_proj"]


def parts(**modules: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(modules)


def linear_blocks(depth: int = 2) -> nn.ModuleList:
    return nn.ModuleList(
        nn.ModuleDict({name: nn.Linear(8, 8) for name in SPLIT}) for _ in range(depth)
    )


def encoder(depth: int = 2) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


def attention() -> nn.MultiheadAttention:
    return nn.MultiheadAttention(8, 2)


def pair(text: str = "text_model") -> nn.ModuleDict:
    return parts(vision_model=parts(layers=linear_blocks(1)), **{text: parts(layers=encoder(1))})


def sites(model: nn.Module, **settings) -> list[str]:
    return [name for name, _ in attach(model, CONFIG.model_copy(update=settings)).sites]


def refusal(model: nn.Module, **settings) -> str:
    with pytest.raises(AdapterError) as error:
        sites(model, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


# names


@pytest.mark.parametrize(
    ("names", "given", "expected"),
    [
        (["fc[0]", "fc0"], "fc[0]", ["fc[0]"]),
        (["fc[a]"], "fc[a]", ["fc[a]"]),
        (["a*", "ab"], ["a*"], ["a*"]),
        (["fc0", "fc1"], "fc[01]", ["fc0", "fc1"]),  # no such name: a glob
    ],
)
def test_a_name_that_there_is_is_no_glob(names, given, expected):
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})
    assert [name for name, _ in attach_linear(model, given, CONFIG).sites] == expected


def test_a_name_of_something_else_is_refused_and_no_glob():
    model = nn.ModuleDict({"fc[0]": nn.LayerNorm(4), "fc0": nn.Linear(4, 4)})
    with pytest.raises(AdapterError, match=r"fc\[0\] \(LayerNorm\), but no nn.Linear"):
        attach_linear(model, "fc[0]", CONFIG)


# halves of a model that write their attention differently

TEXT = [f"text.{i}.{name}" for i in (0, 1) for name in SPLIT]
IMAGES = {
    "torch": (encoder, [f"image.layers.{i}.self_attn" for i in (0, 1)]),
    "torchvision": (
        lambda: VisionTransformer(32, 16, 2, 2, 8, 16),
        [f"image.encoder.layers.encoder_layer_{i}.self_attention" for i in (0, 1)],
    ),
    "open_clip": (lambda: Transformer(8, 2, 2), [f"image.resblocks.{i}.attn" for i in (0, 1)]),
}


@pytest.mark.parametrize("which", IMAGES)
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("image_first", [False, True])
def test_both_halves_of_a_model_get_adapters(which, wrapped, image_first):
    build, image = IMAGES[which]

    def model() -> nn.Module:
        halves = [("text", linear_blocks()), ("image", build())]
        whole = nn.ModuleDict(reversed(halves) if image_first else halves)
        return nn.Sequential(nn.Identity(), whole) if wrapped else whole

    images, texts = [[name] for name in image], [TEXT[:3], TEXT[3:]]
    layers = images + texts if image_first else texts + images
    layers = [[f"1.{name}" if wrapped else name for name in layer] for layer in layers]
    assert sorted(sites(model())) == sorted(name for layer in layers for name in layer)
    # depths go through both
    assert sorted(sites(model(), layers=(0, -1))) == sorted(layers[0] + layers[-1])


def test_open_clips_blocks_beside_others():
    model = parts(image=Transformer(8, 2, 2), fusion=encoder(1))
    assert sites(model) == [
        *(f"image.resblocks.{i}.attn" for i in (0, 1)),
        "fusion.layers.0.self_attn",
    ]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pooling_head_beside_blocks_is_no_layer(wrapped):
    for blocks, names in (
        (linear_blocks(), [f"blocks.{i}.{name}" for i in (0, 1) for name in SPLIT]),
        (Transformer(8, 1, 2), ["blocks.resblocks.0.attn"]),
    ):
        model = parts(blocks=blocks, pool=parts(attn=attention()))
        found = sites(nn.Sequential(model) if wrapped else model)
        assert found == [f"0.{name}" if wrapped else name for name in names]


# depths


def wrapped_blocks(depth: int) -> nn.ModuleList:
    return nn.ModuleList(
        parts(self_attn=parts(mha=attention()), cross=parts(mha=attention())) for _ in range(depth)
    )


@pytest.mark.parametrize(
    ("build", "layers", "expected"),
    [
        (lambda: nn.ModuleList(attention() for _ in range(3)), (0,), ["0"]),
        (lambda: nn.ModuleList(attention() for _ in range(3)), (2,), ["2"]),
        (lambda: parts(own=nn.ModuleList([attention(), attention()])), (-1,), ["own.1"]),
        # a number above all attention counts nothing
        (
            lambda: nn.Sequential(parts(own=nn.ModuleList([attention(), attention()]))),
            (1,),
            ["0.own.1"],
        ),
        (
            lambda: nn.Sequential(parts(a=encoder(1), b=encoder(1))),
            (1,),
            ["0.b.layers.0.self_attn"],
        ),
        (
            lambda: nn.Sequential(parts(a=parts(at=attention()), b=parts(at=attention()))),
            (1,),
            ["0.b.at"],
        ),
        (lambda: wrapped_blocks(3), (1,), ["1.self_attn.mha", "1.cross.mha"]),
        # what a block holds in a list is of the block
        (
            lambda: nn.ModuleList(
                parts(at=nn.ModuleList([attention(), attention()])) for _ in range(2)
            ),
            (1,),
            ["1.at.0", "1.at.1"],
        ),
        (
            lambda: nn.Sequential(nn.Identity(), VisionTransformer(32, 16, 2, 2, 8, 16)),
            (1,),
            ["1.encoder.layers.encoder_layer_1.self_attention"],
        ),
        (
            lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2),
            (1,),
            ["layers.1.self_attn", "layers.1.multihead_attn"],
        ),
        (attention, (0,), [""]),
    ],
)
def test_a_layer_is_a_numbered_block(build, layers, expected):
    assert sites(build(), layers=layers) == expected


def test_a_depth_beyond_the_blocks_is_refused():
    assert "has 3 layers; use depths from -3 to 2" in refusal(wrapped_blocks(3), layers=(3,))


# towers


def names_of_pair(before: str = "", text: str = "text_model") -> list[str]:
    vision = [f"{before}vision_model.layers.0.{name}" for name in SPLIT]
    return [*vision, f"{before}{text}.layers.layers.0.self_attn"]


def test_two_pairs_of_towers_both_get_adapters():
    expected = names_of_pair("a.") + names_of_pair("b.")
    assert sites(parts(a=pair(), b=pair())) == expected
    texts = [name for name in expected if "text" in name]
    assert sites(parts(a=pair(), b=pair()), towers=("text",)) == texts
    shared = parts(a=pair(), b=pair())
    shared["b"]["vision_model"] = shared["a"]["vision_model"]
    assert sites(shared) == [*names_of_pair("a."), expected[-1]]


def test_two_text_towers_beside_one_image_tower_both_get_adapters():
    model = pair("text_encoder")
    model["text_decoder"] = parts(layers=encoder(1))
    assert sites(model) == [
        *names_of_pair(text="text_encoder"),
        "text_decoder.layers.layers.0.self_attn",
    ]


@pytest.mark.parametrize(
    ("fusion", "place"),
    [
        (lambda: encoder(1), r"fusion.layers.*.self_attn"),
        (attention, "fusion"),
        (linear_blocks, "fusion.*.q_proj"),
    ],
)
def test_attention_outside_the_pair_of_towers_is_refused(fusion, place):
    told = refusal(parts(clip=pair(), fusion=fusion()))
    for words in ("outside the vision and text towers of clip", f": {place}", "by themselves"):
        assert words in told
    # who names one tower has left the rest out
    only = sites(parts(clip=pair(), fusion=fusion()), towers=("text",))
    assert only == names_of_pair("clip.")[-1:]


def test_the_way_out_of_that_refusal():
    model = parts(clip=pair(), fusion=encoder(1)).train()
    clip, fusion = (attach(model[name], CONFIG) for name in ("clip", "fusion"))
    assert [name for name, _ in clip.sites] == names_of_pair()
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    for part in (model["clip"]["text_model"]["layers"], model["fusion"]):
        x = part(x)
    x.square().sum().backward()
    own = [*clip.adapters["text_model.layers.layers.0.self_attn.v"].parameters()]
    own += fusion.adapters["layers.0.self_attn.v"].parameters()
    assert len(own) == 4
    assert all(p.grad is not None for p in own)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {
        id(p) for adapters in (clip, fusion) for p in adapters.parameters()
    }


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_tower_that_is_not_known_is_refused(tower):
    told = refusal(parts(image=encoder(1), words=linear_blocks(1)), towers=(tower,))
    for words in (f"towers=('{tower}',)", "ModuleDict", "image, words", "leave towers out"):
        assert words in told
    assert told.endswith("such as image")


def embedded(name: str) -> nn.Module:
    """A model of one part, or of an encoder and a decoder, and its embedding."""
    embedding = nn.Embedding(5, 8) if "patch" not in name else nn.Conv2d(3, 8, 4)
    if name == "shared":
        return parts(shared=embedding, encoder=encoder(1), decoder=encoder(1))
    return parts(embeddings=parts(**{name: embedding}), encoder=encoder(1))


@pytest.mark.parametrize(
    ("name", "kind", "other"),
    [
        ("patch_embed", "vision", "text"),
        ("patch_embeddings", "vision", "text"),
        ("word_embeddings", "text", "vision"),
        ("shared", "text", "vision"),
    ],
)
def test_an_embedding_tells_which_tower_a_model_is(name, kind, other):
    expected = sites(embedded(name))
    assert sites(embedded(name), towers=(kind,)) == expected
    assert f"is a {kind} tower and has no {other} tower" in refusal(embedded(name), towers=(other,))


def test_a_model_of_one_part_of_which_nothing_tells_is_the_tower_that_is_named():
    for towers in (("vision", "text"), ("vision",), ("text",)):
        assert sites(encoder(1), towers=towers) == ["layers.0.self_attn"]


def test_an_embedding_within_a_part_tells_nothing_of_the_other():
    model = parts(image=encoder(1), bert=embedded("word_embeddings"))
    assert "none is known as the text tower" in refusal(model, towers=("text",))


@pytest.mark.slow  # imports transformers
def test_models_of_transformers_whose_towers_are_not_known_by_name():
    transformers = pytest.importorskip("transformers")
    small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4)
    text = small | dict(vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    vision = small | dict(image_size=32, patch_size=16)
    with torch.device("meta"):
        blip2 = transformers.Blip2Model(
            transformers.Blip2Config(
                vision_config=vision,
                qformer_config=text | dict(encoder_hidden_size=16),
                text_config=text | dict(model_type="opt", ffn_dim=32, word_embed_proj_dim=16),
            )
        )
        answering = transformers.BlipForQuestionAnswering(
            transformers.BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
        )
    told = refusal(blip2, towers=("vision",))
    assert "of vision_model, qformer, language_model, where its attention lies" in told
    towers = {name.partition(".")[0] for name in sites(answering)}
    assert towers == {"vision_model", "text_encoder", "text_decoder"}
