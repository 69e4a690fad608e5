"""The report as a person uses it: in Chromium, clicked and typed into, with nothing fetched."""

from __future__ import annotations

import hashlib
import html
import json
import re

import pandas as pd
import pytest
from browser import Browser, needs_chromium
from conftest import made_once
from synthetic_records import write_records

from blocklora_lib.analysis.summaries import few_shot_summary, gains
from blocklora_lib.display.figures.few_shot import key_figure
from blocklora_lib.display.tables import few_shot_table, plain
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.suite.notebook import Notebook
from blocklora_lib.suite.report import write_report

pytestmark = [pytest.mark.slow, needs_chromium]
MANY = 20_000
FEW_SHOT = "[id='08_few_shot-table-few_shot']"
# columns as the suite's tables have them, and the order in which they go up; '–' comes last
SORTED = {
    "plain": ["-1,200", "−3.5", "2e-3", "0.9", "10", "1,000", "–"],
    "half width": ["9.0 ± 31.2", "10.5", "64.1 (1 of 3)", "64.2 ± 0.1 *", "–", "–", "–"],
    "interval": ["[-9, -1]", "[-3, 5]", "[0, 2.5]", "[1.2, 1.6]", "[-90, 100]", "–", "–"],
    "with interval": ["-0.2 [-9.0, +8.6]", "+0.1 [+0.0, +0.2]", "+12.0 [+1, +23]", *"–" * 4],
    "unit": ["0.5%", "9%", "10.2%", "100%", "–", "–", "–"],
    "words": ["a 9", "a 10", "b", "LoRA", "LoRA+", "–", "–"],
}


