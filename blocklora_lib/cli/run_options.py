"""Options that `blocklora run` and `grid` share, and the workbench that they ask for."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.collection import no_collection

if TYPE_CHECKING:
    from ..runs.profile import Profile
    from ..runs.workbench import Workbench

ProfileOption = Annotated[
    str, typer.Option("--profile", "-P", help="Name of a profile, or a YAML file.")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, or auto, the GPU [as the profile says].")
]
FastOption = Annotated[
    bool,
    typer.Option(
        "--fast", help="On a GPU, kernels that do not repeat bit for bit [as the profile says]."
    ),
]
ThreadsOption = Annotated[
    int,
    typer.Option(
        help="CPU threads of torch; part of what makes runs repeatable.",
        envvar="OMP_NUM_THREADS",
        min=1,
        max=1024,
    ),
]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Run failed specs again.")]
KeepOption = Annotated[
    bool, typer.Option("--keep-old", help="Let records of an earlier state of the library stand.")
]
SkipOption = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable", help="Leave out images that cannot be read [as the profile says]."
    ),
]


def named_profile(name: str, skip_unreadable: bool, fast: bool, chosen: bool = True) -> Profile:
    """The profile, with what the command line says of unreadable images and of kernels on top.

    chosen: with the rates that were chosen for it; False for the choice itself.
    """
    from ..runs.profile_files import load_profile

    settings = load_profile(name, chosen=chosen)
    return settings.model_copy(
        update={
            "skip_unreadable": skip_unreadable or settings.skip_unreadable,
            "deterministic": settings.deterministic and not fast,
        }
    )


def workbench(settings: Profile, device: str | None, threads: int) -> Workbench:
    """Return what the runs share, on the device of the command line or else of the profile."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    load_libraries()
    import torch

    from ..core.devices import profile_device
    from ..runs.workbench import Workbench

    torch.set_num_threads(threads)
    place = profile_device(settings.device, device)
    return Workbench(place, **settings.of_bench)


def load_libraries() -> None:
    """Import torch and open_clip with no garbage collected, then or later, of what they make.

    That is 700,000 objects, all of which stay. Going through them over and over, while they load,
    at each full collection and at the end, took a quarter of a short run.
    """
    if "open_clip" in sys.modules:
        return
    with no_collection():
        import open_clip  # noqa: F401

        gc.freeze()
