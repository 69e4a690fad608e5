"""Trained adapters as files: what they say, on what they load, and what they make of images."""

from __future__ import annotations

import errno
import json
import os
import shutil

import numpy as np
import open_clip
import pytest
import torch
from conftest import CLASSES, edit_manifest, profile_facts, write_bundle
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from blocklora_lib.adapters.attach import AdapterSet, attach, attach_linear
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.clip.backbone import load_backbone
from blocklora_lib.core.schema import AdapterError, UnknownName
from blocklora_lib.data.image_files import ImageFiles
from blocklora_lib.data.manifest_files import load_manifest
from blocklora_lib.methods import method_names
from blocklora_lib.runs.classifier import load_classifier, open_kept
from blocklora_lib.runs.execute import execute, run_grid, run_or_load
from blocklora_lib.runs.grid import expand, make_spec
from blocklora_lib.runs.kept import KEY, Kept, has_adapter, keeper_of, trained
from blocklora_lib.runs.merged import write_merged
from blocklora_lib.runs.profile import Profile
from blocklora_lib.runs.record import MachineFailure
from blocklora_lib.runs.scoring import score, set_for
from blocklora_lib.runs.spec import RunSpec
from blocklora_lib.runs.store import RunStore
from blocklora_lib.runs.workbench import Workbench
from blocklora_lib.weights.checkpoints import BadCheckpoint

FAMILY = ("lora", "block_lora", "frozen_a", "lora_plus", "dora", "pissa", "vera")


def profile_of(backbone: str, *methods: str) -> Profile:
    facts = profile_facts(backbone)
    facts["methods"] = [{"name": name} for name in methods]
    return Profile.model_validate(facts)


@pytest.fixture(scope="module")
def wide_bench(manifests):
    return Workbench("cpu", manifests)


@pytest.fixture(scope="module")
def run(tiny_clip, manifests, wide_bench):
    """Run a method on 'dots' with a keeper; returns the record."""

    def run(method, keeper, **how):
        spec = make_spec(profile_of(tiny_clip, method), "dots", method, 2, 1, manifests=manifests)
        return execute(spec, wide_bench, keeper=keeper, **how)

    return run


@pytest.fixture(scope="module")
def kept(run, tmp_path_factory):
    """(file, record) of one kept run of Block-LoRA."""
    file = tmp_path_factory.mktemp("kept") / "dots.safetensors"
    return file, run("block_lora", Kept(file=file))


@pytest.fixture(scope="module")
def other_checkpoint(tiny_clip, tmp_path_factory):
    """Weights of the tiny CLIP's shapes that are not its own."""
    torch.manual_seed(7)
    file = tmp_path_factory.mktemp("other") / "other.safetensors"
    save_file(open_clip.create_model(tiny_clip).state_dict(), file)
    return file


def squares(folder, classes, each=4, size=40):
    """One's own images, a folder a class."""
    random = np.random.default_rng(1)
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = random.integers(0, 100, (size, size, 3), dtype=np.uint8)
            pixels[..., label % 3] += np.uint8(120)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", FAMILY)
def test_a_kept_run_scores_what_its_record_says(method, run, manifests, tmp_path):
    record = run(method, Kept(tmp_path))
    (file,) = tmp_path.iterdir()
    assert file.name == f"{record.key}.safetensors"
    classifier = load_classifier(file, device="cpu")
    found = score(classifier, set_for(classifier.about, "dots", manifests=manifests))
    count = record.result.accuracy["dots"]
    assert sum(c.correct for c in found.values()) == count.correct
    assert sum(c.total for c in found.values()) == count.total
    assert list(found) == ["one dot", "two dots"]


def test_every_method_is_of_the_family_or_refuses_before_it_trains(tiny_clip, manifests, tmp_path):
    for method in method_names():
        spec = make_spec(profile_of(tiny_clip, method), "dots", method, 1, 1, manifests=manifests)
        assert has_adapter(spec) == (method in FAMILY)
        if method not in FAMILY:
            with pytest.raises(ValueError, match=f"method {method} trains n.*; leave --save out"):
                keeper_of(spec, tmp_path / "a.safetensors")


