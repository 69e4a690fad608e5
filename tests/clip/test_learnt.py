"""Learnt tokens in the towers against the same written plainly over all positions."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from blocklora_lib.clip.backbone import BackboneSpec, load_backbone
from blocklora_lib.clip.learnt import Learnt
from blocklora_lib.measure.counted import kept_bytes
from blocklora_lib.measure.other_code.plain_prompts import image_rows, text_rows

PROMPTS = {
    "very different lengths": ("x x cat.", "x x very small yellow submarine.", "x x ox."),
    "one class": ("x x cat.",),
    "twice the same": ("x x cat.", "x x cat."),
    "nothing after them": ("x x", "x x cat"),
    "a full context": ("x x " + "very " * 10 + "small.", "x x cat."),  # 16 tokens
}
WAYS = [
    dict(share_prefix=share, class_chunk=chunk, checkpoint=checkpoint)
    for share, chunk, checkpoint in itertools.product((True, False), (None, 2), (False, True))
]


@pytest.fixture(scope="module", params=["TinyCLIP", "PocketCLIP"])
def backbone(request, tiny_clip):
    name, weights = (
        (tiny_clip, "none") if request.param == "TinyCLIP" else (request.param, "bundled")
    )
    return load_backbone(BackboneSpec(name=name, pretrained=weights), "cpu")


def learnt(width, depth, tokens=2, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, width, generator=random).requires_grad_() for _ in range(depth)]


def widths(backbone):
    return backbone.model.positional_embedding.shape[1], backbone.model.visual.conv1.out_channels


def agree(ours, theirs, vectors):
    """Rows and their gradients, along rows that no symmetry makes zero."""
    along = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(9))
    found = torch.autograd.grad((ours * along).sum(), vectors)
    expected = torch.autograd.grad((theirs * along).sum(), vectors)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for mine, reference in zip(found, expected, strict=True):
        assert reference.norm() > 1e-3
        assert (mine - reference).norm() <= 1e-4 * reference.norm()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_in_the_text_tower(backbone, prompts, depth, way):
    tokens, vectors = backbone.tokenize(prompts), learnt(widths(backbone)[0], depth)
    packed = backbone.pack(tokens, share_prefix=way["share_prefix"], class_chunk=way["class_chunk"])
    ours = backbone.encode_prompts(
        packed, checkpoint=way["checkpoint"], learnt=Learnt(tuple(vectors))
    )
    theirs = F.normalize(text_rows(backbone.model, tokens, vectors), dim=-1)
    agree(ours, theirs, vectors)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_in_the_image_tower(backbone, depth, checkpoint):
    side, vectors = backbone.resolution, learnt(widths(backbone)[1], depth, tokens=3)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    ours = backbone.encode_images(images, checkpoint=checkpoint, learnt=Learnt(tuple(vectors)))
    theirs = F.normalize(image_rows(backbone.model, images, vectors), dim=-1)
    agree(ours, theirs, vectors)
    assert backbone.encode_images(images[:0], learnt=Learnt(tuple(vectors))).shape == ours[:0].shape


def test_in_every_block_to_the_last(backbone):
    depth = len(backbone.model.transformer.resblocks)
    tokens, vectors = backbone.tokenize(["x x cat.", "x x ox."]), learnt(widths(backbone)[0], depth)
    ours = backbone.encode_prompts(tokens, learnt=Learnt(tuple(vectors)))
    agree(ours, F.normalize(text_rows(backbone.model, tokens, vectors), dim=-1), vectors)


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("chunk", [None, 2])
def test_sets_of_prompts_each_with_tokens_of_its_own(backbone, prompts, chunk):
    tokens, vectors = backbone.tokenize(prompts), learnt(widths(backbone)[0], 3)
    packed = backbone.pack(tokens, share_prefix=True, class_chunk=chunk)
    before = backbone.passes["text"]
    ours = backbone.encode_prompts(packed, learnt=Learnt((torch.stack(vectors),)))
    assert backbone.passes["text"] - before == 3 * len(tokens)
    theirs = torch.stack([text_rows(backbone.model, tokens, [v]) for v in vectors])
    agree(ours, F.normalize(theirs, dim=-1), vectors)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision(tiny_clip, precision):
    whole, half = (
        load_backbone(BackboneSpec(name=tiny_clip, pretrained="none", precision=p), "cpu")
        for p in ("fp32", precision)
    )
    tokens, side = whole.tokenize(["x x cat.", "x x ox."]), whole.resolution
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    for width, encode in zip(
        widths(whole),
        (lambda b, v: b.encode_prompts(tokens, learnt=v),
         lambda b, v: b.encode_images(images, learnt=v)),
        strict=True,
    ):  # fmt: skip
        vectors, slopes = learnt(width, 2), []
        for backbone in (whole, half):
            rows = encode(backbone, Learnt(tuple(vectors)))
            slopes.append(torch.autograd.grad((rows * rows.detach().cos()).sum(), vectors))
        for exact, found in zip(*slopes, strict=True):
            assert found.dtype == torch.float32
            assert (found - exact).norm() < 0.1 * exact.norm()


def test_the_embeddings_of_words_are_the_words(backbone):
    """What is read is the very same list of tokens."""
    tokens = backbone.tokenize(["a photo of a cat.", "a photo of a small ox."])
    own = backbone.model.token_embedding(tokens[0, 1:5])
    for share in (False, True):
        packed = backbone.pack(tokens, share_prefix=share)
        plain = backbone.encode_prompts(packed)
        assert torch.equal(backbone.encode_prompts(packed, learnt=Learnt((own,))), plain)


def test_the_prefix_stands_in_the_list_once(backbone):
    tokens = backbone.tokenize(["x x cat.", "x x ox."])
    (packed,) = backbone.pack(tokens, share_prefix=True)
    assert packed.after_start(2).tolist() == [[1, 2]]
    (packed,) = backbone.pack(tokens)
    assert packed.after_start(2).tolist() == [[1, 2], [7, 8]]


def test_frozen_weights_get_no_gradient_and_a_frozen_tower_keeps_nothing(backbone):
    tokens, vectors = backbone.tokenize(["x x cat.", "x x ox."]), learnt(widths(backbone)[0], 1)
    backbone.encode_prompts(tokens, learnt=Learnt(tuple(vectors))).sum().backward()
    assert all(p.grad is None for p in backbone.model.parameters())
    fixed = Learnt(tuple(v.detach() for v in vectors))
    assert kept_bytes(lambda: backbone.encode_prompts(tokens, learnt=fixed), backbone.model) == 0


def test_a_tower_of_other_code_is_refused(backbone):
    vectors = Learnt(tuple(learnt(widths(backbone)[0], 1)))
    tokens = backbone.tokenize(["x x cat."])
    hook = backbone.model.transformer.resblocks[0].register_forward_hook(lambda *given: None)
    try:
        with pytest.raises(ValueError, match="no place in this text tower"):
            backbone.encode_prompts(tokens, learnt=vectors)
    finally:
        hook.remove()
    hook = backbone.model.visual.ln_pre.register_forward_hook(lambda *given: None)
    side = backbone.resolution
    try:
        with pytest.raises(ValueError, match="no place in this image tower"):
            backbone.encode_images(torch.zeros(1, 3, side, side), learnt=vectors)
    finally:
        hook.remove()
