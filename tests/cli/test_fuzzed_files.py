"""Files that were damaged at random, of every kind that is read: a sentence with the file's name.

Each is read in this process: nothing raises what the command line would not answer in a sentence,
takes over ten seconds of a core, or more than 500 MB. Bytes are changed, cut, doubled; and what a
file says is replaced by what nobody writes, with a new checksum where it has one.
"""

from __future__ import annotations

import bz2
import copy
import gzip
import io
import json
import lzma
import tarfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import TOYS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from one_run import make_record

from blocklora_lib.cli.exits import sentence
from blocklora_lib.core.files import printable
from blocklora_lib.core.json_data import parse_json
from blocklora_lib.core.machine import peak_memory, resident_memory, restart_peak
from blocklora_lib.core.paths import PROFILES
from blocklora_lib.data.draw import Draw, make_draw, rows_checksum
from blocklora_lib.data.draw_files import import_draw
from blocklora_lib.data.layouts import Item
from blocklora_lib.data.manifest_files import read_manifest
from blocklora_lib.data.obtain.archives import unpacked
from blocklora_lib.data.obtain.download import steps
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.sealed import seal
from blocklora_lib.runs.store import read_record
from blocklora_lib.suite.catalogue import PNG, read_indexes
from blocklora_lib.suite.report import write_report

SECONDS, BYTES = 10, 500e6
FEW, ALL = 20, 500  # files of a kind


class Kind(NamedTuple):
    """A kind of file: its name, a whole one, how it is read; facts: what it says, and its text."""

    name: str
    whole: bytes
    read: Callable[[Path], Any]
    facts: Any = None
    text: Callable[[Any], str] = json.dumps


# damage

DEEP: Any = []
for _ in range(400):
    DEEP = [DEEP]
ODD = [
    *(None, True, False, 0, -1, 2**31, 2**63, 10**30, 0.5, -0.5, 1e308, float("nan"), "", "\0"),
    *(
        "\x1b[2J",
        "../../x",
        "/etc/passwd",
        "a" * 5000,
        "{}",
        "{0.__class__}",
        "é\n\u2028",
        "\ud800",
    ),
    *([], {}, [[]], {"": None}, DEEP, "1" * 5000, 10**1000, [0] * 3000, "$\\text{<script>}$"),
]


def changed_bytes(whole: bytes) -> st.SearchStrategy[bytes]:
    edits = st.tuples(
        st.sampled_from(["set", "cut", "insert", "repeat", "end"]),
        st.integers(0, len(whole)),
        st.integers(1, 64),
        st.binary(min_size=1, max_size=8),
    )

    def edit(edits: list[tuple[str, int, int, bytes]]) -> bytes:
        content = whole
        for what, place, size, new in edits:
            head, tail = content[:place], content[place:]
            content = {
                "set": head + new + tail[len(new) :],
                "cut": head + tail[size:],
                "insert": head + new + tail,
                "repeat": head + tail[:size] * 3 + tail,
                "end": head if len(edits) == 1 else content,
            }[what]
        return content

    return st.lists(edits, min_size=1, max_size=5).map(edit)


def changed_facts(whole: Any) -> st.SearchStrategy[Any]:
    change = st.tuples(
        st.lists(st.integers(0, 30), min_size=1, max_size=6),
        st.sampled_from(["replace", "delete", "add", "double", "swap"]),
        st.sampled_from(ODD) | st.text(max_size=6) | st.integers(),
    )

    def apply(changes: list[tuple[list[int], str, Any]]) -> Any:
        facts = copy.deepcopy(whole)
        for way, what, value in changes:
            holder, keys = facts, None
            for step in way:
                inner = holder if keys is None else holder[keys]
                if not isinstance(inner, dict | list) or not inner:
                    break
                holder = inner
                keys = (
                    list(holder)[step % len(holder)]
                    if isinstance(holder, dict)
                    else (step % len(holder))
                )
            if keys is None or not isinstance(holder, dict | list):
                return value
            if what == "delete":
                del holder[keys]
            elif what == "add" and isinstance(holder, dict):
                holder[str(value)[:50]] = value
            elif what == "double" and isinstance(holder, list):
                holder.extend(copy.deepcopy(holder[:1]) * 3)
            elif what == "swap":
                holder[keys] = [holder[keys]] if isinstance(holder, dict) else {"a": holder[keys]}
            else:
                holder[keys] = value
        return facts

    return st.lists(change, min_size=1, max_size=3).map(apply)


