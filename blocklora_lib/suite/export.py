"""`blocklora export`: a results folder's figures and tables for a paper of one's own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.files import read_bytes, read_text, write_whole
from ..core.json_data import read_json, undamaged
from ..core.schema import UnknownName
from ..display.venues import VENUES, Venue, figure_float, placed, prose, table_floats
from .catalogue import PNG, inside

PNG_PIXELS = 220  # an inch, of exported figures (see display.style)
_NAME = re.compile(r"[\w.+-]+/[\w.+=-]+", re.ASCII)
USES = r"% \usepackage{graphicx,booktabs,array}"


@dataclass(frozen=True)
class Exported:
    """One figure or table of a results folder: 'figures' or 'tables', 'NOTEBOOK/NAME', files."""

    kind: str
    name: str
    stem: Path
    caption: str

    @property
    def label(self) -> str:
        """Its label in LaTeX."""
        return f"{'fig' if self.kind == 'figures' else 'tab'}:{self.name.replace('/', ':')}"

    def latex(self, venue: Venue, file: str = "") -> str:
        """Return its float. file: of a figure, as \\includegraphics is to find it."""
        if self.kind == "tables":
            path = self.stem.with_suffix(".tex")
            with undamaged(str(path), "delete it"):
                return table_floats(read_text(path), prose(self.caption), self.label, venue)
        path = self.stem.with_suffix(".png")
        content = read_bytes(path)
        width = int.from_bytes(content[16:20])
        if not content.startswith(PNG) or not 1 <= width < 100_000:
            raise ValueError(f"{path} is no PNG of a figure; make it again by its notebook")
        place = placed(width / PNG_PIXELS, venue)
        return figure_float(file, place, prose(self.caption), self.label, venue)


def exports(folder: Path) -> dict[str, Exported]:
    """Return what a results folder has, by 'figures/NOTEBOOK/NAME' or 'tables/NOTEBOOK/NAME'."""
    found = {}
    for kind, ending in (("figures", "pdf"), ("tables", "tex")):
        for path in sorted((folder / kind).glob(f"*/*.{ending}")):
            name = f"{path.parent.name}/{path.stem}"
            if not _NAME.fullmatch(name):  # it becomes LaTeX
                raise ValueError(
                    f"{path} has a name that no figure or table of the suite has; take it away"
                )
            for file in (path, path.with_suffix(".png")):
                inside(folder, file.relative_to(folder).as_posix())
            caption = _caption(folder, kind, path.parent.name, path.stem)
            found[f"{kind}/{name}"] = Exported(kind, name, path.with_suffix(""), caption)
    if not found:
        raise FileNotFoundError(
            f"{folder} has neither figures nor tables; `blocklora reproduce` makes them, and "
            "results/reference/pocket-full is a folder that has them"
        )
    return found


def _caption(folder: Path, kind: str, notebook: str, name: str) -> str:
    path = folder / "notebooks" / f"{notebook}.json"
    if path.is_file():
        with undamaged(str(path), f"delete it, and execute notebook {notebook} again"):
            index: Any = read_json(path)
            for entry in index.get(kind, ()):
                if entry["name"] == name:
                    return str(entry["caption"])
    return f"{name.replace('_', ' ')}, of notebook {notebook}."


def chosen(found: dict[str, Exported], wanted: Iterable[str], kind: str) -> Iterator[Exported]:
    """Yield what is asked for: 'NOTEBOOK/NAME', 'NOTEBOOK' for all of its, or 'all'."""
    names = [one.name for one in found.values() if one.kind == kind]
    for word in wanted:
        mine = [n for n in names if word in ("all", n, n.partition("/")[0])]
        if not mine:
            raise UnknownName(f"{kind.removesuffix('s')} of this results folder", word, names)
        yield from (found[f"{kind}/{name}"] for name in mine)


def export(
    folder: Path, venue: str, to: Path, figures: Sequence[str] = (), tables: Sequence[str] = ()
) -> list[Path]:
    """Write floats of figures and tables for a venue; return the files that are to be \\input.

    A figure's PDF lies beside its float. A float names it as TO/NAME.pdf, so that \\input works
    from the folder in which `to` was given.
    """
    if venue not in VENUES:
        raise UnknownName("venue", venue, VENUES)
    if odd := re.findall(r'^~|[\\{}%#"]', to.as_posix()):
        raise ValueError(
            f"{to}: LaTeX reads {' '.join(sorted({*odd}))} in a file's name as something else, and "
            "would not find the figures; name a folder without"
        )
    if not (figures or tables):
        raise ValueError("nothing is asked for; say --figures or --tables NOTEBOOK/NAME, or all")
    found, written = exports(folder), []
    parts = [*chosen(found, figures, "figures"), *chosen(found, tables, "tables")]
    for one in dict.fromkeys(parts):
        file = to / f"{one.label.replace(':', '-')}.tex"
        file.parent.mkdir(parents=True, exist_ok=True)
        if one.kind == "figures":
            write_whole(file.with_suffix(".pdf"), read_bytes(one.stem.with_suffix(".pdf")))
        text = one.latex(VENUES[venue], file.with_suffix(".pdf").as_posix())
        written.append(write_whole(file, f"{USES}\n{text}"))
    return written
