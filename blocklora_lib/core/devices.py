"""Where tensors live: the device that a name means, and arithmetic that repeats on a GPU."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .gpus import claim_gpu, visible_gpus
from .schema import UnknownName

NAMES = ("auto", "cpu", "cuda", "cuda:0")
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS repeats its sums only with a workspace of its own
WORKSPACES = (":4096:8", ":16:8")
# Their backward passes repeat under strict determinism; cuDNN's attention has none that does
# (torch's notes on randomness).
REPEATABLE_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class NoSuchDevice(ValueError):
    """A device that this machine does not have, or cannot use; the message says why, and what."""


def resolve_device(device: str | torch.device = "auto", fallback: bool = True) -> torch.device:
    """Return the device that a name means: 'cpu', 'cuda', 'cuda:<number>', or 'auto', the GPU.

    Where there is no GPU, 'auto' is the CPU with `fallback`, else NoSuchDevice. A GPU that torch
    cannot use is never passed over in silence. CUDA is started here, with the workspace that
    repeatable products need.
    """
    name = str(device)
    if name in ("cpu", "cpu:0"):
        return torch.device("cpu")
    cuda = re.fullmatch(r"cuda(?::(\d+))?", name)
    if (name.lower() in ("gpu", "cuda") and not cuda) or name.isdecimal():
        meant = f"cuda:{name}" if name.isdecimal() else "cuda"
        raise NoSuchDevice(f"unknown device {name!r}; to torch a GPU is 'cuda': say {meant}")
    if name != "auto" and not cuda:
        raise UnknownName("device", name, NAMES)
    if not torch.cuda.is_initialized():  # later cuBLAS would not read it
        os.environ.setdefault(WORKSPACE, WORKSPACES[0])
    available, said = _cuda_available()
    if not available:
        why = unusable_gpu(said)
        if name == "auto" and fallback and not why:
            return torch.device("cpu")
        raise NoSuchDevice(
            f"device {name!r}: "
            f"{why or 'there is no GPU here, and a CPU may take a hundred times as long'}; "
            "say --device cpu, or device: cpu in the profile, if the CPU is meant"
        )
    number, count = int(cuda[1]) if cuda and cuda[1] else None, torch.cuda.device_count()
    if number is not None and number >= count:
        here = ", ".join(f"cuda:{i}" for i in range(count))
        raise NoSuchDevice(
            f"device {name!r}: this process sees {count} GPU(s): {here}; use one of them"
        )
    try:
        torch.cuda.init()
        return torch.device("cuda", torch.cuda.current_device() if number is None else number)
    except RuntimeError as error:
        raise NoSuchDevice(
            f"device {name!r}: CUDA cannot be started ({str(error).strip().splitlines()[0]}); "
            "free the GPU, or say --device cpu if the CPU is meant"
        ) from None


def profile_device(device: str | None, given: str | None = None) -> torch.device:
    """Return where a profile that says `device` computes; given: what the command line says.

    A profile that asks for a GPU gets one or is refused: on a CPU it would take months, in silence.
    Of several GPUs, processes side by side take one each, unless a number is said.
    """
    name = given if given is not None else device or "auto"
    place = resolve_device(name, fallback=device in (None, "cpu"))
    if place.type == "cuda" and ":" not in name and torch.cuda.device_count() > 1:
        return torch.device("cuda", _own_gpu(torch.cuda.device_count()))
    return place


_own_gpu = cache(claim_gpu)  # one a process


def _cuda_available() -> tuple[bool, str]:
    """Whether torch can use a GPU, and what it warned of while it looked."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    return available, " ".join(str(warning.message) for warning in caught)


def unusable_gpu(said: str = "", devices: Path = Path("/dev")) -> str:
    """Say why torch cannot use the GPU that the machine shows; '' where it shows none.

    said: what torch warned of.
    """
    hidden = "CUDA_VISIBLE_DEVICES" in os.environ and not visible_gpus()
    passed_on = os.environ.get("NVIDIA_VISIBLE_DEVICES", "none") not in ("", "none", "void")
    if hidden or not (visible_gpus(devices=devices) or passed_on or (devices / "dxg").exists()):
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return (
            f"a GPU is here, but torch {torch.__version__} is built without CUDA; "
            "install one that has it"
        )
    driver = re.search(r"found version (\d+)", said)
    found = (
        f" (it knows CUDA {int(driver[1]) // 1000}.{int(driver[1]) % 1000 // 10})" if driver else ""
    )
    return (
        f"a GPU is here, but torch {torch.__version__} cannot use it: driver too "
        f"old{found} for CUDA {torch.version.cuda}, or the GPU not handed to this process; "
        "update the driver, or install a torch that is built for an older CUDA"
    )


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; a GPU is not waited for."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def check_arithmetic(device: torch.device, strict: bool = True, tf32: bool = False) -> None:
    """Refuse what the device cannot keep, before a run begins.

    ValueError: TF32 on a CPU, which has none. RuntimeError: CUDA was started without what
    repeatable products need.
    """
    if tf32 and device.type != "cuda":
        raise ValueError(
            "precision 'tf32' is how a GPU multiplies, and the device is a CPU; say precision: fp32"
        )
    if strict and device.type == "cuda" and (given := os.environ.get(WORKSPACE)) not in WORKSPACES:
        raise RuntimeError(
            f"runs on a GPU repeat only if {WORKSPACE} is {' or '.join(WORKSPACES)} "
            f"before CUDA starts, and it is {given or 'not set'}; "
            "set it and start again, or say --fast (deterministic: false in the profile)"
        )


@contextmanager
def repeatable(device: torch.device, strict: bool = True, tf32: bool = False) -> Iterator[None]:
    """On a GPU: float32 products in full or in TF32; with `strict` only kernels that repeat.

    An operation that has no such kernel raises. On a CPU torch's kernels repeat by themselves.
    """
    if device.type != "cuda":
        yield
        return
    check_arithmetic(device, strict)
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    memory: Any = torch.utils.deterministic  # its stubs lack the name
    filled = memory.fill_uninitialized_memory
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    flags = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, products.allow_tf32
    with ExitStack() as stack:
        if strict:
            stack.enter_context(sdpa_kernel(REPEATABLE_ATTENTION))
        try:
            torch.use_deterministic_algorithms(strict)
            memory.fill_uninitialized_memory = False  # a kernel for each tensor; nothing reads it
            cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = False, strict, tf32
            products.allow_tf32 = tf32
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            memory.fill_uninitialized_memory = filled
            cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, products.allow_tf32 = flags


def numerics(device: torch.device, strict: bool, tf32: bool = False) -> dict[str, object]:
    """Return what a record says of `repeatable`: nothing on a CPU."""
    if device.type != "cuda":
        return {}
    return {"deterministic": strict, "tf32": tf32, "cuda": torch.version.cuda}
