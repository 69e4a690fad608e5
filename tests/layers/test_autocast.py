"""Under torch.autocast, as in CLIP-LoRA's own loop: what plain PyTorch gives with frozen layers."""

from __future__ import annotations

import pytest
import torch
from adapted_layers import KINDS, LAYERS, adapt, build, inputs, restated
from torch import nn
from torch.nn import functional as F

from blocklora_lib.clip.backbone import BackboneSpec, load_backbone
from blocklora_lib.layers.frozen import frozen_mlp


@pytest.fixture(params=[True, False], ids=["onednn", "without"])
def onednn(request):
    """Without it a CPU takes the path of a GPU."""
    with torch.backends.mkldnn.flags(enabled=request.param):
        yield request.param


def gradients(adapters, x, loss):
    return torch.autograd.grad(loss, [x, *adapters.parameters()])


@pytest.mark.parametrize(
    ("kind", "dtype", "inside"),
    [
        *((kind, torch.bfloat16, False) for kind in KINDS),
        *(("total_rank", dtype, True) for dtype in (torch.bfloat16, torch.float16)),
        ("total_rank", torch.float16, False),
    ],
)
@pytest.mark.parametrize("layer", LAYERS)
def test_an_adapted_layer_is_what_plain_pytorch_makes_of_it(onednn, kind, layer, dtype, inside):
    model, adapters = build(layer, kind)
    x, results = inputs(grad=True), []
    for forward in (model, lambda x: restated(model, x)):
        with torch.autocast("cpu", dtype):
            y = forward(x)
            loss = y.float().square().sum()
            grads = gradients(adapters, x, loss) if inside else None
        results.append((y, *(grads or gradients(adapters, x, loss))))
    assert results[0][0].dtype == dtype
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).norm() <= 8 * torch.finfo(dtype).eps * theirs.norm()
    assert not torch.equal(results[0][0].float(), model(x))  # half the digits: autocast was on


@pytest.mark.parametrize("layer", LAYERS)
def test_until_b_moves_the_bits_are_those_of_the_frozen_layer(onednn, layer):
    model, adapters = build(layer)
    for adapter in adapters.adapters.values():
        nn.init.zeros_(adapter.B)
    with torch.autocast("cpu", torch.bfloat16):
        ours = model(inputs())
        theirs = adapters.detach()(inputs())
    assert ours.dtype == theirs.dtype
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("layer", LAYERS)
def test_dropout_draws_the_same_masks(onednn, layer):
    model, adapters = build(layer, dropout=0.5)
    results = []
    for enabled in (True, False):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            x = inputs(grad=True)
            loss = model(x).float().square().sum()
        results.append((loss, *gradients(adapters, x, loss)))
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 8 * 2**-7 * theirs.norm()


@pytest.mark.parametrize("layer", LAYERS)
def test_merged_and_nested(onednn, layer):
    model, adapters = build(layer)
    model.eval()
    x, exact = inputs(), model(inputs())
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert torch.equal(model(x), exact)
        with pytest.raises(RuntimeError, match="dtype"):  # as a plain layer has it
            model(x.bfloat16())
    adapters.merge()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        merged = model(x)
    assert merged.dtype == torch.bfloat16
    assert (merged - exact).norm() <= 4 * 2**-7 * exact.norm()


def test_a_loop_with_loss_scaling_takes_the_same_steps(onednn):
    losses = []
    for forward in (nn.Module.__call__, restated):
        model, adapters = build("self")
        optimizer = torch.optim.SGD(adapters.parameters(), lr=2.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
        for _ in range(8):
            with torch.autocast("cpu", torch.float16):
                loss = F.mse_loss(forward(model, inputs()).float(), inputs().flip(0))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
        assert scaler.get_scale() == 2.0**7  # no step was skipped
    assert losses[:8] == pytest.approx(losses[8:], rel=1e-3)
    assert losses[7] < 0.9 * losses[0]


@pytest.fixture(scope="module")
def backbone(tiny_clip):
    return load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cpu")


def test_the_fast_path_is_open_clips_forward(onednn, backbone):
    adapters = adapt(backbone.model)
    side, results = backbone.resolution, []
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    tokens = backbone.tokenize(["a photo of a cat.", "dog"])
    for encode_image, encode_text in (
        (backbone.encode_images, backbone.encode_prompts),
        (backbone.model.encode_image, backbone.model.encode_text),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            rows = [
                F.normalize(x.float(), dim=-1) for x in (encode_image(images), encode_text(tokens))
            ]
            loss = F.cross_entropy(10 * rows[0] @ rows[1].T, torch.arange(2))
        results.append((*rows, *torch.autograd.grad(loss, list(adapters.parameters()))))
    adapters.detach()
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert (ours - theirs).norm() <= 0.1 * theirs.norm()


def test_torchvisions_vit(onednn):
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16
    )
    nn.init.normal_(model.heads.head.weight)  # it starts at zero
    adapters, images, results = adapt(model), torch.randn(2, 3, 8, 8), []
    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = model(images).float().square().mean()
        results.append(torch.autograd.grad(loss, list(adapters.parameters())))
    for half, full in zip(*results, strict=True):
        assert (half - full).norm() <= 0.1 * full.norm()


@pytest.mark.parametrize("gelu", [nn.GELU(), nn.ReLU()], ids=str)
def test_the_mlp(onednn, gelu):
    mlp = nn.Sequential(nn.Linear(8, 16), gelu, nn.Linear(16, 8)).requires_grad_(False)
    x, results = torch.randn(4, 8, requires_grad=True), []
    for forward in (lambda x: frozen_mlp(mlp, x), mlp):
        with torch.autocast("cpu", torch.bfloat16):
            y = forward(x)
        results.append((y, *torch.autograd.grad(y.float().sum(), x)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
