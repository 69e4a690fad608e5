"""Whole runs on the tiny bundle: repeatable bit for bit, one evaluation rule, failures kept, bad
input found first.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import edit_manifest, profile_facts, write_bundle

from blocklora_lib.clip.backbone import Backbone
from blocklora_lib.core.locks import Taken, locked
from blocklora_lib.core.seeding import generator
from blocklora_lib.learning.loop import batches
from blocklora_lib.methods import get_method
from blocklora_lib.runs import workbench
from blocklora_lib.runs.alike import execute_alike
from blocklora_lib.runs.code_digest import code_of
from blocklora_lib.runs.execute import execute, run_grid, run_or_load
from blocklora_lib.runs.grid import expand, make_spec
from blocklora_lib.runs.profile import Profile
from blocklora_lib.runs.record import MachineFailure, MethodSpec, RunSpec, TrainingSpec
from blocklora_lib.runs.standing import again, remarks, stored
from blocklora_lib.runs.store import RunStore
from blocklora_lib.runs.workbench import Workbench

METHODS = ("zero_shot", "lora", "block_lora", "frozen_a")


@pytest.fixture
def spec(tiny_profile, manifests):
    return make_spec(tiny_profile, "squares", "block_lora", 2, 1, manifests=manifests)


@pytest.mark.slow
def test_the_same_spec_gives_the_same_bits_after_other_runs(tiny_profile, manifests, bench):
    for method in METHODS:
        spec = make_spec(tiny_profile, "squares", method, 2, 1, manifests=manifests)
        first = execute(spec, bench)
        torch.rand(17)
        execute(make_spec(tiny_profile, "dots", "lora", 1, 2, manifests=manifests), bench)
        assert execute(spec, bench).result == first.result  # loss curve and counts
        assert execute(spec, Workbench("cpu", manifests)).result == first.result
        other = execute(
            make_spec(tiny_profile, "squares", method, 2, 2, manifests=manifests), bench
        )
        assert (other.result.loss != first.result.loss) == (method != "zero_shot")


@pytest.mark.slow
def test_the_same_spec_gives_the_same_bits_in_a_fresh_process(spec, bench, manifests, tmp_path):
    import open_clip

    config = tmp_path / f"{spec.backbone.name}.json"
    config.write_text(json.dumps(open_clip.get_model_config(spec.backbone.name)))
    code = """
import sys, torch, open_clip
from blocklora_lib.runs.execute import execute
from blocklora_lib.runs.spec import RunSpec
from blocklora_lib.runs.workbench import Workbench
torch.set_num_threads(1)
open_clip.add_model_config(sys.argv[2])
print(execute(RunSpec.model_validate_json(sys.argv[1]), Workbench("cpu",
__import__("pathlib").Path(sys.argv[3]))) .result.model_dump_json())
"""
    root = str(Path(__file__).parents[2])
    found = subprocess.run(
        [sys.executable, "-c", code, spec.model_dump_json(), str(config), str(manifests)],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert found.stdout.strip() == execute(spec, bench).result.model_dump_json()


def test_a_record_says_what_was_done(spec, bench):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    record = execute(spec, bench)
    assert torch.equal(torch.get_rng_state(), state)
    assert record.status == "done"
    assert {name: c.total for name, c in record.result.accuracy.items()} == {
        "squares": 12,
        "noisy_squares": 9,
    }
    assert record.result.train.total == 6
    assert len(record.result.loss) == spec.training.steps(2) == 4
    # q, k, v of two layers a tower, widths 32 and 16; r = 2, n = 2: A_s d x 1, B_i 2 of d x 1
    assert record.result.trainable_parameters == sum(3 * 2 * (d + 2 * d) for d in (32, 16))
    assert set(record.cost.seconds) == {"load", "train", "evaluate"}
    assert record.cost.peak_memory_bytes > 1 << 20
    about = record.provenance
    assert (about["method_label"], about["device"], about["threads"]) == ("Block-LoRA", "cpu", 1)
    assert about["template"] == "a photo of a {}."
    assert about["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_a_run_leaves_the_backbone_as_it_was(spec, bench):
    model = bench.backbone(spec.backbone).model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    names = [type(m).__name__ for m in model.modules()]
    execute(spec, bench)
    assert [type(m).__name__ for m in model.modules()] == names
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training


@pytest.mark.slow
def test_evaluation_counts_what_the_merged_model_says(spec, bench):
    """The same run again by open_clip's own calls, adapters unmerged."""
    from blocklora_lib.runs.contexts import run_context

    record = execute(spec, bench)
    backbone, dataset = bench.backbone(spec.backbone), bench.dataset("squares")
    predictor = spec.method.load().fit(run_context(spec, bench, bench.check(spec)))
    try:
        with torch.no_grad():
            x = (dataset.images("test") / 255 - backbone.image_mean) / backbone.image_std
            images = backbone.model.encode_image(x, normalize=True)
            classes = backbone.model.encode_text(backbone.tokenize(dataset.prompts), normalize=True)
            correct = ((images @ classes.T).argmax(1) == dataset.labels("test")).sum()
        assert record.result.accuracy["squares"].correct == correct
        assert predictor.loss == record.result.loss
    finally:
        predictor.close()


