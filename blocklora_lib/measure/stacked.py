"""What training several runs at once takes, against one after the other; both by the library.

Values cost nothing: images are noise, and the labels count.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..adapters.config import AdapterConfig
from ..clip.backbone import Backbone
from ..core.seeding import generator
from ..learning.adapter_fit import fit_adapters
from ..learning.contract import Context
from ..learning.spec import TrainingSpec
from ..learning.stacked import Trained, can_stack, fit_stack
from .prompts import class_prompts

ALONE, AT_ONCE = "one after the other", "at once"


def stacked_trainings(
    backbone: Backbone, runs: int, classes: int, batch: int, steps: int, config: AdapterConfig
) -> dict[str, Callable[[], list[tuple[float, ...]]]]:
    """Return both ways, by name, to train runs of so many steps; each gives every run's losses.

    ValueError for a model whose runs cannot be stacked.
    """
    tokens = backbone.tokenize(class_prompts(classes))
    spec = TrainingSpec(steps_per_shot=steps, batch_size=batch, augment="light")
    labels = (torch.arange(2 * batch) % classes).to(backbone.device)
    contexts = []
    for seed in range(1, runs + 1):
        size = 2 * batch, 3, *backbone.view.size
        pixels = 255 * torch.rand(size, generator=generator(seed, "images"))
        images = pixels.to(backbone.device)
        contexts.append(Context(backbone, tokens, images, labels, spec, shots=1, seed=seed))

    if not all(can_stack(contexts[0], other, config) for other in contexts[1:]):
        raise ValueError(
            f"runs of {backbone.spec.name} are not trained at once: its towers are no plain "
            "transformers of open_clip; give another model, such as ViT-B-16"
        )

    def alone(context: Context) -> tuple[float, ...]:
        predictor = fit_adapters(context, config)
        predictor.close()
        return predictor.loss

    def at_once() -> list[tuple[float, ...]]:
        return [own.loss for own in fit_stack(contexts, config) if isinstance(own, Trained)]

    return {ALONE: lambda: [alone(context) for context in contexts], AT_ONCE: at_once}
