"""`blocklora data`: lists, checks, fetches, imitates, draws; a sentence for what was wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from blocklora_lib.cli import data as data_cli
from blocklora_lib.cli.app import OneSentence
from blocklora_lib.data.draw import rows_checksum
from blocklora_lib.data.manifest_files import all_manifests
from blocklora_lib.data.obtain.resuming import DownloadError

ROOT = str(Path(__file__).parents[2])
EXTERNAL = {name: m for name, m in all_manifests().items() if m.kind == "external"}


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Call `blocklora data ARGS` on the root tmp_path/data; (exit code, stdout, stderr)."""
    monkeypatch.setenv("BLOCKLORA_DATA", str(tmp_path / "data"))
    app = typer.Typer(cls=OneSentence, pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    app.add_typer(data_cli.data_app, name="data")

    def call(*arguments):
        result = CliRunner().invoke(app, ["data", *map(str, arguments)])
        return result.exit_code, result.stdout, result.stderr

    return call


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def own(tmp_path) -> Path:
    """One's own images: two classes, cut into splits by a seed."""
    folder = tmp_path / "my toys"
    for label, name in enumerate(("red car", "doll")):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (8, 8), (i, label, 0)).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("command", ["", "list", "verify", "download", "fake", "draw"])
def test_help_is_there_and_fits_a_screen(data, command):
    code, out, _ = data(*([command] if command else []), "--help")
    assert code == 0
    assert len(out.splitlines()) < 40


def test_list_shows_every_external_set_and_whether_it_is_here(data, root):
    code, out, _ = data("list")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    for name, manifest in EXTERNAL.items():
        assert lines[name].split()[1] == "missing"
        assert manifest.licence in lines[name]
        for count in manifest.counts.values():
            assert str(count) in lines[name].split()
        for count in manifest.counts_unverified.values():
            assert f"~{count}" in lines[name].split()
    assert "shipped with the project: chess," in out
    assert not root.exists()
    data("fake", "dtd", "--root", root)
    (root / "oxford_pets").mkdir()
    code, out, _ = data("list", "dtd", "oxford_pets")
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [
        ["dtd", "miniature"],
        ["oxford_pets", "incomplete"],
    ]
    assert f"oxford_pets: {root / 'oxford_pets'} lacks split_zhou_OxfordPets.json, images" in out


def test_list_says_all_as_json(data, root):
    data("fake", "dtd", "--root", root)
    code, out, _ = data("list", "--json")
    facts = {f["name"]: f for f in json.loads(out)}
    assert code == 0
    assert set(facts) == set(all_manifests())
    assert facts["dtd"]["state"] == "miniature"
    assert facts["dtd"]["folder"] == str(root / "dtd")
    assert facts["fashion"]["state"] == "shipped"
    assert facts["imagenet"]["by_hand"]
    stated = {n for n in EXTERNAL if facts[n]["licence"] != "not stated by a source at hand"}
    assert all(facts[name]["terms"] for name in stated)
    assert set(EXTERNAL) - stated == {"flowers102", "stanford_cars", "sun397", "ucf101"}


@pytest.mark.slow
def test_two_folders_of_one_set_are_shown_as_unclear(data, root):
    for convention in ("coop", "clip_lora"):
        data("fake", "dtd", "--root", root, "--convention", convention)
    (root / "DTD" / "images" / "banded").rename(root / "DTD" / "images" / "elsewhere")
    code, out, _ = data("list", "dtd")
    assert code == 0
    assert out.splitlines()[1].split()[1] == "unclear"
    assert "both hold" in out
    code, out, _ = data("verify")
    assert code == 1
    assert out.startswith("dtd: ")
    assert "both hold" in out


@pytest.mark.slow
def test_verify_names_each_problem_on_a_line_and_exits_with_1(data, root):
    for name in ("dtd", "eurosat"):
        assert data("fake", name, "--root", root)[0] == 0
    assert data("verify") == (
        0,
        "dtd: nothing wrong (a miniature)\neurosat: nothing wrong (a miniature)\n",
        "",
    )
    images = sorted((root / "eurosat").rglob("*.jpg"))
    images[0].write_bytes(images[0].read_bytes()[:40])
    images[-1].unlink()
    code, out, err = data("verify", "--decode", "all")
    assert code == 1
    assert err == "1 of 2 datasets have problems\n"
    problems = out.splitlines()[1:]
    assert all(line.startswith("eurosat: ") and "; next: " in line for line in problems)
    for image in (images[0], images[-1]):
        assert any(str(image) in line for line in problems)
    assert data("verify", "dtd", "--root", root)[0] == 0
    assert data("verify", "eurosat", "--decode", "none")[0] == 1  # the image that is missing


