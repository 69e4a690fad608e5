"""The reproduction report, and exports for papers of one's own."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest

from blocklora_lib.claims.verdict import STEMS
from blocklora_lib.core.paths import RESULTS, ROOT
from blocklora_lib.core.schema import UnknownName
from blocklora_lib.display.tables import escape_latex
from blocklora_lib.display.venues import VENUES, placed, prose, table_floats
from blocklora_lib.runs.store import RunStore
from blocklora_lib.suite.export import export, exports
from blocklora_lib.suite.paper import Numbers, write_inputs

SOURCES = sorted((ROOT / "paper").glob("*.tex"))
REFERENCE = RESULTS / "reference" / "pocket-full"
LATEX = all(shutil.which(name) for name in ("latexmk", "pdflatex", "pdftotext"))
needs_latex = pytest.mark.skipif(not LATEX, reason="latexmk, pdflatex or pdftotext is missing")
# what may have digits: names of values, claims, labels and files, and ViT-B/16
NAMED = r"\\(?:val|verdict|judge|bystem|ifval|label|ref|eqref|cite|input)\{[^}]*\}"
NAMED += r"|\\(?:wide|small)(?:figure|table)\{[^}]*\}|ViT-B/16"
ARGUMENT = r"(?<=\})\{(?:fig|tab):[^}]*\}"


def typed_numbers(text: str) -> list[str]:
    """Numbers in LaTeX source outside macros and names."""
    text = re.sub(r"(?<!\\)%.*", "", text)
    return re.findall(r"[^\s{}]*\d[^\s{}]*", re.sub(f"{NAMED}|{ARGUMENT}", "", text))


def told_verdicts(text: str) -> dict[str, str]:
    """Verdict by claim, as text of the PDF tells them."""
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    return dict(re.findall(r"\b([CO]\d+[a-z]?): ([a-z ]+)\.", text))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    to = tmp_path_factory.mktemp("paper")
    assert write_inputs(REFERENCE, to) == []
    return to


@pytest.fixture(scope="module")
def board() -> list[dict]:
    return json.loads((REFERENCE / "claims.json").read_text())["claims"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_number_is_typed_by_hand(path):
    assert typed_numbers(path.read_text()) == []


@pytest.mark.parametrize("text", ["is 85\\% here", "at $16$ shots", r"\emph{3 times}", "ViT-B/32"])
def test_a_number_that_is_typed_is_found(text):
    assert typed_numbers(text)


def test_every_number_names_its_source(folder):
    lines = (folder / "numbers.tex").read_text().splitlines()[1:]
    assert len(lines) > 100
    source = re.compile(
        r"\\definevalue\{[\w.]+\}\{.*\}% (claims\.json|runs|(tables|figures)/\S+\.csv|results/|"
        r"published/)"
    )
    assert [line for line in lines if not source.match(line)] == []


@pytest.mark.slow
def test_numbers_agree_with_other_ways_to_count(folder, board):
    found = dict(
        re.findall(r"\\definevalue\{([\w.]+)\}\{(.*)\}%", (folder / "numbers.tex").read_text())
    )
    runs = RunStore(REFERENCE / "runs").frame()
    assert found["runs"] == f"{runs['key'].nunique():,}"
    assert found["answers"] == f"{int(runs['total'].sum()):,}"
    assert found["runs.sets"] == str(runs["dataset"].nunique())
    widths = 3 * 12 * (768 + 512)  # q, k, v of both towers of ViT-B/16
    assert found["parameters.lora"] == f"{2 * 2 * widths:,}"
    assert found["parameters.block"] == f"{(1 + 2) * widths:,}"
    kinds = [found[f"claims.{word.replace(' ', '')}"] for word in STEMS]
    assert sum(map(int, kinds)) == len(board)
    with (REFERENCE / "tables/08_few_shot/paired_differences.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["comparison"].startswith("Block-LoRA")]
    table = (folder / "table-differences.tex").read_text()
    assert table.count(r"\\") == len(rows) + 1


def test_values_have_one_definition_and_are_escaped():
    numbers = Numbers()
    numbers.add("a", "5% of A_s, -0.3 at `x_yz`", "somewhere")
    assert (
        r"\definevalue{a}{5\% of $A_{s}$, $-$0.3 at \texttt{x\_yz}}% somewhere" in numbers.latex()
    )
    with pytest.raises(ValueError, match="two values are called a"):
        numbers.add("a", 1, "elsewhere")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report.tex", "references.bib", "table-mine.tex", "numbers.tex"])
def test_a_report_is_written_over_no_paper_of_ones_own(tmp_path, name):
    """Its sections and bibliography were written over, its tables and figures deleted."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match="they are not those of a report"):
        write_inputs(REFERENCE, tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_second_report_has_nothing_of_the_first(folder, tmp_path):
    """Figures and tables of another folder stayed, where this one lacks them and is to say so."""
    to, small = tmp_path / "to", tmp_path / "small"
    shutil.copytree(folder, to)
    small.mkdir()
    for name in ("claims.json", "runs.parquet"):
        shutil.copy(REFERENCE / name, small)
    with pytest.raises(FileNotFoundError, match="neither figures nor tables"):
        write_inputs(small, to)
    assert len([*to.glob("figures/*.pdf")]) > 9  # refused before anything is removed
    for part in ("figures", "tables"):
        shutil.copytree(REFERENCE / part / "02_equivalence", small / part / "02_equivalence")
    write_inputs(small, to)
    assert {path.name.partition("-")[0] for path in to.glob("figures/*")} == {"02_equivalence"}
    assert not (to / "table-accuracy.tex").exists()


def test_a_folder_without_a_scoreboard_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no claims\.json.*16_claims"):
        write_inputs(tmp_path, tmp_path / "out")


def compile_latex(folder: Path, name: str) -> str:
    """Compile; return the log."""
    command = ["latexmk", "-pdf", "-silent", "-interaction=nonstopmode", "-halt-on-error", name]
    subprocess.run(command, cwd=folder, check=False, capture_output=True, timeout=300)
    assert (folder / f"{name}.pdf").is_file(), (folder / f"{name}.log").read_text()[-2000:]
    return (folder / f"{name}.log").read_text(errors="replace")


def faults(log: str) -> list[str]:
    """What a log says of references that are undefined and boxes over 2 pt too wide."""
    wide = [m[0] for m in re.finditer(r"Overfull \\hbox \(([\d.]+)pt.*", log) if float(m[1]) > 2]
    high = re.findall(r"Overfull \\vbox .*|.*Float too large.*", log)
    return wide + high + re.findall(r".*(?:undefined|multiply defined).*", log)


@pytest.mark.slow
@needs_latex
def test_what_a_folder_lacks_is_said_to_be_missing(tmp_path):
    """Of a figure that was not there LaTeX read the name as a formula, and wrote no report."""
    small = tmp_path / "small"
    small.mkdir()
    for name in ("claims.json", "runs.parquet"):
        shutil.copy(REFERENCE / name, small)
    part = "figures/02_equivalence"
    shutil.copytree(REFERENCE / part, small / part)
    write_inputs(small, tmp_path / "to")
    assert not faults(compile_latex(tmp_path / "to", "report"))
    told = subprocess.run(
        ["pdftotext", "report.pdf", "-"],
        cwd=tmp_path / "to",
        check=True,
        capture_output=True,
        text=True,
    )
    assert "13_theorem-trajectories is not in these results" in " ".join(told.stdout.split())


def test_faults_are_found():
    log = (
        "Overfull \\hbox (2.5pt too wide)\nOverfull \\hbox (1.5pt too wide)\n"
        "Reference x undefined\n"
        "Overfull \\vbox (9pt too high)\nLaTeX Warning: Float too large for page by 9pt"
    )
    assert len(faults(log)) == 4


@pytest.mark.slow
@needs_latex
def test_the_report_compiles_and_tells_the_scoreboards_verdicts(folder, board):
    log = compile_latex(folder, "report")
    assert faults(log) == []
    assert 8 <= int(re.search(r"\((\d+) pages", log)[1]) <= 10
    subprocess.run(["pdftotext", "report.pdf"], cwd=folder, check=True)
    told = told_verdicts((folder / "report.txt").read_text())
    assert told == {row["id"]: row["verdict"] for row in board}


# for papers of one's own


def test_figures_go_where_their_text_stays_readable():
    assert placed(6.75, VENUES["icml"]).across
    assert placed(6.75, VENUES["icml"]).points == pytest.approx(8.5)
    narrow = placed(4.185, VENUES["icml"])
    assert (narrow.across, narrow.width) == (False, 3.25)
    assert not placed(6.75, VENUES["neurips"]).across  # one column
    assert placed(2.0, VENUES["cvpr"]).width == 2.0  # never blown up


def test_sentences_become_latex():
    assert prose("ΔW of d_in, $x^2$ & -3") == r"$\Delta$W of $d_{\mathrm{in}}$, $x^2$ \& $-$3"
    assert prose("costs 5 $") == r"costs 5 \$"
    assert prose("say `run --fast`") == r"say \texttt{run -{}-fast}"
    assert prose("$B$ and $x_{i}$") == "$B$ and $x_{i}$"


@pytest.mark.parametrize(
    "name", ["from $5 to $6", "a$b_$", "$b_$", "$a & b$", "$x^_2$", "$a^{b_}$"]
)
def test_a_name_with_dollars_is_no_formula(name):
    """Folders give titles, and captions name them: LaTeX ended at 'a$b_$'."""
    assert prose(f"Images of {name}.") == f"Images of {escape_latex(name)}."


def test_a_long_table_is_cut_into_pages_with_one_label():
    rows = "\n".join(rf"{i} & b \\" for i in range(120))
    latex = "\\begin{longtable}{ll}\n\\toprule\na & b \\\\\n\\midrule\n" + rows
    text = table_floats(latex + "\n\\bottomrule\n\\end{longtable}", "C", "tab:x", VENUES["icml"])
    assert (text.count(r"\begin{table*}"), text.count(r"\label")) == (3, 1)
    assert all(rf"{i} & b" in text for i in range(120))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UnknownName, match="icml"):
        export(REFERENCE, "icm", tmp_path, ["all"])
    with pytest.raises(UnknownName, match="08_few_shot/few_shot"):
        export(REFERENCE, "icml", tmp_path, tables=["08_few_shot/few_shots"])
    with pytest.raises(ValueError, match="nothing is asked for"):
        export(REFERENCE, "icml", tmp_path)
    with pytest.raises(FileNotFoundError, match="neither figures nor tables"):
        exports(tmp_path)


