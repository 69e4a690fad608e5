"""The fast path stands in for open_clip's forward only while that is what would run."""

from __future__ import annotations

from collections import Counter

import open_clip
import pytest
import torch
from adapted_layers import adapt, as_function
from open_clip.transformer import LayerNorm, ResidualAttentionBlock, VisionTransformer
from torch import nn
from torch.func import grad
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune

from blocklora_lib.adapters.adapter import Adapter
from blocklora_lib.clip import towers
from blocklora_lib.clip.packing import PackedPrompts
from blocklora_lib.clip.towers import TextTower, encode_images

CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {
        "image_size": 8,
        "patch_size": 4,
        "width": 8,
        "layers": 2,
        "head_width": 4,
        "ls_init_value": 0.9,
    },
    "text_cfg": {
        "context_length": 6,
        "vocab_size": 12,
        "width": 8,
        "heads": 2,
        "layers": 2,
        "ls_init_value": 0.9,
        "proj_type": "linear",
    },
}
MODELS = {"CLIP": open_clip.CLIP, "CustomTextCLIP": open_clip.CustomTextCLIP}
TOKENS = torch.tensor([[1, 3, 4, 11, 0, 0], [1, 3, 11, 0, 0, 0], [1, 3, 5, 6, 7, 11]])


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name](**CONFIG).eval()
    for parameter in model.parameters():  # biases and the like start at zero, where nothing shows
        nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