def test_the_file_says_all_that_it_was_trained_on(kept, manifests):
    file, record = kept
    about = trained(file)
    assert about.spec == record.spec
    assert about.classes == ("one dot", "two dots")
    assert about.template == "a photo of a {}."
    assert about.view["size"] == [32, 32]
    assert len(about.weights["tensors"]) == 64
    assert about.accuracy == record.result.accuracy
    with safe_open(file, framework="pt") as opened:  # and it is an adapter file as any other
        assert opened.metadata()["format"] == "blocklora-adapter"


def test_keeping_changes_nothing_of_the_result(run, kept):
    assert run("block_lora", None).result == kept[1].result


@pytest.mark.slow
def test_a_finished_run_is_trained_again_to_be_kept_and_its_record_stands(
    tiny_clip, manifests, wide_bench, tmp_path
):
    profile, store = profile_of(tiny_clip, "lora", "zero_shot"), RunStore(tmp_path / "runs")
    specs = [
        make_spec(profile, "dots", name, 1, 1, manifests=manifests)
        for name in ("lora", "zero_shot")
    ]
    list(run_grid(specs, store, wide_bench))
    before = {path.name: path.read_bytes() for path in store.folder.glob("*.json")}
    keeper = Kept(tmp_path / "adapters")
    keeper.check()
    for _ in range(2):
        list(run_grid(specs, store, wide_bench, keeper=keeper))
        assert {path.name: path.read_bytes() for path in store.folder.glob("*.json")} == before
        (file,) = (tmp_path / "adapters").iterdir()  # zero-shot has nothing to keep
        assert trained(file).spec == specs[0]
        assert not keeper.lacks(specs[0])
        assert keeper.remarks(store.load(specs[0])) == []
        file.write_bytes(file.read_bytes()[:-3])  # a damaged one is made again
        assert keeper.lacks(specs[0])


def test_a_failed_run_leaves_no_file(tiny_clip, manifests, wide_bench, tmp_path):
    profile = profile_of(tiny_clip, "lora").changed("lora", {}, {"lr": 1e30})
    spec = make_spec(profile, "dots", "lora", 2, 1, manifests=manifests)
    store, keeper = RunStore(tmp_path / "runs"), Kept(tmp_path / "adapters")
    keeper.check()
    for _ in range(2):
        record = run_or_load(spec, store, wide_bench, keeper=keeper)
        assert record.status == "failed"
    assert list((tmp_path / "adapters").iterdir()) == []


@pytest.mark.slow
def test_the_merged_checkpoint_is_one_of_open_clip_alone(kept, manifests, wide_bench, tmp_path):
    file, _ = kept
    told = write_merged(file, tmp_path / "merged.safetensors")
    space: dict = {}
    exec("\n".join(told), space)
    model = space["model"].eval()
    tokens = open_clip.get_tokenizer("ViT-B-32", context_length=16)(
        ["a photo of a one dot.", "a photo of a two dots."]
    )
    classifier = load_classifier(file, device="cpu")
    images = wide_bench.dataset("dots").images("test")
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    with torch.no_grad():
        seen = torch.stack([space["preprocess"](picture) for picture in pictures])
        rows = model.encode_image(seen, normalize=True), model.encode_text(tokens, normalize=True)
        expected = model.logit_scale.exp() * rows[0] @ rows[1].T
    (found,) = (logits for _, logits in classifier.predict(images))
    # float32, two towers of two layers; the adapters themselves move the logits by far more
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=2e-5)
    plain = open_clip.create_model(space["model"] and "merged", pretrained=None)
    assert load_file(tmp_path / "merged.safetensors").keys() == plain.state_dict().keys()


