"""No silent nothing: every layer of models that others use is adapted rightly, or refused in one sentence."""

from __future__ import annotations

import copy

import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

from blocklora_lib.adapter_config import AdapterConfig, AdapterError
from blocklora_lib.inject import AdapterSet, attach, attach_linear

CONFIG = AdapterConfig(kind="block_lora", rank=2, n_blocks=2, dropout=0.0)
TEXT = dict(context_length=8, vocab_size=50, width=16, heads=2, layers=1)
VISION = dict(image_size=32, patch_size=16, width=16, layers=1, head_width=8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=seeded(1))


def clip_outputs(model: nn.Module) -> torch.Tensor:
    tokens = torch.randint(1, 50, (2, 8), generator=seeded(2))
    size = model.visual.image_size
    images = pictures(size if isinstance(size, int) else size[0])
    if isinstance(model, CoCa):
        return torch.cat([v.flatten() for k, v in sorted(model(images, tokens).items()) if v.dim()])
    return torch.cat([model.encode_image(images).flatten(), model.encode_text(tokens).flatten()])


def classifier_outputs(size: int):
    return lambda model: model(pictures(size))


def timm_model(name: str, **changes):
    import timm

    return timm.create_model(name, num_classes=3, **changes)


def swin(block: str):
    from torchvision.models import swin_transformer as s

    blocks = {
        "v1": (s.SwinTransformerBlock, s.PatchMerging),
        "v2": (s.SwinTransformerBlockV2, s.PatchMergingV2),
    }
    kind, merging = blocks[block]
    return s.SwinTransformer(
        [4, 4], 8, [1, 2], [2, 2], [2, 2], num_classes=3, block=kind, downsample_layer=merging,
        stochastic_depth_prob=0.0,
    )  # fmt: skip


def vit():
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 16, 1, 2, 16, 32, num_classes=3)


def timm_tower(name: str, **changes):
    """open_clip's EVA02 and SigLIP: a tower of timm beside open_clip's text."""

    def build():
        cfg = dict(
            timm_model_name=name, timm_model_pretrained=False, image_size=32, timm_pool="", timm_proj="linear"
        )
        model = CustomTextCLIP(16, {**cfg, **changes}, TEXT)
        return model

    return build


MODELS = {
    "torchvision ViT": (vit, classifier_outputs(32)),
    "torchvision Swin": (lambda: swin("v1"), classifier_outputs(32)),
    "torchvision Swin v2": (lambda: swin("v2"), classifier_outputs(32)),
    "timm Eva, fused qkv": (
        lambda: timm_model("eva_giant_patch14_224", img_size=28, embed_dim=16, depth=1, num_heads=2),
        classifier_outputs(28),
    ),
    "timm Eva02, split qkv": (
        lambda: timm_model("eva02_base_patch14_224", img_size=28, embed_dim=16, depth=1, num_heads=2),
        classifier_outputs(28),
    ),
    "timm BEiT": (
        lambda: timm_model("beit_base_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2),
        classifier_outputs(32),
    ),
    "open_clip ViT": (lambda: CLIP(16, VISION, TEXT), clip_outputs),
    "open_clip CoCa": (
        lambda: CoCa(
            16,
            dict(context_length=8, vocab_size=50, width=16, heads=2, layers=1, mlp_ratio=2),
            {**TEXT, "embed_cls": True, "output_tokens": True},
            {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        ),
        clip_outputs,
    ),
    "open_clip RN50": (
        lambda: CLIP(16, dict(image_size=32, layers=(1, 1, 1, 1), width=4, head_width=8), TEXT),
        clip_outputs,
    ),
}


def build(which: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[which][0]().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 or "gamma" in name:  # starts near zero would hide a layer
            nn.init.normal_(parameter, std=0.3)
    return model


def layers_of(model: nn.Module) -> list[tuple[str, str]]:
    kinds = ((nn.MultiheadAttention, "attention"), (nn.Linear, "linear"))
    return [(n, kind) for n, m in model.named_modules() for cls, kind in kinds if isinstance(m, cls)]


def put_on(model: nn.Module, name: str, kind: str) -> AdapterSet:
    if kind == "linear":
        return attach_linear(model, name, CONFIG, seeded())
    config = CONFIG.model_copy(update={"targets": ("q", "k", "v", "o")})
    return attach(model.get_submodule(name), config, seeded())


def randomize(adapters: AdapterSet, size: float = 0.3) -> AdapterSet:
    generator = seeded(3)
    with torch.no_grad():
        for adapter in adapters.adapters.values():
            adapter.B.normal_(0, size, generator=generator)
    return adapters


def by_hand(model: nn.Module, sets: list[tuple[str, AdapterSet]]) -> nn.Module:
    """A plain model to whose weights s A B was added: no code of the library's forward or merge."""
    plain = copy.deepcopy(model)
    weights = dict(plain.named_parameters())
    with torch.no_grad():
        for prefix, adapters in sets:
            for name, adapter in adapters.adapters.items():
                module, _, target = f"{prefix}.{name}".strip(".").rpartition(".")
                delta = adapter.scale * sum(b @ adapter.A_s for b in adapter.B)
                packed = f"{module}.in_proj_weight"
                if target == "weight":
                    weights[f"{module}.weight"] += delta
                elif target == "o":
                    weights[f"{module}.out_proj.weight"] += delta
                elif packed in weights:
                    weights[packed][slice(*(["qkv".index(target) * len(delta), None]))][: len(delta)] += delta
                else:
                    weights[f"{module}.{target}_proj_weight"] += delta
    return plain


def check(model: nn.Module, output, sets: list[tuple[str, AdapterSet]], expected: torch.Tensor, base) -> None:
    for _, adapters in sets:
        randomize(adapters)
    found = output(model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # float32, other orders of summation
    assert (found - base).norm() > 1e-4 * base.norm()
    found.square().sum().backward()
    for _, adapters in sets:
        for name, adapter in adapters.adapters.items():
            for key, parameter in adapter.named_parameters():
                assert parameter.grad.isfinite().all(), (name, key)
                assert parameter.grad.abs().max() > 0, (name, key)
        adapters.merge()
    torch.testing.assert_close(output(model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", MODELS)
def test_each_layer_alone_and_all_together_is_adapted_or_refused(which):
    pristine, output = build(which), MODELS[which][1]
    with torch.no_grad():
        base = output(pristine)
    assert base.isfinite().all()
    chosen, taken = [], 0
    for name, kind in layers_of(pristine):
        model = copy.deepcopy(pristine)
        if name.endswith("attn.out_proj") or name.endswith("self_attention.out_proj"):
            with pytest.raises(AdapterError, match=r"never calls it; use attach with targets=\('o',\)$"):
                put_on(model, name, kind)
            continue
        adapters = put_on(model, name, kind)
        prefix = name if kind == "attention" else ""
        randomize(adapters)
        with torch.no_grad():
            expected = output(by_hand(pristine, [(prefix, adapters)]))
        check(model, output, [(prefix, adapters)], expected, base)
        adapters.detach()
        assert [n for n, _ in model.named_parameters()] == [n for n, _ in pristine.named_parameters()]
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), pristine.parameters(), strict=True))
        with torch.no_grad():
            assert torch.equal(output(model), base)
        chosen.append((name, kind))
        taken += 1
    assert taken >= 3
    model = copy.deepcopy(pristine)
    sets = [(n if k == "attention" else "", put_on(model, n, k)) for n, k in chosen]
    for _, adapters in sets:
        randomize(adapters)
    with torch.no_grad():
        expected = output(by_hand(pristine, sets))
    check(model, output, sets, expected, base)