@pytest.mark.slow
def test_training_learns(tiny_profile, manifests, bench):
    spec = make_spec(tiny_profile, "squares", "lora", 6, 1, manifests=manifests)
    spec = spec.model_copy(update={"training": TrainingSpec(max_steps=60, lr=3e-2, augment="none")})
    result = execute(spec, bench).result
    assert result.loss[-1] < 0.5 * result.loss[0]
    assert result.train.accuracy > 0.9
    assert result.accuracy["squares"].accuracy > 0.9  # the colour of a square is easy


@pytest.mark.slow
def test_one_tower_alone_can_be_adapted(tiny_profile, manifests, bench):
    for tower, parameters in (("vision", 2 * 3 * 2 * 2 * 32), ("text", 2 * 3 * 2 * 2 * 16)):
        spec = make_spec(tiny_profile, "squares", "lora", 1, 1, manifests=manifests)
        method = MethodSpec(name="lora", settings={"towers": [tower]})
        record = execute(spec.model_copy(update={"method": method}), bench)
        assert record.status == "done", record.error
        assert record.result.trainable_parameters == parameters
        assert record.spec.method.settings["rank"] == 2  # the record's spec is complete


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_backbones_train_float32_adapters(tiny_profile, manifests, bench, precision):
    backbone = tiny_profile.backbone.model_copy(update={"precision": precision})
    profile = tiny_profile.model_copy(update={"backbone": backbone})
    record = execute(make_spec(profile, "squares", "block_lora", 1, 1, manifests=manifests), bench)
    assert record.status == "done", record.error


@pytest.mark.parametrize(
    ("precision", "skipped"), [("fp16", (1, 2, 3)), ("bf16", ()), ("fp32", ())]
)
def test_only_a_float16_backbone_is_scaled_and_the_record_counts_skipped_steps(
    tiny_profile, manifests, bench, monkeypatch, precision, skipped
):
    scaler = torch.amp.GradScaler
    huge = 2.0**80  # overflows float16 until it has been halved often enough
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **kw: scaler(*a, init_scale=huge, **kw))
    backbone = tiny_profile.backbone.model_copy(update={"precision": precision})
    profile = tiny_profile.model_copy(update={"backbone": backbone})
    record = execute(make_spec(profile, "squares", "lora", 1, 1, manifests=manifests), bench)
    assert record.status == "done", record.error
    assert len(record.result.loss) == 3
    assert record.result.overflows == skipped


