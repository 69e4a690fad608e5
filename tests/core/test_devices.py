"""Which device a name means, what is said without one, what a GPU's arithmetic is set to."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.profiler import ProfilerActivity, profile

from blocklora_lib.clip.backbone import load_backbone
from blocklora_lib.core import devices, gpus
from blocklora_lib.core.devices import (
    WORKSPACE,
    check_arithmetic,
    numerics,
    profile_device,
    repeatable,
    resolve_device,
    unusable_gpu,
)
from blocklora_lib.core.gpus import claim_gpu, visible_gpus, wants_gpu
from blocklora_lib.core.paths import ROOT
from blocklora_lib.core.schema import UnknownName
from blocklora_lib.runs.execute import execute
from blocklora_lib.runs.grid import make_spec
from blocklora_lib.runs.profile_files import load_profile
from blocklora_lib.runs.spec import RunSpec
from blocklora_lib.weights.spec import BackboneSpec

NO_GPU = "there is no GPU here"


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch, tmp_path):
    """A machine without a GPU, whatever tests run on; CUDA is not started or asked for it."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("NVIDIA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "unusable_gpu", lambda said="": unusable_gpu(said, tmp_path))


@pytest.fixture
def two_gpus(monkeypatch):
    """torch sees two GPUs, and the second one is current."""
    monkeypatch.setenv(WORKSPACE, ":4096:8")
    for name, value in dict(is_available=True, device_count=2, current_device=1, init=None).items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)


def test_a_cpu_is_a_cpu_and_auto_falls_back_where_that_is_wanted():
    assert {resolve_device(d) for d in ("cpu", "cpu:0", torch.device("cpu"), "auto")} == {
        torch.device("cpu")
    }


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:7", torch.device("cuda", 1)])
def test_a_gpu_that_is_not_there_is_refused_with_the_way_out(name):
    with pytest.raises(ValueError, match=f"{NO_GPU}.*--device cpu"):
        resolve_device(name)


def test_auto_without_a_fallback_is_refused_and_a_profile_that_asks_for_a_gpu_has_none():
    with pytest.raises(ValueError, match=NO_GPU):
        resolve_device("auto", fallback=False)
    with pytest.raises(ValueError, match=NO_GPU):
        profile_device("auto")
    with pytest.raises(ValueError, match=NO_GPU):
        profile_device("auto", "auto")
    assert (
        profile_device("auto", "cpu").type
        == profile_device(None).type
        == profile_device("cpu").type
        == "cpu"
    )
    assert profile_device("cpu", "auto").type == "cpu"


@pytest.mark.parametrize(
    "name", ["mps", "xpu", "", "cuda:-1", "cuda:x", " cuda", "meta", "cuda:1:2"]
)
def test_what_is_no_device_of_ours_is_refused_with_the_names(name, two_gpus):
    with pytest.raises(UnknownName, match=r"unknown device .* Known: auto, cpu, cuda, cuda:0"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("name", "say"), [("gpu", "cuda"), ("CUDA", "cuda"), ("0", "cuda:0"), ("1", "cuda:1")]
)
def test_who_means_a_gpu_is_told_its_name(name, say, two_gpus):
    with pytest.raises(ValueError, match=f"unknown device '{name}'.* say {say}$"):
        resolve_device(name)


def test_with_gpus_auto_is_the_current_one_and_a_number_must_be_one_of_them(two_gpus):
    assert str(resolve_device("auto")) == str(resolve_device("cuda")) == "cuda:1"
    assert str(resolve_device("cuda:0")) == str(resolve_device(torch.device("cuda:0"))) == "cuda:0"
    with pytest.raises(ValueError, match=r"'cuda:7': this process sees 2 GPU\(s\): cuda:0, cuda:1"):
        resolve_device("cuda:7")


