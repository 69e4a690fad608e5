"""Where a report's numbers come from: its records, what made them, the data and the settings."""

from __future__ import annotations

import hashlib
import html
import json
import os
import platform
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..core.files import package_version, read_text
from ..core.paths import POCKET_MODEL, PROFILES
from ..data.manifest_files import load_manifest, manifest_names
from ..runs.experiment import RATES
from ..runs.grid import planned
from ..runs.profile import Profile
from ..runs.profile_files import profile_files
from ..runs.record import RunRecord
from ..runs.store import RunStore

PACKAGES = ("torch", "open_clip_torch", "numpy", "pandas", "papermill", "snakemake")

# key -> experiment -> (name, label) of each method of it that the run is of
_Names = Mapping[str, Mapping[str, Sequence[tuple[str, str | None]]]]


def record_data(
    profile: Profile, folder: Path, records: Sequence[RunRecord], rates: Path | None = None
) -> Markup:
    """Return all that the records say but their losses, as JSON: fields, pool, rows and titles.

    Each value stands once, in `pool`, and a row is of places in it: ten thousand records share
    most of theirs. titles: of sets. `experiments` of a record are the profile's that ask for it,
    with its method's names there. rates: the Parquet of those by which rates were chosen.
    """
    stores = [(RunStore(folder / "runs"), records)]
    if rates:
        stores.append((RunStore(rates), RunStore(rates).read()[0]))
    names = _names(profile)
    rows = [
        dict(_facts(record, names, store)) | {"file": _place(record, store, folder)}
        for store, mine in stores
        for record in mine
    ]
    fields = list(dict.fromkeys(name for row in rows for name in row))
    pool: dict[str, int] = {}
    places = [
        [pool.setdefault(json.dumps(row.get(name)), len(pool)) for name in fields] for row in rows
    ]
    sets = {name for record in records for name in (record.spec.dataset, *record.spec.evaluate_on)}
    told = {
        "titles": {name: load_manifest(name).title for name in sets & set(manifest_names())},
        "fields": fields,
        "pool": [json.loads(text) for text in pool],
        "rows": places,
    }
    return Markup(html.escape(json.dumps(told, separators=(",", ":")), quote=False))


def _place(record: RunRecord, store: RunStore, folder: Path) -> str:
    path = store.path(record.spec) if store.folder.is_dir() else store.file
    return Path(os.path.relpath(path, folder)).as_posix()


def _names(profile: Profile) -> _Names:
    found: dict[str, dict[str, list[tuple[str, str | None]]]] = defaultdict(dict)
    for experiment in (*profile.experiments, *([RATES] if profile.rates else [])):
        try:
            for entry, spec in planned(profile, experiment):
                found[spec.key].setdefault(experiment, []).append((entry.name, entry.label))
        except (OSError, ValueError):  # of sets that are not here no run is known
            continue
    return found


def _facts(record: RunRecord, names: _Names, store: RunStore) -> Iterator[tuple[str, Any]]:
    label = record.provenance.get("method_label", record.spec.method.name)
    asked = names.get(record.key, {}).items()
    yield "key", record.key
    yield "sha256", hashlib.sha256(store.text(record.key).encode()).hexdigest()
    yield "status", record.status
    yield "label", label
    yield "experiments", {e: [x for n, own in said for x in (n, own or label)] for e, said in asked}
    if record.result:
        counts = record.result.accuracy.items()
        yield "accuracy", {name: [count.correct, count.total] for name, count in counts}
        yield "trainable_parameters", record.result.trainable_parameters
        yield "draw_checksum", record.result.draw_checksum
    if record.error:
        yield "error", record.error.model_dump(mode="json")
    if record.cost:
        yield "seconds", round(sum(record.cost.seconds.values()), 2)
        yield "peak_memory_bytes", record.cost.peak_memory_bytes
    for part in ("spec", "provenance"):
        for name, value in record.model_dump(mode="json", include={part})[part].items():
            yield f"{part}.{name}", value
    yield "code", record.code
    yield "images", record.images


def makers(records: Sequence[RunRecord]) -> list[dict[str, str]]:
    """Return what made the runs, a row for each machine and state of the library: most runs first.

    No value: what the records do not say.
    """

    def row(said: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
        facts = {"Host": said.get("host"), "Device": said.get("device")}
        facts |= {"Instructions": said.get("instructions")}
        facts |= {"Threads": said.get("threads"), "Git revision": said.get("git_revision")}
        versions = said.get("versions")
        facts |= versions if isinstance(versions, dict) else {}
        return tuple((name, str(value or "–")) for name, value in facts.items())

    found = Counter(row(record.provenance) for record in records)
    names = dict.fromkeys(name for facts in found for name, _ in facts)
    rows = [(n, dict(facts)) for facts, n in found.most_common()]
    return [{"Runs": f"{n:,}"} | {k: facts.get(k, "–") for k in names} for n, facts in rows]


def provenance(
    profile: Profile, records: Sequence[RunRecord], folder: Path
) -> list[tuple[str, Any]]:
    """Return what the report as a whole rests on, by name."""
    checksums = sorted({r.spec.backbone.checksum for r in records} - {""})
    card = POCKET_MODEL / "README.md"
    backbone = (
        f"{profile.backbone.name} ({profile.backbone.pretrained}, {profile.backbone.precision})"
    )
    if profile.backbone.pretrained == "bundled" and card.is_file():
        backbone = Markup('{} (<a href="{}">model card</a>)').format(
            backbone, os.path.relpath(card, folder)
        )
    versions = [f"{package} {package_version(package, '–')}" for package in PACKAGES]
    return [
        ("Backbone", backbone),
        ("Weights (SHA-256)", ", ".join(checksums) or "–"),
        ("Versions of this report", ", ".join([f"python {platform.python_version()}", *versions])),
        ("Seeds", ", ".join(map(str, profile.seeds))),
        ("Shots", ", ".join(map(str, profile.shots))),
    ]


def manifests(profile: Profile) -> list[Any]:
    """Return the manifests of the profile's sets that are known here."""
    known = manifest_names()
    return [load_manifest(name) for name in (*profile.datasets, *profile.variants) if name in known]


def profile_yaml(profile: Profile) -> str:
    """Return the text of the profile's files; '' of one that stands elsewhere."""
    if not (PROFILES / f"{profile.name}.yaml").is_file():
        return ""
    return "\n".join(read_text(path) for path in profile_files(profile.name))
