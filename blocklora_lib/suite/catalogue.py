"""The notebooks that there are: names, headings, needs, and the indexes of what they exported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..claims.verdict import BASES, stem
from ..core.files import holds_none, remove
from ..core.json_data import read_json, read_notebook, undamaged
from ..core.paths import NOTEBOOKS, bundled
from ..core.schema import UnknownName, explain, near
from ..data.plain_paths import RelativePath
from ..runs.packed import SUFFIX

PNG = b"\x89PNG\r\n\x1a\n"  # how every such file begins
FIELDS = ("Question", "Reproduces", "Runtime", "Needs")  # what every notebook's title cell states


def read_indexes(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the finished notebooks' exports, checks and verdicts, by notebook."""
    return {
        path.stem: _read_index(path) for path in sorted((folder / "notebooks").glob("[!.]*.json"))
    }


def _own_file(path: str) -> str:
    """Refuse what is no plain relative path: a page links to it, and shows it."""
    if ":" in path:
        raise ValueError(f"{path!r} is an address")
    return path


OwnFile = Annotated[RelativePath, AfterValidator(_own_file)]


class _Read(BaseModel):
    model_config = ConfigDict(strict=True)


class _Export(_Read):
    name: str
    caption: str
    files: list[OwnFile]
    experiments: list[str] = []  # whose records the notebook had read when it made this


class _Table(_Export):
    html: str
    note: str | None = None


class _Figure(_Export):
    width: float = Field(gt=0, le=100, allow_inf_nan=False)  # inches


class _Judged(_Read):
    id: str
    evidence: str
    verdict: str


class _Check(_Judged):
    statement: str


class _Claim(_Judged):
    claim: str


class _Index(_Read):
    figures: list[_Figure]
    tables: list[_Table]
    checks: list[_Check]
    claims: list[_Claim]


def _read_index(path: Path) -> dict[str, Any]:
    with undamaged(str(path), f"delete it, and execute notebook {path.stem} again"):
        index: dict[str, Any] = read_json(path)
        try:
            read = _Index.model_validate(index)
        except ValidationError as error:
            raise ValueError(explain(error)) from None
        for figure in read.figures:
            if not any(file.endswith(".png") for file in figure.files):
                raise ValueError(f"figure {figure.name} has no PNG")
        for judged in (*read.checks, *read.claims):
            stem(judged.verdict)
    return index


def inside(folder: Path, file: str | Path) -> Path:
    """Return the path of a file of a results folder; ValueError where links lead out of it."""
    path = folder / file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path} leads out of {folder}, to {path.resolve()}; take the link away")
    return path


def check_links(folder: Path) -> None:
    """ValueError for a link beside a results folder's own files that leads out of it.

    Who writes to its name would write over a file elsewhere. Links to folders are left to those
    who write into them; packed records are only read, and may lie anywhere.
    """
    for path in folder.glob("*"):
        if path.is_symlink() and not path.is_dir() and path.suffix != SUFFIX:
            inside(folder, path.name)


def drop_index_of_another(folder: Path, notebook: str, profile: str) -> None:
    """Delete the index of another profile's tables, over which this notebook is about to write."""
    path = folder / "notebooks" / f"{notebook}.json"
    try:
        with undamaged(str(path), "delete it"):
            others = path.is_file() and read_json(path)["profile"] != profile
    except ValueError:  # nobody's
        others = True
    if others:
        remove(path)


def drop_damaged_indexes(folder: Path) -> list[Path]:
    """Delete the indexes of notebooks that cannot be read, and return them.

    Their executed copies and the report go too: by these the engine sees what it has to make again.
    """
    dropped = []
    for path in sorted((folder / "notebooks").glob("[!.]*.json")):
        try:
            _read_index(path)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError) and not holds_none(error):
                raise
            for stale in (path, path.with_suffix(".ipynb"), folder / "report.html"):
                remove(stale)
            dropped.append(path)
    return dropped


def notebook_names(folder: Path = NOTEBOOKS) -> tuple[str, ...]:
    """Names of all notebooks, in order. A folder without one is an error, not an empty list."""
    names = tuple(sorted(p.stem for p in bundled(folder).glob("[0-9]*.ipynb")))
    if not names:
        raise FileNotFoundError(f"no notebook ([0-9]*.ipynb) in {folder}; restore the folder")
    return names


def heading(notebook: Mapping[str, Any]) -> dict[str, str]:
    """Return what the title cell says: 'Title', and the text after **Question.**, **Reproduces.**,
    ... by its name.
    """
    title, *fields = re.split(
        r"\*\*(\w+)[.:]\*\*|\*\*(\w+)\*\*[.:]", "".join(notebook["cells"][0]["source"])
    )
    names = [a or b for a, b in zip(fields[0::3], fields[1::3], strict=True)]
    texts = {
        name: " ".join(text.replace("`", "").split()).rstrip("-* ")
        for name, text in zip(names, fields[2::3], strict=True)
    }
    return {"Title": title.strip().lstrip("# "), **{n: texts.get(n, "") for n in FIELDS}}


def notebook_needs(name: str, folder: Path = NOTEBOOKS) -> dict[str, Any]:
    """Return what a notebook's metadata says of its place in the suite.

    'experiments': grids of runs that it waits for; 'notebooks': notebooks that it reads; 'last': it
    waits for all others; 'alone': it measures time, so nothing else may run beside it; 'varies': it
    takes the parameters of `variant`, of which `datasets` chooses from 'datasets' ('trained',
    'targets' or 'variants'); 'baselines' stand beside the methods that it is given; 'rests_on': on
    what its figures and tables rest (a `Basis`), where they do not say so themselves. 'computes',
    by its cells: it uses the profile's device; the others are done in minutes on a CPU.
    """
    notebook = read_notebook(folder / f"{name}.ipynb")
    about = notebook["metadata"].get("blocklora", {})
    known = {"experiments": [], "notebooks": [], "last": False, "alone": False}
    known |= {"varies": False, "datasets": "trained", "baselines": [], "rests_on": "measured"}
    for key in about:
        if key not in known:
            raise ValueError(
                f"metadata of notebook {name}: unknown key blocklora.{key}; {near(key, known)}"
            )
    for other in about.get("notebooks", []):
        if not (folder / f"{other}.ipynb").is_file():
            raise ValueError(
                f"metadata of notebook {name}: no notebook {other!r} to wait for in {folder}"
            )
    if (basis := about.get("rests_on", "measured")) not in BASES:
        raise UnknownName("basis", basis, BASES, f"metadata of notebook {name}")
    sources = ("".join(cell["source"]) for cell in notebook["cells"])
    return known | about | {"computes": any("nb.device" in source for source in sources)}


def choose_notebooks(wanted: str = "", folder: Path = NOTEBOOKS) -> tuple[str, ...]:
    """Return the notebooks named in `wanted` (blanks or commas between them; '' means all), in
    order.
    """
    names, chosen = notebook_names(folder), wanted.replace(",", " ").split()
    for name in chosen:
        if name not in names:
            raise ValueError(f"unknown notebook {name!r}; {near(name, names)}")
    return tuple(name for name in names if name in chosen) if chosen else names
