"""What a grid will cost before it runs: work and memory by the cost model, hours at an assumed
rate. No torch.

Counted are training steps and the images that are evaluated, in the products that torch's FLOP
counter counts. The rate at which a machine does them is the reader's assumption.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..adapters.config import AdapterConfig
from ..clip.architectures import ClipArchitecture, clip_architecture
from ..core.paths import MANIFESTS
from ..costs.memory import step_memory, total_bytes
from ..costs.step import frozen_work, step_work, total_work
from ..costs.ways import StepWay
from ..data.local import local_manifest
from ..data.manifest import Manifest, Split
from ..weights.spec import BackboneSpec
from .spec import RunSpec

PROMPT_TOKENS = 10  # of a prompt: start, 'a photo of a', a name of 2 or 3 tokens, full stop, end


@dataclass(frozen=True)
class Estimate:
    """runs; steps of training; floating-point operations (two a multiply-add); bytes of the largest
    step.
    """

    runs: int
    steps: int
    flops: float
    peak_bytes: int

    def hours(self, tflops: float) -> float:
        """Hours on one device that does `tflops` 10^12 operations a second, sustained."""
        if tflops <= 0:
            raise ValueError(
                f"tflops={tflops} must be positive: the rate that your device sustains, such as 20"
            )
        return self.flops / (tflops * 1e12) / 3600


def estimate(specs: Iterable[RunSpec], manifests: Path = MANIFESTS) -> Estimate:
    """Add up the runs. A method without adapters costs its evaluation only; so does what is not
    modelled.
    """
    runs, steps, work, peak = 0, 0, 0, 0
    sets = cache(lambda name: local_manifest(name, manifests))
    evaluation = cache(
        lambda backbone, name, split: _evaluation(clip_architecture(backbone), sets(name), split)
    )
    for spec in specs:
        runs += 1
        work += sum(evaluation(spec.backbone.name, name, spec.split) for name in spec.evaluate_on)
        settings = spec.method.load().settings
        if spec.training is not None and isinstance(settings, AdapterConfig):
            classes, taken = sets(spec.dataset).num_classes, spec.training.steps(spec.shots)
            batch = min(spec.training.batch_size, spec.shots * classes)
            step, memory = _step(spec.backbone, settings, batch, classes)
            steps, work, peak = steps + taken, work + taken * step, max(peak, memory)
    return Estimate(runs, steps, 2.0 * work, peak)


@cache  # runs of a grid differ in seeds and sets more than in their steps
def _step(
    backbone: BackboneSpec, config: AdapterConfig, batch: int, classes: int
) -> tuple[int, int]:
    architecture = clip_architecture(backbone.name)
    tokens = min(PROMPT_TOKENS, architecture.text.tokens)
    step = total_work(step_work(architecture, config, batch, classes, tokens))
    way = StepWay(precision=backbone.precision)
    memory = total_bytes(step_memory(architecture, config, batch, classes, classes * tokens, way))
    return step.forward + step.backward, memory


def _evaluation(architecture: ClipArchitecture, manifest: Manifest, split: Split) -> int:
    images = manifest.counts.get(split) or manifest.counts_unverified.get(split, 0)
    plain = AdapterConfig(kind="lora")  # merged: the frozen towers, forward
    return frozen_work(architecture.vision, plain, images).forward if images else 0