def test_verify_of_what_is_not_here_or_shipped(data, root):
    code, out, err = data("verify", "dtd", "fashion")
    assert code == 1
    assert out.splitlines()[0].startswith(f"dtd: {root / 'dtd'} is missing")
    assert out.splitlines()[1] == "fashion: nothing wrong"
    code, out, err = data("verify")
    assert (code, out) == (2, "")
    assert f"no dataset in {root}; get one with: blocklora data download NAME --root {root}" in err


def test_ones_own_folder_is_checked_and_drawn_from(data, own):
    assert data("verify", own) == (0, f"{own}: nothing wrong\n", "")
    code, out, _ = data("draw", own, "--shots", 2, "--draw", "clip_lora")
    drawn = json.loads(out)
    assert code == 0
    assert drawn["dataset"] == "my_toys"
    assert [row[2] for row in drawn["train"]] == ["doll"] * 2 + ["red car"] * 2
    assert all((own / row[0]).is_file() for row in drawn["train"] + drawn["val"])
    (own / "doll" / "0.png").write_bytes(b"no image")
    code, out, _ = data("verify", own, "--decode", "all")
    assert code == 1
    assert "0.png" in out


@pytest.mark.parametrize("convention", ["coop", "clip_lora"])
def test_fake_all_writes_every_set_of_a_convention(data, root, convention, monkeypatch):
    made = []

    def make(manifest, root, convention, images, classes):
        made.append((manifest.name, convention))
        return root / manifest.folders[convention]

    monkeypatch.setattr("blocklora_lib.data.obtain.miniature.make_fake", make)
    code, out, _ = data("fake", "all", "--root", root, "--convention", convention)
    assert code == 0
    assert made == [(n, convention) for n, m in EXTERNAL.items() if convention in m.folders]
    assert len(out.splitlines()) == len(made) >= 11


