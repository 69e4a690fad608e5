"""Pages that are made, not written: README, notebooks, claims, commands, the API of every room.

A link of any page leads where it leads in the repository: to the page that was made of that
file, or to a copy of it.
"""

from __future__ import annotations

import ast
import posixpath
import re
import sys
from functools import cache
from pathlib import Path

import nbformat
from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
import commands
import notebook_page
from mathematics import Mathematics

from blocklora_lib.claims.claim import Evidence, judge
from blocklora_lib.claims.paper_claims import CLAIMS
from blocklora_lib.claims.verdict import tone
from blocklora_lib.core.paths import ROOT
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.suite.reference import COPIES, REFERENCE, SHOWN

PACKAGE = ROOT / "blocklora_lib"
# pages of files that stand elsewhere in the repository
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "pocket/ATTRIBUTION.md": "images.md",
    "pocket/model/README.md": "model-card.md",
    "pocket/model/pocketcoca.md": "model-card-pocketcoca.md",
    "pocket/model/pocketsigmoid.md": "model-card-pocketsigmoid.md",
    "published/README.md": "published.md",
    "tools/pocket/README.md": "pocket-tools.md",
}
FOLDERS = {"notebooks": "notebooks/index.md", "blocklora_lib": "api/index.md"}
LINK = re.compile(r"(\]\(|(?:src|href)=\")([^)\s\"#]+)")
FENCE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.M | re.S)


def on_config(config):
    config.markdown_extensions.append(Mathematics())
    pages = [f"{PAGES[name]}" for name in PAGES if name != "README.md" and (ROOT / name).is_file()]
    config.nav = [
        *config.nav[:-1],
        {"Notebooks": ["notebooks/index.md", *(f"notebooks/{path.stem}.md" for path in _copies())]},
        config.nav[-1],
        {"API": ["api/index.md", *({room: f"api/{room}.md"} for room in rooms())]},
        {"More": pages},
    ]
    return config


def on_files(files, config):
    texts = {site: (name, (ROOT / name).read_text(encoding="utf-8"))
             for name, site in PAGES.items() if (ROOT / name).is_file()}  # fmt: skip
    for path in sorted((ROOT / "docs").glob("*.md")):
        texts[path.name] = (f"docs/{path.name}", path.read_text(encoding="utf-8"))
    for path in _copies():
        texts[f"notebooks/{path.stem}.md"] = (
            f"docs/notebooks/{path.name}",
            notebook_page.markdown_of(_notebook(path)),
        )
    texts["notebooks/index.md"] = "docs/notebooks/index.md", _notebooks()
    texts["claims.md"] = "docs/claims.md", _claims()
    texts["command-line.md"] = "docs/command-line.md", commands.markdown()
    texts["api/index.md"] = "docs/api/index.md", _api()
    for room in rooms():
        texts[f"api/{room}.md"] = f"docs/api/{room}.md", _room(room)
    pages = {name: site for site, (name, _) in texts.items()}
    for site, (name, text) in texts.items():
        if (old := files.get_file_from_path(site)) is not None:
            files.remove(old)
        files.append(
            File.generated(config, site, content=_linked(text, name, site, pages, files, config))
        )
    return files


def on_page_content(html, page, config, files):
    path = COPIES / f"{Path(page.file.src_uri).stem}.ipynb"
    if page.file.src_uri.startswith("notebooks/") and path.is_file():
        return notebook_page.outputs_of(_notebook(path), html)
    return html


def _linked(text, name, site, pages, files, config):
    """Return a page's text with links to files of the repository as links within the site."""

    def lead(m):
        target, folder, anchor = m[2], posixpath.dirname(name), ""
        if re.match(r"[a-z]+:|/", target):
            return m[0]
        place = posixpath.normpath(posixpath.join(folder, target))
        made = pages.get(place) or pages.get(f"{place}/README.md") or FOLDERS.get(place)
        if module := re.fullmatch(r"blocklora_lib/((\w+)/[\w/]+)\.py", place):
            made, anchor = f"api/{module[2]}.md", f"#blocklora_lib.{module[1].replace('/', '.')}"
        if made is None and not place.startswith("docs/") and (ROOT / place).is_file():
            made = f"files/{place}"
            if files.get_file_from_path(made) is None:
                files.append(File.generated(config, made, abs_src_path=str(ROOT / place)))
        if made is None:  # of docs/, or of the site alone
            made = place.removeprefix("docs/")
        return m[1] + posixpath.relpath(made, posixpath.dirname(site) or ".") + anchor

    parts = FENCE.split(text)
    return "".join(part if i % 2 else LINK.sub(lead, part) for i, part in enumerate(parts))


# notebooks


def _copies():
    return sorted(COPIES.glob("[0-9]*.ipynb"))


@cache
def _notebook(path):
    return nbformat.read(path, 4)


def _notebooks():
    lines = [f"# Notebooks\n\nAs the reference run of `{SHOWN}` executed them.\n"]
    for path in _copies():
        title = re.match(r"#\s*(.+)", _notebook(path).cells[0].source)
        lines.append(f"* [{title[1] if title else path.stem}]({path.stem}.md)")
    return "\n".join(lines) + "\n"


# claims


def _claims():
    judged = judge(CLAIMS, Evidence(load_profile(SHOWN), REFERENCE / SHOWN))
    parts = [
        "# Claims\n\nEach public claim, judged by the records and tables of the reference run of "
        f"`{SHOWN}` when this page was built. *Pocket only* means: seen in runs or timings of a "
        "small CLIP; no published accuracy is judged by them.\n"
    ]
    for j in judged:
        notebook, _, cell = j.link.partition(".ipynb#cell-id=")
        parts.append(
            f"## {j.claim.id}: {j.claim.statement}\n\n"
            f'<span class="badge {tone(j.verdict)}">{j.verdict}</span> {j.finding.evidence}\n\n'
            f"Source: {j.claim.source}. "
            f"Seen in [{notebook}](notebooks/{notebook}.md#cell-{cell}).\n"
        )
    return "\n".join(parts)


# the API


def rooms():
    """Rooms in reading order, as the contract in pyproject.toml has it, from the ground up."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = re.search(r"^layers = \[(.*?)\]", text, re.M | re.S)[1]
    return re.findall(r'"(\w+)"', layers)[::-1]


def modules(room):
    """Modules of a room that have a public name, as dotted names below the package."""
    found = []
    for path in sorted((PACKAGE / room).rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if not any(part.startswith("_") for part in parts[1:]) and public(path):
            found.append(".".join(parts))
    return found


def public(path):
    """Public names that a module defines."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [node.name for node in body if isinstance(node, kinds) and not node.name.startswith("_")]


def _said(room):
    return (
        ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))
        or ""
    )


def _api():
    lines = ["# API\n\nThe library's rooms in reading order: each knows only those above it.\n"]
    lines += [f"* [{room}]({room}.md): {' '.join(_said(room).split())}" for room in rooms()]
    return "\n".join(lines) + "\n"


def _room(room):
    parts = [f"# {room}\n\n{_said(room)}\n"]
    parts += [
        f"::: blocklora_lib.{name}\n    options:\n      heading_level: 2\n"
        for name in modules(room)
    ]
    return "\n".join(parts)
