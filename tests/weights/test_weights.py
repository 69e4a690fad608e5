"""Checkpoints in every honest form, bad ones in a sentence, where a tag's file is looked for."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import os
import pickle
import re
import shutil
import warnings
import zipfile
from pathlib import Path

import httpx
import numpy as np
import open_clip
import pytest
import torch
from conftest import profile_facts
from huggingface_hub import constants
from huggingface_hub.errors import RemoteEntryNotFoundError
from local_server import serve
from open_clip import pretrained
from open_clip.pretrained import get_pretrained_url
from safetensors.torch import save_file
from typer.testing import CliRunner

from blocklora_lib.cli.app import app
from blocklora_lib.clip import backbone as backbones
from blocklora_lib.clip.backbone import load_backbone
from blocklora_lib.runs.execute import execute
from blocklora_lib.runs.grid import make_spec
from blocklora_lib.runs.profile import Profile
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.weights import obtain, tags
from blocklora_lib.weights.files import with_checksum
from blocklora_lib.weights.obtain import download
from blocklora_lib.weights.spec import BackboneSpec

QUICK = "TinyCLIP-quickgelu"


@pytest.fixture(scope="module")
def quick(tmp_path_factory, tiny_clip) -> str:
    """The tiny CLIP with OpenAI's activation."""
    path = tmp_path_factory.mktemp("quick") / f"{QUICK}.json"
    path.write_text(json.dumps(open_clip.get_model_config(tiny_clip) | {"quick_gelu": True}))
    open_clip.add_model_config(path)
    return QUICK


@pytest.fixture(scope="module")
def model(quick):
    """The tiny CLIP with weights that float16 holds exactly."""
    made = open_clip.create_model(quick, load_weights=False).eval()
    for tensor in made.state_dict().values():
        tensor.copy_(tensor.half())
    return made


def state(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}


def openai_marks() -> dict[str, torch.Tensor]:
    return dict(
        input_resolution=torch.tensor(32),
        context_length=torch.tensor(16),
        vocab_size=torch.tensor(49408),
    )


def save_archive(model, path: Path) -> Path:
    """What OpenAI's files are: a traced model in half the bits, with three numbers as buffers."""
    model = copy.deepcopy(model)
    for name, number in openai_marks().items():
        model.__dict__.pop(name, None)  # here a plain number
        model.register_buffer(name, number)
    images, tokens = torch.zeros(1, 3, 32, 32), torch.ones(1, 16, dtype=torch.int64)
    with warnings.catch_warnings():
        # torch advises against this format, and OpenAI's files are of it
        warnings.simplefilter("ignore")
        archive = torch.jit.trace(model, (images, tokens), check_trace=False)
        for parameter in archive.parameters():
            parameter.data = parameter.data.half()
        torch.jit.save(archive, str(path))
    return path


def half(model) -> dict[str, torch.Tensor]:
    return {name: tensor.half() for name, tensor in state(model).items()}


def as_folder(content: dict, path: Path) -> Path:
    path.mkdir()
    save_file(content, path / "open_clip_model.safetensors")
    torch.save({"other": torch.zeros(1)}, path / "pytorch_model.bin")
    return path


FORMS = {
    "OpenAI's archive": lambda m, p: save_archive(m, p / "ViT-B-16.pt"),
    "OpenAI's state_dict": lambda m, p: torch.save(half(m) | openai_marks(), p / "ViT-B-16.pt"),
    "its numbers as int": lambda m, p: torch.save(
        half(m) | {k: int(v) for k, v in openai_marks().items()}, p / "c.pth"
    ),
    "state_dict": lambda m, p: torch.save(state(m), p / "c.bin"),
    "capitals": lambda m, p: torch.save(half(m), p / "C.PT"),
    "as it was before 2020": lambda m, p: torch.save(
        state(m), p / "c.pt", _use_new_zipfile_serialization=False
    ),
    "training's": lambda m, p: torch.save(
        {"epoch": 3, "state_dict": state(m), "name": "x"}, p / "epoch_3.pt"
    ),
    "DataParallel's": lambda m, p: torch.save(
        {"state_dict": {f"module.{k}": v for k, v in state(m).items()}}, p / "c.pt"
    ),
    "compiled, then DDP's": lambda m, p: torch.save(
        {f"module._orig_mod.{k}": v for k, v in state(m).items()}, p / "c.pt"
    ),
    "Lightning's": lambda m, p: torch.save(
        {"state_dict": {f"model.clip.{k}": v for k, v in state(m).items()}}, p / "last.ckpt"
    ),
    "parameters": lambda m, p: torch.save(dict(m.named_parameters()), p / "c.pt"),
    "one scale with an axis": lambda m, p: torch.save(
        state(m) | {"logit_scale": m.logit_scale.detach().reshape(1)}, p / "c.pt"
    ),
    "float64": lambda m, p: torch.save({k: v.double() for k, v in state(m).items()}, p / "c.pt"),
    "safetensors": lambda m, p: save_file(half(m), p / "c.safetensors"),
    "SAFETENSORS": lambda m, p: save_file(state(m), p / "C.SAFETENSORS"),
    "safetensors under another name": lambda m, p: save_file(state(m), p / "c.bin"),
    "a folder of the hub": lambda m, p: as_folder(state(m), p / "model"),
}


