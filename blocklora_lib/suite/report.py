"""One HTML file that opens without a network: figures, tables, claims, executed notebooks and where
they come from.

It reads what the notebooks exported and the records; it computes nothing, and never imports torch.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import nbformat
from markupsafe import Markup, escape

from .. import __version__
from ..claims.paper_claims import BY_ID
from ..claims.verdict import tone
from ..core.files import read_bytes, read_text, write_whole
from ..core.json_data import read_json, read_notebook, undamaged
from ..core.paths import NOTEBOOKS
from ..core.schema import short
from ..display.mathml import MathMLExporter, highlight_css, inline_mathml
from ..display.safe_html import safe_html
from ..runs.experiment import RATES
from ..runs.packed import SUFFIX
from ..runs.profile import Profile
from ..runs.profile_files import load_profile, rates_file
from ..runs.record import RunRecord
from ..runs.results import results_folder
from ..runs.standing import remarks
from ..runs.store import DamagedRecord, RunStore
from .catalogue import PNG, heading, inside, notebook_names, read_indexes
from .footer import profile_note
from .origins import makers, manifests, profile_yaml, provenance, record_data

KEY_FIGURE = ("00_overview", "key_figure")
SCOREBOARD = "16_claims"  # the notebook that writes claims.json
_PARTS = (Path(__file__).parent / "templates" / f"{x}.js" for x in ("tables", "records", "page"))
# a link of a notebook to a file beside it, and the place in that
_BESIDE = re.compile(r"""<a\b([^>]*?) href="(?!mailto:)([^"#:]+)(?:#[^"]*)?\"""")
SCRIPT = "\n".join(map(read_text, _PARTS))  # all that the page runs


def write_report(profile: str, results: str | Path = "") -> tuple[Path, list[DamagedRecord]]:
    """Write results/<profile>/report.html from what is there; return its path, and the records it
    lacks.
    """
    settings = load_profile(profile)
    folder = results_folder(settings, results)
    records, damaged = RunStore(folder / "runs").read()
    rates = rates_file(profile).with_suffix(SUFFIX)
    text = render_report(settings, folder, records, damaged, rates)
    folder.mkdir(parents=True, exist_ok=True)
    return write_whole(inside(folder, "report.html"), text), damaged


