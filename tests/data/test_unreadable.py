"""Images that are missing or do not decode: refused before training, or left out by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import eurosat_profile
from PIL import Image

from blocklora_lib.data.dataset import load_dataset
from blocklora_lib.runs.execute import execute
from blocklora_lib.runs.grid import make_spec
from blocklora_lib.runs.record import MachineFailure, MethodSpec, RunSpec
from blocklora_lib.runs.store import RunStore
from blocklora_lib.runs.workbench import Workbench


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def write_text(path: Path) -> None:
    path.write_text("<html>404 Not Found</html>")


def damage_inside(path: Path) -> None:
    """Head and end stay as they were: only a whole decode finds it."""
    Image.effect_noise((64, 64), 50).save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


DAMAGES = [Path.unlink, truncate, write_text]


@pytest.fixture
def folder(eurosat) -> Path:
    """The set that is damaged."""
    return eurosat


@pytest.fixture
def spec(eurosat, tiny_clip) -> RunSpec:
    return make_spec(eurosat_profile(tiny_clip), "eurosat", "lora", 2, 1)


def skipping(spec: RunSpec) -> RunSpec:
    return spec.model_copy(update={"skip_unreadable": True})


def drawn(spec: RunSpec) -> list[tuple[str, int]]:
    return [row[:2] for row in Workbench("cpu").drawn(spec).train]


def evaluated(folder: Path) -> list[Path]:
    dataset = load_dataset("eurosat")
    return [folder / dataset.path("test", i) for i in range(len(dataset.labels("test")))]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("of", ["train", "test"])
def test_a_bad_image_is_refused_before_training_with_file_count_and_way_out(
    spec, folder, damage, of
):
    paths = [folder / path for path, _ in drawn(spec)] if of == "train" else evaluated(folder)
    for path in paths[:5]:
        damage(path)
    with pytest.raises(ValueError, match="next: blocklora data verify eurosat --root") as error:
        Workbench("cpu").check(spec)
    said = str(error.value)
    bad = sorted(map(str, paths[:5]))
    assert sum(path in said for path in bad) == 4  # the first, and three of the four others
    assert f"and 4 more {of} images of eurosat cannot be read" in said
    assert ("is missing" if damage is Path.unlink else "cannot be decoded") in said
    assert said.endswith("say --skip-unreadable, or skip_unreadable: true in the profile")
    assert "\n" not in said


@pytest.mark.slow
def test_an_image_that_no_run_reads_may_be_bad(spec, folder):
    used = {path for path, _ in drawn(spec)}
    dataset = load_dataset("eurosat")
    (spare, *_) = (i.path for i in dataset.listing["train"] if i.path not in used)
    (folder / spare).unlink()
    assert execute(spec, Workbench("cpu")).result.unreadable == {}


@pytest.mark.slow
def test_bad_images_are_left_out_named_and_counted(spec, folder, tmp_path):
    whole = execute(spec, Workbench("cpu")).result
    rows = drawn(spec)
    bad = [rows[0][0], rows[3][0]]  # of two classes
    damaged = evaluated(folder)[:4]
    truncate(folder / bad[0])
    (folder / bad[1]).unlink()
    write_text(damaged[0])
    damage_inside(damaged[3])
    bench = Workbench("cpu")
    record = execute(skipping(spec), bench)
    assert record.status == "done", record.error
    expected = sorted([*bad, *(damaged[i].relative_to(folder).as_posix() for i in (0, 3))])
    assert record.result.unreadable == {"eurosat": tuple(expected)}
    assert record.result.train.total == len(rows) - 2
    assert record.result.accuracy["eurosat"].total == len(evaluated(folder)) - 2
    # what is drawn stays what is drawn without the setting; the record says so
    assert record.result.draw_checksum == whole.draw_checksum
    inputs = bench.check(skipping(spec))
    paths = [bench.dataset("eurosat").path("train", i) for i in inputs.index.tolist()]
    assert paths == [path for path, _ in rows if path not in bad]
    store = RunStore(tmp_path / "runs")
    store.save(record)
    assert store.load(skipping(spec)) == record
    assert store.frame()["unreadable"].tolist() == [4]


@pytest.mark.slow
def test_where_no_validation_image_can_be_read_nothing_is_chosen(folder, tiny_clip):
    methods = [{"name": "gda"}]
    chosen = make_spec(eurosat_profile(tiny_clip, methods=methods), "eurosat", "gda", 1, 1)
    bench = Workbench("cpu")
    split, rows = bench.check(chosen).validation
    paths = [folder / bench.dataset("eurosat").path(split, row) for row in rows.tolist()]
    for path in paths[1:]:
        write_text(path)
    assert len(Workbench("cpu").check(skipping(chosen)).validation[1]) == 1
    write_text(paths[0])
    with pytest.raises(ValueError, match=r"none of the 10 validation images of eurosat .* gda"):
        Workbench("cpu").check(skipping(chosen))


@pytest.mark.slow
def test_what_is_counted_is_what_is_left(spec, folder):
    """Correct and total of the images left, counted again one by one."""
    from blocklora_lib.learning.contract import Context
    from blocklora_lib.learning.evaluation import evaluate_images
    from blocklora_lib.methods import get_method

    write_text(evaluated(folder)[5])
    bench = Workbench("cpu")
    zero = skipping(spec).model_copy(
        update=dict(shots=0, seed=0, draw=None, training=None, method=MethodSpec(name="zero_shot"))
    )
    record = execute(zero, bench)
    backbone, dataset = bench.backbone(spec.backbone), bench.dataset("eurosat")
    method = get_method("zero_shot")
    tokens = backbone.tokenize(dataset.prompts)
    predictor = method(method.Settings()).fit(Context(backbone, tokens, None, None, None, 0, 0))
    correct = total = 0
    for i in range(len(dataset.labels("test"))):
        if i != 5:
            one = torch.tensor([i])
            count = evaluate_images(
                predictor,
                backbone,
                dataset,
                dataset.images("test")[one],
                dataset.labels("test")[one],
            )
            correct, total = correct + count.correct, total + count.total
    assert record.result.accuracy["eurosat"].model_dump() == {"correct": correct, "total": total}


@pytest.mark.slow
def test_without_bad_images_the_setting_changes_the_key_alone(spec):
    plain, skipped = (execute(s, Workbench("cpu")) for s in (spec, skipping(spec)))
    assert plain.result == skipped.result
    assert plain.key != skipped.key


@pytest.mark.parametrize("of", ["train", "test"])
def test_a_class_of_which_nothing_is_left_is_an_error(spec, folder, of):
    bench = Workbench("cpu")
    classes, labels = (
        bench.dataset("eurosat").classes,
        bench.dataset("eurosat").labels("test").tolist(),
    )
    if of == "train":
        bad = [folder / path for path, label in drawn(spec) if label == 3]
    else:
        bad = [path for path, label in zip(evaluated(folder), labels, strict=True) if label == 3]
    for path in bad:
        path.unlink()
    says = f"has no {of} image left of class {classes[3]!r}.*next: blocklora data verify eurosat"
    with pytest.raises(ValueError, match=says):
        bench.check(skipping(spec))


def test_a_file_that_only_a_whole_decode_finds_stops_the_run_by_name(spec, folder):
    path = folder / drawn(spec)[0][0]
    damage_inside(path)
    with pytest.raises(MachineFailure, match=rf"image .*{path.name} cannot be decoded"):
        execute(spec, Workbench("cpu"))


@pytest.mark.slow
def test_a_set_that_ships_as_one_file_has_none(tiny_profile, manifests):
    spec = make_spec(tiny_profile, "squares", "lora", 1, 1, manifests=manifests)
    bench = Workbench("cpu", manifests)
    plain, skipped = (execute(s, bench).result for s in (spec, skipping(spec)))
    assert plain == skipped
    assert bench.dataset("squares").unreadable("test", torch.tensor([0]), thorough=True) == {}