def test_draw_needs_the_split_file_only(data, root, tmp_path):
    data("fake", "dtd", "--root", root)
    file = root / "dtd" / "split_zhou_DescribableTextures.json"
    printed = data("draw", "dtd", "--shots", 1)[1]
    alone = tmp_path / "a split.json"
    alone.write_bytes(file.read_bytes())
    for image in (root / "dtd").rglob("*.jpg"):
        image.unlink()
    (root / "dtd" / "images").rename(tmp_path / "images")
    assert data("draw", "dtd", "--shots", 1, "--draw", "coop", "--seed", 1) == (0, printed, "")
    file.unlink()
    code, out, _ = data("draw", "dtd", "--shots", 1, "--split-file", alone)
    assert (code, out) == (0, printed)
    drawn = json.loads(out)
    assert (drawn["dataset"], drawn["draw"], drawn["shots"], drawn["seed"]) == ("dtd", "coop", 1, 1)
    assert len(drawn["train"]) == len(drawn["val"]) == 47
    assert all(row[0].startswith("images/") for row in drawn["train"])
    assert drawn["checksum"] == rows_checksum(drawn["train"], drawn["val"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fgvc_aircraft", "stanford_cars", "flowers102"])
def test_draw_of_the_other_layouts(data, root, name):
    data("fake", name, "--root", root)
    code, out, _ = data("draw", name, "--shots", 1, "--draw", "clip_lora")
    assert code == 0
    manifest = EXTERNAL[name]
    assert len(json.loads(out)["train"]) == manifest.num_classes
    folder = root / manifest.folders["coop"]
    assert all((folder / row[0]).is_file() for row in json.loads(out)["train"])


def test_draw_of_a_bundled_set_names_images_by_their_number(data):
    code, out, _ = data("draw", "fashion", "--shots", 2, "--draw", "nested")
    assert code == 0
    drawn = json.loads(out)
    assert sorted(label for _, label, _ in drawn["train"]) == sorted(2 * list(range(10)))
    assert all(path.startswith("train/") and path[6:].isdigit() for path, _, _ in drawn["train"])
    assert drawn["checksum"] == rows_checksum(drawn["train"], [])


def test_a_draw_is_written_and_checked(data, root, tmp_path):
    data("fake", "dtd", "--root", root)
    file = tmp_path / "draws" / "one.json"
    code, out, _ = data("draw", "dtd", "--shots", 2, "--output", file)
    checksum = json.loads(file.read_text())["checksum"]
    assert (code, out) == (0, f"{file}: 94 train and 94 val images; checksum {checksum}\n")
    code, out, _ = data("draw", "dtd", "--check", file)
    assert (code, out) == (
        0,
        f"{file}: 94 train and 94 val images, all in the split; checksum {checksum}\n",
    )
    file.write_text(file.read_text().replace("banded_0001", "banded_0009"))
    code, out, err = data("draw", "dtd", "--check", file)
    assert code == 2
    assert "was changed after it was written" in err


def test_download_prints_numbered_steps(data, root):
    code, out, _ = data("download", "imagenet")
    lines = out.splitlines()
    assert code == 1  # `download X && train` is not to go on
    assert lines[0] == f"ImageNet needs {len(lines) - 1} steps by hand:"
    assert [line.split(".")[0] for line in lines[1:]] == [str(i + 1) for i in range(len(lines) - 1)]
    assert str(root / "imagenet") in out
    assert "ILSVRC2012_img_train.tar" in out
    assert lines[-1].endswith(f"blocklora data verify imagenet --root {root}")
    assert not root.exists()


def test_download_reports_what_came_and_what_did_not(data, root, monkeypatch):
    monkeypatch.setattr("blocklora_lib.data.obtain.download.download", lambda *_: [])
    code, out, _ = data("download", "dtd", "--root", root)
    assert code == 0
    assert "is ready; check it with: blocklora data verify dtd --root" in out

    def broken(*_):
        raise DownloadError("dtd: no answer")

    monkeypatch.setattr("blocklora_lib.data.obtain.download.download", broken)
    assert data("download", "dtd") == (2, "", "error: dtd: no answer\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["verify", "dtdd"], "unknown dataset 'dtdd'; did you mean 'dtd'"),
        (["list", "dtdd"], "unknown dataset 'dtdd'; did you mean 'dtd'"),
        (["download", "dtdd"], "unknown dataset 'dtdd'; did you mean 'dtd'"),
        (["draw", "dtdd"], "unknown dataset 'dtdd'; did you mean 'dtd'"),
        (["draw", "dtdd", "--split-file", "x.json"], "unknown dataset 'dtdd'; did you mean 'dtd'"),
        (["fake", "dtdd", "--root", "x"], "unknown dataset 'dtdd'; did you mean 'dtd'"),
        (["fake", "fashion", "--root", "x"], "fashion ships with the project"),
        (["fake", "dtd", "--root", "x", "--convention", "cop"], "did you mean 'coop'"),
        (["verify", "dtd", "--decode", "some"], "unknown choice of --decode 'some'"),
        (["download", "fashion"], "nothing to download"),
        (["draw", "dtd"], "is missing"),
        (["draw", "dtd", "--split-file", "gone.json"], "gone.json is missing"),
        (["draw", "./no such folder"], "is missing"),
        (["draw", "imagenet_a", "--split-file", "README.md"], "is not read from a split file"),
        (["draw", "dtd", "--split-file", "README.md"], "README.md is not JSON"),
    ],
)
def test_bad_input_is_one_sentence(data, arguments, says, monkeypatch):
    monkeypatch.chdir(ROOT)
    code, out, err = data(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert says in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--draw", "coup"], "unknown draw 'coup'; did you mean 'coop'"),
        (["--shots", "0"], "shots=0; a draw takes at least 1"),
        (["--shots", "99", "--draw", "nested"], "use at most"),
        (["--check", "gone.json"], "gone.json is missing"),
        (["--check", "README.md"], "README.md is not valid JSON"),
    ],
)
def test_bad_draws_are_one_sentence(data, root, arguments, says, monkeypatch):
    monkeypatch.chdir(ROOT)
    data("fake", "dtd", "--root", root)
    code, _, err = data("draw", "dtd", *arguments)
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 1