def damaged(kind: Kind) -> st.SearchStrategy[bytes]:
    by_bytes = changed_bytes(kind.whole)
    if kind.facts is None:
        return by_bytes

    def written(facts: Any) -> bytes:
        return kind.text(facts).encode("utf-8", "surrogatepass")

    return st.one_of(by_bytes, *[changed_facts(kind.facts).map(written)] * 2)


# kinds


def items() -> dict[str, list[Item]]:
    return {
        split: [
            Item(f"images/{c}_{i}.jpg", label, c) for label, c in enumerate("ab") for i in range(4)
        ]
        for split in ("train", "val")
    }


def draw_kind() -> Kind:
    drawn = make_draw("toys", items(), 2, 1)

    def text(facts: Any) -> str:
        with suppress(TypeError, KeyError, ValueError):  # a right checksum, where there can be one
            facts = {**facts, "checksum": rows_checksum(facts["train"], facts["val"])}
        return json.dumps(facts)

    def read(path: Path) -> Draw:
        return import_draw(path, items(), "toys")

    whole = drawn.to_json()
    return Kind("shot_2-seed_1.json", whole.encode(), read, json.loads(whole), text)


def published_draw_kind() -> Kind:
    rows = [
        {"impath": i.path, "label": i.label, "classname": i.classname} for i in items()["train"]
    ]
    facts = {"train": {"data": rows}, "val": {"data": rows[:2], "indices": [0, 1]}}
    read = draw_kind().read
    return Kind("shot_4-seed_2.json", json.dumps(facts).encode(), read, facts)


def record_kind() -> Kind:
    record = make_record()
    facts = json.loads(record.to_json())
    del facts["checksum"]

    def text(changed: Any) -> str:
        return seal(changed) if isinstance(changed, dict) and changed else json.dumps(changed)

    def finite(changed: Any) -> str:
        try:
            return text(changed)
        except ValueError:  # a checksum is of a text, and NaN has none
            return json.dumps(changed)

    return Kind(f"{record.key}.json", record.to_json().encode(), read_record, facts, finite)


def manifest_kind() -> Kind:
    more = {
        "layout": "split_json",
        "images": {"train": ["images"], "test": ["images"]},
        "split_file": {"name": "split.json", "url": "https://a.example/s.json", "sha256": "0" * 64},
        "archives": [
            {"url": "https://a.example/a.tar", "md5": "0" * 32, "into": "images", "only": "x/y"},
            {"url": "http://b.example/a.tar", "mirror_of": 0, "name": "a.tar"},
        ],
        "steps": ["put it there"],
        "templates": {"clip_lora": TOYS["template"], "coop": "a {}."},
    }
    facts = TOYS | more

    def read(path: Path) -> None:
        manifest = read_manifest(path)
        steps(manifest, path.parent), manifest.prompts, manifest.alike, manifest.splits

    return Kind("toys.yaml", yaml.safe_dump(facts).encode(), read, facts)


def profile_kind() -> Kind:
    whole = (PROFILES / "smoke.yaml").read_text(encoding="utf-8")
    return Kind("mine.yaml", whole.encode(), load_profile, yaml.safe_load(whole))


def tar_bytes() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, size in (("images/a.jpg", 700), ("n" * 150, 3), ("é/" * 40 + "b", 10)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(range(256))[:1] * size))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "images/a.jpg"
        tar.addfile(link)
    return content.getvalue()[: 20 * 512]


def zip_bytes() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("images/", b"")
        file.writestr("images/a.jpg", bytes(3000))
        file.writestr("b", b"b")
    return content.getvalue()


def archive_kind(pack: Callable[[bytes], bytes], whole: bytes) -> Kind:
    def read(path: Path) -> None:
        path.write_bytes(pack(path.read_bytes()))
        with unpacked(path, path.parent):
            pass

    return Kind("a.archive", whole, read)


