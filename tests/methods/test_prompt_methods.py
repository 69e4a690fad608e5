"""Prompt methods against their equations, written plainly over all positions of open_clip's towers:
logits, loss, gradient by the steps that it makes; what each is at its start; how many numbers it
trains of ViT-B/16.
"""

from __future__ import annotations

import pytest
import torch
from prompt_case import STEPS, TRAINING, Case, adamw_steps, entropy, slopes_of, unit

from blocklora_lib.clip.backbone import Backbone
from blocklora_lib.clip.towers import TextTower
from blocklora_lib.core.seeding import generator
from blocklora_lib.learning import prompt_fit
from blocklora_lib.learning.contract import Context
from blocklora_lib.learning.spec import DasslSchedule
from blocklora_lib.measure.other_code.plain_prompts import cosines, image_rows, text_rows
from blocklora_lib.methods import MethodSpec

CLOSE = dict(rtol=1e-3, atol=1e-3)  # float32, logits up to 14, after a few steps


@pytest.fixture(scope="module")
def case(tiny_clip):
    return Case(tiny_clip)


def drawn(purpose, *shape):
    return 0.02 * torch.randn(shape, generator=generator(1, purpose))


def words(case, text):
    """Embeddings of words."""
    tokens = case.backbone.tokenize([text])
    return case.model.token_embedding(tokens[0, 1 : 1 + len(text.split())]).detach().clone()


# CoOp


@pytest.mark.parametrize("context", [3, "a photo of a"])
def test_coop_takes_the_steps_of_its_equation(case, context):
    v = drawn("prompts", 3, 16) if context == 3 else words(case, context)
    v.requires_grad_()
    tokens = case.tokens("x x x" if context == 3 else context)

    def logits(pixels):
        return cosines(case.model, pixels, tokens, [v])

    losses = adamw_steps([v], slopes_of(lambda: entropy(logits(case.pixels), case.labels), [v]))
    predictor, found, passes = case.fit("coop", context=context)
    assert predictor.loss == pytest.approx(losses, rel=1e-4)
    assert abs(losses[0] - losses[-1]) > 0.05
    torch.testing.assert_close(found, logits(case.test).detach(), **CLOSE)
    assert predictor.trainable_parameters == v.numel()
    assert passes == {"image": STEPS * len(case.labels), "text": STEPS * len(case.names)}
    assert (predictor.updates, predictor.images_seen) == (STEPS, STEPS * len(case.labels))


def test_coop_starts_as_zero_shot(case):
    still = case.training.model_copy(update={"lr": 1e-30, "lr_min": 0.0})
    predictor, found, _ = case.fit("coop", {"training": still}, context="a photo of a")
    torch.testing.assert_close(found, case.zero_shot(), rtol=1e-5, atol=1e-5)
    assert predictor.loss[0] == pytest.approx(
        float(entropy(case.zero_shot(case.pixels), case.labels)), rel=1e-5
    )


def test_coops_own_schedule_is_sgd_by_epochs(case):
    """Epochs of two batches of two, the rest of five images left out; the first at 1e-5."""
    v, tokens = drawn("prompts", 3, 16).requires_grad_(), case.tokens("x x x")
    order = torch.cat([torch.randperm(5, generator=generator(1, "shuffle"))])
    random, speed, losses = generator(1, "shuffle"), 0.0, []
    for lr in (1e-5, 0.01, 0.01 * (1 + 0.5) / 2):  # e = 1, 2, 3: cosines of 0 and π/3
        order = torch.randperm(5, generator=random)
        for index in (order[:2], order[2:4]):
            loss = entropy(cosines(case.model, case.pixels[index], tokens, [v]), case.labels[index])
            (slope,) = torch.autograd.grad(loss, [v])
            speed = 0.9 * speed + slope + 5e-4 * v.detach()
            losses.append(loss.item())
            with torch.no_grad():
                v -= lr * speed
    schedule = dict(lr=0.01, epochs=(9, 3, 9), batch_size=2, augment="none")
    few = {"images": case.images[:5], "labels": case.labels[:5], "training": None}
    predictor, found, passes = case.fit("coop", few, context=3, schedule=schedule)
    assert predictor.loss == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(found, cosines(case.model, case.test, tokens, [v]).detach(), **CLOSE)
    assert passes == {"image": 12, "text": 6 * 3}
    assert (predictor.updates, predictor.images_seen) == (6, 12)