def render_report(
    profile: Profile,
    folder: Path,
    records: list[RunRecord],
    damaged: Sequence[DamagedRecord] = (),
    rates: Path | None = None,
) -> str:
    """Return the report's HTML. rates: the Parquet of the records by which rates were chosen."""
    indexes = read_indexes(folder)
    notebooks = [_notebook(name, indexes, folder) for name in notebook_names() if name in indexes]
    scoreboard, caution = _scoreboard(folder)
    read = {e for n in notebooks for x in (*n["figures"], *n["tables"]) for e in x["experiments"]}
    checks = [
        check | {"notebook": n["name"], "badge": tone(check["verdict"])}
        for n in notebooks
        for check in n["checks"]
    ]
    keys = [f for n in notebooks for f in n["figures"] if (n["name"], f["name"]) == KEY_FIGURE]
    for n in notebooks:  # the key figure stands at the top, not twice
        n["figures"] = [f for f in n["figures"] if f not in keys]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("blocklora_lib.suite"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["math"] = lambda text: Markup(inline_mathml(str(escape(text))))
    return environment.get_template("report.html.j2").render(
        profile=profile,
        note=profile_note(profile),
        key=keys[0] if keys else None,
        checks=checks,
        scoreboard=scoreboard,
        caution=caution,
        notebooks=notebooks,
        facts=_facts(records, *((scoreboard, "claims") if scoreboard else (checks, "checks"))),
        failures=_failures(folder),
        remarks=[*map(str, damaged), *remarks(records, "the runs")],
        provenance=provenance(profile, records, folder),
        makers=makers(records),
        record_data=record_data(profile, folder, records, rates if RATES in read else None),
        data=manifests(profile),
        profile_yaml=profile_yaml(profile),
        script=Markup(SCRIPT),
        script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
        version=__version__,
        pygments=Markup(highlight_css()),
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _notebook(name: str, indexes: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    index = indexes[name]
    number = name.split("_")[0].lstrip("0") or "0"
    figures = []
    for i, f in enumerate(index["figures"], 1):
        png = next(file for file in f["files"] if file.endswith(".png"))
        content = read_bytes(inside(folder, png))
        if not content.startswith(PNG):
            raise ValueError(f"{folder / png} is no PNG; execute notebook {name} again")
        data = base64.b64encode(content).decode()
        figures.append(
            f
            | {
                "id": f"{name}-{f['name']}",
                "experiments": f.get("experiments", []),
                "label": f"Figure {number}.{i}",
                "links": _links(f["files"]),
                "src": f"data:image/png;base64,{data}",
                "pixels": round(110 * f["width"]),
            }
        )
    tables = [
        t
        | {
            "id": f"{name}-table-{t['name']}",
            "experiments": t.get("experiments", []),
            "note": t.get("note"),
            "label": f"Table {number}.{i}",
            "links": _links(t["files"]),
            "html": Markup(_table(t["html"], folder / "notebooks" / f"{name}.json")),
        }
        for i, t in enumerate(index["tables"], 1)
    ]
    copy = folder / "notebooks" / f"{name}.ipynb"
    source = _node(copy if copy.is_file() else NOTEBOOKS / f"{name}.ipynb")
    with undamaged(f"notebook {copy}", "execute it again"):
        title, body = heading(source), notebook_html(source, indexes)
    return {
        "name": name,
        "heading": title,
        "figures": figures,
        "tables": tables,
        "checks": index["checks"],
        "executed": copy.is_file(),
        "body": Markup(body),
    }


def _table(text: str, index: Path) -> str:
    with undamaged(str(index), "delete it, and execute its notebook again"):
        return safe_html(inline_mathml(text))


def notebook_html(notebook: nbformat.NotebookNode, shown: Container[str] = ()) -> str:
    """Return the notebook as HTML for one section of the page: headings below the page's own,
    mathematics as MathML.

    shown: the notebooks that have a section of their own, where links to them lead. The page may be
    sent without the files beside it, so a link to any other file is its text alone.
    """

    def here(link: re.Match[str]) -> str:
        name = link[2].removesuffix(".ipynb")
        return f'<a{link[1]} href="#{name}"' if name in shown else f"<a{link[1]}"

    body, _ = MathMLExporter().from_notebook_node(notebook)
    body = safe_html(body)  # without ids: two notebooks may have headings of the same name
    body = _BESIDE.sub(here, body)
    return re.sub(r"<(/?)h([1-4])\b", lambda m: f"<{m[1]}h{min(int(m[2]) + 2, 6)}", body)


def _node(path: Path) -> nbformat.NotebookNode:
    """A notebook as nbconvert takes it, its texts in one piece; ValueError with the path if it is
    damaged.
    """
    read_notebook(path)
    with undamaged(f"notebook {path}", "restore it, or execute it again"):
        try:
            nbformat.validate(node := nbformat.reads(read_text(path), as_version=4))
        except (nbformat.ValidationError, AssertionError, RecursionError) as error:
            why = str(error).partition("\n")[0] or "it is not of format 4"
            raise ValueError(short(why)) from None
        return node


def _links(files: list[str]) -> list[tuple[str, str]]:
    return [(Path(file).suffix[1:].upper().replace("TEX", "LaTeX"), file) for file in files]


def _scoreboard(folder: Path) -> tuple[list[dict[str, str]], str]:
    """Return the claims' rows, and what their reader has to know; nothing without the file."""
    path = folder / "claims.json"
    if not path.is_file():
        return [], ""
    with undamaged(str(path), f"delete it and execute notebook {SCOREBOARD} again"):
        board = read_json(path)
        shown = ("id", "claim", "verdict", "but", "evidence")
        rows = [
            {name: row[name] for name in shown}
            | {"badge": tone(row["verdict"]), "notebook": row["cell"].partition(".ipynb")[0]}
            | {"experiments": _experiments(row["id"])}
            for row in board["claims"]
        ]
        return rows, str(board["caution"])


def _experiments(claim: str) -> list[str]:
    """The experiments whose runs the claim's judge looks at."""
    known = BY_ID.get(claim)
    return [need for need in known.needs if "/" not in need] if known else []


def _facts(
    records: list[RunRecord], judged: list[dict[str, Any]], what: str
) -> list[tuple[str, str]]:
    done = [r for r in records if r.status == "done"]
    seconds = sum(sum(r.cost.seconds.values()) for r in done if r.cost)
    good = sum(row["badge"] == "good" for row in judged)
    decided = sum(row["badge"] != "none" for row in judged)
    facts = [
        (f"{len(done):,}", "finished runs"),
        (f"{len({r.spec.dataset for r in done})}", "datasets"),
        (
            f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h",
            "of computing",
        ),
        (f"{good} of {decided}", f"judged {what} hold"),
    ]
    failed = len(records) - len(done)
    return [*facts, (f"{failed:,}", "failed runs")] if failed else facts


def _failures(folder: Path) -> list[dict[str, str]]:
    found = []
    for path in sorted((folder / "notebooks").glob("*.failed.ipynb")):
        cells = _node(path).cells
        errors = [o for c in cells for o in c.get("outputs", []) if o.output_type == "error"]
        error = f"{errors[0].ename}: {errors[0].evalue}" if errors else "it was interrupted"
        found.append({"name": path.name.removesuffix(".failed.ipynb"), "error": error})
    return found
