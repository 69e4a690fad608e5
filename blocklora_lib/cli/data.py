"""`blocklora data`: what is here, is it whole, fetch it, imitate it, draw from it. Thin."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.files import printable
from ..core.json_data import read_json
from ..core.paths import POCKET_MODEL
from ..core.schema import UnknownName
from ..data.class_names import class_name, renamed
from ..data.local import local_manifest
from ..data.manifest import SPLITS, Manifest
from ..data.manifest_files import all_manifests, load_manifest, manifest_names
from ..data.problems import DataError, MissingData, Problem
from ..data.roots import data_root, find_folder, is_fake
from .lines import say
from .options import RootOption, own_folder, path, refuse_beside

if TYPE_CHECKING:
    from ..data.layouts import Item

CONTEXT = 77  # tokens that OpenAI's CLIP, and most that followed it, read of a prompt

data_app = typer.Typer(help="Datasets on disk.", no_args_is_help=True)

DatasetArgument = Annotated[str, typer.Argument(help="Name, or a folder of your own images.")]


@data_app.command("list")
def list_(
    datasets: Annotated[list[str] | None, typer.Argument(help="Names [all].")] = None,
    root: RootOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="All facts, as JSON.")] = False,
) -> None:
    """What is here, what is missing, sizes and terms."""
    from .data_facts import facts_of, row

    here = data_root(root)
    chosen = [load_manifest(name) for name in datasets or []] or all_manifests().values()
    rows = [facts_of(manifest, here) for manifest in chosen]
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    heads = ("dataset", "state", "classes", *SPLITS, "download", "licence")
    table = [heads, *(row(facts) for facts in rows if facts["kind"] == "external")]
    widths = [max(len(line[i]) for line in table) for i in range(len(heads) - 1)]
    for line in table:
        cells = [c.ljust(w) for c, w in zip(line, widths, strict=False)]
        say("  ".join([*cells, line[-1]]).rstrip())
    shipped = ", ".join(facts["name"] for facts in rows if facts["kind"] == "bundle")
    say(f"\nroot: {here}; ~ marks a count or size that no source states in full; terms: --json")
    if shipped:
        say(f"shipped with the project: {shipped}")
    for facts in rows:
        if facts["problem"]:
            say(f"{facts['name']}: {facts['problem']}")


@data_app.command()
def verify(
    datasets: Annotated[list[str] | None, typer.Argument(help="Names [all that are here].")] = None,
    root: RootOption = None,
    decode: Annotated[str, typer.Option(help="Images to decode: sample, all or none.")] = "sample",
) -> None:
    """Check counts, checksums and images; change nothing. Exit code 1 if something is wrong."""
    if decode not in (choices := ("sample", "all", "none")):
        raise UnknownName("choice of --decode", decode, choices)
    here = data_root(root)
    names = datasets or _present(here)
    if not names:
        raise FileNotFoundError(
            f"no dataset in {here}; get one with: blocklora data download NAME --root {here}, "
            f"or a miniature with: blocklora data fake NAME --root {here}"
        )
    wrong = 0
    for name in names:
        problems, notes, kind = _problems(name, here, decode)
        for problem in problems:
            say(f"{printable(name)}: {problem}")
        for note in notes:
            say(f"{printable(name)}: note: {note}")
        wrong += bool(problems)
        if not problems:
            fine = "the images that it reads are whole; see the notes" if notes else "nothing wrong"
            say(f"{printable(name)}: {fine}{kind}")
    if wrong:
        if len(names) > 1:
            say(f"{wrong} of {len(names)} datasets have problems", err=True)
        raise typer.Exit(1)


@data_app.command("download")
def download_(
    dataset: Annotated[str, typer.Argument(help="Name.")],
    root: RootOption = None,
    keep: Annotated[bool, typer.Option("--keep-archives", help="Keep what was unpacked.")] = False,
) -> None:
    """Fetch and unpack; where that is not allowed or not possible, print the steps: exit code 1."""
    from ..data.obtain.download import dataset_folder, download

    here = data_root(root)
    manifest = load_manifest(dataset)
    todo = download(manifest, here, say, keep)
    if todo:
        say(f"{manifest.title} needs {len(todo)} steps by hand:")
        for number, step in enumerate(todo, 1):
            say(f"{number}. {step}")
        raise typer.Exit(1)
    say(f"{dataset_folder(manifest, here)} is ready; check it with: {_verify(dataset, here)}")


@data_app.command()
def fake(
    dataset: Annotated[str, typer.Argument(help="Name, or all.")],
    root: Annotated[Path, typer.Option(parser=path, help="Folder for the miniatures.")],
    convention: Annotated[str, typer.Option(help="Folder names: coop or clip_lora.")] = "coop",
    classes: Annotated[
        int | None, typer.Option(help="Only the first so many classes [all].")
    ] = None,
    images: Annotated[int, typer.Option(help="Images a class and split.")] = 2,
) -> None:
    """Write a miniature of a dataset, exact in format: tiny images, true names."""
    from ..data.obtain.miniature import make_fake

    if convention not in (choices := ("coop", "clip_lora")):
        raise UnknownName("convention", convention, choices)
    if dataset == "all":  # CLIP-LoRA has its own names for some sets only
        external = [m for m in all_manifests().values() if m.kind == "external"]
        chosen = [manifest for manifest in external if convention in manifest.folders]
    else:
        chosen = [load_manifest(dataset)]
    if chosen[0].kind == "bundle":
        raise ValueError(f"{dataset} ships with the project; a miniature is of a set that does not")
    names: Any = convention  # one of the two
    for manifest in chosen:
        say(make_fake(manifest, root, names, images, classes))


@data_app.command()
def draw(
    ctx: typer.Context,
    dataset: DatasetArgument,
    root: RootOption = None,
    shots: Annotated[int, typer.Option(help="Images a class.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed.", min=0)] = 1,
    how: Annotated[str, typer.Option("--draw", help="coop, clip_lora or nested.")] = "coop",
    split_file: Annotated[
        Path | None, typer.Option(parser=path, help="Split file [the set's own].")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(parser=path, help="Write here, not to the screen.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(parser=path, help="Hold this draw's file against the split.")
    ] = None,
) -> None:
    """Print a few-shot draw as JSON; it needs the split file, no images."""
    from ..data.draw import make_draw
    from ..data.draw_files import export_draw, import_draw

    if check is not None:
        refuse_beside(ctx, "--check", "dataset", "root", "split_file")
    name, split = _split(dataset, data_root(root), split_file)
    if check is not None:
        given = import_draw(check, split, name)
        say(
            f"{check}: {len(given.train)} train and {len(given.val)} val images, all in the split; "
            f"checksum {given.checksum}"
        )
        return
    drawn = make_draw(name, split, shots, seed, how)
    if output is None:
        typer.echo(drawn.to_json(), nl=False)
        return
    export_draw(drawn, output)
    say(
        f"{output}: {len(drawn.train)} train and {len(drawn.val)} val images; "
        f"checksum {drawn.checksum}"
    )


def _locate(dataset: str, root: Path) -> tuple[Manifest, Path]:
    """(manifest, folder) of a named set, or of one's own images: a path with a /, or a folder."""
    folder = own_folder(dataset, manifest_names())
    if folder is None:
        manifest = local_manifest(dataset, root=root)
        return manifest, manifest.path if manifest.kind == "bundle" else find_folder(manifest, root)
    from ..data.user_dataset import own_manifest

    folder = folder.resolve()
    return own_manifest(folder), folder