def test_a_first_step_that_overflows_leaves_no_momentum(case, monkeypatch):
    """On a GPU in float16 that is common, and fused SGD began with whatever stood in memory."""
    context = case.context()
    monkeypatch.setattr(Backbone, "device", torch.device("cuda"))
    monkeypatch.setattr(prompt_fit, "epochs_of", lambda *given, **how: [torch.arange(2)])
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, 7.0))
    method = MethodSpec(name="coop", settings={"schedule": {}}).load()
    v, scaler = torch.ones(3, requires_grad=True), torch.amp.GradScaler("cpu")
    groups = [{"params": [v], "lr": 0.1, "weight_decay": 0.0}]
    optimizer = prompt_fit.plan_of(context, method).optimizer(groups)
    assert optimizer.defaults["fused"]
    for slope in (1e38, 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale(slope * v.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(v.detach(), torch.full((3,), 1 - 0.1 * (1 + 1.9)))


@pytest.mark.parametrize(
    ("shots", "classes", "epochs"),
    [(1, 10, 50), (2, 10, 100), (4, 10, 100), (8, 10, 200), (16, 10, 200), (16, 1000, 50)],
)
def test_published_epochs(shots, classes, epochs):
    assert DasslSchedule().of(shots, classes) == epochs


# KgCoOp, ProGrad: CoOp's prompt, held by what the frozen model knows

WORDS = "a photo of a"


@pytest.mark.slow
def test_kgcoop_takes_the_steps_of_its_equation(case):
    v, tokens = words(case, WORDS).requires_grad_(), case.tokens(WORDS)
    known = case.unit_rows(WORDS)

    def loss():
        w = unit(text_rows(case.model, tokens, [v]))
        logits = case.scale * unit(image_rows(case.model, case.pixels)) @ w.T
        apart = sum(1 - w[k] @ known[k] for k in range(len(w))) / len(w)
        return entropy(logits, case.labels) + 8 * apart

    losses = adamw_steps([v], slopes_of(loss, [v]))
    predictor, found, passes = case.fit("kgcoop")
    assert predictor.loss == pytest.approx(losses, rel=1e-4)
    expected = cosines(case.model, case.test, tokens, [v]).detach()
    torch.testing.assert_close(found, expected, **CLOSE)
    free = case.fit("kgcoop", strength=0.0)[1]
    assert (found - free).abs().max() > 0.01
    torch.testing.assert_close(free, case.fit("coop", context=WORDS)[1])
    # all that CoOp takes, and the classes' own prompts once
    assert passes["text"] == (STEPS + 1) * len(case.names)


def test_at_its_start_kgcoop_is_not_held(case):
    """Where w is w⁰ its slope is zero: the first step is CoOp's."""
    once = {"training": case.training.model_copy(update={"max_steps": 1, "steps_per_shot": 1})}
    held, plain = case.fit("kgcoop", once), case.fit("coop", once, context=WORDS)
    assert held[0].loss == pytest.approx(plain[0].loss, rel=1e-5)
    torch.testing.assert_close(held[1], plain[1], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("strength", [1.0, 0.8])
def test_prograd_takes_the_steps_of_its_equation(case, strength):
    v, tokens, conflicts = drawn("prompts", 3, 16).requires_grad_(), case.tokens("x x x"), []
    taught = case.zero_shot(case.pixels).double().softmax(-1)

    def gradients():
        logits = cosines(case.model, case.pixels, tokens, [v])
        loss = entropy(logits, case.labels)
        p = logits.double().exp() / logits.double().exp().sum(-1, keepdim=True)
        general = -(taught * p.log()).sum() / len(p)
        (g_d,) = torch.autograd.grad(loss, [v], retain_graph=True)
        (g_g,) = torch.autograd.grad(general, [v])
        along = float((g_d * g_g).sum())
        conflicts.append(along < 0)
        if along < 0:
            direction = g_g / g_g.norm()
            g_d = g_d - strength * (g_d * direction).sum() * direction
        return loss.detach(), [g_d]

    training = case.training.model_copy(update={"steps_per_shot": 8})
    losses = adamw_steps([v], gradients, steps=16)
    assert len(set(conflicts)) == 2
    predictor, found, passes = case.fit(
        "prograd", {"training": training}, context=3, strength=strength
    )
    assert predictor.loss == pytest.approx(losses, rel=1e-3)
    expected = cosines(case.model, case.test, tokens, [v]).detach()
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)
    assert passes["text"] == 17 * len(case.names)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_prograd_at_its_teachers_words_has_nothing_to_lose(case, precision, tiny_clip, monkeypatch):
    """There G_g is zero, and what rounding leaves of it has no direction."""
    from blocklora_lib.methods import prograd

    one, general = case, []
    if precision == "bf16":
        one = Case(tiny_clip, precision=precision)
    plain = prograd.without_conflict

    def told(own, taught, strength):
        general.append(taught.norm() / own.norm())
        return plain(own, taught, strength)

    monkeypatch.setattr(prograd, "without_conflict", told)
    one.fit("prograd", context="a photo of a")
    assert general[0] == 0
    assert min(general[1:]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_prograd_is_prograd_in_half_precision_too(precision):
    """What a few steps move is more than rounding: taken for it, ProGrad would be CoOp."""
    exact, one = Case("PocketCLIP"), Case("PocketCLIP", precision=precision)
    still = {"training": exact.training.model_copy(update={"lr": 0.01, "lr_min": 0.01})}
    expected, *found = (
        case.fit(name, still, context=WORDS)[0].loss
        for case, name in ((exact, "prograd"), (one, "prograd"), (one, "coop"))
    )
    assert found[0] == pytest.approx(expected, rel=0.02)
    assert found[1] != pytest.approx(expected, rel=0.05)


def test_prograd_never_steps_against_what_is_known():
    from blocklora_lib.methods.prograd import without_conflict

    random = torch.Generator().manual_seed(0)
    signs = set()
    for _ in range(20):
        own, general = torch.randn(2, 3, 4, generator=random, dtype=torch.float64)
        kept = without_conflict(own, general, 1.0)
        agrees = bool((own * general).sum() >= 0)
        signs.add(agrees)
        assert (kept * general).sum() >= -1e-12
        assert torch.equal(kept, own) == agrees
        # the scale by which losses are multiplied goes through
        scaled = without_conflict(8 * own, 8 * general, 1.0)
        torch.testing.assert_close(scaled, 8 * kept)
    assert signs == {True, False}


# CoCoOp


@pytest.mark.slow
def test_cocoop_takes_the_steps_of_its_equation(case):
    v, tokens = words(case, WORDS).requires_grad_(), case.tokens(WORDS)
    shapes = [(16, (1, 16)), (16, (1,)), (1, (16, 1)), (1, (16,))]  # d = E = 16, inner width 1
    net = [
        ((2 * torch.rand(shape, generator=generator(1, f"network/{i}")) - 1) / came**0.5)
        .requires_grad_()
        for i, (came, shape) in enumerate(shapes)
    ]  # fmt: skip

    def logits(pixels):
        rows = []
        for f in unit(image_rows(case.model, pixels)):
            moved = (net[2] * (net[0] @ f + net[1]).clamp(min=0)).sum(1) + net[3]
            rows.append(case.scale * unit(text_rows(case.model, tokens, [v + moved])) @ f)
        return torch.stack(rows)

    trained = [v, *net]
    loss = slopes_of(lambda: entropy(logits(case.pixels), case.labels), trained)
    losses = adamw_steps(trained, loss)
    predictor, found, passes = case.fit("cocoop")
    assert predictor.loss == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(found, logits(case.test).detach(), **CLOSE)
    assert predictor.trainable_parameters == sum(part.numel() for part in trained)
    # B K prompts a step
    assert passes["text"] == STEPS * len(case.labels) * len(case.names)


def test_cocoop_without_its_network_is_coop(case, monkeypatch):
    still = {"training": case.training.model_copy(update={"lr": 1e-30, "lr_min": 0.0})}
    moved = case.fit("cocoop", still)[1]
    monkeypatch.setattr(prompt_fit, "uniform", lambda context, name, b, *shape: torch.zeros(shape))
    predictor, found, _ = case.fit("cocoop", still)
    torch.testing.assert_close(found, case.zero_shot(), rtol=1e-5, atol=1e-5)
    assert (moved - found).abs().max() > 0.01
    other = case.scores(predictor, ("red fox", "ox"))
    torch.testing.assert_close(other[:, 1], found[:, 2], rtol=1e-5, atol=1e-5)


# MaPLe, PromptSRC: tokens in both towers


def linear(which, d_in, d_out):
    shapes = (d_out, d_in), (d_out,)
    return [
        (2 * torch.rand(shape, generator=generator(1, f"coupling/{which}/{len(shape)}")) - 1)
        / d_in**0.5
        for shape in shapes
    ]


@pytest.mark.parametrize("depth", [1, 2])
def test_maple_takes_the_steps_of_its_equation(case, depth):
    text = [words(case, WORDS)[:2], *drawn("deep prompts", depth - 1, 2, 16)]
    pairs = [linear("first", 16, 32), *[linear("later", 16, 32) for _ in range(depth - 1)]]
    trained = [
        part.requires_grad_() for part in (*text, *(part for pair in pairs for part in pair))
    ]
    tokens = case.tokens(WORDS)

    def logits(pixels):
        image = [p @ w.T + b for p, (w, b) in zip(text, pairs, strict=True)]
        return cosines(case.model, pixels, tokens, text, image)

    loss = slopes_of(lambda: entropy(logits(case.pixels), case.labels), trained)
    losses = adamw_steps(trained, loss)
    predictor, found, passes = case.fit("maple", depth=depth)
    assert predictor.loss == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(found, logits(case.test).detach(), **CLOSE)
    assert predictor.trainable_parameters == depth * (2 * 16 + 32 * 16 + 32)
    assert passes == {"image": STEPS * len(case.labels), "text": STEPS * len(case.names)}


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 2])
def test_promptsrc_takes_the_steps_of_its_equation(case, depth):
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    text = [words(case, WORDS), *drawn("deep prompts", depth - 1, 4, 16)]
    image = list(drawn("image prompts", depth, 3, 32))
    trained = [part.requires_grad_() for part in (*text, *image)]
    tokens = case.tokens(WORDS)
    templates = [t("@").replace("@", "{}") for t in OPENAI_IMAGENET_TEMPLATES[:60]]
    assert templates[0] == "a bad photo of a {}."
    assert len({*templates}) == 60
    with torch.no_grad():
        rows = [
            case.model.encode_text(case.backbone.tokenize([t.format(n) for n in case.names]))
            for t in templates
        ]
        known = unit(torch.stack(rows).mean(0))
        plain = case.model.encode_image(case.pixels, normalize=True)
    p0 = (case.scale * plain @ known.T).double().softmax(-1)

    def loss():
        f = unit(image_rows(case.model, case.pixels, image))
        w = unit(text_rows(case.model, tokens, text))
        logits = case.scale * f @ w.T
        p = logits.double().exp() / logits.double().exp().sum(-1, keepdim=True)
        held = 25 * (w - known).abs().mean() + 10 * (f - plain).abs().mean()
        return entropy(logits, case.labels) + held + (p0 * (p0.log() - p.log())).mean()

    # an epoch is one step: μ = σ = 0.6 of 4
    g = torch.tensor([-0.5 * ((e - 2.4) / 2.4) ** 2 for e in (1, 2, 3, 4)]).double().exp()
    g, average = g / g.sum(), [0.0 for _ in trained]

    def after(step):
        average[:] = [a + g[step - 1] * p.detach() for a, p in zip(average, trained, strict=True)]

    losses = adamw_steps(trained, slopes_of(loss, trained), after=after)
    predictor, found, passes = case.fit("promptsrc", depth=depth, image_tokens=3)
    assert predictor.loss == pytest.approx(losses, rel=1e-4)
    text, image = ([x.float() for x in part] for part in (average[:depth], average[depth:]))
    with torch.no_grad():
        torch.testing.assert_close(
            found, cosines(case.model, case.test, tokens, text, image), **CLOSE
        )
    assert predictor.trainable_parameters == depth * (4 * 16 + 3 * 32)
    # images by the learnt and by the frozen tower; prompts of each step, and of 60 templates once
    n, k = len(case.labels), len(case.names)
    assert passes == {"image": 2 * STEPS * n, "text": (STEPS + 60) * k}


@pytest.mark.parametrize(
    ("epochs", "mean", "deviation"),
    [(50, 30, 30), (50, 45, 5), (1, 0.6, 0.6), (50, 5000, 0.05)],
)
def test_averaging_weights_sum_to_one(epochs, mean, deviation):
    from blocklora_lib.methods.promptsrc import gaussian

    weights = gaussian(epochs, mean, deviation)
    assert sum(weights) == pytest.approx(1, rel=1e-12)
    assert weights.index(max(weights)) + 1 == min(mean, epochs) or epochs == 1


# what all have in common

NUMBERS = {
    ("coop", "16"): 8_192,
    ("coop", "4"): 2_048,
    ("kgcoop", ""): 2_048,
    ("prograd", ""): 8_192,
    ("cocoop", ""): 35_360,
    ("maple", ""): 3_555_072,
    ("promptsrc", ""): 46_080,
}


@pytest.fixture(scope="module")
def vit_b_16():
    """Shapes alone: a model without weights."""
    import open_clip

    from blocklora_lib.clip.tokenizers import load_tokenizer
    from blocklora_lib.weights.spec import BackboneSpec

    model = open_clip.create_model("ViT-B-16", device="meta")
    spec = BackboneSpec(name="ViT-B-16", pretrained="none")
    return Backbone(model, load_tokenizer("ViT-B-16"), spec).to("meta")


@pytest.mark.parametrize(("name", "context"), NUMBERS)
def test_vit_b_16_has_as_many_numbers_to_train(name, context, vit_b_16, monkeypatch):
    """What would be trained is made, and nothing is trained."""
    monkeypatch.setattr(TextTower, "end_of_text", lambda self, tokens: 5)  # of 'a photo of a'
    monkeypatch.setattr(Backbone, "pack", lambda *given, **how: ())
    monkeypatch.setattr(Context, "prompts", lambda self, tokens: torch.zeros(2, 512))
    monkeypatch.setattr(prompt_fit, "train", lambda *given, **how: ((), ()))
    settings = {"context": {"16": 16, "4": WORDS}[context]} if context else {}
    given = Context(
        backbone=vit_b_16,
        tokens=torch.zeros(2, 77),
        images=torch.zeros(2, 3, 224, 224),
        labels=torch.arange(2),
        training=TRAINING,
        shots=1,
        seed=1,
        names=("cat", "dog"),
    )
    predictor = MethodSpec(name=name, settings=settings).load().fit(given)
    assert predictor.trainable_parameters == NUMBERS[name, context]


@pytest.mark.slow
def test_classes_at_a_time_and_blocks_computed_again_change_nothing(case):
    _, plain, _ = case.fit("coop", context=3)
    saving = case.training.model_copy(update={"class_chunk": 2, "checkpointing": True})
    _, found, _ = case.fit("coop", {"training": saving}, context=3)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


def test_the_tokens_stand_before_other_classes_too(case):
    predictor, found, _ = case.fit("coop", context=3)
    other = case.scores(predictor, ("red fox", "ox", "small cat", "owl"))
    assert other.shape == (len(case.test), 4)
    torch.testing.assert_close(other[:, 1], found[:, 2], rtol=1e-4, atol=1e-4)


def test_nothing_is_left_on_the_backbone(case):
    before = {k: v.clone() for k, v in case.model.state_dict().items()}
    case.fit("coop", context=3)[0].close()
    assert all(torch.equal(v, before[k]) for k, v in case.model.state_dict().items())
    assert all(p.grad is None for p in case.model.parameters())


def test_the_seed_draws_the_start(case):
    starts = [case.fit("coop", {"seed": seed}, context=3)[1] for seed in (1, 1, 2)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("coop", dict(context=0), "greater than or equal to 1"),
        ("coop", dict(context=""), "at least 1 character"),
        ("coop", dict(depth=3), "unknown key 'depth'"),
        ("coop", dict(schedule=dict(epoch=3)), "unknown key 'epoch'; did you mean 'epochs'"),
        ("maple", dict(context=4), "valid string"),
        ("maple", dict(depth=0), "greater than or equal to 1"),
        ("promptsrc", dict(deviation=0.0), "greater than 0"),
        ("kgcoop", dict(strength=-1.0), "greater than or equal to 0"),
        ("kgcoop", dict(schedule=dict(epochs=[0, 1, 1])), r"epochs\.0\s+Input .* or equal to 1"),
        ("cocoop", dict(schedule=dict(epochs=[1, -1, 1])), r"epochs\.1\s+Input .* or equal to 1"),
        ("maple", dict(schedule=dict(epochs=[1, 1, 0])), r"epochs\.2\s+Input .* or equal to 1"),
        ("promptsrc", dict(schedule=dict(epochs=[0] * 3)), r"epochs\.0\s+Input .* or equal to 1"),
    ],
)
def test_bad_settings_are_refused(name, settings, says):
    with pytest.raises(ValueError, match=says):
        MethodSpec(name=name, settings=settings)


