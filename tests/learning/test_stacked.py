"""Runs trained at once are each its run alone, dropout on: losses, gradients, whole runs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import mostly_rare
from fake_cuda import fake_cuda
from launches import counting, step_launches
from overflow import Overflowing
from torch import Tensor, nn

from blocklora_lib.adapters.attach import attach
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.adapters.stack import attach_stack
from blocklora_lib.adapters.updates import make_adapter
from blocklora_lib.clip.backbone import load_backbone
from blocklora_lib.clip.towers import TextTower, encode_images
from blocklora_lib.core.seeding import generator, seeded_torch
from blocklora_lib.layers.side_by_side import FactorsAhead, updated_product
from blocklora_lib.layers.stacked import Draws, Stacked
from blocklora_lib.learning.adapter_fit import fit_adapters
from blocklora_lib.learning.contract import Context
from blocklora_lib.learning.loop import TrainingDiverged, train
from blocklora_lib.learning.spec import TrainingSpec
from blocklora_lib.learning.stacked import can_stack, fit_stack, train_stack
from blocklora_lib.measure.stacked import AT_ONCE, stacked_trainings
from blocklora_lib.weights.spec import BackboneSpec

SEEDS = (1, 2, 3)
NAMES = ["cat", "an old lighthouse", "dog", "ice cream", "a tram that climbs a hill"]
CLIP_LORA = dict(rank=2, n_blocks=2, dropout=0.25)
KINDS = {
    "block_lora": CLIP_LORA,
    "lora": CLIP_LORA | dict(kind="lora", n_blocks=1),
    "collapsed": CLIP_LORA | dict(kind="collapsed"),
    "w/o A": CLIP_LORA | dict(kind="frozen_a"),
    "input": CLIP_LORA | dict(reading="input"),
    "block_rank": CLIP_LORA | dict(reading="block_rank", n_blocks=3),
    "some targets": CLIP_LORA | dict(targets=("q", "v")),  # none on k, which stands between
    "o too": CLIP_LORA | dict(targets=("q", "k", "v", "o")),
    "16 bits": CLIP_LORA | dict(dropout=0.3),  # of random numbers
    "no dropout": CLIP_LORA | dict(dropout=0.0),
    "dora": CLIP_LORA | dict(kind="dora", n_blocks=1),  # on W, one projection after the other
    "one tower": CLIP_LORA | dict(towers=("text",)),
}


@pytest.fixture(scope="module")
def backbones(tiny_clip):
    """A CLIP of ViT-B/16's form and random weights, and PocketCLIP, in both number formats."""
    specs = [BackboneSpec(name=tiny_clip, pretrained="none")]
    specs += [BackboneSpec(name="PocketCLIP", pretrained="bundled")]
    found = {}
    for name, spec in zip(("tiny", "pocket"), specs, strict=True):
        found[name, torch.float32] = load_backbone(spec, "cpu")
        found[name, torch.float64] = load_backbone(spec, "cpu")
        found[name, torch.float64].model.double()
    return found


def pixels(backbone, run: int, count: int = 2) -> Tensor:
    size = count, 3, *backbone.view.size
    return torch.randn(size, generator=generator(run, "pixels")).to(backbone.dtype)


def trained_already(adapters, seed: int):
    """Give B, which starts at zero, values: gradients reach A then."""
    for i, adapter in enumerate(adapters.adapters.values()):
        for name, p in adapter.named_parameters():
            if name.startswith("B") or adapter.alone:
                p.data += 0.1 * torch.randn(p.shape, generator=generator(seed, f"{name}{i}"))


def cosines(model, images: Tensor, prompts, runs: int) -> Tensor:
    """Logits (S, B, C) in the model's own number format."""
    rows = F.normalize(encode_images(model, images), dim=-1).unflatten(0, (runs, -1))
    classes = F.normalize(TextTower(model).encode(prompts), dim=-1).unflatten(0, (-1, len(NAMES)))
    return 20 * rows @ classes.mT


def step_results(logits: Tensor, adapters) -> list[Tensor]:
    """Logits, loss and the gradient of each parameter of a run."""
    parameters = list(adapters.parameters())
    loss = F.cross_entropy(logits, torch.arange(len(logits)))
    return [
        logits.detach(),
        loss.detach(),
        *torch.autograd.grad(loss, parameters, retain_graph=True),
    ]