@pytest.mark.slow
def test_run_or_load_runs_once(spec, bench, tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    first = run_or_load(spec, store, bench)
    monkeypatch.setattr("blocklora_lib.runs.execute.execute_alike", None)
    assert run_or_load(spec, store, bench) == first
    partial = spec.model_copy(
        update={"method": MethodSpec(name="block_lora", settings={"rank": 2})}
    )
    assert run_or_load(partial, store, bench) == first  # a default left out is the same run


@pytest.mark.slow
def test_divergence_is_a_failure_record_and_is_retried_on_request_only(spec, bench, tmp_path):
    wild = spec.model_copy(
        update={"training": TrainingSpec(max_steps=5, lr=1e30, weight_decay=0.0)}
    )
    store = RunStore(tmp_path)
    record = run_or_load(wild, store, bench)
    assert (record.status, record.result, record.error.kind) == ("failed", None, "diverged")
    assert "diverged at step" in record.error.message
    assert "lower lr" in record.error.retry
    assert record.error.lr > 1e29
    assert store.frame().empty
    stamp = store.path(wild).stat().st_mtime_ns
    assert run_or_load(wild, store, bench).status == "failed"
    assert store.path(wild).stat().st_mtime_ns == stamp
    run_or_load(wild, store, bench, retry_failed=True)
    assert store.path(wild).stat().st_mtime_ns > stamp
    assert execute(spec, bench).status == "done"  # the backbone survived


MACHINE = [
    ZeroDivisionError("nobody saw this coming"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    MemoryError(),
    OSError(errno.ESTALE, "Stale file handle"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    ValueError("image x.jpg is missing"),
]


@pytest.mark.slow
@pytest.mark.parametrize("error", MACHINE, ids=lambda error: type(error).__name__)
def test_a_failure_of_the_machine_is_no_record_and_the_next_call_goes_on_from_there(
    tiny_profile, manifests, bench, tmp_path, monkeypatch, error
):
    method = get_method("lora")
    store, fit = RunStore(tmp_path), method.fit
    specs = expand(tiny_profile, dataset="dots", manifests=manifests)[:3]
    failing = [spec for spec in specs if spec.method.name == "lora"][1]

    def broken(self, context):
        if context.seed == failing.seed:
            raise error
        return fit(self, context)

    monkeypatch.setattr(method, "fit", broken)
    with pytest.raises(MachineFailure, match="the same command goes on from there") as caught:
        list(run_grid(specs, store, bench))
    assert f"run {failing} ended with {type(error).__name__}" in str(caught.value)
    assert caught.value.__cause__ is error
    assert {r.key for r in store.records()} == {s.key for s in specs if s is not failing}
    kept = {s.key: store.path(s).stat().st_mtime_ns for s in specs if s is not failing}
    monkeypatch.setattr(method, "fit", fit)
    assert [r.status for r in run_grid(specs, store, bench)] == ["done"] * len(specs)
    assert {s.key: store.path(s).stat().st_mtime_ns for s in specs if s is not failing} == kept


def test_memory_that_runs_out_while_weights_are_loaded_is_a_failure_of_the_machine(
    spec, bench, monkeypatch
):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(workbench, "load_backbone", full)
    with pytest.raises(MachineFailure, match="OutOfMemoryError: CUDA out of memory"):
        execute(spec, bench)


@pytest.mark.slow
def test_a_disk_that_is_full_when_the_record_is_written_is_a_failure_of_the_machine(
    spec, bench, tmp_path, monkeypatch
):
    def full(self, record):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunStore, "save", full)
    with pytest.raises(MachineFailure, match="No space left on device"):
        run_or_load(spec, RunStore(tmp_path), bench)


def test_settings_that_the_adapter_refuses_are_a_failure_record(spec, bench, tmp_path):
    deep = spec.method.model_copy(update={"settings": spec.method.settings | {"layers": (7,)}})
    record = run_or_load(spec.model_copy(update={"method": deep}), RunStore(tmp_path), bench)
    assert (record.status, record.error.kind) == ("failed", "refused")
    assert "7" in record.error.message


@pytest.mark.slow
def test_a_record_of_other_code_is_computed_again_unless_it_is_to_be_kept(
    spec, bench, tmp_path, monkeypatch
):
    store = RunStore(tmp_path)
    first = run_or_load(spec, store, bench)
    assert first.code == code_of(spec.method.name)
    assert stored(store, spec).standing == "done"
    for old in ("", "0" * 64):
        store.save(first.model_copy(update={"code": old}))
        assert stored(store, spec).standing == "old"
        with monkeypatch.context() as patch:
            patch.setattr("blocklora_lib.runs.execute.execute_alike", None)
            assert run_or_load(spec, store, bench, keep_old=True).code == old
        again = run_or_load(spec, store, bench)
        assert (again.code, again.result) == (first.code, first.result)
        assert store.load(spec).code == first.code


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(path.read_text()[:700]),
        lambda path: path.write_text(""),
        lambda path: path.write_text(path.read_text().replace('"correct": ', '"correct": 1')),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["cut short", "empty", "by hand", "pipe", "device", "folder"],
)
def test_a_damaged_record_is_set_aside_and_computed_again(spec, bench, tmp_path, damage):
    store = RunStore(tmp_path)
    first = run_or_load(spec, store, bench)
    damage(store.path(spec))
    found = stored(store, spec)
    assert found.standing == "damaged"
    (told,) = again([found], store)
    assert f"{spec.key}.json is damaged (" in told
    assert "delete the file" not in told  # it is set aside
    (record,) = run_grid([spec], store, bench)
    assert record.result == first.result
    assert store.load(spec) == record
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == [store.path(spec).name]


@pytest.mark.slow
def test_what_else_sets_records_apart_is_said(spec, bench):
    record = execute(spec, bench)
    assert remarks([record]) == []
    other = record.model_copy(update={"provenance": record.provenance | {"threads": 4}})
    assert remarks([record, other]) == [
        "these runs mix numbers of threads (1, 4): they differ by rounding, too"
    ]
    assert record.provenance["instructions"] == torch.backends.cpu.get_cpu_capability()
    other = record.model_copy(update={"provenance": record.provenance | {"instructions": "NONE"}})
    seen = ", ".join(sorted({"NONE", record.provenance["instructions"]}))
    assert remarks([record, other]) == [
        f"these runs mix vector instructions ({seen}): they differ by rounding, too"
    ]
    anew = [
        record.model_copy(
            update={"provenance": record.provenance | {"weights": {"tensors": d * 64}}}
        )
        for d in "01"  # of a tag that was published anew
    ]
    told = f"mix weights of {spec.backbone.name} ({'0' * 12}, {'1' * 12}): they are of other models"
    assert remarks(anew) == [f"these runs {told}"]
    assert remarks([record, anew[0]]) == []  # of one nothing is known
    versions = record.provenance["versions"] | {"torch": "1.0"}
    old = record.model_copy(
        update={"provenance": record.provenance | {"versions": versions}, "code": ""}
    )
    said = remarks([record, old])
    assert said[0] == "1 of 2 of these runs were made by another state of the library"
    assert re.fullmatch(r"these runs were made with torch 1\.0; here is \d.*", said[1])
    assert len(said) == 2


def test_bad_input_of_any_spec_is_found_before_the_first_trains(
    tiny_profile, manifests, bench, tmp_path
):
    specs = [
        make_spec(tiny_profile, "dots", "lora", shots, 1, manifests=manifests) for shots in (1, 7)
    ]
    store = RunStore(tmp_path)
    with pytest.raises(
        ValueError, match=r"shots=7, but class 'one dot' has 6 training images; use at most 6 shots"
    ):
        list(run_grid(specs, store, bench))
    assert store.records() == []


def test_changed_data_are_noticed(tmp_path, tiny_clip):
    manifests = write_bundle(tmp_path, "dots", classes=("one dot", "two dots"))
    facts = profile_facts(tiny_clip) | {"source": None, "variants": []}
    spec = make_spec(Profile.model_validate(facts), "dots", "lora", 1, 1, manifests=manifests)
    edit_manifest(manifests, {"template": "an image of {}."}, "dots")
    with pytest.raises(ValueError, match=r"are not those of the spec .*make the spec again"):
        execute(spec, Workbench("cpu", manifests))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            dict(method=dict(name="blok_lora")),
            "unknown method 'blok_lora'; did you mean 'block_lora'",
        ),
        (dict(method=dict(name="zero_shot")), "shots=2 with method zero_shot"),
        (dict(method=dict(name="lora", settings={"rank": 0})), "rank"),
        (dict(dataset="sqares"), "unknown dataset 'sqares'; did you mean 'squares'"),
    ],
)
def test_specs_by_hand_are_checked(spec, bench, changes, says):
    with pytest.raises(ValueError, match=says):
        execute(RunSpec(**(dict(spec) | changes)), bench)