@pytest.mark.parametrize("name", ["~/figures", "50%", "a#b", "a{b", 'a"b', "a\\b"])
def test_a_folder_that_latex_reads_as_another_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"LaTeX reads \S in a file's name .*; name a folder without"
    ):
        export(REFERENCE, "icml", Path(name), ["all"])
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
@needs_latex
@pytest.mark.parametrize(
    "name", ["icml", *(pytest.param(v, marks=pytest.mark.rare) for v in VENUES if v != "icml")]
)
def test_every_export_compiles_in_an_article_of_its_venue(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    venue, files = VENUES[name], export(REFERENCE, name, Path("out"), ["all"], ["all"])
    assert len(files) == len(exports(REFERENCE)) > 80
    text = "".join(rf"\input{{{file.as_posix()}}}\clearpage" + "\n" for file in files)
    columns = "twocolumn" if venue.columns == 2 else "onecolumn"
    between = venue.text - venue.columns * venue.column if venue.columns == 2 else 0.25
    (tmp_path / "all.tex").write_text(
        f"\\documentclass[{columns}]{{article}}\n\\usepackage[T1]{{fontenc}}"
        "\\usepackage{mathptmx,graphicx,booktabs,array}\n\\usepackage[textheight=8.875in,"
        f"textwidth={venue.text}in,columnsep={between}in]{{geometry}}\n"
        f"\\begin{{document}}\n{text}\\end{{document}}\n"
    )
    assert faults(compile_latex(tmp_path, "all")) == []


@pytest.mark.slow
@needs_latex
def test_a_table_of_sentences_keeps_to_its_page_in_a_wider_font(tmp_path, monkeypatch):
    """Computer Modern: the float was 71 pt higher than the page."""
    monkeypatch.chdir(tmp_path)
    (file,) = export(REFERENCE, "neurips", Path("out"), tables=["00_overview/map"])
    (tmp_path / "one.tex").write_text(
        "\\documentclass{article}\n\\usepackage{graphicx,booktabs,array}\n"
        "\\usepackage[textheight=8.875in,textwidth=5.5in]{geometry}\n"
        f"\\begin{{document}}\n\\input{{{file.as_posix()}}}\n\\end{{document}}\n"
    )
    found = faults(compile_latex(tmp_path, "one"))
    assert [fault for fault in found if "hbox" not in fault] == []
    assert "fitted in Times" in file.read_text().splitlines()[1]  # so its words are, by a few pt