def _split(dataset: str, root: Path, split_file: Path | None) -> tuple[str, dict[str, list[Item]]]:
    """(name, train and val items). A given split file is enough: the folder may be missing."""
    from ..data.draw import split_items

    if split_file is not None and own_folder(dataset, manifest_names()) is None:
        manifest, folder = load_manifest(dataset), split_file.parent
    else:
        manifest, folder = _locate(dataset, root)
    if manifest.kind == "bundle" and split_file is None:
        from ..data.dataset import Dataset

        return manifest.name, Dataset(manifest).listing
    return manifest.name, split_items(manifest, folder, split_file)


def _present(root: Path) -> list[str]:
    """Names of the sets of which there is a folder under `root`, damaged or not."""
    found = []
    for name, manifest in all_manifests().items():
        try:
            if manifest.kind == "external" and find_folder(manifest, root):
                found.append(name)
        except MissingData:
            continue
        except DataError:
            found.append(name)
    return found


def _problems(dataset: str, root: Path, decode: Any) -> tuple[list[Problem], list[str], str]:
    """(what is wrong, what one should know, what to add where nothing is wrong)."""
    from ..data.obtain.verify import notes
    from ..data.obtain.verify import verify as verify_folder

    try:
        manifest, folder = _locate(dataset, root)
        if manifest.kind == "bundle":
            return _bundle_problems(manifest), notes(manifest, folder), ""
        kind = " (a miniature)" if is_fake(folder) else ""
        wrong, told = _too_long(manifest, folder) if manifest.layout == "folder" else ([], [])
        return verify_folder(manifest, folder, decode) + wrong, notes(manifest, folder) + told, kind
    except DataError as error:
        return [error.problem], [], ""


def _too_long(manifest: Manifest, folder: Path) -> tuple[list[Problem], list[str]]:
    """(problems, notes) of one's own class names whose prompts (Pocket)CLIP does not read whole."""
    from ..data.user_images import some

    least = read_json(POCKET_MODEL / "pocketclip.json")["text_cfg"]["context_length"]
    wrong, told, tokenizer = [], [], None
    for name, prompt in zip(manifest.class_folders, manifest.prompts, strict=True):
        # a token is a byte at least, and two stand around them
        if len(prompt.encode()) + 2 <= least:
            continue
        from ..clip.tokenizers import load_tokenizer, prompt_length  # imports torch

        tokenizer = tokenizer or load_tokenizer("ViT-B-16")
        if (length := prompt_length(tokenizer, prompt)) > CONTEXT:
            places = dict.fromkeys(paths[0] for paths in manifest.images.values())
            short = class_name(name)[:40].rpartition(" ")[0] or name[:40]
            what = (
                f"gives a prompt of {length} tokens, "
                f"and CLIP reads {CONTEXT}: shorten the class's name"
            )
            first = next(place for place in places if (folder / place / name).is_dir())
            wrong.append(
                Problem(str(folder / first / name), what, renamed(folder, places, name, short))
            )
        elif length > least:
            told.append(name)
    one, many = "class name is", "class names are"
    few = (
        "too long for PocketCLIP, of the pocket profiles, "
        f"which reads {least} tokens; CLIP reads {CONTEXT}"
    )
    return wrong, [some(told, f"{one} {few}", f"{many} {few}")] if told else []


def _bundle_problems(manifest: Manifest) -> list[Problem]:
    if not manifest.path.is_file():
        return [Problem(str(manifest.path), "is missing", f"git restore {manifest.file}")]
    if hashlib.sha256(manifest.path.read_bytes()).hexdigest() != manifest.sha256:
        return [
            Problem(str(manifest.path), "is damaged: wrong SHA-256", f"git restore {manifest.file}")
        ]
    return []


def _verify(dataset: str, root: Path) -> str:
    return f"blocklora data verify {dataset} --root {root}"