def test_an_unwritable_results_folder_stops_before_training(spec, bench, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("blocklora_lib.runs.execute.execute_alike", None)
    with pytest.raises(OSError, match="cannot be written"):
        run_or_load(spec, RunStore(tmp_path / "file"), bench)


@pytest.mark.slow
def test_validation_images_can_be_the_ones_that_are_counted(tiny_profile, manifests, bench):
    def on_validation(dataset):
        spec = make_spec(tiny_profile, dataset, "lora", 1, 1, manifests=manifests)
        return spec.model_copy(update={"split": "val"})

    assert execute(on_validation("dots"), bench).result.accuracy["dots"].total == 4
    with pytest.raises(ValueError, match="noisy_squares has no val images"):
        execute(on_validation("squares"), bench)


def test_a_profile_file_and_its_model_give_the_same_keys(tiny_profile, manifests, tmp_path):
    from blocklora_lib.runs.profile_files import load_profile

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(profile_facts(tiny_profile.backbone.name)))
    keys = [
        [s.key for s in expand(p, manifests=manifests)] for p in (tiny_profile, load_profile(path))
    ]
    assert keys[0] == keys[1]


@pytest.mark.slow
def test_a_frozen_image_tower_sees_images_that_stay_the_same_once(spec, bench, monkeypatch):
    """Text alone is adapted and views are not drawn: the loss is that of open_clip's features."""
    text_only = spec.method.model_copy(
        update={"settings": spec.method.settings | {"towers": ("text",)}}
    )
    training = spec.training.model_copy(update={"augment": "none", "batch_size": 4})
    spec = spec.model_copy(update={"method": text_only, "training": training})
    seen = []

    def encode(self, images, **how):
        seen.append(len(images))
        return encode_images(self, images, **how)

    encode_images = Backbone.encode_images
    monkeypatch.setattr(Backbone, "encode_images", encode)
    result = execute(spec, bench).result
    dataset, backbone = bench.dataset("squares"), bench.backbone(spec.backbone)
    index = bench.check(spec).index
    assert seen == [
        6,
        6,
        12,
        9,
    ]  # once before training, then both evaluated sets and the training images
    images = backbone.preprocess(dataset.images("train")[index])
    with torch.no_grad():
        rows = F.normalize(backbone.model.encode_image(images), dim=-1)
        classes = F.normalize(
            backbone.model.encode_text(backbone.tokenize(dataset.prompts)), dim=-1
        )
    batch = next(batches(6, 4, generator(spec.seed, "shuffle")))
    logits = backbone.logit_scale * rows[batch] @ classes.T  # at the start B = 0
    expected = F.cross_entropy(logits, dataset.labels("train")[index][batch])
    assert result.loss[0] == pytest.approx(expected.item(), abs=1e-4)
    assert len(set(result.loss)) > 1