def one_by_one(backbone, config: AdapterConfig) -> list[list[Tensor]]:
    found = []
    for seed in SEEDS:
        adapters = attach(backbone.model, config, generator(seed, "adapter"))
        for _, site in adapters.sites:
            site.adapters.to(backbone.dtype).train()
        trained_already(adapters, seed)
        prompts = TextTower(backbone.model).pack(backbone.tokenize(NAMES))
        with seeded_torch(seed, "dropout"):
            (logits,) = cosines(backbone.model, pixels(backbone, seed), prompts, 1)
        found.append(step_results(logits, adapters))
        adapters.detach()
    return found


def at_once(backbone, config: AdapterConfig, masks=SEEDS) -> list[list[Tensor]]:
    draws, starts = (
        Draws(masks, "dropout", backbone.device),
        [generator(s, "adapter") for s in SEEDS],
    )
    sets = attach_stack(backbone.model, config, starts, draws)
    for _, site in sets[-1].sites:
        site.adapters.to(backbone.dtype).train()
    for adapters, seed in zip(sets, SEEDS, strict=True):
        trained_already(adapters, seed)
    tower = TextTower(backbone.model)
    assert tower.can_pack
    prompts = tower.pack(backbone.tokenize(NAMES))
    if "text" in config.towers:
        prompts = prompts.repeated(len(SEEDS))
    images = torch.cat([pixels(backbone, seed) for seed in SEEDS])
    with seeded_torch(0, "whatever"):
        logits = cosines(backbone.model, images, prompts, len(SEEDS))
    found = [step_results(*own) for own in zip(logits, sets, strict=True)]
    sets[-1].detach()
    return found


def distance(found: list[list[Tensor]], expected: list[list[Tensor]]) -> float:
    """The largest |difference| / |tensor| of all tensors, by the largest entry of each."""
    pairs = [p for own in zip(found, expected, strict=True) for p in zip(*own, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


TINY, POCKET = ("tiny", torch.float64), ("pocket", torch.float32)  # values, and rounding
CASES = [
    (kind, *of)
    for i, kind in enumerate(KINDS)
    for of in itertools.product(("tiny", "pocket"), (torch.float32, torch.float64))
    if i < 4 or of in (TINY, POCKET)  # the kinds of the paper in all
]
COMMON = [case for case in CASES if case[1:] in (TINY, POCKET)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "model", "dtype"), mostly_rare(CASES, COMMON), ids=str)
def test_logits_losses_and_gradients_are_those_of_each_run_alone(backbones, kind, model, dtype):
    backbone, config = backbones[model, dtype], AdapterConfig(**KINDS[kind])
    expected = one_by_one(backbone, config)
    bar = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    assert distance(at_once(backbone, config), expected) < bar
    if config.dropout:  # the masks of runs exchanged: this test would see it
        assert distance(at_once(backbone, config, masks=(2, 1, 3)), expected) > 1e-3
    assert not any(p.requires_grad for p in backbone.parameters())
    assert all(
        type(m) is nn.MultiheadAttention for m in backbone.modules() if hasattr(m, "out_proj")
    )


# whole runs


@pytest.fixture(scope="module")
def contexts(backbones):
    """Three runs of five classes, two images of each, in batches of 4, 4 and 2."""
    backbone = backbones["tiny", torch.float32]
    spec = TrainingSpec(steps_per_shot=4, batch_size=4, lr=1e-3, augment="light")
    tokens, labels = backbone.tokenize(NAMES), torch.arange(10) % 5
    size = 10, 3, *backbone.view.size
    return [
        Context(
            backbone, tokens, 255 * torch.rand(size, generator=generator(seed, "images")), labels,
            spec, shots=2, seed=seed, names=NAMES,
        )
        for seed in SEEDS
    ]  # fmt: skip


def alone(context: Context, config: AdapterConfig):
    before = context.backbone.passes.copy()
    predictor = fit_adapters(context, config)
    state = {name: t.clone() for name, t in predictor.adapters.state_dict().items()}
    predictor.close()
    return predictor, state, context.backbone.passes - before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "augment"),
    [
        ({}, "light"),
        (dict(kind="collapsed"), "none"),
        (dict(kind="vera", rank=16, n_blocks=1), "none"),
        (dict(towers=("text",)), "none"),  # images are encoded once
        (dict(towers=("text",)), "light"),
        (dict(towers=("vision",)), "light"),  # classes are encoded once, for all
    ],
    ids=str,
)
def test_a_run_of_a_stack_is_its_run_alone(contexts, changes, augment):
    config = AdapterConfig(**CLIP_LORA | changes)
    spec = contexts[0].training.model_copy(update={"augment": augment})
    contexts = [replace(context, training=spec) for context in contexts]
    backbone, rng = contexts[0].backbone, torch.get_rng_state()
    before = backbone.passes.copy()
    found = fit_stack(contexts, config)
    assert torch.equal(torch.get_rng_state(), rng)
    passes = backbone.passes - before
    for context, own in zip(contexts, found, strict=True):
        expected, state, each = alone(context, config)
        assert own.loss == pytest.approx(expected.loss, rel=1e-5)
        assert len(set(own.loss)) == 8
        others = [o.loss for o in found if o is not own]
        assert not any(own.loss == pytest.approx(loss, rel=1e-2) for loss in others)
        assert own.overflows == ()
        predictor = own.predictor(context)
        for name, tensor in predictor.adapters.state_dict().items():
            torch.testing.assert_close(tensor, state[name], rtol=1e-4, atol=1e-5)
        assert not any(adapter.training for adapter in predictor.adapters.adapters.values())
        assert predictor.images_seen == expected.images_seen == 28
        assert predictor.trainable_parameters == expected.trainable_parameters
        predictor.close()
        assert passes == {tower: len(contexts) * n for tower, n in each.items()}