@pytest.mark.slow
def test_a_checkpoint_is_not_merged_into_itself(kept, other_checkpoint, tmp_path):
    file, before = kept[0], other_checkpoint.read_bytes()
    with pytest.raises(ValueError, match="is there and no checkpoint that was merged here"):
        write_merged(file, other_checkpoint, weights=str(other_checkpoint), other_weights=True)
    assert other_checkpoint.read_bytes() == before
    (tmp_path / "m.json").write_text("{}")
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("m", "folder", "pipe"):
        with pytest.raises(ValueError, match=f"{name}.json, which is there, is not the config of"):
            write_merged(file, tmp_path / f"{name}.safetensors")


@pytest.mark.slow
def test_what_is_merged_replaces_nothing_but_what_was_merged(kept, tmp_path):
    file = tmp_path / "adapter.safetensors"
    shutil.copy(kept[0], file)
    before = file.read_bytes()
    with pytest.raises(ValueError, match="but of something else"):  # the very input
        write_merged(file, file)
    assert file.read_bytes() == before
    photo = tmp_path / "holiday.safetensors"
    photo.write_bytes(b"a photo")
    with pytest.raises(ValueError, match="no safetensors file"):
        write_merged(file, photo)
    assert photo.read_bytes() == b"a photo"
    with pytest.raises(ValueError, match=r"m\.pt would be taken for another kind of file"):
        write_merged(file, tmp_path / "m.pt")
    with pytest.raises(OSError, match=r"m\.safetensors cannot be written: .*nowhere is no folder"):
        write_merged("no file", tmp_path / "nowhere" / "m.safetensors")  # before anything is read
    with pytest.raises(OSError, match=r"photo is no folder that can be written to; make it one"):
        write_merged("no file", photo.rename(tmp_path / "photo") / "m.safetensors")
    for _ in range(2):  # again is no fault
        write_merged(file, tmp_path / "m.safetensors")


# on which weights


@pytest.mark.slow
def test_other_weights_of_the_same_shapes_are_refused_unless_asked_for(kept, other_checkpoint):
    with pytest.raises(AdapterError, match=r"trained on weights of TinyCLIP-test with digest .*"):
        open_kept(kept[0], "cpu", str(other_checkpoint))
    opened = open_kept(kept[0], "cpu", str(other_checkpoint), other_weights=True)
    assert len(opened.adapters.adapters) == 12