def test_a_schedule_of_its_own_takes_the_place_of_training_settings():
    assert MethodSpec(name="coop").scheduled
    own = MethodSpec(name="coop", settings={"schedule": {}})
    assert not own.scheduled
    assert own.settings["schedule"]["epochs"] == (50, 100, 200)
    assert own.load().settings.schedule == DasslSchedule()


def test_prompts_longer_than_the_context_are_refused(case):
    method = MethodSpec(name="coop", settings={"context": 12}).load()
    method.check(case.backbone, ("ox",))
    with pytest.raises(
        ValueError,
        match=r"method coop with context=12: prompt 'X .* yellow submarine\.' has 17 tokens.* "
        r"reads 16; shorten the class name .*, or learn fewer tokens",
    ):
        method.check(case.backbone, ("ox", "yellow submarine"))


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("maple", {}, "with depth=9: the text tower of TinyCLIP-test has 2 blocks; use depth=2"),
        ("promptsrc", dict(depth=3), "with depth=3: the text tower of TinyCLIP-test has 2 blocks"),
        ("maple", dict(depth=2, tokens=5), "context='a photo of a' has 4 tokens; use tokens=4"),
        ("coop", dict(context="   "), "method coop: context='   ' has no words; give some, such"),
        ("maple", dict(depth=2, context=" "), "method maple: context=' ' has no words; give some"),
    ],
)
def test_what_the_towers_do_not_have_is_refused(case, name, settings, says):
    with pytest.raises(ValueError, match=says):
        MethodSpec(name=name, settings=settings).load().check(case.backbone, case.names)


PUBLISHED = {  # lr, epochs, batch
    "coop": (2e-3, (50, 100, 200), 32),
    "kgcoop": (2e-3, (100, 100, 100), 32),
    "prograd": (2e-3, (50, 100, 200), 32),
    "cocoop": (2e-3, (10, 10, 10), 1),
    "maple": (3.5e-3, (50, 50, 50), 4),
    "promptsrc": (2.5e-3, (50, 50, 50), 4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_schedules(name):
    s = MethodSpec(name=name, settings={"schedule": {}}).load().settings.schedule
    assert (s.lr, s.epochs, s.batch_size) == PUBLISHED[name]
    assert (s.momentum, s.weight_decay, s.augment) == (0.9, 5e-4, "clip_lora")