@pytest.fixture(scope="module")
def loaded(model, quick, tmp_path_factory) -> dict:
    """Every form, loaded."""
    found = {}
    for name, save in FORMS.items():
        folder = tmp_path_factory.mktemp("form")
        save(model, folder)
        (path,) = folder.iterdir()
        found[name] = load_backbone(BackboneSpec(name=quick, pretrained=str(path)), "cpu")
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_honest_form_gives_the_same_weights(loaded, model, form):
    ours = loaded[form].model.state_dict()
    assert ours.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert ours[name].dtype == torch.float32
        assert torch.equal(ours[name], tensor), name
    assert loaded[form].weights["tensors"] == loaded["safetensors"].weights["tensors"]
    assert "/" not in loaded[form].weights["file"]  # a record holds no folder of this machine


@pytest.mark.slow
def test_openais_archive_computes_what_the_loaded_model_computes(loaded, model, tmp_path):
    archive = torch.jit.load(str(save_archive(model, tmp_path / "ViT-B-16.pt"))).float()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = loaded["safetensors"].tokenize(["a photo of a cat."])
    theirs = archive(images, tokens)
    backbone = loaded["OpenAI's archive"]
    with torch.no_grad():
        torch.testing.assert_close(backbone.encode_images(images), theirs[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(backbone.encode_prompts(tokens), theirs[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("save", [FORMS["OpenAI's archive"], FORMS["OpenAI's state_dict"]])
def test_openais_weights_are_refused_without_quickgelu(save, model, tiny_clip, tmp_path):
    save(model, tmp_path)
    spec = BackboneSpec(name=tiny_clip, pretrained=str(tmp_path / "ViT-B-16.pt"))
    with pytest.raises(
        ValueError, match="trained with QuickGELU, and backbone TinyCLIP-test computes GELU"
    ):
        load_backbone(spec, "cpu")


@pytest.mark.slow
def test_openais_weights_saved_again_without_marks_are_doubted_without_quickgelu(
    model, tiny_clip, tmp_path
):
    """As `clip.load(..)[0].state_dict()` is, of a GPU or, in float32, of a CPU."""
    for name, quick in (("Twice", False), ("Twice-quickgelu", True)):
        (tmp_path / "configs").mkdir(exist_ok=True)
        config = open_clip.get_model_config(tiny_clip) | {"quick_gelu": quick}
        (tmp_path / "configs" / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "configs")
    other = state(model)
    other["transformer.resblocks.0.mlp.c_fc.weight"] += 1e-5  # is no number of float16
    for content, doubted in ((half(model), True), (state(model), True), (other, False)):
        save_file(content, tmp_path / "c.safetensors")
        for name in ("Twice", "Twice-quickgelu"):
            spec = BackboneSpec(name=name, pretrained=str(tmp_path / "c.safetensors"))
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                load_backbone(spec, "cpu")
            said = [str(one.message) for one in told if "half precision" in str(one.message)]
            assert len(said) == (doubted and name == "Twice")
            assert all("use Twice-quickgelu" in line for line in said)
    save_file(half(model), tmp_path / "c.safetensors")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": false}}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_backbone(BackboneSpec(name="Twice", pretrained=str(tmp_path / "c.safetensors")), "cpu")


def test_a_tag_of_another_activation_is_refused(tiny_clip, quick, monkeypatch, model, tmp_path):
    save_file(state(model), tmp_path / "tiny.safetensors")
    monkeypatch.setenv("BLOCKLORA_WEIGHTS", str(tmp_path))
    for name, told in ((tiny_clip, True), (quick, False)):
        config = {"url": "https://nowhere.invalid/tiny.safetensors", "quick_gelu": told}
        monkeypatch.setitem(pretrained._PRETRAINED, name, {"made": config})
        with pytest.raises(ValueError, match="every number would be wrong"):
            load_backbone(BackboneSpec(name=name, pretrained="made"), "cpu")


@pytest.mark.parametrize(
    "spelled", ["~/c.safetensors", "sub/c.safetensors", "c.safetensors", "./sub/../c.safetensors"]
)
def test_paths_are_read_as_a_person_means_them(spelled, model, quick, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        save_file(state(model), folder / "c.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    spec = with_checksum(BackboneSpec(name=quick, pretrained=spelled))
    assert spec.checksum == hashlib.sha256((tmp_path / "c.safetensors").read_bytes()).hexdigest()
    assert load_backbone(spec, "cpu").spec == spec


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def zipped(path: Path, name: str = "readme.txt") -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "hello")
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xf8\xff"))  # which is no text


def damaged(model, path: Path, how: str) -> None:
    """A bad checkpoint of this kind at the path."""
    content, save = state(model), torch.save
    name = "visual.conv1.weight"
    if how == "one bit":
        save(content, path)
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
        return
    if how in ("cut zip", "cut safetensors", "cut archive", "cut old"):
        if how == "cut zip":
            save(content, path)
        elif how == "cut safetensors":
            save_file(content, path)
        elif how == "cut old":
            save(content, path, _use_new_zipfile_serialization=False)
        else:
            save_archive(model, path)
        return cut(path, 0.6)
    table = {
        "huge scale": lambda: save(content | {"logit_scale": torch.tensor(100.0)}, path),
        "zeros": lambda: path.write_bytes(bytes(9000)),
        "numpy": lambda: save({"state_dict": content, "accuracy": np.float64(1)}, path),
        "empty": lambda: path.write_bytes(b""),
        "page": lambda: path.write_text("\n  <!DOCTYPE html><html>Sign in</html>"),
        "xml": lambda: path.write_text(
            "\ufeff<?xml version='1.0'?><Error><Code>BlobNotFound</Code></Error>"
        ),
        "pointer": lambda: path.write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
        ),
        "json": lambda: path.write_text('{"metadata": {"total_size": 3}, "weight_map": {}}'),
        "zip": lambda: zipped(path),
        "zip of no names": lambda: zipped(path, "é/data.pkl"),
        "gzip": lambda: path.write_bytes(gzip.compress(b"hello")),
        "noise": lambda: path.write_bytes(bytes(range(256)) * 40),
        "text": lambda: path.write_text("hello, I am no checkpoint\n" * 9),
        "code": lambda: save({"state_dict": content, "args": Evil(f"{path}.ran")}, path),
        "plain pickle": lambda: path.write_bytes(pickle.dumps(Evil(f"{path}.ran"))),
        "whole model": lambda: save(torch.nn.Linear(2, 2), path),
        "a tensor": lambda: save(torch.zeros(3), path),
        "nothing": lambda: save({}, path),
        "nothing inside": lambda: save({"state_dict": {}}, path),
        "a word": lambda: save(content | {name: "zero"}, path),
        "sparse": lambda: save(content | {name: torch.zeros(2, 2).to_sparse()}, path),
        "missing": lambda: save({k: v for k, v in content.items() if k != name}, path),
        "beside": lambda: save(content | {"head.weight": torch.zeros(2)}, path),
        "shape": lambda: save(content | {name: torch.zeros(32, 3, 8, 8)}, path),
        "more pixels": lambda: save(
            content | {"visual.positional_embedding": torch.zeros(17, 32)}, path
        ),
        "int8": lambda: save(content | {name: content[name].to(torch.int8)}, path),
        "float8": lambda: save(content | {name: content[name].to(torch.float8_e4m3fn)}, path),
        "complex": lambda: save(content | {name: content[name].to(torch.complex64)}, path),
        "nan": lambda: save(
            content | {name: content[name].clone().index_fill_(0, torch.tensor(3), torch.nan)}, path
        ),
        "inf": lambda: save(content | {"logit_scale": torch.tensor(torch.inf)}, path),
        "transformers": lambda: save({"vision_model.weight": torch.zeros(2)}, path),
    }
    table[how]()


BAD = {
    "one bit": r"is damaged: its part .*/data/\d+ has another checksum than the file says",
    "huge scale": r"has a logit_scale of 100, whose exponential is no number",
    "zeros": r"no checkpoint \(no file of torch.save\); fetch it again",
    "numpy": r"holds Python objects \(numpy\.[\w.]*scalar\)",
    "empty": "is empty; fetch it again",
    "page": "is a web page, not weights",
    "xml": "is a web page, not weights",
    "pointer": "is a pointer of git-lfs",
    "json": "is JSON, not weights",
    "zip": r"is a zip archive, but not of torch.save \(it holds readme.txt\)",
    "gzip": "is a packed archive; unpack it",
    "noise": "no checkpoint",
    "text": "no checkpoint",
    "cut zip": "is cut short or damaged",
    "zip of no names": "is cut short or damaged .*decode",
    "cut archive": "is cut short or damaged",
    "cut safetensors": "is damaged, cut short",
    "cut old": "is damaged, cut short",
    "code": r"holds Python objects \((posix|nt)\.mkdir\).*never executed.*"
    r"torch.save\(model.state_dict\(\)",
    "plain pickle": "checkpoint",
    "whole model": r"holds Python objects \(torch\.nn\.modules\.linear\.Linear\)",
    "a tensor": "holds a Tensor, no state_dict",
    "nothing": "holds nothing, no state_dict",
    "nothing inside": "holds nothing, no state_dict",
    "a word": "holds 'visual.conv1.weight', a str, where weights should be",
    "sparse": "holds visual.conv1.weight in a form without plain numbers",
    "missing": r"is not of TinyCLIP-quickgelu: it lacks 1 tensors \(visual.conv1.weight\)",
    "beside": r"has beside 1 tensors \(head.weight\)",
    "shape": r"1 of another shape "
    r"\(visual.conv1.weight: 32 x 3 x 8 x 8 instead of 32 x 3 x 16 x 16\)",
    "more pixels": r"visual.positional_embedding: 17 x 32 instead of 5 x 32",
    "int8": "has visual.conv1.weight in int8",
    "float8": "has visual.conv1.weight in float8_e4m3fn",
    "complex": "has visual.conv1.weight in complex64",
    "nan": "has NaN in visual.conv1.weight",
    "inf": "has infinite numbers in logit_scale",
    "transformers": "take open_clip's form of it",
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_checkpoint_is_one_sentence_and_runs_no_code(how, model, quick, tmp_path):
    path = tmp_path / "bad.pt"
    damaged(model, path, how)
    with pytest.raises(ValueError, match=BAD[how]) as caught:
        load_backbone(BackboneSpec(name=quick, pretrained=str(path)), "cpu")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not Path(f"{path}.ran").exists()


@pytest.mark.parametrize(
    ("precision", "value", "says"),
    [
        (
            "fp16",
            1e5,
            r"visual.conv1.weight with values up to 1e\+05, which overflow in float16; "
            "say precision",
        ),
        (
            "fp32",
            1e300,
            r"visual.conv1.weight with values up to 1e\+300, which overflow in float32",
        ),
        ("bf16", 1e5, None),
    ],
)
def test_weights_too_large_for_the_precision_are_refused(
    precision, value, says, model, quick, tmp_path
):
    content = state(model)
    content["visual.conv1.weight"] = content["visual.conv1.weight"].double()
    content["visual.conv1.weight"][1, 2, 3, 4] = -value
    torch.save(content, tmp_path / "c.pt")
    spec = BackboneSpec(name=quick, pretrained=str(tmp_path / "c.pt"), precision=precision)
    if says is None:
        load_backbone(spec, "cpu")
        return
    with pytest.raises(ValueError, match=says):
        load_backbone(spec, "cpu")


def test_a_place_that_is_no_file_is_named(quick, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    (tmp_path / "none").mkdir()
    (tmp_path / "two").mkdir()
    for name in "ab":
        save_file({"x": torch.zeros(1)}, tmp_path / "two" / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    for path, says in {
        "pipe.pt": "is no regular file",
        "loop.pt": "cannot be read",
        "none/c.pt": "is missing",
        "pipe.pt/c.pt": "is missing",
        "./none": "holds no checkpoint",
        "./two": r"holds several checkpoints \(a.safetensors, b.safetensors\); "
        "give the path of the file",
        "~nobody-here/c.pt": "home folder of a user who is not known",
        "tiny": r"unknown weights 'tiny' .*"
        r"for the file or folder tiny of this folder write \./tiny",
        "": "is no path",
    }.items():
        with pytest.raises((ValueError, OSError), match=says):
            load_backbone(BackboneSpec(name=quick, pretrained=path), "cpu")


def test_what_may_not_be_read_is_named(quick, tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    opened = Path.open

    def refused(self, *arguments, **options):
        if self == path:  # root, who may run this test, reads everything
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(
        OSError, match=r"c.safetensors cannot be read \(Permission denied\); restore it, or set"
    ):
        load_backbone(BackboneSpec(name=quick, pretrained=str(path)), "cpu")


def test_a_file_that_changes_between_its_checksum_and_its_use_is_refused(
    quick, model, tmp_path, monkeypatch
):
    path = tmp_path / "c.safetensors"
    save_file(state(model), path)
    spec = with_checksum(BackboneSpec(name=quick, pretrained=str(path)))
    read = backbones.read_checkpoint

    def exchanged(given):
        save_file({name: -tensor for name, tensor in state(model).items()}, tmp_path / "other")
        os.replace(tmp_path / "other", path)
        return read(given)

    monkeypatch.setattr(backbones, "read_checkpoint", exchanged)
    with pytest.raises(RuntimeError, match="changed while it was read"):
        load_backbone(spec, "cpu")


def test_a_rewritten_file_has_another_checksum_in_the_same_process(quick, model, tmp_path):
    path = tmp_path / "c.safetensors"
    save_file(state(model), path)
    spec = BackboneSpec(name=quick, pretrained=str(path))
    first = with_checksum(spec).checksum
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps times would
    assert with_checksum(spec).checksum == hashlib.sha256(content).hexdigest() != first


def test_a_checkpoint_of_another_architecture_is_told_its_own(quick, tiny_clip, tmp_path):
    shapes = {"text_projection": (512, 512), "visual.conv1.weight": (768, 3, 32, 32)}
    shapes |= {"visual.positional_embedding": (50, 768)}  # 7 x 7 patches and the class token
    shapes |= {f"visual.transformer.resblocks.{i}.ln_1.bias": (768,) for i in range(12)}
    content = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    torch.save(content, tmp_path / "c.pt")
    spec = BackboneSpec(name=quick, pretrained=str(tmp_path / "c.pt"))
    with pytest.raises(
        ValueError, match=r"its sizes are those of ViT-B-32 or ViT-B-32-quickgelu\), or another"
    ):
        load_backbone(spec, "cpu")


@pytest.mark.slow
def test_a_record_names_the_weights_it_rests_on(quick, model, tmp_path, bench, manifests):
    path = tmp_path / "c.safetensors"
    save_file(state(model), path)
    facts = profile_facts(quick) | {"backbone": {"name": quick, "pretrained": str(path)}}
    spec = make_spec(Profile.model_validate(facts), "dots", "zero_shot", 0, 0, manifests=manifests)
    about = execute(spec, bench).provenance["weights"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (about["file"], about["sha256"], spec.backbone.checksum) == (
        "c.safetensors",
        digest,
        digest,
    )
    save_file(half(model), path)  # the same numbers in another file
    other = make_spec(Profile.model_validate(facts), "dots", "zero_shot", 0, 0, manifests=manifests)
    assert other.key != spec.key
    assert execute(other, bench).provenance["weights"]["tensors"] == about["tensors"]


@pytest.mark.parametrize("given", ["5806e77c", "0" * 63, "x" * 64, " "])
def test_a_checksum_that_is_none_is_refused(given):
    with pytest.raises(ValueError, match="is no SHA-256: give all 64 digits"):
        BackboneSpec(name="PocketCLIP", pretrained="bundled", checksum=given)


def test_a_checksum_may_be_written_in_capitals():
    bundled = with_checksum(BackboneSpec(name="PocketCLIP", pretrained="bundled"))
    capitals = BackboneSpec(
        name="PocketCLIP", pretrained="bundled", checksum=bundled.checksum.upper()
    )
    assert with_checksum(capitals) == bundled


# --- how the model sees images


CLIPS = dict(
    resize_mode="shortest", interpolation="bicubic", mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2)
)
SQUASH = CLIPS | dict(resize_mode="squash", mean=(0.5, 0.5, 0.5))


@pytest.mark.slow
def test_a_checkpoint_is_seen_as_its_architectures_tags_say(quick, model, tmp_path, monkeypatch):
    """open_clip takes CLIP's preprocessing for any path; SigLIP's own file has other numbers."""
    path = tmp_path / "c.safetensors"
    save_file(state(model), path)
    spec = BackboneSpec(name=quick, pretrained=str(path))
    made = dict(one=SQUASH | {"url": "x"}, two=SQUASH | {"url": "y"})
    monkeypatch.setitem(pretrained._PRETRAINED, quick, made)
    for pretrained_as in (spec, spec.model_copy(update={"pretrained": "none"})):
        backbone = load_backbone(pretrained_as, "cpu")
        assert backbone.view.resize_mode == "squash"
        assert float(backbone.image_mean[0]) == 0.5
    made["three"] = CLIPS | {"url": "z"}
    with pytest.raises(
        ValueError, match=r"does not say how its model sees images, .* put an open_clip_config"
    ):
        load_backbone(spec, "cpu")
    config = tmp_path / "open_clip_config.json"
    about = {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": SQUASH | {"size": 336}}
    config.write_text(json.dumps(about))  # the size is the model's own
    assert load_backbone(spec, "cpu").resolution == 32
    assert load_backbone(spec, "cpu").view.resize_mode == "squash"
    both = hashlib.sha256(config.read_bytes() + path.read_bytes()).hexdigest()
    assert with_checksum(spec).checksum == both  # it decides over results
    config.write_text(json.dumps({"model_cfg": {"embed_dim": 16}, "preprocess_cfg": SQUASH}))
    with pytest.raises(
        ValueError, match=r"were trained with GELU \(.*config.json says so\), .* QuickGELU"
    ):
        load_backbone(spec, "cpu")
    for bad, says in (
        ("{", "is not valid JSON"),
        ("[1]", "holds no settings"),
        ('{"preprocess_cfg": [1]}', "holds no settings"),
        (
            '{"preprocess_cfg": {"std": [1, 1, 0]}}',
            r"std=\[1, 1, 0\]; give three finite numbers, or one, above 0",
        ),
        (
            '{"preprocess_cfg": {"mean": [1, 1]}}',
            r"mean=\[1, 1\]; give three finite numbers, or one",
        ),
        ('{"preprocess_cfg": {"mean": "x"}}', "mean='x'; give three finite numbers"),
        (
            '{"preprocess_cfg": {"resize_mode": "zoom"}}',
            "resize_mode='zoom'; known: shortest, longest, squash",
        ),
    ):
        config.write_text(bad)
        with pytest.raises(ValueError, match=says):
            load_backbone(spec, "cpu")


def test_a_published_file_is_known_by_its_checksum(quick, model, tmp_path, monkeypatch):
    path = tmp_path / "renamed.safetensors"
    save_file(state(model), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    url = f"https://openaipublic.azureedge.net/clip/models/{digest}/tiny.pt"
    made = dict(one=CLIPS | {"url": "x"}, two=SQUASH | {"url": url, "quick_gelu": True})
    monkeypatch.setitem(pretrained._PRETRAINED, quick, made)
    assert (
        load_backbone(BackboneSpec(name=quick, pretrained=str(path)), "cpu").view.resize_mode
        == "squash"
    )


# --- tags


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Empty places of this machine: (the hub's cache, a folder of one's own, OpenAI's cache)."""
    home, hub, own = tmp_path / "home", tmp_path / "hub", tmp_path / "own"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("BLOCKLORA_WEIGHTS", str(own))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return hub, own, home / ".cache" / "clip"


def put(content: bytes, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def put_in_hub(content: bytes, hub: Path, file: str, digest: str | None = None) -> Path:
    """As the hub's library keeps a large file: by its SHA-256, and a link of its name."""
    repository = hub / "models--someone--tiny"
    blob = put(content, repository / "blobs" / (digest or hashlib.sha256(content).hexdigest()))
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text("0" * 40)
    link = repository / "snapshots" / ("0" * 40) / file
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(blob)
    return link


@pytest.fixture
def tag(quick, model, tmp_path, monkeypatch, places):
    """The spec of a tag that lies nowhere, its content as safetensors and OpenAI's archive."""
    save_file(state(model), tmp_path / "a")
    save_archive(model, tmp_path / "b")
    safe, archive = (tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()
    config = CLIPS | {
        "url": f"https://openaipublic.azureedge.net/clip/models/{hashlib.sha256(archive).hexdigest()}/tiny.pt",
        "hf_hub": "someone/tiny/",
        "quick_gelu": True,
    }
    monkeypatch.setitem(pretrained._PRETRAINED, quick, {"openai": config})
    return BackboneSpec(name=quick, pretrained="openai"), safe, archive, config


@pytest.mark.slow
def test_a_tags_file_is_found_in_every_place(tag, places, model):
    spec, safe, archive, _ = tag
    hub, own, cache = places
    for content, path, name in (
        (archive, cache / "tiny.pt", "tiny.pt"),
        (archive, own / "tiny.pt", "tiny.pt"),
        (
            safe,
            own / "someone/tiny/open_clip_model.safetensors",
            "someone/tiny/open_clip_model.safetensors",
        ),
        (safe, None, "someone/tiny/open_clip_model.safetensors"),
        (safe, False, "someone/tiny/open_clip_pytorch_model.bin"),
    ):
        path = put(content, path) if path else put_in_hub(content, hub, os.path.basename(name))
        backbone = load_backbone(spec, "cpu")
        assert backbone.weights["file"] == name
        assert backbone.weights["sha256"] == hashlib.sha256(content).hexdigest()
        assert torch.equal(backbone.model.text_projection, model.text_projection)
        shutil.rmtree(path.parent)


def test_a_tag_is_read_in_any_spelling(tag, places):
    spec, _, archive, _ = tag
    put(archive, places[2] / "tiny.pt")
    for spelled in ("OpenAI", "OPENAI"):
        assert with_checksum(spec.model_copy(update={"pretrained": spelled})) == spec


def test_a_damaged_file_of_a_tag_is_passed_by_or_named(tag, places):
    spec, safe, archive, _ = tag
    hub, own, cache = places
    put(archive[:-9], cache / "tiny.pt")
    with pytest.raises(
        ValueError, match=r"tiny.pt has SHA-256 .*, its publisher says .*; delete it and fetch"
    ):
        load_backbone(spec, "cpu")
    put_in_hub(safe[:-9], hub, "open_clip_model.safetensors", hashlib.sha256(safe).hexdigest())
    with pytest.raises(
        ValueError, match=r"open_clip_model.safetensors has SHA-256 .*; .*tiny.pt has SHA-256"
    ):
        load_backbone(spec, "cpu")
    put(archive, own / "tiny.pt")
    assert load_backbone(spec, "cpu").weights["file"] == "tiny.pt"


@pytest.mark.slow
def test_a_profiles_checksum_chooses_among_files_and_refuses_others(tag, places):
    spec, safe, archive, _ = tag
    put_in_hub(safe, places[0], "open_clip_model.safetensors")
    put(archive, places[2] / "tiny.pt")
    for content in (safe, archive):
        stated = spec.model_copy(update={"checksum": hashlib.sha256(content).hexdigest()})
        assert load_backbone(stated, "cpu").weights["sha256"] == stated.checksum
    with pytest.raises(ValueError, match=r"the spec says 0000.*correct backbone.checksum"):
        load_backbone(spec.model_copy(update={"checksum": "0" * 64}), "cpu")


def test_a_tag_that_is_not_here_says_what_to_do(tag):
    with pytest.raises(OSError, match="HF_HUB_OFFLINE=1 forbids") as caught:
        load_backbone(tag[0], "cpu")
    for part in (
        "blocklora weights fetch --profile",
        tag[3]["url"],
        "~/.cache/clip/tiny.pt",
        "backbone.pretrained",
    ):
        assert part in str(caught.value)


def test_without_a_home_folder_other_places_are_looked_at(tag, places, monkeypatch):
    monkeypatch.setattr(tags, "OPENAI_CACHE", "~nobody-here/.cache/clip")
    put(tag[2], places[1] / "tiny.pt")
    assert load_backbone(tag[0], "cpu").weights["file"] == "tiny.pt"


def test_the_paper_profiles_file_is_known_by_openais_address():
    (offer,) = [o for o in tags.offers(load_profile("paper").backbone) if not o.of_hub]
    assert offer.name == "ViT-B-16.pt"
    assert offer.stated == get_pretrained_url("ViT-B-16", "openai").split("/")[-2]
    assert re.fullmatch("[0-9a-f]{64}", offer.stated)


def test_every_address_of_open_clip_with_a_checksum_in_it_is_read():
    urls = {get_pretrained_url(*pair) for pair in open_clip.list_pretrained()} - {""}
    stated = {url: tags._stated(url) for url in urls}
    for url, digits in stated.items():
        # as open_clip.pretrained.download_pretrained_from_url takes it from the address
        expected = url.split("/")[-2] if "openaipublic" in url else ""
        expected = Path(url).stem.split("-")[-1] if "mlfoundations" in url else expected
        assert digits == expected, url
    assert sum(len(d) == 64 for d in stated.values()) == 9
    assert any(len(d) == 8 for d in stated.values())


# --- fetching, from a server on this machine


def test_a_tags_file_is_fetched_from_its_address_where_the_hub_does_not_answer(
    tag, places, monkeypatch
):
    spec, _, archive, config = tag
    said = []

    def silent(repo_id, filename):
        raise FileNotFoundError("see the\nmanual") from OSError("no route to host")

    monkeypatch.setattr(obtain, "hf_hub_download", silent)
    with serve(monkeypatch) as server:
        path = "/" + config["url"].split("/", 3)[3]
        config["url"] = server.url + path
        server.files[path] = archive
        source = download(spec, said.append)
        assert source.checkpoint == places[1] / "tiny.pt"
        assert source.sha256 == hashlib.sha256(archive).hexdigest()
        assert any(server.url in line for line in said)
        source.checkpoint.unlink()
        server.files[path] = archive[:-1] + b"x"
        with pytest.raises(OSError, match="has a wrong checksum") as caught:
            download(spec)
        assert "\n" not in str(caught.value)
        assert not list(places[1].glob("*.pt"))
        del server.files[path]
        with pytest.raises(OSError, match=r"someone/tiny.*no route to host.*404.*or save http"):
            download(spec)


def test_the_hub_is_asked_for_what_open_clip_would_ask(tag, places, monkeypatch):
    spec, safe, _, _ = tag
    asked = []

    def answers(repo_id, filename):
        asked.append((repo_id, filename))
        if filename.endswith("safetensors"):
            raise RemoteEntryNotFoundError(
                "404", response=httpx.Response(404, request=httpx.Request("GET", "http://x"))
            )
        return str(put_in_hub(safe, places[0], filename))

    monkeypatch.setattr(obtain, "hf_hub_download", answers)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    names = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]  # open_clip's own order
    assert load_backbone(spec, "cpu").weights["file"] == f"someone/tiny/{names[1]}"
    assert asked == [("someone/tiny", name) for name in names]
    load_backbone(spec, "cpu")
    assert len(asked) == 2  # what is here is not asked for again


# --- the command


@pytest.fixture
def blocklora(tmp_path, tiny_clip):
    """Call `blocklora weights ...`, on a profile of this backbone: (code, stdout, stderr)."""

    def call(*words: str, backbone: dict | None = None):
        if backbone is not None:
            (tmp_path / "p.yaml").write_text(
                json.dumps(profile_facts(tiny_clip) | {"backbone": backbone})
            )
            words = (*words, "--profile", str(tmp_path / "p.yaml"))
        result = CliRunner().invoke(app, ["weights", *words])
        return result.exit_code, result.stdout, result.stderr

    return call


@pytest.mark.slow
def test_find_says_which_file_where_and_whether_it_is_right(blocklora, tag, places):
    spec, _, archive, _ = tag
    facts = spec.model_dump(exclude={"checksum"})
    code, out, err = blocklora("find", backbone=facts)
    assert (code, out) == (1, "")
    assert "blocklora weights fetch --profile" in err
    path, digest = put(archive, places[2] / "tiny.pt"), hashlib.sha256(archive).hexdigest()
    code, out, _ = blocklora("find", backbone=facts)
    assert code == 0
    assert str(path) in out
    assert digest in out
    assert "as its publisher says" in out
    code, out, _ = blocklora("find", backbone=facts | {"checksum": digest})
    assert "as the profile says" in out
    tag[3]["quick_gelu"] = False
    code, _, err = blocklora("find", backbone=facts)
    assert code == 2
    assert "every number would be wrong" in err
    code, _, err = blocklora("find", backbone=facts | {"checksum": "0" * 64})
    assert code == 2
    assert err.startswith("error: ")


@pytest.mark.slow
def test_find_and_fetch_need_nothing_for_bundled_and_random_weights(blocklora, tiny_clip):
    code, out, _ = blocklora("find", "--profile", "pocket")
    assert code == 0
    assert with_checksum(load_profile("pocket").backbone).checksum in out
    for word in ("find", "fetch"):
        code, out, _ = blocklora(word, backbone={"name": tiny_clip, "pretrained": "none"})
        assert code == 0
        assert "random" in out


def test_fetch_uses_the_network_though_it_is_switched_off(blocklora, tag, places, monkeypatch):
    spec, safe, _, _ = tag

    def answers(repo_id, filename):
        assert not constants.is_offline_mode()
        return str(put_in_hub(safe, places[0], "open_clip_model.safetensors"))

    monkeypatch.setattr(obtain, "hf_hub_download", answers)
    code, out, _ = blocklora("fetch", backbone=spec.model_dump(exclude={"checksum"}))
    assert code == 0
    assert hashlib.sha256(safe).hexdigest() in out
    assert constants.is_offline_mode()


@pytest.mark.slow
def test_check_loads_a_file_and_says_what_is_wrong_with_one(
    blocklora, model, quick, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    save_file(half(model), tmp_path / "weights")
    code, out, _ = blocklora("check", "weights", "--model", quick)
    assert code == 0
    assert hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest() in out
    assert f"all {sum(p.numel() for p in model.parameters()):,} numbers" in out
    damaged(model, tmp_path / "weights", "nan")
    code, _, err = blocklora("check", "weights", "--model", quick)
    assert code == 2
    assert "has NaN in visual.conv1.weight" in err
    assert blocklora("check", "weights", "--model", "ViT-B/16")[0] == 2