def test_a_damaged_record_that_cannot_be_set_aside_is_said_before_training(
    spec, bench, tmp_path, monkeypatch
):
    """It was after: hours of training were lost."""
    store = RunStore(tmp_path)
    store.path(spec).write_text("{")
    (tmp_path / "damaged").write_text("a file")
    monkeypatch.setattr("blocklora_lib.runs.execute.execute_alike", None)
    with pytest.raises(OSError, match="cannot be moved to"):
        run_or_load(spec, store, bench)


@pytest.mark.slow
def test_two_grids_over_the_same_specs_share_the_runs(
    tiny_profile, manifests, bench, tmp_path, monkeypatch
):
    """While another is at one of them, the others are run; what it has then made is not."""
    store, made = RunStore(tmp_path / "runs"), []
    monkeypatch.setattr("blocklora_lib.runs.execute.POLL", 0.0)
    specs = expand(tiny_profile, "few_shot", "dots", "lora", manifests)

    def counted(wanted, *given):
        made.extend(wanted)
        return execute_alike(wanted, *given)

    monkeypatch.setattr("blocklora_lib.runs.execute.execute_alike", counted)
    store.check_writable()
    with locked(store.lock(specs[0]), print):
        records = run_grid(specs, store, bench)
        assert [next(records).spec for _ in specs[1:]] == specs[1:]
        with pytest.raises(Taken):
            run_or_load(specs[0], store, bench, wait=False)
        store.save(*execute_alike({specs[0]: None}, bench))  # the other's
    assert next(records) == store.load(specs[0])
    assert list(records) == []
    assert made == specs[1:]
    assert list(store.folder.glob(".*")) == []


@pytest.mark.slow
def test_a_record_says_where_and_when_it_was_made(spec, bench):
    about = execute(spec, bench).provenance
    start, end = (datetime.fromisoformat(about[name]) for name in ("start", "end"))
    assert timedelta(0) <= datetime.now(UTC) - end < timedelta(minutes=1)
    assert start <= end
    assert about["host"] == platform.node()
