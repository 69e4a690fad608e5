"""What a run's method is given, from what the workbench has loaded."""

from __future__ import annotations

from collections.abc import Callable

from ..learning.contract import Context
from ..methods import get_method
from .spec import RunSpec
from .workbench import Inputs, Workbench

OnStep = Callable[[int, int, float], None]


def run_context(
    spec: RunSpec, bench: Workbench, inputs: Inputs, on_step: OnStep | None = None
) -> Context:
    """Return what the spec's method is given."""
    backbone, dataset = bench.backbone(spec.backbone, spec.task), bench.dataset(spec.dataset)
    images = labels = source = validation = None
    if inputs.index is not None:
        labels = dataset.labels("train")[inputs.index].to(backbone.device)
        method = get_method(spec.method.name)
        if "image" not in method.towers:
            source = bench.source(dataset, "train", inputs.index)
        if not method.on_features:
            images = backbone.resize(dataset.images("train")[inputs.index])
    if inputs.validation is not None:
        split, rows = inputs.validation
        truth = dataset.labels(split)[rows].to(backbone.device)
        validation = bench.source(dataset, split, rows), truth
    return Context(
        backbone=backbone,
        tokens=backbone.tokenize(dataset.prompts),
        images=images,
        labels=labels,
        training=spec.training,
        shots=spec.shots,
        seed=spec.seed,
        on_step=on_step,
        source=source,
        validation=validation,
        cache=bench.features,
        names=dataset.classes,
        cuda_graphs=bench.cuda_graphs,
    )
