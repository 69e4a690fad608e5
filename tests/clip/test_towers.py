"""The towers' fast path against open_clip's own forward: features, logits, gradients, dropout."""

from __future__ import annotations

import itertools
import json
import math

import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import mostly_rare
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transformer import QuickGELU
from torch import nn

from blocklora_lib.adapters.attach import attach
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.clip.backbone import BackboneSpec, load_backbone
from blocklora_lib.clip.packing import PackedPrompts, pack
from blocklora_lib.clip.towers import TextTower, encode_images
from blocklora_lib.layers.frozen import frozen_linear, frozen_mlp
from blocklora_lib.layers.sequences import Layout, attend
from blocklora_lib.measure.counted import kept_bytes

# with start and end 16 tokens: the whole context of the tiny model
LONG = "a photo of a " + "very " * 7 + "small cat."
PROMPT_SETS = {
    "very different lengths": (
        "a photo of a cat.",
        "cat",
        "a photo of a very small yellow submarine.",
        "a photo of an ox.",
    ),
    "one class": ("a photo of a cat.",),
    "a full context": ("a photo of a cat.", LONG, "a photo of a dog."),
    "no common word": ("cat", "a photo of a dog."),
    "twice the same": ("a photo of a cat.", "a photo of a cat."),
}
SETTINGS = [
    dict(share_prefix=share, checkpoint=checkpoint, class_chunk=chunk)
    for share, checkpoint, chunk in itertools.product((False, True), (False, True), (None, 2))
]


MODELS = ["TinyCLIP", "PocketCLIP", "ViT-B-16-quickgelu"]


@pytest.fixture(scope="module", params=MODELS)
def backbone(request, tiny_clip, tmp_path_factory):
    """The tiny CLIP; PocketCLIP, which is trained; ViT-B/16's shape, two layers, a small image."""
    if request.param == "PocketCLIP":
        return load_backbone(BackboneSpec(name=request.param, pretrained="bundled"), "cpu")
    if request.param == "TinyCLIP":
        return load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cpu")
    return shallow(request.param, tmp_path_factory.mktemp("shallow"))


