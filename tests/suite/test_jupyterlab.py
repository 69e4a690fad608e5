"""Notebooks as a person opens them: JupyterLab on this machine, run by its menu, in Chromium."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from browser import Browser, needs_chromium
from synthetic_records import write_records

from blocklora_lib.core.paths import NOTEBOOKS, RESULTS
from blocklora_lib.runs.profile_files import load_profile

pytestmark = [pytest.mark.lab, needs_chromium]
ONE_RUN = {"datasets": ["chess"], "methods": ["lora"], "shots": [1], "seeds": [1]}
TOKEN = "of-this-test"
ENDED = """(() => {
  const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")]
  const texts = prompts.map((one) => one.textContent)
  const failed = document.querySelector("[data-mime-type='application/vnd.jupyter.error']")
  return !!failed || (texts.length && texts.every((text) => /\\[\\d+\\]/.test(text)))
})()"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A working folder with copies of three notebooks whose parameters are other ones."""
    folder = tmp_path_factory.mktemp("lab")
    write_records(load_profile("smoke"), folder / "made-up" / "runs", ["few_shot"])
    for name, results, given in (
        ("00_overview", "made-up", {}),
        ("01_method", "made-up", {"rank": 6, "n_blocks": 2}),
        ("08_few_shot", "computed", ONE_RUN),
    ):
        book = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
        (cell,) = [c for c in book["cells"] if "parameters" in c["metadata"].get("tags", ())]
        source = "".join(cell["source"])
        values = {"profile": "smoke", "results_dir": str(folder / results), **given}
        for parameter, value in values.items():
            source, n = re.subn(rf"(?m)^({parameter}: .*?) = .*$", rf"\1 = {value!r}", source)
            assert n == 1, parameter
        cell["source"] = source
        (folder / f"{name}.ipynb").write_text(json.dumps(book), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def lab(work):
    """The address of a JupyterLab of its own settings and folders."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # all cells stand in the page, not only those in view
    place = work / "settings/@jupyterlab/notebook-extension"
    place.mkdir(parents=True)
    (place / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    words = f"--no-browser --allow-root --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0"
    words += f" --IdentityProvider.token={TOKEN} --ServerApp.root_dir={work}"
    words += " --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"
    words += " --LabApp.extension_manager=readonly"
    places = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    places |= {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime"}
    places |= {"JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython"}
    environment = os.environ | {name: str(work / part) for name, part in places.items()}
    with (work / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *words.split()],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + 300
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/api?token={TOKEN}", timeout=60).close()
                break
            except (URLError, OSError):
                assert server.poll() is None, (work / "log").read_text()[-3000:]
                assert time.monotonic() < end, (work / "log").read_text()[-3000:]
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.send_signal(signal.SIGTERM)  # upon which it ends its kernels
        server.wait(120)


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"), 1400, 1000)
    yield browser
    browser.close()


def wait_for_kernel(lab, name):
    """Wait until the notebook's kernel is idle and has its page: before, a click runs nothing."""
    end = time.monotonic() + 300
    while True:
        with urlopen(f"{lab}api/sessions?token={TOKEN}", timeout=60) as answer:
            kernels = [s["kernel"] for s in json.load(answer) if s["path"] == f"{name}.ipynb"]
        if any(k["connections"] and k["execution_state"] == "idle" for k in kernels):
            return
        assert time.monotonic() < end, kernels
        time.sleep(0.5)


def everything(folder):
    stats = {path: path.stat() for path in folder.rglob("*")}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


def outputs(window, selector):
    """The texts of what stands in the outputs."""
    places = json.dumps(f".jp-OutputArea {selector}")
    return window.run(f"[...document.querySelectorAll({places})].map((x) => x.textContent)")


@pytest.mark.parametrize("name", ["00_overview", "01_method", "08_few_shot"])
def test_a_notebook_runs_by_its_menu_and_shows_what_it_should(window, lab, work, name):
    before = everything(RESULTS), everything(NOTEBOOKS)
    window.fetched.clear()
    window.open(f"{lab}lab/tree/{name}.ipynb?token={TOKEN}&reset")
    wait_for_kernel(lab, name)
    window.click("#jp-MainMenu .lm-MenuBar-item", "Run")
    window.click(".lm-Menu-item[data-command='runmenu:run-all']")
    window.wait(ENDED, 900)
    wait_for_kernel(lab, name)
    assert outputs(window, "[data-mime-type='application/vnd.jupyter.error']") == []
    told = "".join(outputs(window, ".jp-OutputArea-output"))
    assert "Traceback" not in told
    assert "Warning" not in told
    pictures = window.wait(
        "(() => { const all = [...document.querySelectorAll('.jp-OutputArea img')];"
        "return all.every((one) => one.complete) && all.map((one) => one.naturalWidth) })()"
    )
    assert pictures
    assert all(pictures)
    assert max(map(len, outputs(window, "table tbody"))) > 20
    bars = [text for text in outputs(window, "[data-mime-type*=stderr]") if "runs:" in text]
    if name == "08_few_shot":  # the bar of its runs is full, and one line however often it moved
        assert re.fullmatch(r"runs: 100%\|█+\| (\d+)/\1 \[.*\]\s*", bars[-1])
        assert list((work / "computed" / "runs").glob("*.json"))
    else:
        assert not bars
    if name == "01_method":
        assert window.wait("document.querySelectorAll('.jp-RenderedMarkdown mjx-container').length")
    assert (everything(RESULTS), everything(NOTEBOOKS)) == before
    assert [at for at in window.fetched if not at.startswith((lab, f"blob:{lab}"))] == []