def make(folder):
    profile = load_profile("smoke")
    write_records(profile, folder / "runs", ["few_shot"])
    nb = Notebook("08_few_shot", "smoke", str(folder))
    mixed = {name: sorted(column, key=lambda x: (len(x), x)) for name, column in SORTED.items()}
    nb.table(pd.DataFrame(mixed), "mixed", "Read no record.")
    runs = nb.runs()
    summary = few_shot_summary(runs)
    nb.figure(key_figure(summary, gains(runs)), "key_figure", summary, "A figure.")
    nb.table(few_shot_table(summary), "few_shot", "Accuracy.")
    nb.table(plain(summary[["method_label", "shots", "mean"]]), "long", "Means.")
    nb.finish()
    write_report("smoke", folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made_once(tmp_path_factory, "a report for a browser", make)


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def page(window, folder):
    """The report, open; at the end nothing was fetched and nothing went wrong."""
    window.fetched.clear()
    window.errors.clear()
    address = (folder / "report.html").as_uri()
    window.open(address)
    yield window
    assert {url.split("#")[0] for url in window.fetched} == {address}
    assert window.errors == []


def column(table, i):
    return f"[...document.querySelectorAll(`{table} tbody tr`)].map((r) => r.cells[{i}].innerText)"


def test_nothing_is_missing_or_wider_than_the_window(page):
    pictures = "[...document.images].map((one) => one.naturalWidth)"
    assert page.run(pictures)
    assert all(page.run(pictures))
    places = "[...document.querySelectorAll('a[href^=\"#\"]')].map((a) => a.hash.slice(1))"
    ids = set(page.run("[...document.querySelectorAll('[id]')].map((one) => one.id)"))
    assert {re.split(r"[?]|-[0-9a-f]{16}$", place)[0] for place in page.run(places)} <= (
        ids | {"record"}
    )
    assert page.run("document.getElementById('without-script')") is None
    for width in (1280, 400):
        page.size(width, 800)
        assert page.run("document.documentElement.scrollWidth") <= width
    page.size(1280, 900)


def test_a_column_sorts_as_what_it_is_by_mouse_and_by_keyboard(page):
    table = "[id='08_few_shot-table-mixed']"
    for i, (name, wanted) in enumerate(SORTED.items()):
        before = page.run(column(table, i))
        page.click(f"{table} th button", name)
        page.see(column(table, i), wanted)
        page.see(f"document.querySelectorAll(`{table} th`)[{i}].ariaSort", "ascending")
        page.press("Enter")  # the button has the focus
        filled = [text for text in wanted if text != "–"]
        page.see(column(table, i), filled[::-1] + ["–"] * (len(wanted) - len(filled)))
        page.press("Enter")
        page.see(column(table, i), before)
        page.see(f"document.querySelectorAll(`{table} [aria-sort]`).length", 0)


def test_every_mean_leads_to_the_records_that_it_is_the_mean_of(page):
    """The page says the mean of the records that it shows; they are what the number was made of."""
    said = page.run(
        f"""(async () => {{
          const found = []
          for (const link of document.querySelectorAll(`{FEW_SHOT} a.number`)) {{
            location.hash = link.hash
            await new Promise((done) => addEventListener("hashchange", done, {{once: true}}))
            found.push([link.innerText, document.querySelector("#records [role=status]").innerText])
          }}
          return found
        }})()"""
    )
    assert len(said) > 10
    for number, told in said:
        records, mean = re.match(
            r"Rows: \d+, of records: (\d+)\. Mean accuracy: ([\d.]+)% on their own sets", told
        ).groups()
        assert int(records) > 0
        assert float(mean) == pytest.approx(float(number.split()[0]), abs=0.0501)  # one decimal
    assert page.run("document.querySelectorAll('[id=\"08_few_shot-table-mixed\"] a').length") == 2


def test_a_number_its_record_and_back(page, folder):
    page.click(f"{FEW_SHOT} tbody tr:last-child a.number")
    page.wait("location.hash.startsWith('#records?of=few_shot&')")
    page.see("document.activeElement.innerText", "Records")
    filters = page.run("document.querySelector('.filters').innerText")
    assert "experiment: few_shot" in filters
    assert "method: " in filters
    page.click("#records tbody a")
    key = page.wait("document.querySelector('.record h3')?.innerText").removeprefix("Record ")
    page.see("location.hash", f"#record-{key}")
    shown = page.run("document.querySelector('.record').innerText")
    file = folder / "runs" / f"{key}.json"
    record = json.loads(file.read_text())
    assert hashlib.sha256(file.read_bytes()).hexdigest() in shown
    for part in ("dataset", "data_checksum", "draw_checksum"):
        assert str(record["spec"][part]) in shown
    assert record["spec"]["backbone"]["checksum"] in shown
    assert page.run("document.querySelector('.record a').href") == file.as_uri()
    page.run("history.back()")
    page.wait("location.hash.startsWith('#records?')")
    page.see("document.querySelector('.filters').innerText", filters)
    page.open(f"{(folder / 'report.html').as_uri()}#record-{key}")  # a link that was sent
    assert page.run("document.querySelector('.record h3').innerText") == f"Record {key}"


def test_arrows_lead_along_a_row_and_words_narrow_the_records(page):
    page.run(f"document.querySelector(`{FEW_SHOT} tbody tr:last-child a.number`).focus()")
    first = page.run("document.activeElement.hash")
    page.press("ArrowRight")
    page.wait(f"document.activeElement.hash !== {json.dumps(first)}")
    second = page.run("document.activeElement.hash")
    page.press("Enter")
    page.see("location.hash", second)
    page.click("nav a", "Records")
    page.see("location.hash", "#records")
    page.click("#search")
    page.see("document.activeElement.id", "search")
    page.type("lora 4 nothing-like-it")
    page.see(
        "document.querySelector('#records [role=status]').innerText", "Rows: 0, of records: 0."
    )


def test_a_figure_opens_grows_and_closes(page):
    page.click("figure button.zoom")
    width = "document.querySelector('dialog[open] img').getBoundingClientRect().width"
    page.wait("!!document.querySelector('dialog[open] img')")
    fitted = page.run(width)
    page.press("+", 4)
    page.wait(f"{width} > {1.5 * fitted}")
    page.press("-", 4)
    page.see(width, fitted)
    page.press("Escape")
    page.wait("!document.querySelector('dialog')")
    page.see("document.activeElement.className", "zoom")


def test_twenty_thousand_rows_turn_pages(window, folder, tmp_path):
    """As many records, and as many rows of a table: what the window holds does not grow."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    part = re.compile(r'(<div id="record-data" hidden>)(.*?)(</div>)', re.S)
    told = json.loads(html.unescape(part.search(text)[2]))
    key, shots, seen = map(told["fields"].index, ("key", "spec.shots", "accuracy"))
    rows = [row for row in told["rows"] if len(told["pool"][row[seen]]) == 1]
    first = len(told["pool"])
    told["pool"] += [f"{i:016x}" for i in range(MANY)] + list(range(MANY))
    told["rows"] = [list(rows[i % len(rows)]) for i in range(MANY)]
    for i, row in enumerate(told["rows"]):
        row[key], row[shots] = first + i, first + MANY + i
    text = part.sub(lambda m: m[1] + html.escape(json.dumps(told), quote=False) + m[3], text)
    body = "".join(f"<tr><td>{i * 7919 % MANY}</td><td>x</td></tr>" for i in range(MANY))
    table = f"<table><thead><tr><th>n</th><th>x</th></tr></thead><tbody>{body}</tbody></table>"
    text = text.replace('<section id="provenance">', f'<p id="many"></p>{table}<section>', 1)
    (tmp_path / "many.html").write_text(text, encoding="utf-8")
    window.errors.clear()
    window.open((tmp_path / "many.html").as_uri())
    for table in ("#many + table", "#records table"):
        window.see(f"document.querySelectorAll(`{table} tbody tr`).length", 100)
    window.click("#many + table th button", "n")
    window.see(column("#many + table", 0), [str(i) for i in range(100)])
    window.click("#many + table + .pager button", "Next")
    window.see(column("#many + table", 0), [str(i) for i in range(100, 200)])
    window.click("#records th button", "Shots")
    window.see(column("#records table", 4), [str(i) for i in range(100)])
    window.press("Enter")
    window.see(column("#records table", 4), [str(MANY - 1 - i) for i in range(100)])
    window.click("#search")
    window.see("document.activeElement.id", "search")
    window.type(f"{77:016x}")
    window.see(column("#records table", 4), ["77"])
    assert window.errors == []