@pytest.mark.slow
def test_a_run_that_diverges_takes_no_other_with_it(contexts):
    config, sick = AdapterConfig(**CLIP_LORA), torch.full_like(contexts[1].images, torch.nan)
    given = [contexts[0], replace(contexts[1], images=sick), contexts[2]]
    first, second, third = fit_stack(given, config)
    assert isinstance(second, TrainingDiverged)
    with pytest.raises(TrainingDiverged) as error:
        fit_adapters(given[1], config)
    assert str(second) == str(error.value)
    for found, context in ((first, contexts[0]), (third, contexts[2])):
        assert found.loss == pytest.approx(alone(context, config)[0].loss, rel=1e-5)
    assert all(isinstance(o, TrainingDiverged) for o in fit_stack([given[1]] * 2, config))
    assert fit_adapters(contexts[0], config).close() is None  # the backbone is as it was


def test_a_gradient_that_overflows_skips_a_step_of_its_own_run_alone():
    """S = 2 linear classifiers; at step 3 the gradient of the second is infinite."""
    spec = TrainingSpec(steps_per_shot=6, batch_size=3, lr=0.1, augment="none")
    rows, labels = torch.randn(3, 4, generator=generator(1, "rows")), torch.arange(3)
    contexts = [Context(None, None, rows, labels, spec, 1, seed) for seed in (1, 2)]
    weights = [nn.Parameter(torch.zeros(3, 4)) for _ in contexts]
    steps = []

    def logits(x: Tensor, own: list[Tensor], sick: list[bool]) -> Tensor:
        steps.append(1)
        scores = torch.stack([part @ w.T for part, w in zip(x.chunk(len(own)), own, strict=True)])
        infinite = torch.tensor(sick)[:, None, None] & (len(steps) == 3)
        return Overflowing.apply(scores, infinite)

    def groups(weight):
        return [{"params": [weight], "lr": 0.1, "weight_decay": 0.0}]

    found = train_stack(
        contexts, [*map(groups, weights)], lambda x: logits(x, weights, [False, True]), scaled=True
    )
    for i, context in enumerate(contexts):
        own = nn.Parameter(torch.zeros(3, 4))
        steps.clear()
        expected = train(
            context, groups(own), lambda x, own=own, i=i: logits(x, [own], [i == 1])[0], scaled=True
        )
        assert found[i] == expected
        assert expected[1] == ((), (3,))[i]
        assert torch.equal(weights[i], own)


