"""Hold a family against chance, the majority class and a pixel probe on every pocket set; write
its card.

    python tools/pocket/evaluate.py CACHE [FAMILY]     pocket/model/NAME.md and NAME_evaluation.json

PocketCLIP's, the default, are README.md and evaluation.json.

Probes are logistic regressions on 16 images a class, the strength of their penalty chosen by
cross-validation on those images, mean of three draws: one on the family's frozen image features,
one on 16 x 16 pixels and a colour histogram (what a model must beat to be worth its name). A
variant is tested with the source set's probes.
"""

from __future__ import annotations

import functools
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from blocklora_lib.clip.backbone import load_backbone  # noqa: E402
from blocklora_lib.data.dataset import load_dataset  # noqa: E402
from blocklora_lib.data.manifest_files import all_manifests  # noqa: E402
from blocklora_lib.data.sampling import draw  # noqa: E402
from blocklora_lib.weights.spec import BUNDLED, BackboneSpec  # noqa: E402

SHOTS, SEEDS = 16, (1, 2, 3)
COLUMNS = (
    "classes",
    "test",
    "chance",
    "majority",
    "zero_shot",
    "pixel_probe",
    "linear_probe",
)  # of the card


def pixel_features(images: torch.Tensor) -> np.ndarray:
    """(N, 3, 64, 64) uint8 -> 16 x 16 pixels and the square root of a 64-bin colour histogram, (N,
    832).
    """
    small = torch.nn.functional.avg_pool2d(images.float() / 255, 4).flatten(1).numpy()
    bins = (images // 64).long()
    bins = (bins[:, 0] * 16 + bins[:, 1] * 4 + bins[:, 2]).flatten(1)
    histogram = (
        torch.stack([torch.bincount(row, minlength=64) for row in bins]).float() / bins.shape[1]
    )
    return np.concatenate([(small - 0.5) * 0.25, histogram.sqrt().numpy()], 1)


def probe(train: np.ndarray, labels: np.ndarray) -> GridSearchCV:
    """Logistic regression with its penalty chosen by three-fold cross-validation on the sixteen
    shots.
    """
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=100, tol=1e-3))
    grid = {"logisticregression__C": [1e-3, 1e-2, 1e-1]}
    return GridSearchCV(pipeline, grid, cv=3).fit(train, labels)


def evaluate(family: str) -> dict[str, dict]:
    """Accuracies in percent for every bundled set of classification."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    backbone = load_backbone(BackboneSpec(name=family, pretrained="bundled"), "cpu")

    @torch.inference_mode()
    def features(images: torch.Tensor) -> np.ndarray:
        parts = [backbone.encode_images(backbone.preprocess(part)) for part in images.split(256)]
        return torch.cat(parts).numpy()

    describe = {"pixel_probe": pixel_features, "linear_probe": features}

    @functools.cache
    def probes(home: str, key: str) -> list[GridSearchCV]:
        """One probe a draw, trained on the set itself (for a variant, on its source set)."""
        data = load_dataset(home)
        draws = [draw(data.labels("train"), SHOTS, seed, "nested") for seed in SEEDS]
        return [
            probe(describe[key](data.images("train")[i]), data.labels("train")[i].numpy())
            for i in draws
        ]

    result = {}
    bundles = {name: m for name, m in all_manifests().items() if m.kind == "bundle"}
    manifests = {name: m for name, m in bundles.items() if m.role != "task"}
    for name, manifest in tqdm(manifests.items(), desc="sets"):
        data = load_dataset(name)
        test, labels = data.images("test"), data.labels("test").numpy()
        with torch.inference_mode():
            classes = backbone.encode_prompts(backbone.tokenize(data.prompts)).numpy()
        row = dict(
            chance=1 / len(data.classes),
            majority=np.bincount(labels).max() / len(labels),
            zero_shot=((features(test) @ classes.T).argmax(1) == labels).mean(),
        )
        for key in describe:
            seen = describe[key](test)
            fitted = probes(manifest.variant_of or name, key)
            row[key] = np.mean([model.score(seen, labels) for model in fitted])
        row = {key: round(100 * float(value), 1) for key, value in row.items()}
        result[name] = dict(classes=len(data.classes), test=len(labels), **row)
        print(name, result[name], flush=True)
    return result


def curve(cache: Path, family: str, stage: str) -> dict:
    """What a training curve ends with; nothing was trained where there is none."""
    path = cache / "train" / family / f"{stage}.jsonl"
    if not path.exists():
        return dict(seen=0, hours=0.0)
    last = json.loads(path.read_text().splitlines()[-1])
    return dict(seen=last["seen"], hours=round(last["seconds"] / 3600, 2))


def main(cache: Path, family: str = "PocketCLIP") -> None:
    """Evaluate, and write the numbers and the card."""
    sets, stem = evaluate(family), BUNDLED[family]
    corpus = json.loads((cache / "corpus" / "summary.json").read_text())
    folder = ROOT / "pocket" / "model"
    text, image = (curve(cache, family, stage) for stage in ("text", "image"))
    facts = dict(sets=sets, corpus=corpus, text=text, image=image)
    first = family == "PocketCLIP"
    numbers, page = ("evaluation.json", "README.md") if first else (f"{stem}_evaluation.json", "")
    (folder / numbers).write_text(json.dumps(facts, indent=1) + "\n")
    titles = {name: m.title for name, m in all_manifests().items()}
    rows = [[titles[name], *(row[column] for column in COLUMNS)] for name, row in sets.items()]
    card = (Path(__file__).parent / "cards" / f"{family}.md").read_text()
    card = card.format(
        table="\n".join(f"| {' | '.join(map(str, row))} |" for row in rows),
        kept=f"{corpus['kept']:,}",
        close=corpus["close"],
        sources=", ".join(f"{name} {count:,}" for name, count in corpus["sources"].items()),
        texts=f"{facts['text']['seen']:,}",
        text_hours=facts["text"]["hours"],
        images=f"{facts['image']['seen']:,}",
        image_hours=facts["image"]["hours"],
    )
    (folder / (page or f"{stem}.md")).write_text(card)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(Path(sys.argv[1]), *sys.argv[2:])