def images() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def features(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    return model.encode_image(images()), model.encode_text(TOKENS)


def by_the_fast_path(model: nn.Module, packed: PackedPrompts | torch.Tensor = TOKENS):
    return encode_images(model, images()), TextTower(model).encode(packed)


def assert_same(model: nn.Module, before=None) -> tuple[torch.Tensor, torch.Tensor]:
    """The fast path gives what the model gives, also with prompts that were packed before."""
    images_theirs, text_theirs = theirs = features(model)
    torch.testing.assert_close(encode_images(model, images()), images_theirs, rtol=1e-4, atol=1e-5)
    for packed in (TOKENS,) if before is None else (TOKENS, before):
        torch.testing.assert_close(
            TextTower(model).encode(packed), text_theirs, rtol=1e-4, atol=1e-5
        )
    return theirs


def changed(forward):
    """Another forward, and not of each token by itself."""

    def run(*args, **kwargs):
        return shifted(forward(*args, **kwargs))

    return run


def shifted(output):
    if isinstance(output, tuple):
        return shifted(output[0]), *output[1:]
    return output * 1.5 + output.mean(0, keepdim=True) if output.is_floating_point() else output


# each returns what undoes it


def replace_forward(module):
    module.forward = changed(module.forward)
    return lambda: delattr(module, "forward")


def subclass(module):
    kind = type(module)
    module.__class__ = type("Mine", (kind,), {"forward": changed(kind.forward)})
    return lambda: setattr(module, "__class__", kind)


def hook_forward(module):
    return module.register_forward_hook(lambda module, args, output: shifted(output)).remove


def hook_input(module):
    return module.register_forward_pre_hook(
        lambda module, args: (shifted(args[0]), *args[1:])
    ).remove


def compile_call(module):
    # as module.compile() does, without a compiler
    module._compiled_call_impl = changed(module._call_impl)
    return lambda: setattr(module, "_compiled_call_impl", None)


WAYS = [replace_forward, subclass, hook_forward, hook_input, compile_call]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way", "adapted"),
    [
        ("CLIP", replace_forward, True),
        ("CustomTextCLIP", subclass, True),
        *(("CustomTextCLIP", way, False) for way in WAYS),
    ],
)
def test_whatever_is_changed_changes_the_fast_path_too(name, way, adapted):
    model, seen = build(name), 0
    if adapted:
        adapt(model)
    before = TextTower(model).pack(TOKENS)
    assert isinstance(before, PackedPrompts)
    plain = features(model)
    for module_name, module in list(model.named_modules()):
        if not module_name or isinstance(module, nn.ModuleList | nn.ModuleDict | Adapter):
            continue
        undo = way(module)
        seen += any(
            not torch.allclose(a, b) for a, b in zip(assert_same(model, before), plain, strict=True)
        )
        undo()
    assert all(map(torch.equal, features(model), plain))
    # attention reads the weights of its out_proj; all else is called (Identity too: patch dropout)
    assert seen >= 2 * (2 * 8) + 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize(
    "kind", ["forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_every_hook_runs_as_often_as_in_the_models_forward(kind):
    model = build("CustomTextCLIP").requires_grad_(True)
    hooked = {n: m for n, m in model.named_modules() if n and not isinstance(m, nn.ModuleList)}

    def calls(run, names):
        """How often the hooks of these modules run, all there at once."""
        found = Counter()
        hooks = [
            getattr(hooked[name], f"register_{kind}")(lambda *_, name=name: found.update([name]))
            for name in names
        ]
        result = sum(part.sum() for part in run(model))
        if "backward" in kind:
            result.backward()
        for hook in hooks:
            hook.remove()
        return found

    expected = calls(features, hooked)
    assert len(expected) > 20
    for name in hooked:  # each alone: another's would send the fast path out of the way
        assert calls(by_the_fast_path, [name])[name] == expected[name], name


def sparse_weight(model):
    prune.l1_unstructured(model.visual.transformer.resblocks[1].mlp.c_fc, "weight", 0.5)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def parametrized(model):
    parametrize.register_parametrization(
        model.visual.transformer.resblocks[0].mlp.c_proj, "weight", Halved()
    )


def parametrized_attention(model):
    for module in list(model.modules()):
        if isinstance(module, nn.MultiheadAttention):
            parametrize.register_parametrization(module, "in_proj_weight", Halved())


class Centred(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x - x.mean(-2, keepdim=True))


def another_norm(model):
    for block in (m for m in list(model.modules()) if isinstance(m, ResidualAttentionBlock)):
        block.ln_2 = Centred(8)


def longer_mlp(model):
    for block in (m for m in list(model.modules()) if isinstance(m, ResidualAttentionBlock)):
        block.mlp.append(nn.Linear(8, 8))


def other_order(model):
    block = model.visual.transformer.resblocks[0]
    block.mlp = nn.Sequential(nn.GELU(), nn.Linear(8, 8), nn.Linear(8, 8))


def fewer_layers(model):
    model.visual.transformer.resblocks = nn.ModuleList()


def attention_method(model):
    block = model.visual.transformer.resblocks[1]
    block.attention = lambda q_x, **_: q_x * 2


def pooling_method(model):
    model.visual._pool = lambda x: (x.mean(1), x)


def encoders(model):
    image, text = model.encode_image, model.encode_text
    model.encode_image = lambda x: 2 * image(x)
    model.encode_text = lambda x: 3 * text(x)


def seen_further(model):
    parts = getattr(model, "text", model)
    mask = parts.attn_mask.clone()
    mask[0, 1] = 0.0
    parts.attn_mask = mask


def own_class(model):
    model.__class__ = type(
        "Mine", (type(model),), {"encode_image": lambda self, x: self.visual(x) + 1}
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "change",
    [
        sparse_weight,
        parametrized,
        parametrized_attention,
        another_norm,
        longer_mlp,
        other_order,
        fewer_layers,
        attention_method,
        pooling_method,
        encoders,
        seen_further,
        own_class,
    ],
    ids=lambda change: change.__name__,
)
def test_other_changes(name, change):
    model = build(name)
    plain = features(model)
    change(model)
    assert any(
        not torch.allclose(a, b, atol=1e-4) for a, b in zip(features(model), plain, strict=True)
    )
    assert_same(model)


@pytest.mark.parametrize(
    ("kind", "method"),
    [(ResidualAttentionBlock, "forward"), (ResidualAttentionBlock, "attention"),
     (VisionTransformer, "forward"),
     (LayerNorm, "forward"), (nn.MultiheadAttention, "forward"), (open_clip.CLIP, "encode_text")],
)  # fmt: skip
def test_a_method_exchanged_on_the_class(kind, method, monkeypatch):
    model = build("CLIP")
    monkeypatch.setattr(kind, method, changed(getattr(kind, method)))
    assert_same(model)


def test_a_hook_on_all_modules():
    model, calls = build("CLIP"), []
    handle = register_module_forward_hook(lambda module, args, output: calls.append(type(module)))
    try:
        by_the_fast_path(model)
    finally:
        handle.remove()
    assert ResidualAttentionBlock in calls


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("merged", [False, True])
def test_adapted_towers_stay_fast(name, merged, monkeypatch):
    model, calls, run = build(name), [], towers._run
    monkeypatch.setattr(towers, "_run", lambda *args: calls.append(1) or run(*args))
    by_the_fast_path(model)
    assert len(calls) == 2
    adapters = adapt(model)
    if merged:
        adapters.merge()
    assert_same(model)
    assert len(calls) == 4
    model.visual.transformer.resblocks[0].forward = model.visual.transformer.resblocks[0].forward
    by_the_fast_path(model)
    assert len(calls) == 5  # the text tower alone


@pytest.mark.parametrize("name", MODELS)
def test_patch_dropout_falls_as_in_the_models_own_forward(name):
    torch.manual_seed(0)
    config = CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | {"patch_dropout": 0.5}}
    model = MODELS[name](**config).train()
    results = []
    for encode in (lambda x: encode_images(model, x), model.encode_image):
        torch.manual_seed(2)
        results.append(encode(images()))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_nothing_to_encode(name, training):
    model = build(name)
    adapters = adapt(model, dropout=0.5)
    for adapter in adapters.adapters.values():
        adapter.train(training)
    encoded = encode_images(model, images()[:0]), TextTower(model).encode(TOKENS[:0])
    assert [tuple(x.shape) for x in encoded] == [(0, 8), (0, 8)]
    grads = torch.autograd.grad(sum(x.sum() for x in encoded), list(adapters.parameters()))
    assert not any(g.any() for g in grads)


def test_a_transform_takes_the_models_own_forward():
    model = build("CLIP")
    adapters = adapt(model)
    packed = TextTower(model).pack(TOKENS)

    def loss(encode):
        return lambda model, _: sum(x.square().sum() for x in encode(model))

    results = []
    for encode in (lambda model: by_the_fast_path(model, packed), features):
        parameters, function = as_function(model, loss(encode))
        assert len(parameters) == len(list(adapters.parameters()))
        results.append(grad(function)(parameters, None))
    ours, theirs = results
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key])