def test_what_is_no_batch_of_equal_parts_is_trained_alone(contexts, backbones, tiny_clip):
    one, other, _ = contexts
    config = AdapterConfig(**CLIP_LORA)
    assert can_stack(one, other, config)
    few = replace(other, images=other.images[:9], labels=other.labels[:9])  # one was unreadable
    assert not can_stack(one, few, config)
    assert not can_stack(one, replace(other, tokens=other.tokens.flip(0)), config)
    for change in ({"share_prefix": True}, {"class_chunk": 2}, {"checkpointing": True}):
        spec = one.training.model_copy(update=change)
        assert not can_stack(*(replace(c, training=spec) for c in (one, other)), config), change
    hook = one.backbone.model.visual.register_forward_hook(lambda *given: None)
    try:
        assert not can_stack(one, other, config)
        assert can_stack(one, other, AdapterConfig(**CLIP_LORA, towers=("text",)))
    finally:
        hook.remove()
    draws = Draws((1, 2), "dropout", one.backbone.device)
    stack = Stacked([make_adapter(config, 8, 8) for _ in range(2)], draws)
    with pytest.raises(RuntimeError, match="7 rows are no equal parts for 2 runs"):
        stack.update(torch.zeros(7, 8))
    with pytest.raises(RuntimeError, match="stack: 1"):
        stack.delta_weight()


# a GPU


@pytest.mark.parametrize("settings", [{}, {"kind": "lora", "n_blocks": 1}, {"reading": "input"},
                                      {"kind": "frozen_a"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("ahead", [False, True])
def test_the_product_of_a_gpu_is_that_of_each_run_alone(settings, ahead):
    config = AdapterConfig(**CLIP_LORA | settings)
    with fake_cuda():
        runs = []
        for seed in SEEDS:
            made = [make_adapter(config, 8, 6, generator(seed, f"a{i}")) for i in range(3)]
            for i, adapter in enumerate(made):
                adapter.B.data = torch.randn(adapter.B.shape, generator=generator(seed, f"B{i}"))
            runs.append([adapter.to("cuda").train() for adapter in made])
        weight, bias = (
            torch.randn(n, generator=generator(1, str(n))).to("cuda") for n in ((18, 8), 18)
        )
        x = torch.randn(15, 8, generator=generator(1, "x")).to("cuda").requires_grad_()
        grad = torch.randn(15, 18, generator=generator(1, "grad")).to("cuda")
        cuda, expected = torch.device("cuda"), []
        for made, rows, above, seed in zip(runs, x.chunk(3), grad.chunk(3), SEEDS, strict=True):
            rows = rows.detach().requires_grad_()
            with counting() as apart, seeded_torch(seed, "dropout", cuda):
                y = updated_product(rows, weight, bias, made)
                own = [p for adapter in made for p in adapter.parameters()]
                expected.append([y, *torch.autograd.grad(y, [rows, *own], above)])
        draws = Draws(SEEDS, "dropout", cuda)
        stack = [Stacked(places, draws).train() for places in zip(*runs, strict=True)]
        own = [p for made in runs for adapter in made for p in adapter.parameters()]
        with counting() as together, seeded_torch(0, "whatever", cuda):
            together_ahead = FactorsAhead()
            if ahead:
                with together_ahead:
                    updated_product(x, weight, bias, stack)
                draws = Draws(SEEDS, "dropout", cuda)
                for place in stack:
                    place.draws = draws
                with together_ahead:
                    y = updated_product(x, weight, bias, stack)
            else:
                y = updated_product(x, weight, bias, stack)
            x_grad, *grads = torch.autograd.grad(y, [x, *own], grad)
        assert torch.equal(y.cpu(), torch.cat([found[0].cpu() for found in expected]))
        torch.testing.assert_close(x_grad.cpu(), torch.cat([found[1].cpu() for found in expected]))
        for found, grad_alone in zip(grads, [g for e in expected for g in e[2:]], strict=True):
            torch.testing.assert_close(found.cpu(), grad_alone.cpu())
        if not ahead:
            assert together.kernels.total() < 3 * apart.kernels.total()


@pytest.mark.slow
def test_three_runs_at_once_ask_a_gpu_for_little_more_than_half_as_many_kernels(tiny_clip):
    with fake_cuda():
        spec = BackboneSpec(name=tiny_clip, pretrained="none")
        backbone, counts = load_backbone(spec, "cuda"), []
        for steps in (1, 2):
            ways = stacked_trainings(backbone, 3, 10, 2, steps, AdapterConfig(**CLIP_LORA))
            with counting() as counted:
                ways[AT_ONCE]()
            counts.append(counted)
        less, more = (counted.kernels.total() for counted in counts)
        alone = step_launches(tiny_clip, 10, batch=2, **CLIP_LORA).kernels.total()
    assert more - less < 0.6 * 3 * alone
    assert counts[0].waited == counts[1].waited
