"""LoRA by the `peft` library in a plain loop, as a user would write it. Prints one line of JSON.

The same images, steps, batches, augmentation and optimizer as a run of a profile, and the same
evaluation. Data, draw and augmentation are the library's, so that both see the same; the model, the
adapters and the loop are open_clip's, peft's and torch's own. All prompts are encoded at every
step, over the whole context.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
import torch.nn.functional as F

from blocklora_lib.clip.backbone import load_backbone
from blocklora_lib.core.devices import resolve_device
from blocklora_lib.data.augment import augment
from blocklora_lib.data.dataset import Dataset, load_dataset
from blocklora_lib.data.sampling import draw
from blocklora_lib.measure.other_code.peft_lora import cosines, with_peft
from blocklora_lib.runs.grid import make_spec
from blocklora_lib.runs.profile_files import load_profile


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="pocket")
    parser.add_argument("--dataset", default="fashion")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or auto")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    device = resolve_device(given.device)
    torch.manual_seed(given.seed)
    random = torch.Generator().manual_seed(given.seed)
    profile = load_profile(given.profile)

    # data and model
    dataset, backbone = load_dataset(given.dataset), load_backbone(profile.backbone, device)
    spec = make_spec(profile, given.dataset, "lora", given.shots, given.seed)
    training = spec.training
    evaluated = [
        dataset if name == dataset.name else load_dataset(name) for name in spec.evaluate_on
    ]
    train_labels = dataset.labels("train")
    val = dataset.labels("val") if dataset.manifest.counts.get("val") else ()
    index = draw(train_labels, given.shots, given.seed, profile.draw, dataset.classes, val)
    images, labels = backbone.resize(dataset.images("train")[index]), train_labels[index].to(device)
    tokens, scale = backbone.tokenize(dataset.prompts), backbone.logit_scale
    model = with_peft(backbone.model, given.rank, given.dropout)

    # training
    start = time.perf_counter()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, training.lr, betas=training.betas, weight_decay=training.weight_decay
    )
    steps = training.steps(given.shots)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=training.lr_min)
    model.train()
    taken = 0
    while taken < steps:
        for batch in torch.randperm(len(images), generator=random).split(training.batch_size):
            if taken == steps:
                break
            views = backbone.normalise(augment(images[batch], training.augment, random))
            loss = F.cross_entropy(scale * cosines(model, views, tokens), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            taken += 1

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    train_seconds = time.perf_counter() - start

    # evaluation: adapters merged, prompts encoded once; on the sets of a run, and on what it
    # trained on
    model = model.merge_and_unload().eval()
    with torch.inference_mode():

        def accuracy(shown: Dataset, pixels: torch.Tensor, truth: torch.Tensor) -> float:
            classes = F.normalize(model.encode_text(backbone.tokenize(shown.prompts)), dim=-1)
            correct = 0
            for part, answers in zip(pixels.split(100), truth.split(100), strict=True):
                features = F.normalize(model.encode_image(backbone.preprocess(part)), dim=-1)
                correct += int(((features @ classes.T).argmax(-1) == answers.to(device)).sum())
            return correct / len(truth)

        found = {
            "accuracy": {
                s.name: accuracy(s, s.images("test"), s.labels("test")) for s in evaluated
            },
            "train_accuracy": accuracy(dataset, images, labels),
            "steps": taken,
            "train_seconds": train_seconds,
            "trainable_parameters": sum(p.numel() for p in parameters),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, RuntimeError, OSError) as error:  # not by `run`, whose imports take time
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