def shallow(name, folder):
    config = open_clip.get_model_config(name)
    config["vision_cfg"] |= {"layers": 2, "image_size": 32}
    config["text_cfg"] |= {"layers": 2, "context_length": 16}
    (folder / f"shallow-{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return load_backbone(BackboneSpec(name=f"shallow-{name}", pretrained="none"), "cpu")


@pytest.fixture
def adapted(backbone):
    """Attach adapters whose B is not zero, for the time of a test."""
    sets = []

    def make(**config):
        adapters = attach(backbone.model, AdapterConfig(**config), torch.Generator().manual_seed(0))
        sets.append(adapters)
        for i, adapter in enumerate(adapters.adapters.values()):
            adapter.B.data.normal_(std=0.1, generator=torch.Generator().manual_seed(i))
        return adapters

    yield make
    for adapters in sets:
        adapters.detach()


def step(backbone, adapters, tokens, encode_images, encode_prompts):
    side, random = backbone.resolution, torch.Generator().manual_seed(1)
    images = torch.randn(3, 3, side, side, generator=random)
    labels = torch.arange(3) % len(tokens)
    logits = 100 * encode_images(images) @ encode_prompts(tokens).T
    loss = F.cross_entropy(logits, labels)
    # with one class the loss is 0 whatever the logits are: their sum has gradients all the same
    return logits.detach(), torch.autograd.grad(
        loss + logits.sum() / 100, list(adapters.parameters())
    )


def plain(backbone):
    return (
        lambda images: F.normalize(backbone.model.encode_image(images), dim=-1),
        lambda tokens: F.normalize(backbone.model.encode_text(tokens), dim=-1),
    )


@pytest.mark.parametrize("how", SETTINGS, ids=lambda how: "-".join(str(v) for v in how.values()))
@pytest.mark.parametrize("prompts", PROMPT_SETS.values(), ids=PROMPT_SETS)
def test_logits_and_gradients_are_open_clips(backbone, adapted, prompts, how):
    adapters = adapted(
        kind="block_lora", rank=4, n_blocks=2, dropout=0.0, targets=("q", "k", "v", "o")
    )
    tokens = backbone.tokenize(prompts)
    theirs, expected = step(backbone, adapters, tokens, *plain(backbone))
    ours, found = step(
        backbone,
        adapters,
        tokens,
        lambda images: backbone.encode_images(images, checkpoint=how["checkpoint"]),
        lambda tokens: backbone.encode_prompts(
            backbone.pack(tokens, share_prefix=how["share_prefix"], class_chunk=how["class_chunk"]),
            checkpoint=how["checkpoint"],
        ),
    )
    assert (ours - theirs).abs().max() < 1e-4
    assert max(g.abs().max() for g in expected) > 1e-3
    for mine, reference in zip(found, expected, strict=True):
        assert (mine - reference).norm() <= 1e-4 * reference.norm() + 1e-7


def moments(encode, copies=1):
    """Mean of 500 samples, (C, d), and the square of its standard error.

    copies: how many samples a call gives, side by side, each with masks of its own.
    """
    calls = [100 * encode().unflatten(0, (copies, -1)) for _ in range(500 // copies)]
    rows = torch.cat(calls).double()  # (samples, C, d)
    return rows.mean(0), rows.var(0) / len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", mostly_rare(MODELS, {"TinyCLIP"}), indirect=True)
def test_with_dropout_the_mean_is_the_same(backbone, adapted):
    """Unit rows, 500 samples of each; the means differ by their own standard errors."""
    adapters = adapted(kind="lora", rank=2, dropout=0.25)
    for adapter in adapters.adapters.values():
        adapter.train()
    tokens = backbone.tokenize(PROMPT_SETS["very different lengths"])
    many = tokens.repeat(10, 1)
    packed, shared = backbone.pack(many), backbone.pack(tokens, share_prefix=True)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        theirs, their_error = moments(lambda: plain(backbone)[1](many), 10)
        for ours, our_error in (
            moments(lambda: backbone.encode_prompts(packed), 10),
            moments(lambda: backbone.encode_prompts(shared)),  # copies would share their masks
        ):
            z = (ours - theirs) / (our_error + their_error).sqrt()
            assert our_error.min() > 0
            # the numbers are correlated, the fewer and the more of the masks are shared the more so
            assert 0.6 < z.square().mean().sqrt() < 1.6
            shifted = (ours + 4 * our_error.sqrt() - theirs) / (our_error + their_error).sqrt()
            assert shifted.square().mean().sqrt() > 2  # four standard errors would be seen


def test_a_shared_prefix_shares_its_masks(backbone, adapted):
    adapters = adapted(kind="lora", rank=2, dropout=0.5)
    for adapter in adapters.adapters.values():
        adapter.train()
    tokens = backbone.tokenize(["a photo of a cat.", "a photo of a cat."])
    with torch.no_grad():
        independent = backbone.encode_prompts(tokens)
        shared = backbone.encode_prompts(backbone.pack(tokens, share_prefix=True))
    assert not torch.equal(*independent)
    (prompts,) = backbone.pack(tokens, share_prefix=True)
    # start, a photo of a cat and the full stop: all but the end of text
    assert prompts.layout.prefix == 7
    assert len(prompts.ids) == 7 + 2
    assert not torch.equal(*shared)  # what follows has masks of its own


def test_someones_hook_is_not_passed_by(backbone):
    tokens = backbone.tokenize(PROMPT_SETS["very different lengths"])
    expected = backbone.encode_prompts(tokens)
    blocks = getattr(backbone.model, "text", backbone.model).transformer.resblocks
    for module in (blocks[0], blocks[0].attn, blocks[1].mlp.c_fc):
        called = []
        hook = module.register_forward_hook(lambda *args, called=called: called.append(1))
        try:
            assert not TextTower(backbone.model).can_pack
            assert torch.allclose(backbone.encode_prompts(tokens), expected, atol=1e-5)
        finally:
            hook.remove()
        assert called
    assert TextTower(backbone.model).can_pack


def test_a_tower_without_causal_mask_is_not_packed(backbone):
    tokens = backbone.tokenize(PROMPT_SETS["no common word"])
    for attribute, value in (("attn_mask", None), ("text_pool_type", "last")):
        before = getattr(backbone.model, attribute)
        setattr(backbone.model, attribute, value)
        try:
            for share in (False, True):
                assert not isinstance(backbone.pack(tokens, share_prefix=share)[0], PackedPrompts)
            ours, theirs = backbone.encode_prompts(tokens), plain(backbone)[1](tokens)
            assert torch.equal(ours, theirs)
        finally:
            setattr(backbone.model, attribute, before)


def test_images_without_a_gradient_keep_nothing(backbone):
    images = torch.randn(2, 3, backbone.resolution, backbone.resolution)
    assert kept_bytes(lambda: encode_images(backbone.model, images), backbone.model) == 0


@st.composite
def token_ids(draw):
    """Random prompts of few words, so that prefixes and equal lengths happen; 99 ends, 0 pads."""
    lengths = draw(st.lists(st.integers(0, 7), min_size=1, max_size=6))
    words = [draw(st.lists(st.integers(1, 3), min_size=n, max_size=n)) for n in lengths]
    return torch.tensor([[50, *row, 99, *[0] * (8 - len(row))] for row in words])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(token_ids(), st.booleans(), st.integers(0, 2**32))
def test_packed_attention_is_attention_prompt_by_prompt(tokens, share, seed):
    end = tokens.argmax(-1)
    packed, random = pack(tokens, end, share), torch.Generator().manual_seed(seed)
    # q, k and v that depend on the token, its position and what precedes it, as in a causal tower
    table = torch.randn(3, 100, 10, 2, 3, generator=random, dtype=torch.float64)
    q, k, v = (part[packed.ids, packed.positions] for part in table)
    context = attend(torch.stack([q, k, v], 1), packed.layout)
    assert context.shape == (len(packed.ids), 6)
    single = attend(torch.stack([k, v], 1), packed.layout, q[packed.pooled])[packed.places]
    assert torch.allclose(single, context[packed.pooled][packed.places])
    for i, row in enumerate(tokens):
        length = int(end[i]) + 1
        a, b, c = (
            part[row[:length], torch.arange(length)].transpose(0, 1) for part in table
        )  # (H, L, D)
        weights = (a[:, -1:] @ b.mT / math.sqrt(3)).softmax(-1)
        assert torch.allclose(single[i], (weights @ c).flatten())
    if share and len(tokens) > 1:
        p = packed.layout.prefix
        assert (tokens[:, :p] == tokens[:1, :p]).all()
        longer = p + 1 <= end.min() and (tokens[:, : p + 1] == tokens[:1, : p + 1]).all()
        assert not longer
    else:
        assert len(packed.ids) == int((end + 1).sum())


def test_attention_that_is_not_causal_sees_all():
    q, k, v = torch.randn(3, 10, 2, 4, dtype=torch.float64)
    context = attend(torch.stack([q, k, v], 1), Layout(((2, 5),)))
    for s in (slice(0, 5), slice(5, 10)):
        weights = (q[s].transpose(0, 1) @ k[s].permute(1, 2, 0) / 2).softmax(-1)
        assert torch.allclose(
            context[s], (weights @ v[s].transpose(0, 1)).transpose(0, 1).flatten(1)
        )


@pytest.mark.parametrize("shape", [(5,), (1, 5), (7, 5), (2, 3, 5), (0, 5)])
def test_a_frozen_product_is_a_linear_layer(shape):
    weight, bias = torch.randn(9, 5), torch.randn(9)
    x, y = (torch.ones(shape).cumsum(-1).requires_grad_() for _ in range(2))
    ours, theirs = frozen_linear(x, weight, bias), F.linear(y, weight, bias)
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-5)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    assert torch.allclose(x.grad, y.grad, rtol=1e-4)


def test_without_onednn_the_product_is_torchs_own(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    # as where torch was built without it
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", None)
    x, weight, bias = torch.randn(3, 5), torch.randn(9, 5), torch.randn(9)
    assert torch.equal(frozen_linear(x, weight, bias), F.linear(x, weight, bias))


def test_a_weight_that_trains_gets_its_gradient():
    weight, bias = torch.randn(9, 5, requires_grad=True), torch.randn(9)
    frozen_linear(torch.ones(2, 5), weight, bias).sum().backward()
    assert torch.equal(weight.grad, torch.full((9, 5), 2.0))
    mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    frozen_mlp(mlp, torch.ones(3, 4)).sum().backward()
    assert all(p.grad is not None for p in mlp.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "gelu", [nn.GELU(), QuickGELU(), nn.GELU(approximate="tanh"), nn.ReLU()], ids=str
)
def test_the_frozen_mlp_is_its_parts(gelu, dtype):
    mlp = nn.Sequential(nn.Linear(6, 24), gelu, nn.Linear(24, 6)).to(dtype).requires_grad_(False)
    x = torch.randn(50, 6, dtype=dtype)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    quick = isinstance(gelu, QuickGELU)
    ours, theirs = frozen_mlp(mlp, a, quick), mlp(b)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    exact = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 3e-2}[dtype]
    for mine, reference in ((ours, theirs), (a.grad, b.grad), (frozen_mlp(mlp, x, quick), theirs)):
        assert (mine - reference).norm() <= exact * reference.norm()
    assert torch.equal(x, a)
    if quick or (isinstance(gelu, nn.GELU) and gelu.approximate == "none"):
        assert kept_bytes(lambda: frozen_mlp(mlp, a, quick), mlp) == 50 * 24 * dtype.itemsize
