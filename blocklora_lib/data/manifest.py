"""Data manifests: one YAML file a dataset, with facts, licence, classes, template, checksums."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, NonNegativeInt, model_validator

from ..core.paths import ROOT
from ..core.schema import Strict, UnknownName
from .plain_paths import RelativePath, RelativePaths, is_plain
from .sources import Archive, Source, SplitFile

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Layout = Literal["split_json", "variant_lists", "class_folders", "mat", "folder"]
Convention = Literal["coop", "clip_lora"]
LIST = "blocklora data list"  # the command that reads all manifests


def _template(text: str) -> str:
    """Refuse a prompt in which a class name has not exactly one place, a plain one."""
    try:
        places = [place[1:] for place in Formatter().parse(text) if place[1] is not None]
    except ValueError:  # a lone brace
        places = []
    if places != [("", "", None)]:
        raise ValueError(
            f"template={text!r} must contain {{}} once, where the class name goes, and no other {{"
        )
    return text


Template = Annotated[str, AfterValidator(_template)]


class Templates(Strict):
    """Prompts of the two protocols, {} once each."""

    clip_lora: Template
    coop: Template


class Alternative(Strict):
    """Another way to read the set, with its own counts: official annotations for a split file."""

    layout: Layout
    annotations: dict[str, RelativePath] = Field({})
    images: dict[Split, RelativePaths]
    counts: dict[Split, int]


class Manifest(Strict):
    """A dataset.

    role 'task': it is of another task than classification. kind 'bundle': what it `holds` is in one
    Parquet file of the repository, `file`, with checksum `sha256`; 'external': a set that the
    project does not ship. `layout` says how its folder is read, `folders` what the folder is
    called, `images` where each split's images lie (the first that exists is used), `class_folders`
    the folder (or file prefix) of each class, `split_names` the class names as the split file
    spells them, where they differ. `class_indices`: a variant's classes among those of
    `variant_of`. `counts` are stated by a source, `counts_unverified` are not, and are never held
    against a set on disk. `fact_sources` says where each fact was read; `class_count` is of a set
    without names.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str
    role: Literal["source", "variant", "target", "task"]
    kind: Literal["bundle", "external"]
    file: str = ""  # relative to the repository root
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    holds: Literal["images", "texts"] = "images"
    classes: tuple[str, ...] = ()
    class_count: int | None = Field(None, ge=2)
    template: Template
    counts: dict[Split, int]
    licence: str
    sources: tuple[Source, ...] = Field(min_length=1)
    notes: str = ""
    variant_of: str | None = None
    # external sets
    layout: Layout | None = None
    folders: dict[Convention, RelativePath] = Field({})
    images: dict[Split, RelativePaths] = Field({})
    split_file: SplitFile | None = None
    annotations: dict[str, RelativePath] = Field({})
    alternatives: tuple[Alternative, ...] = ()
    class_folders: tuple[RelativePath, ...] = ()
    split_names: tuple[str, ...] = ()
    class_indices: tuple[NonNegativeInt, ...] = ()
    counts_unverified: dict[Split, int] = Field({})
    templates: Templates | None = None
    archives: tuple[Archive, ...] = ()
    steps: tuple[str, ...] = ()
    terms: str = ""
    citation: str = ""
    fact_sources: dict[str, str] = Field({})
    # as in the real archives; `data fake` names its images so
    image_names: dict[Split, RelativePath] = Field({})
    companions: tuple[RelativePath, ...] = ()  # files that CoOp's own code asks for, ours not
    split_seed: int | None = None  # layout folder without train/ and test/: the seed of the split
    # how files become pixels: see data.decoding
    image_loading: Literal["as_clip", "upright"] = "as_clip"

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        # ImageNet has two classes named 'missile' and two named 'sunglasses'; their folders differ
        for key in ("class_folders",) if self.class_folders else ("classes",):
            names = getattr(self, key)
            if len(set(names)) != len(names):
                twice = sorted({c for c in names if names.count(c) > 1})
                raise ValueError(
                    f"{key} lists {', '.join(map(repr, twice))} more than once; "
                    "class names are unique"
                )
        if (self.role == "variant") != (self.variant_of is not None):
            raise ValueError(
                f"role={self.role!r} with variant_of={self.variant_of!r}: a variant, "
                "and only a variant, names the source set whose classes it shares"
            )
        if self.class_count is not None and self.classes:
            raise ValueError(
                "give classes or class_count, not both: the number follows from the names"
            )
        if self.num_classes < 2:
            raise ValueError(f"{self.num_classes} classes; list at least two under classes")
        if self.kind == "external":
            self._check_external()
            return self
        if not (self.file and self.sha256 and self.classes):
            raise ValueError("a bundle needs file, sha256 and classes; or say kind: external")
        if self.counts.get("test", 0) < 1:
            raise ValueError("counts must give at least one test image")
        if self.role in ("source", "target") and self.counts.get("train", 0) < 1:
            raise ValueError(
                f"counts must give train images for a {self.role} set; only variants are test-only"
            )
        return self

    def _check_external(self) -> None:
        if self.holds == "texts":
            raise ValueError("holds: texts is of bundles alone; an external set has images")
        for key in ("class_folders", "split_names", "class_indices"):
            if (given := len(getattr(self, key))) not in (0, len(self.classes)):
                raise ValueError(
                    f"{key} has {given} entries for {len(self.classes)} classes; give one each"
                )
        if self.class_indices and not self.variant_of:
            raise ValueError(
                "class_indices without variant_of: name the set whose classes they count"
            )
        if self.templates and self.template != self.templates.clip_lora:
            raise ValueError(
                f"template={self.template!r} must be templates.clip_lora, the protocol's own"
            )
        if both := ", ".join(sorted(self.counts.keys() & self.counts_unverified)):
            raise ValueError(f"counts and counts_unverified both give {both}; keep the sourced one")
        always = ("classes", "folders", "images")
        needs = {
            None: (),
            "split_json": (*always, "split_file"),
            "class_folders": (*always, "class_folders"),
            "folder": ("classes", "images", "class_folders"),
        }.get(self.layout, (*always, "annotations"))
        if missing := [key for key in needs if not getattr(self, key)]:
            raise ValueError(f"layout {self.layout} needs {', '.join(missing)}")
        readings: tuple[Manifest | Alternative, ...] = (self, *self.alternatives)
        for read in readings:
            lists = {"classes", *read.images} if read.layout == "variant_lists" else {*read.images}
            pair = read.layout == "mat" and {"labels", "splits"} <= {*read.annotations}
            if read.layout in ("variant_lists", "mat") and not (
                pair or lists <= {*read.annotations}
            ):
                raise ValueError(
                    f"layout {read.layout} needs annotations {', '.join(sorted(lists))}"
                )
        self._check_files()
        kept: dict[str, int] = {}
        for number, archive in enumerate(self.archives):
            first = number if archive.mirror_of is None else archive.mirror_of
            if first >= len(self.archives):
                raise ValueError(
                    f"mirror_of: {first}, but there are {len(self.archives)} archives, from 0"
                )
            if kept.setdefault(archive.file_name, first) != first:
                raise ValueError(
                    f"archives {kept[archive.file_name]} and {first} are both kept as "
                    f"{archive.file_name!r}; give one of them a name"
                )
        if unknown := ", ".join(sorted(set(self.fact_sources) - set(type(self).model_fields))):
            raise ValueError(f"fact_sources names {unknown}, which are no facts of a manifest")

    def _check_files(self) -> None:
        """ValueError where what is fetched would replace a folder, or land in the root or another's
        folder below it.
        """
        if self.layout == "folder" and not (self.archives or self.split_file):
            return  # nothing is: one's own images may lie in a hidden folder
        for convention, folder in self.folders.items():
            if not is_plain(folder):
                raise ValueError(
                    f"folders.{convention}: {folder!r} must be the plain name of a folder: no /, "
                    "no leading dot"
                )
        readings: tuple[Manifest | Alternative, ...] = (self, *self.alternatives)
        images = {place for read in readings for places in read.images.values() for place in places}
        paths = map(PurePosixPath, images)
        folders = {".", *(str(place) for path in paths for place in (path, *path.parents))}
        files = {f"archives.{i}": a.plain_file for i, a in enumerate(self.archives) if not a.unpack}
        if self.split_file:
            files["split_file.name"] = self.split_file.name
        for key, name in files.items():
            if name in folders:
                raise ValueError(
                    f"{key}: {name!r} is a folder of the set's images; give the file another name"
                )

    @property
    def num_classes(self) -> int:
        """Number of classes, named here or only counted."""
        return len(self.classes) or self.class_count or 0

    @property
    def path(self) -> Path:
        """The bundle's place on disk."""
        return ROOT / self.file

    @property
    def prompts(self) -> tuple[str, ...]:
        """One prompt a class, in class order."""
        return tuple(self.template.format(name) for name in self.classes)

    @property
    def alike(self) -> tuple[tuple[str, ...], ...]:
        """Classes of one name, capitals aside: one prompt for all, of which one is predicted."""
        groups: dict[str, list[str]] = {}
        for name in self.classes:
            groups.setdefault(" ".join(name.lower().split()), []).append(name)
        return tuple(tuple(names) for names in groups.values() if len(names) > 1)

    @property
    def splits(self) -> tuple[Split, ...]:
        """Splits that the set has, of train, val and test."""
        return tuple(s for s in SPLITS if s in (self.images or self.counts))

    def varies(self, source: Manifest) -> bool:
        """Whether this is a variant of `source` with its classes, or those of class_indices."""
        index = self.class_indices or range(len(source.classes))
        shared = tuple(source.classes[i] for i in index if i < len(source.classes))
        return self.variant_of == source.name and self.classes == shared

    def in_layout(self, layout: str) -> Manifest:
        """Return the manifest as read by one of its alternatives: other files, other counts."""
        if layout == self.layout:
            return self
        for other in self.alternatives:
            if other.layout == layout:
                changes = dict(other) | {
                    "counts_unverified": {},
                    "split_file": None,
                    "alternatives": (),
                }
                return self.model_copy(update=changes)
        known = [str(self.layout), *(a.layout for a in self.alternatives)]
        raise UnknownName(f"layout of {self.name}", layout, known)