@pytest.mark.slow
def test_the_same_weights_in_another_file_are_the_same(kept, tiny_clip, tmp_path):
    backbone = load_backbone(trained(kept[0]).spec.backbone, "cpu")
    torch.save(backbone.model.state_dict(), tmp_path / "same.pt")
    open_kept(kept[0], "cpu", str(tmp_path / "same.pt"))
    config = {"preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"seen with mean=\[0\.48\d*, .* with mean=\[0\.5, 0\.5"):
        open_kept(kept[0], "cpu", str(tmp_path / "same.pt"))


def test_weights_of_other_shapes_are_told(kept, tmp_path):
    state = load_backbone(trained(kept[0]).spec.backbone, "cpu").model.state_dict()
    wide = {k: torch.cat([t, t]) if k == "visual.proj" else t for k, t in state.items()}
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(BadCheckpoint, match=r"is not of TinyCLIP-test: it has 1 of another shape"):
        open_kept(kept[0], "cpu", str(tmp_path / "wide.safetensors"), other_weights=True)
    with pytest.raises(FileNotFoundError, match=r"weights that are not here .* \(--weights\)"):
        open_kept(kept[0], "cpu", str(tmp_path / "none.safetensors"))


@pytest.mark.slow
def test_adapters_of_a_run_load_onto_their_weights_alone_by_the_face_too(
    kept, other_checkpoint, tiny_clip
):
    own = load_backbone(trained(kept[0]).spec.backbone, "cpu").model
    AdapterSet.load(kept[0], own).merge()
    other = open_clip.create_model(tiny_clip, pretrained=str(other_checkpoint))
    with pytest.raises(AdapterError, match=r"trained on other weights than CLIP has here \(dig"):
        AdapterSet.load(kept[0], other)
    assert not any(hasattr(m, "adapters") for m in other.modules())
    AdapterSet.load(kept[0], other, other_weights=True)
    half = load_backbone(trained(kept[0]).spec.backbone, "cpu").model.to(torch.bfloat16)
    AdapterSet.load(kept[0], half)  # of another number format nothing is said


# damaged files


def rewritten(file, to, about):
    """The file with other words on its run, as one without a checksum has them."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() | {"extra": json.dumps(about)}
    del metadata["sha256"]
    save_file(load_file(file), to, metadata)
    return to


def test_what_is_no_whole_file_of_a_run_is_one_sentence(kept, tmp_path):
    file, to = kept[0], tmp_path / "a.safetensors"
    facts = json.loads(trained(file).model_dump_json())
    for about, says in (
        ({}, "does not say what they were trained on"),
        ({KEY: "{"}, "says of its run is damaged"),
        ({KEY: json.dumps(facts | {"classes": 3})}, r"is damaged \(classes: "),
        ({KEY: json.dumps(facts | {"template": "no place"})}, r"is damaged \(template"),
        ({KEY: json.dumps({k: v for k, v in facts.items() if k != "spec"})}, r"damaged \(spec: F"),
        *(
            ({KEY: json.dumps(facts | {"spec": facts["spec"] | {"method": method}})}, "a mapping")
            for method in ({"name": "lora", "settings": 2}, {"name": "lora", "settings": None})
        ),
        *(
            ({KEY: json.dumps(facts | {key: value})}, rf"is damaged \(.*{says}")
            for key, value, says in (
                ("weights", {}, "weights do not give the SHA-256"),
                ("weights", {"tensors": "0" * 12}, "weights do not give the SHA-256"),
                ("accuracy", {}, "accuracy is not of the sets"),
                ("classes", [], "classes are no names"),
                ("classes", ["one dot", ""], "classes are no names"),
                ("view", {}, "view does not say .*interpolation, mean"),
            )
        ),
    ):
        with pytest.raises(AdapterError, match=says) as told:
            trained(rewritten(file, to, about))
        assert "\n" not in str(told.value)
    to.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(AdapterError, match="damaged or no safetensors file"):
        trained(to)


def test_a_class_that_was_renamed_in_the_file_is_told(kept, tmp_path):
    data, to = kept[0].read_bytes(), tmp_path / "a.safetensors"
    to.write_bytes(data.replace(b"one dot", b"no dots"))
    for reads in (trained, load_classifier):
        with pytest.raises(AdapterError, match=r"metadata of .* were changed since it was written"):
            reads(to)
    assert Kept(file=to).lacks(kept[1].spec)


def test_two_classes_of_one_name_are_kept_as_they_are(kept, tmp_path):
    """ImageNet has two of the name missile, and two sunglasses."""
    names = list(load_manifest("imagenet").classes)
    assert len(set(names)) == len(names) - 2
    facts = json.loads(trained(kept[0]).model_dump_json()) | {"classes": names}
    found = trained(rewritten(kept[0], tmp_path / "a.safetensors", {KEY: json.dumps(facts)}))
    assert list(found.classes) == names


def test_a_run_that_is_not_evaluated_where_it_was_trained_is_kept(
    tiny_clip, manifests, wide_bench, tmp_path
):
    facts = profile_facts(tiny_clip) | {"methods": [{"name": "block_lora"}]}
    away = {"datasets": ["dots"], "shots": [2], "seeds": [1], "evaluate_on": ["squares"]}
    profile = Profile.model_validate(facts | {"experiments": {"away": away}})
    (spec,) = expand(profile, "away", manifests=manifests)
    keeper = Kept(tmp_path)
    record = execute(spec, wide_bench, keeper=keeper)
    assert set(trained(keeper.path(spec)).accuracy) == set(record.result.accuracy) == {"squares"}


@pytest.mark.parametrize("error", [ValueError("no such words"), AdapterError("not these")])
def test_whatever_fails_while_it_is_kept_the_run_is_stored(
    error, kept, wide_bench, tmp_path, monkeypatch
):
    store = RunStore(tmp_path / "runs")

    def fails(*_):
        raise error

    monkeypatch.setattr(Kept, "keep", fails)
    with pytest.raises(MachineFailure, match=f"is whole, and its adapter is not kept: {error}"):
        run_or_load(kept[1].spec, store, wide_bench, keeper=Kept(tmp_path / "kept"))
    assert store.load(kept[1].spec).result == kept[1].result


def test_a_spec_of_a_method_that_is_no_more_is_still_read(kept, tmp_path):
    facts = json.loads(trained(kept[0]).model_dump_json())
    facts["spec"]["method"]["settings"]["gone"] = 1
    found = trained(rewritten(kept[0], tmp_path / "a.safetensors", {KEY: json.dumps(facts)}))
    assert isinstance(found.spec, RunSpec)


def test_a_file_that_is_no_adapter_is_not_written_over(kept, other_checkpoint, tmp_path):
    spec = kept[1].spec
    with pytest.raises(ValueError, match=r"no adapter file.*; it is not written over"):
        keeper_of(spec, other_checkpoint)
    with pytest.raises(OSError, match="is no folder that can be written to"):
        keeper_of(spec, tmp_path / "nowhere" / "a.safetensors")
    with pytest.raises(OSError, match="no regular file"):
        keeper_of(spec, tmp_path)
    keeper_of(spec, kept[0])  # its own


def test_adapters_of_others_are_not_written_over(kept, tmp_path):
    other = kept[1].spec.model_copy(update={"seed": 2})
    with pytest.raises(ValueError, match=r"of another run \(dots.*give another file"):
        keeper_of(other, kept[0])
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    attach_linear(model, ["0"], AdapterConfig(rank=2)).save(tmp_path / "mine.safetensors")
    with pytest.raises(ValueError, match="adapters that no run here has trained; they are not"):
        keeper_of(other, tmp_path / "mine.safetensors")


def test_a_full_disk_is_told_before_the_training(kept, tmp_path, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("blocklora_lib.runs.kept.check_room", full)
    with pytest.raises(OSError, match=r"a\.safetensors cannot be written \(No space.*make room"):
        keeper_of(kept[1].spec, tmp_path / "a.safetensors")


@pytest.mark.slow
def test_a_run_whose_adapter_cannot_be_written_is_stored(kept, wide_bench, tmp_path, monkeypatch):
    """An hour of training was thrown away with the file that it could not write."""
    spec, store, keeper = kept[1].spec, RunStore(tmp_path / "runs"), Kept(tmp_path / "kept")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.safetensors")

    with monkeypatch.context() as patched:
        patched.setattr(Kept, "keep", full)
        with pytest.raises(MachineFailure, match=r"is whole, and its adapter is not kept: .*space"):
            run_or_load(spec, store, wide_bench, keeper=keeper)
    assert store.load(spec).result == kept[1].result
    keeper.check()
    assert run_or_load(spec, store, wide_bench, keeper=keeper).result == kept[1].result
    assert trained(keeper.path(spec)).spec == spec


# scoring


def test_sets_of_other_classes_are_refused_unless_asked_for(kept, manifests):
    about = trained(kept[0])
    with pytest.raises(ValueError, match=r"has classes 'blue square', .*lacks classes 'one dot'"):
        set_for(about, "squares", manifests=manifests)
    found = set_for(about, "squares", other_classes=True, manifests=manifests)
    counts = score(load_classifier(kept[0], device="cpu"), found)
    assert tuple(counts) == CLASSES


def test_a_set_of_texts_is_refused_whatever_is_let_pass(kept):
    with pytest.raises(ValueError, match="definitions holds texts, and task classification takes"):
        set_for(trained(kept[0]), "definitions", template="file", other_classes=True)


def test_another_template_is_refused_unless_one_is_chosen(kept, manifests, tmp_path):
    about = trained(kept[0])
    folder = write_bundle(tmp_path, "dots", classes=("one dot", "two dots"), seed=2)
    edit_manifest(folder, {"template": "art of a {}."}, "dots")
    with pytest.raises(ValueError, match=r"'art of a \{\}\.', the adapter was trained with 'a ph"):
        set_for(about, "dots", manifests=folder)
    for which, template in (("file", "a photo of a {}."), ("dataset", "art of a {}.")):
        found = set_for(about, "dots", template=which, manifests=folder)
        assert found.manifest.template == template
    with pytest.raises(UnknownName, match="template 'fil'; did you mean 'file'"):
        set_for(about, "dots", template="fil", manifests=folder)
    with pytest.raises(UnknownName, match="split 'tset'; did you mean 'test'"):
        set_for(about, "dots", "tset", manifests=folder)


@pytest.mark.slow
def test_ones_own_folder_is_cut_as_a_run_cuts_it_or_counted_whole(kept, tmp_path):
    folder, about = squares(tmp_path / "mine", ("two_dots", "one_dot")), trained(kept[0])
    classifier = load_classifier(kept[0], device="cpu")
    cut = score(classifier, set_for(about, folder))
    assert {name: c.total for name, c in cut.items()} == {"one dot": 1, "two dots": 1}
    whole = score(classifier, set_for(about, folder, "all"), "all")
    assert {name: c.total for name, c in whole.items()} == {"one dot": 4, "two dots": 4}
    one = squares(tmp_path / "single", ("two_dots", "one_dot"), each=1)
    assert sum(c.total for c in score(classifier, set_for(about, one, "all"), "all").values()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("loaded_on", ["cuda", "cuda:0"])
def test_on_a_gpu_a_kept_adapter_answers_and_scores_as_on_a_cpu(kept, tmp_path, gpu, loaded_on):
    """Images come from files, and pixels, labels and counts lie on the CPU."""
    folder, about = squares(tmp_path / "mine", ("two_dots", "one_dot")), trained(kept[0])
    images = ImageFiles(sorted(folder.glob("*/*.png")))
    counts, answers = [], []
    for device in ("cpu", loaded_on):
        classifier = load_classifier(kept[0], device=device)
        for given in (images, torch.zeros(3, 3, 40, 40, dtype=torch.uint8)):
            parts = classifier.predict(given)
            answers.append(torch.cat([logits.cpu() for _, logits in parts]))
        counts.append(score(classifier, set_for(about, folder, "all"), "all"))
    assert counts[0] == counts[1]
    for here, there in zip(answers[:2], answers[2:], strict=True):
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


def test_images_that_cannot_be_read_are_named_and_left_out(kept, tmp_path):
    folder = squares(tmp_path / "mine", ("a",), each=3) / "a"
    (folder / "0.png").write_bytes(b"no image")
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])
    classifier, left = load_classifier(kept[0], device="cpu"), []
    paths = [folder / f"{i}.png" for i in range(3)] + [folder / "nowhere.png"]
    found = list(classifier.predict(ImageFiles(paths), lambda path, why: left.append((path, why))))
    assert [index for index, _ in found] == [[2]]
    assert [path for path, _ in left] == [paths[0], paths[1], paths[3]]
    (alone,) = classifier.predict(ImageFiles(paths[2:3]))
    assert torch.equal(alone[1], found[0][1])


def test_batches_change_no_answer(kept, wide_bench, monkeypatch):
    classifier, images = (
        load_classifier(kept[0], device="cpu"),
        wide_bench.dataset("dots").images("test"),
    )
    (whole,) = (logits for _, logits in classifier.predict(images))
    monkeypatch.setattr("blocklora_lib.runs.classifier.BATCH", 3)
    parts = list(classifier.predict(images))
    assert [i for index, _ in parts for i in index] == list(range(len(images)))
    torch.testing.assert_close(
        torch.cat([logits for _, logits in parts]), whole, rtol=1e-5, atol=1e-4
    )


def test_plain_adapters_say_that_they_are_of_no_run(tiny_clip, tmp_path):
    model = open_clip.create_model(tiny_clip)
    attach(model, AdapterConfig(), torch.Generator().manual_seed(1)).save(
        tmp_path / "a.safetensors"
    )
    with pytest.raises(AdapterError, match="does not say what they were trained on"):
        open_kept(tmp_path / "a.safetensors", "cpu")