def index_kind() -> Kind:
    figure = {"name": "f", "caption": "$B_i$", "files": ["figures/f.png", "f.csv"], "width": 3.0}
    table = {"name": "t", "caption": "c", "files": ["t.csv"], "html": "<table><tr><td>1</table>"}
    judged = {"verdict": "confirmed", "evidence": "e $x_i$"}
    facts = {
        "notebook": "01_method",
        "profile": "smoke",
        "note": None,
        "figures": [figure],
        "tables": [table],
        "checks": [judged | {"id": "01.E1", "statement": "s"}],
        "claims": [judged | {"id": "C1", "claim": "c"}],
    }

    def read(path: Path) -> None:
        folder = path.parents[1]
        if read_indexes(folder):
            (folder / "figures").mkdir(exist_ok=True)
            (folder / "figures" / "f.png").write_bytes(PNG)
            write_report("smoke", folder)

    return Kind("notebooks/01_method.json", json.dumps(facts).encode(), read, facts)


def adapter_kind() -> Kind:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save
    from torch import nn

    from blocklora_lib.adapters.attach import AdapterSet, attach_linear
    from blocklora_lib.adapters.config import AdapterConfig

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))

    adapters = attach_linear(model(), ["0", "1"], AdapterConfig(rank=2), torch.Generator())
    tensors = {name: tensor.detach() for name, tensor in adapters.state_dict().items()}
    metadata = {
        "format": "blocklora-adapter",
        "format_version": "1",
        "config": json.loads(adapters.config.model_dump_json()),
        "sites": {"0": "linear", "1": "linear"},
        "extra": {"a": "b"},
    }

    def written(facts: Any) -> bytes:
        if not isinstance(facts, dict):
            return json.dumps(facts).encode()
        words = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
        return save(tensors, {key[:40]: value for key, value in words.items()})

    def read(path: Path) -> None:
        if path.read_bytes().startswith(b"\0facts"):
            facts = parse_json(path.read_bytes()[6:].decode("utf-8", "replace"), str(path))
            path.write_bytes(written(facts))
            with safe_open(path, framework="pt"):
                pass
        AdapterSet.load(path, model())

    def text(facts: Any) -> str:
        return "\0facts" + json.dumps(facts)

    return Kind("a.safetensors", written(metadata), read, metadata, text)


TAR, ZIP = tar_bytes(), zip_bytes()
KINDS: dict[str, Callable[[], Kind]] = {
    "draw": draw_kind,
    "published draw": published_draw_kind,
    "record": record_kind,
    "manifest": manifest_kind,
    "profile": profile_kind,
    "adapter": adapter_kind,
    "notebook index": index_kind,
    "archive: tar": lambda: archive_kind(bytes, TAR),
    "archive: what is in a tar.gz": lambda: archive_kind(gzip.compress, TAR),
    "archive: tar.gz": lambda: archive_kind(bytes, gzip.compress(TAR, mtime=0)),
    "archive: tar.bz2": lambda: archive_kind(bytes, bz2.compress(TAR)),
    "archive: tar.xz": lambda: archive_kind(bytes, lzma.compress(TAR)),
    "archive: zip": lambda: archive_kind(bytes, ZIP),
}


def fuzz(kind: Kind, files: int, folder: Path) -> None:
    """Read so many damaged files of a kind; AssertionError for whatever is no sentence in time."""
    path = folder / kind.name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(kind.whole)
    kind.read(path)  # what is whole is read

    @settings(
        max_examples=files,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(content=damaged(kind))
    def read_one(content: bytes) -> None:
        path.write_bytes(content)
        restart_peak()
        before, start = resident_memory(), time.process_time()
        try:
            kind.read(path)
        except (ValueError, OSError) as error:
            told = sentence(error)
            assert printable(told) == told
            assert path.name in told, told
        assert time.process_time() - start < SECONDS
        assert peak_memory() - before < BYTES

    read_one()


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_some_damaged_files_are_sentences(name, tmp_path):
    fuzz(KINDS[name](), FEW, tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("name", KINDS)
def test_many_damaged_files_are_sentences(name, tmp_path):
    fuzz(KINDS[name](), ALL, tmp_path)
