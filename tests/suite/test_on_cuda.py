"""The library on a GPU that is not there (fake_cuda.py): no device error, and a CPU's numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import mostly_rare
from fake_cuda import CUDA, CudaTensor
from torch import nn

from blocklora_lib.adapters.attach import attach
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.adapters.updates import make_adapter
from blocklora_lib.clip.backbone import BackboneSpec, load_backbone
from blocklora_lib.core.seeding import generator, seeded_torch
from blocklora_lib.costs.ways import ORDERS
from blocklora_lib.data.augment import augment
from blocklora_lib.learning.spec import TrainingSpec
from blocklora_lib.measure.orders import set_orders
from blocklora_lib.theory import breaks as change
from blocklora_lib.theory import subspaces
from blocklora_lib.theory import trajectories as tr

PROMPTS = ["a photo of a cat.", "a photo of a red mug.", "a photo of a dog.", "a bird"]


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("gpu")]


@pytest.fixture
def clip(tiny_clip):
    """device -> the tiny CLIP there; random weights, always the same."""
    return lambda device: load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), device)


def pixels(n=4, size=40):
    return torch.randint(
        0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator(1, "pixels")
    )


def same(function, rtol=1e-5, atol=1e-5):
    """Call function("cpu") and function("cuda"): tensors lie where they should and hold the same
    numbers.

    float32 through two layers; the CPU's own kernels (oneDNN, fused attention) add up in another
    order.
    """
    here, there = function("cpu"), function("cuda")
    assert len(here) == len(there) > 0
    for a, b in zip(here, there, strict=True):
        if isinstance(a, torch.Tensor):
            assert isinstance(b, CudaTensor), "it was left on the CPU"
            b = b.detach().cpu()
            a = a.detach()
        torch.testing.assert_close(b, a, rtol=rtol, atol=atol, check_stride=False)
    return there


def set_up(adapters):
    """B as training leaves it, not zero; dropout on."""
    draw = generator(1, "B")
    with torch.no_grad():
        for adapter in adapters.adapters.values():
            adapter.B.copy_(torch.empty(adapter.B.shape).normal_(0, 0.2, generator=draw))
            adapter.train()


def gradients(adapters):
    """Of the image tower."""
    parts = (a for name, a in adapters.adapters.items() if "visual" in name)
    return [p.grad for a in parts for p in a.parameters() if p.requires_grad]


def test_the_backbones_images_and_prompts(clip):
    def run(device):
        backbone = clip(device)
        assert backbone.device == torch.device(CUDA if device == "cuda" else "cpu")
        found = [
            backbone.resize(pixels()),
            backbone.normalise(255 * torch.rand(2, 3, 32, 32, generator=generator(1, "x"))),
        ]
        found.append(backbone.preprocess(pixels()))
        tokens = backbone.tokenize(PROMPTS)
        with torch.inference_mode():
            found += [
                backbone.encode_images(found[-1]),
                tokens,
                backbone.encode_prompts(tokens),
                backbone.logit_scale,
            ]
            for chunk in (1, 3, None):
                for prefix in (False, True):
                    packed = backbone.pack(tokens, share_prefix=prefix, class_chunk=chunk)
                    found.append(backbone.encode_prompts(packed))
        return found

    same(run)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_a_step_gives_a_cpus_gradients_however_it_is_recomputed(
    clip, monkeypatch, checkpoint, chunk, prefix, dropout
):
    if dropout:  # a GPU draws other masks, by torch's own kernel
        for module in ("layers.side_by_side", "clip.towers"):
            monkeypatch.setattr(f"blocklora_lib.{module}.on_gpu", lambda x: False)

    def run(device):
        backbone = clip(device)
        config = AdapterConfig(
            kind="block_lora", rank=2, n_blocks=2, targets=("q", "k", "v", "o"), dropout=dropout
        )
        adapters = attach(backbone.model, config, generator(1, "adapter"))
        set_up(adapters)
        packed = backbone.pack(backbone.tokenize(PROMPTS), share_prefix=prefix, class_chunk=chunk)
        with seeded_torch(1, "dropout", backbone.device):
            text = backbone.encode_prompts(packed, checkpoint=checkpoint)
            image = backbone.encode_images(backbone.preprocess(pixels()), checkpoint=checkpoint)
            loss = F.cross_entropy(10 * image @ text.T, torch.arange(4).to(backbone.device))
            loss.backward()
        return [loss, *(p.grad for p in adapters.parameters())]

    same(run)


@pytest.mark.parametrize("prefix", [False, True])
def test_a_gpus_masks_are_drawn_again_in_what_is_recomputed(clip, prefix):
    """Of one chunk: how many rows draw together is the same then, and so are the numbers drawn."""
    found = []
    for checkpoint in (False, True):
        backbone = clip("cuda")
        adapters = attach(
            backbone.model, AdapterConfig(rank=2, n_blocks=2), generator(1, "adapter")
        )
        set_up(adapters)
        packed = backbone.pack(backbone.tokenize(PROMPTS), share_prefix=prefix)
        with seeded_torch(1, "dropout", backbone.device):
            text = backbone.encode_prompts(packed, checkpoint=checkpoint)
            image = backbone.encode_images(backbone.preprocess(pixels()), checkpoint=checkpoint)
            (10 * image @ text.T).square().sum().backward()
        found.append([p.grad.cpu() for p in adapters.parameters()])
    for kept, again in zip(*found, strict=True):
        assert torch.equal(kept, again)
        assert kept.any()


def test_labels_may_stay_on_the_cpu(clip):
    from blocklora_lib.learning.contract import Context
    from blocklora_lib.learning.loop import train

    weight = nn.Parameter(torch.zeros(4, 3, device="cuda"))
    spec = TrainingSpec(steps_per_shot=1, min_steps=2, max_steps=2, batch_size=2, augment="none")
    rows = torch.randn(4, 3).to("cuda")
    context = Context(None, None, rows, torch.arange(4), spec, shots=1, seed=1)
    losses, _ = train(context, [{"params": [weight], "lr": 0.1}], lambda x: x @ weight.T)
    assert len(losses) == 2


@pytest.mark.parametrize("how", ["clip_lora", "light", "none"])
def test_augmentation_draws_on_the_cpu_and_moves(how):
    same(lambda device: [augment(pixels().float().to(device), how, generator(1, "augmentation"))])


# --- theory


HOOKS = ["none", "rates", "noise", "clip", "tensors", "lars", "muon", "rounded", "random"]


@pytest.mark.parametrize("hooks", mostly_rare(HOOKS, {"none", "noise", "muon", "random"}))
def test_trajectories_and_what_breaks_them(clip, hooks):
    chosen = {
        "none": lambda: {},
        "rates": lambda: change.block_rates((0.5, 2.0)),
        "noise": lambda: change.block_noise(0.1, 2, 1),
        "clip": lambda: change.clip(0.1, 2.0),
        "tensors": lambda: change.clip_tensors(0.1, 0.1),
        "lars": change.norm_scaled,
        "muon": change.orthogonalised,
        "rounded": lambda: change.rounded_parameters(torch.bfloat16),
        "random": lambda: change.rounded_parameters(torch.bfloat16, True, 1),
    }[hooks]

    def run(device):
        backbone = clip(device)
        task = tr.clip_task(
            backbone, pixels(4), torch.arange(4), backbone.tokenize(PROMPTS), 1, batch=2
        )
        config = AdapterConfig(rank=2, n_blocks=2, dropout=0.0)  # a GPU draws masks of its own
        learner = tr.make_learner(task, config, "AdamW", 1e-2, 1e-2, 1, **chosen())
        tr.set_blocks(learner.adapters, 0.1, 0.01, 1)
        losses = [learner.step(i) for i in range(2)]
        again = tr.make_learner(task, config, "AdamW", 1e-2, 1e-2, 1)
        path = tr.follow(learner, again, 1)
        return [
            *losses,
            *learner.updates(),
            path["difference"].iloc[-1],
            *tr.distance_of_blocks(learner.adapters),
        ]

    same(run, rtol=1e-6, atol=1e-8)  # float64, but an orthogonal factor of small gradients


@pytest.mark.parametrize(
    "kind", [change.NonlinearEqual, change.NonlinearUnequal, change.DroppedBlocks]
)
def test_altered_adapters(kind):
    def run(device):
        config = AdapterConfig(rank=3, n_blocks=3, dropout=0.0)
        adapter = make_adapter(config, 4, 5, generator(1, "adapter"))
        adapter.B.data.normal_(generator=generator(1, "B"))
        adapter.__class__ = kind
        adapter.to(device)
        with seeded_torch(1, "blocks"):
            found = adapter.update(torch.eye(4).to(device))
        return [found, adapter.eval().delta_weight()]

    same(run)


def test_a_learners_masks_on_the_gpu_are_those_of_its_seed(clip):
    backbone = clip("cuda")
    task = tr.clip_task(backbone, pixels(4), torch.arange(4), backbone.tokenize(PROMPTS), 1)
    losses = []
    for _ in range(2):
        learner = tr.make_learner(task, AdapterConfig(rank=2, n_blocks=2, dropout=0.5), "SGD", 0.1)
        tr.set_blocks(learner.adapters, 1.0, 0.0, 1)
        losses.append(learner.step(0))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("draw", [None, 1])
def test_quantised_blocks(draw):
    values = torch.randn(3, 4, generator=generator(1, "values"))
    same(lambda d: [change.quantise(values.to(d), 3, generator(1, "dither") if draw else None)])


def test_many_small_trainings():
    goal = subspaces.orthogonal_groups(8, 8, 2, 1).expand(2, -1, -1)
    config = AdapterConfig(rank=2, n_blocks=2, dropout=0.0)

    def run(device):
        x, y = torch.eye(8, dtype=torch.float64).expand(2, -1, -1).to(device), goal.mT.to(device)
        updates = subspaces.train_many(config, x, y, x.new_ones(2, 8), 3, 0.05)
        left = subspaces.remaining(updates, goal.to(device))
        return [updates, *left, subspaces.floor(goal[0].to(device), config)]

    same(run, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_other_orders_of_the_update(clip, order):
    kind = "lora" if order in ("dense", "plain") else "block_lora"

    def run(device):
        backbone = clip(device)
        adapters = attach(
            backbone.model, AdapterConfig(kind=kind, rank=2, dropout=0.0), generator(1, "a")
        )
        set_up(adapters)
        set_orders(adapters, order)
        found = backbone.encode_images(backbone.preprocess(pixels(2)))
        found.square().mul(torch.arange(16).to(found)).sum().backward()
        return [found, *gradients(adapters)]

    same(run)