def test_a_gpu_that_does_not_start_is_one_sentence(two_gpus, monkeypatch):
    def busy():
        raise RuntimeError(
            "CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors might be ..\n"
        )

    monkeypatch.setattr(torch.cuda, "init", busy)
    with pytest.raises(
        ValueError,
        match=r"'auto': CUDA cannot be started \(CUDA-capable .* unavailable\); free the GPU",
    ):
        resolve_device("auto")


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize("shown", ["file", "variable"])
def test_a_driver_that_is_too_old_is_named_and_never_a_silent_cpu(
    name, shown, tmp_path, monkeypatch
):
    def looked():
        warnings.warn(
            "CUDA initialization: "
            "The NVIDIA driver on your system is too old (found version 11040).",
            stacklevel=1,
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", looked)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    if shown == "file":
        (tmp_path / "nvidia0").touch()
    else:
        monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")
    with pytest.raises(
        ValueError, match=r"driver too old \(it knows CUDA 11\.4\) for CUDA 13\.0"
    ) as refused:
        resolve_device(name)
    assert "--device cpu" in str(refused.value)
    assert resolve_device("cpu").type == "cpu"


def test_a_torch_without_cuda_beside_a_gpu_is_said(tmp_path, monkeypatch):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match="built without CUDA"):
        resolve_device("auto")


def test_a_gpu_that_the_user_hides_is_no_gpu(tmp_path, monkeypatch):
    (tmp_path / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve_device("auto").type == "cpu"


def test_half_precision_goes_to_a_cpu_only_by_name(tiny_clip):
    from blocklora_lib.clip.backbone import load_backbone

    spec = BackboneSpec(name=tiny_clip, pretrained="none", precision="fp16")
    with pytest.raises(ValueError, match=NO_GPU):
        load_backbone(spec)
    assert load_backbone(spec, "cpu").dtype == torch.float16


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (None, ["0", "1", "10"]),
        ("", []),
        ("-1", []),
        ("1", ["1"]),
        ("2, 0", ["2", "0"]),
        ("0,-1,2", ["0"]),  # CUDA reads up to the first that is none
        ("GPU-8f4c,MIG-ab/1/0", ["GPU-8f4c", "MIG-ab/1/0"]),
        ("none", []),
    ],
)
def test_visible_gpus_are_those_that_cuda_would_see(given, seen, tmp_path):
    for name in ("nvidia0", "nvidia10", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert visible_gpus({} if given is None else {"CUDA_VISIBLE_DEVICES": given}, tmp_path) == seen


def test_only_a_job_of_a_gpu_profile_asks_for_a_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    asked = {device: wants_gpu(device) for device in ("cpu", "auto", "cuda", "cuda:1", None)}
    assert asked == {"cpu": False, "auto": True, "cuda": True, "cuda:1": True, None: False}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert wants_gpu(None)


def test_processes_side_by_side_take_a_gpu_each(tmp_path):
    """The claim of a living process holds, that of a dead one does not."""
    code = (
        "import sys; from pathlib import Path; from blocklora_lib.core.gpus import claim_gpu\n"
        f"print(claim_gpu(2, Path({str(tmp_path)!r})), flush=True); sys.stdin.read()"
    )
    start = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    held = []
    try:
        for _ in range(2):
            held.append(subprocess.Popen([sys.executable, "-c", code], **start))
            held[-1].number = int(held[-1].stdout.readline())
        assert [process.number for process in held] == [0, 1]
        assert claim_gpu(2, tmp_path) == os.getpid() % 2  # none is free
        held[1].stdin.close()
        held[1].wait()
        assert claim_gpu(2, tmp_path) == 1
    finally:
        for process in held:
            process.stdin.close()
            process.wait()


def test_profiles_say_their_device_and_it_is_no_part_of_a_key():
    named = {
        n: load_profile(n).device
        for n in ("pocket", "pocket-full", "smoke", "paper-smoke", "paper")
    }
    assert named == dict.fromkeys(named, "cpu") | {"paper": "auto"}
    pocket = load_profile("pocket")
    moved = pocket.model_copy(update={"device": "cuda:1"})
    assert make_spec(pocket, "fashion", "lora", 1, 1) == make_spec(moved, "fashion", "lora", 1, 1)


def test_the_fast_mode_is_part_of_a_key_and_the_default_is_not_written():
    pocket = load_profile("pocket")
    spec = make_spec(pocket, "fashion", "lora", 1, 1)
    fast = make_spec(pocket.model_copy(update={"deterministic": False}), "fashion", "lora", 1, 1)
    assert "deterministic" not in spec.canonical
    assert '"deterministic":false' in fast.canonical
    assert spec.key != fast.key
    for one in (spec, fast):
        assert RunSpec.model_validate_json(one.model_dump_json()) == one
        assert RunSpec.model_validate_json(one.model_dump_json()).deterministic == one.deterministic


CUDA = torch.device("cuda", 0)


def state() -> tuple:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )


