"""Learn tokens that stand among those of frozen towers, by cosine logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip.backbone import Backbone, Prompts
from ..clip.learnt import Learnt
from ..clip.towers import TextTower, image_projection
from ..core.seeding import generator
from .contract import Context
from .feature_cache import Features
from .feature_fit import dassl_cosine, epochs_of, parameter
from .loop import Plan, settings_plan, train
from .method import Predictor
from .prompt_method import DeepMethod, PromptMethod
from .spec import DasslSchedule

STD = 0.02  # of what starts at random


@dataclass(frozen=True)
class Learner:
    """What a method learns, and where it stands.

    text(f): the text tower's tokens; of a method that reads the images, their unit rows f: (B, d),
    those of each, (B, M, E). image(): the image tower's tokens, None for none.
    """

    parameters: Sequence[Tensor]
    text: Callable[[Tensor | None], Learnt]
    image: Callable[[], Learnt | None] = lambda: None


@dataclass(frozen=True)
class Seen:
    """What a step sees.

    pixels: normalised images (B, 3, H, W); images: their unit rows (B, d); classes: unit rows
    (K, d), or (B, K, d) of each image's own; logits: (B, K).
    """

    pixels: Tensor
    images: Tensor
    classes: Tensor
    logits: Tensor


def entropy(seen: Seen, labels: Tensor) -> Tensor:
    """Cross-entropy, the loss of most."""
    return F.cross_entropy(seen.logits, labels)


def fit_prompts(
    context: Context,
    method: PromptMethod,
    learner: Learner,
    loss: Callable[[Seen, Tensor], Tensor] = entropy,
    backward: Callable[[Tensor], Any] = Tensor.backward,
    after: Callable[[int], None] = lambda step: None,
) -> PromptPredictor:
    """Train what a method learns, by its own schedule or the context's training settings.

    loss(seen, labels), backward, after: as `loop.train` takes them.
    """
    backbone, plan = context.backbone, plan_of(context, method)
    predictor = PromptPredictor(context, method, learner, plan)
    prompts = predictor.packed(backbone.tokenize(method.texts(context.names)))
    seen: list[Seen] = []

    def logits(images: Tensor) -> Tensor:
        seen.clear()  # and with it the last step's graph of gradients, before there is another
        seen[:] = [predictor.see(backbone.normalise(images), prompts)]
        return seen[0].logits

    how = predictor.how
    groups = [{"params": learner.parameters, "lr": how.lr, "weight_decay": how.weight_decay}]
    with torch.enable_grad(), backbone.training_kernels():
        predictor.loss, predictor.overflows = train(
            context,
            groups,
            logits,
            scaled=backbone.dtype == torch.float16,
            plan=plan,
            objective=lambda scores, labels: loss(seen[0], labels),
            backward=backward,
            after=after,
            replays=predictor.replays,
        )
    return predictor


def plan_of(context: Context, method: PromptMethod) -> Plan:
    """The steps of a method's own schedule, or of the context's training settings."""
    schedule: DasslSchedule | None = method.settings.schedule
    if schedule is None:
        return settings_plan(context)
    epochs = schedule.of(context.shots, len(context.tokens))
    order = epochs_of(context, schedule.batch_size, epochs, drop_last=True)
    factor = dassl_cosine(epochs, len(order), schedule.lr)

    # fused, a scaled step need not be waited for; on a CPU it would round in another way
    gpu = context.backbone.device.type == "cuda"
    return Plan(
        order=order,
        epochs=epochs,
        lr=schedule.lr,
        rate=lambda step: schedule.lr * factor(step),
        optimizer=lambda groups: sgd(groups, schedule, fused=gpu or None),
        augment=schedule.augment,
    )


def sgd(
    groups: list[dict[str, Any]], schedule: DasslSchedule, fused: bool | None
) -> torch.optim.SGD:
    """SGD with the schedule's momentum, which is zero at first."""
    made = torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum, fused=fused)
    for part in (part for group in made.param_groups for part in group["params"]):
        # fused SGD makes it of memory as it is, and where the first step overflows leaves it so
        made.state[part]["momentum_buffer"] = torch.zeros_like(part)
    return made