def kernels() -> set[SDPBackend]:
    from torch.nn.attention import _cur_sdpa_kernel_backends

    return set(_cur_sdpa_kernel_backends())


def test_runs_on_a_gpu_are_strict_by_default_and_leave_torch_as_it_was(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":4096:8")
    torch.backends.cudnn.benchmark, before = True, kernels()
    try:
        was = state()
        with repeatable(CUDA):
            # it raises, and does not only warn
            assert state() == (True, False, False, True, False, False)
            assert SDPBackend.CUDNN_ATTENTION not in kernels()
            assert {SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION} <= kernels()
        assert (state(), kernels()) == (was, before)
        with repeatable(CUDA, strict=False):
            assert state() == (False, False, False, False, False, False)
            assert kernels() == before
        with repeatable(CUDA, tf32=True):
            assert state() == (True, False, False, True, True, True)
        with pytest.raises(KeyError), repeatable(CUDA):
            raise KeyError
        assert (state(), kernels()) == (was, before)
        with repeatable(torch.device("cpu")):
            assert state() == was
    finally:
        torch.backends.cudnn.benchmark = False


def test_memory_that_is_taken_is_not_filled_though_kernels_repeat(monkeypatch):
    """torch fills it by default, with a kernel for each tensor; the stand-in does not see that."""
    monkeypatch.setenv(WORKSPACE, ":4096:8")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    with repeatable(CUDA), profile(activities=[ProfilerActivity.CPU]) as seen:
        torch.empty_like(torch.empty(3))
    asked = {event.key for event in seen.key_averages()}
    assert "aten::empty_like" in asked
    assert "aten::fill_" not in asked
    assert torch.utils.deterministic.fill_uninitialized_memory is True  # as it was


@pytest.mark.parametrize("value", [None, ":0:0", ""])
def test_a_gpu_that_was_started_without_its_workspace_is_refused(value, monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    if value is not None:
        monkeypatch.setenv(WORKSPACE, value)
    with pytest.raises(RuntimeError, match=r"CUBLAS_WORKSPACE_CONFIG.*--fast"):
        check_arithmetic(CUDA)
    with pytest.raises(RuntimeError, match=WORKSPACE), repeatable(CUDA):
        pass
    with repeatable(CUDA, strict=False):
        pass
    check_arithmetic(torch.device("cpu"))


def test_the_workspace_is_set_before_cuda_starts_and_never_after(two_gpus, monkeypatch):
    monkeypatch.delenv(WORKSPACE)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    resolve_device("cuda")
    assert WORKSPACE not in os.environ  # cuBLAS has read it: to set it now would only look right
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", lambda: seen.append(os.environ.get(WORKSPACE)))
    seen = []
    resolve_device("cuda")
    assert seen == [":4096:8"]


def test_a_record_says_what_a_gpus_arithmetic_was():
    assert numerics(torch.device("cpu"), True) == {}
    assert numerics(CUDA, True) == {
        "deterministic": True,
        "tf32": False,
        "cuda": torch.version.cuda,
    }
    assert numerics(CUDA, False)["deterministic"] is False
    assert numerics(CUDA, True, tf32=True)["tf32"] is True


def test_tf32_is_a_gpus(bench, tiny_profile, tmp_path):
    check_arithmetic(CUDA, strict=False, tf32=True)
    with pytest.raises(ValueError, match=r"tf32.*CPU; say precision: fp32"):
        check_arithmetic(torch.device("cpu"), tf32=True)
    backbone = tiny_profile.backbone.model_copy(update={"precision": "tf32"})
    profile = tiny_profile.model_copy(update={"backbone": backbone})
    spec = make_spec(profile, "squares", "lora", 1, 1, manifests=bench.manifests)
    with pytest.raises(ValueError, match="tf32"):
        execute(spec, bench)
    model = load_backbone(backbone, "cpu")  # what was trained so predicts anywhere
    assert {p.dtype for p in model.model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_the_paper_is_not_trained_on_a_cpu_in_silence(tmp_path):
    """Through the command line, in a process of its own: what a user meets."""
    command = [
        sys.executable,
        "-m",
        "blocklora_lib.cli",
        "run",
        "--profile",
        "paper",
        "--dataset",
        "dtd",
    ]
    command += ["--method", "lora", "--shots", "1", "--results", str(tmp_path)]
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=hidden, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: device 'auto': there is no GPU here")


def test_every_recomputation_hands_torch_a_tensor_of_its_device(tiny_clip, monkeypatch):
    """torch looks for it among the arguments; finding none, it keeps no GPU's generator."""
    from blocklora_lib.clip import recomputation
    from blocklora_lib.clip.backbone import load_backbone

    found: list[set[str]] = []

    def noted(function, *args, use_reentrant):
        assert use_reentrant is False
        found.append({x.device.type for x in args if isinstance(x, torch.Tensor)})
        return function(*args)

    monkeypatch.setattr(recomputation, "checkpoint", noted)
    backbone = load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cpu")
    tokens = backbone.tokenize(["a photo of a cat.", "a photo of a dog.", "a photo of a red mug."])
    kept = backbone.encode_prompts(tokens)
    assert found == []
    again = backbone.encode_prompts(backbone.pack(tokens, class_chunk=1), checkpoint=True)
    torch.testing.assert_close(kept, again, rtol=1e-5, atol=1e-6)  # float32, sums in another order
    assert len(found) > 3  # three chunks, and blocks in each
    assert all(devices == {"cpu"} for devices in found)
    recomputation.recomputed(lambda x: x["packed"], {"packed": tokens}, torch.device("meta"))
    assert found[-1] == {"meta"}


def test_a_claim_follows_no_link_that_another_user_planted(tmp_path, capfd, monkeypatch):
    """The folder of claims lies in /tmp, where all may write."""
    victim, folder, mine = tmp_path / "victim", tmp_path / "gpus", tmp_path / "mine"
    folder.mkdir()
    mine.mkdir()
    (folder / "0").symlink_to(victim)
    assert claim_gpu(1, folder) == 0
    assert "no GPU can be claimed" in capfd.readouterr().err
    (tmp_path / "link").symlink_to(mine)
    assert claim_gpu(1, tmp_path / "link") == 0
    assert "it is another user's, or a link" in capfd.readouterr().err
    owner = mine.stat().st_uid
    monkeypatch.setattr(gpus.os, "getuid", lambda: owner + 1)
    assert claim_gpu(1, mine) == 0
    assert "it is another user's" in capfd.readouterr().err
    assert not victim.exists()
    assert not [*mine.iterdir()]


def test_claims_are_the_users_own(tmp_path):
    assert claim_gpu(1, tmp_path / "gpus") == 0
    modes = [path.stat().st_mode & 0o77 for path in (tmp_path / "gpus", *tmp_path.glob("gpus/*"))]
    assert modes == [0, 0]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_gpu_that_is_taken(tmp_path, capfd, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(gpus.fcntl, "flock", flock)
    assert claim_gpu(2, tmp_path) == os.getpid() % 2
    told = capfd.readouterr().err
    assert "none of 2 GPUs is free" not in told
    assert f"no GPU can be claimed in {tmp_path} ({os.strerror(number)}): sharing" in told