class PromptPredictor(Predictor):
    """Cosine logits of frozen towers with learnt tokens among their own."""

    def __init__(
        self, context: Context, method: PromptMethod, learner: Learner, plan: Plan
    ) -> None:
        self.backbone, self.learner = context.backbone, learner
        self.how = method.settings.schedule or context.to_train()[2]
        self.replays = context.replays(self.how)
        self.prompts = method.texts  # what to tokenize of classes
        self.reads_images = method.reads_images
        self.trainable_parameters = sum(part.numel() for part in learner.parameters)
        self.images_seen = plan.images_seen

    def packed(self, tokens: Tensor) -> Prompts:
        """Prompts whose common beginning is encoded once: exact, since nothing is dropped here."""
        return self.backbone.pack(tokens, share_prefix=True, class_chunk=self.how.class_chunk)

    def see(self, pixels: Tensor, classes: Tensor | Prompts) -> Seen:
        """Logits of normalised images (B, 3, H, W) by rows of classes, or by prompts to encode."""
        images = self.backbone.encode_images(
            pixels, checkpoint=self.how.checkpointing, learnt=self.learner.image()
        )
        return Seen(pixels, images, *self._met(images, classes))

    def _met(self, images: Tensor, classes: Tensor | Prompts) -> tuple[Tensor, Tensor]:
        """Rows of classes, as `Seen` has them, and logits (B, K) of images' unit rows (B, d)."""
        if not isinstance(classes, Tensor):
            classes = self._rows(classes, images)
        cosines = (
            (classes @ images[..., None])[..., 0] if classes.dim() == 3 else images @ classes.T
        )
        return classes, self.backbone.logit_scale * cosines

    def _rows(self, prompts: Prompts, images: Tensor | None) -> Tensor:
        """Unit rows (K, d) of the classes, or (B, K, d), as each image sees them."""
        learnt = self.learner.text(images)
        return self.backbone.encode_prompts(
            prompts, checkpoint=self.how.checkpointing, learnt=learnt
        )

    def classifier(self, tokens: Tensor) -> Tensor | Prompts:
        """Unit rows of the classes, or their prompts where each image has rows of its own."""
        prompts = self.packed(tokens)
        return prompts if self.reads_images else self._rows(prompts, None)

    def logits(self, images: Tensor, classifier: Tensor | Prompts) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, C)."""
        return self.see(images, classifier).logits

    def scores(self, features: Features, classifier: Tensor | Prompts) -> Tensor:
        """Features of N images -> (N, C): the bits of `logits` in batches of as many."""
        rows = features.pooled.to(self.backbone.dtype)  # kept in a wider format, with nothing lost
        projection = image_projection(self.backbone.model)
        rows = rows if projection is None else rows @ projection
        return self._met(F.normalize(rows.float(), dim=-1), classifier)[1]


def start(context: Context, method: PromptMethod) -> Tensor:
    """The text tokens' first values, (M, E): embeddings of the method's words, or at random."""
    tower, backbone = TextTower(context.backbone.model), context.backbone
    given = method.settings.context
    if isinstance(given, int):
        return random_tokens(context, "prompts", given, text_width(backbone))
    tokens = backbone.tokenize([given])
    words = tokens[0, 1 : int(tower.end_of_text(tokens))]
    first: Tensor = tower.parts.token_embedding(words).detach().float()
    return first


def shallow(context: Context, method: PromptMethod) -> Learner:
    """Tokens at the text tower's input, the same for all classes, as CoOp has them."""
    v = parameter(start(context, method))
    return Learner([v], lambda images: Learnt((v,)))


def deep(context: Context, method: DeepMethod, words: int | None = None) -> list[Tensor]:
    """What is trained in the text tower, (M, E) of each block: all but the first at random.

    words: how many tokens of the method's context are trained, all by default.
    """
    first = start(context, method)[:words]
    later = random_tokens(context, "deep prompts", method.settings.depth - 1, *first.shape)
    return [parameter(part) for part in (first, *later)]


def uniform(context: Context, purpose: str, bound: float, *shape: int) -> Tensor:
    """Evenly from -bound to bound, float32: a linear layer's default of bound 1/√(d_in)."""
    return bound * (2 * torch.rand(shape, generator=generator(context.seed, purpose)) - 1)


def random_tokens(context: Context, purpose: str, *shape: int) -> Tensor:
    """N(0, 0.02²) of this shape, float32, on the backbone's device."""
    drawn = torch.randn(shape, generator=generator(context.seed, purpose))
    return STD * drawn.to(context.backbone.device)


def text_width(backbone: Backbone) -> int:
    """E of the text tower."""
    return TextTower(backbone.model).parts.positional_embedding.shape[1]


def output_width(backbone: Backbone) -> int:
    """d, of the rows of both towers."""
    projection = TextTower(backbone.model).parts.text_projection
    if projection is None:
        return text_width(backbone)
    return len(projection.weight) if isinstance(projection, nn.Linear) else projection.shape[1]


def image_width(backbone: Backbone) -> int:
    """E of the image tower."""
    return backbone.model.visual.positional_embedding.shape[1]


def classes_of(context: Context) -> Tensor:
    """Unit rows (K, d) of the classes by the frozen text tower, as zero-shot has them."""
    return F.normalize(context.prompts(context.tokens), dim=-1)
