"""Execution of one notebook by papermill."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.files import HOST, check_writes_over, user_path
from ..core.paths import NOTEBOOKS, ROOT
from ..data.roots import VARIABLE as DATA_VARIABLE
from ..runs.own_images import refuse_within
from ..runs.profile_files import is_file_name, load_profile
from ..runs.results import results_folder
from ..runs.store import RunStore
from ..weights.files import FOLDER as WEIGHTS_VARIABLE
from .catalogue import choose_notebooks, inside, notebook_needs
from .parameter_cell import check_parameters
from .variant import NAMES, place


class NotebookFailed(RuntimeError):
    """A cell raised. The message names the notebook, the cell, the error and the executed copy."""


def run_notebook(
    name: str,
    profile: str = "pocket",
    parameters: Mapping[str, Any] | None = None,
    results: str | Path = "",
    *,
    verbose: bool = True,
) -> Path:
    """Execute notebook `name` through papermill and return its copy, notebooks/<name>.ipynb.

    It lies in the folder of results, or of the variant that the parameters ask for (see `variant`).
    Unknown parameters and wrong types are refused first. A failed notebook leaves its copy, up to
    and with the cell that raised, as <name>.failed.ipynb.
    """
    if len(chosen := choose_notebooks(name)) != 1:
        raise ValueError(f"{name!r} names {len(chosen)} notebooks; name one: {', '.join(chosen)}")
    (name,) = chosen
    given = {"profile": profile, "results_dir": str(results), **(parameters or {})}
    given = check_parameters(NOTEBOOKS / f"{name}.ipynb", given)
    # paths are of the folder where this was called; the kernel works in another one
    if is_file_name(given["profile"]):
        given["profile"] = str(user_path(given["profile"]))
    for key in ("results_dir", "folder"):
        if given.get(key):
            given[key] = str(user_path(given[key]))
    keep_folders()
    settings, needs = load_profile(given["profile"]), notebook_needs(name, NOTEBOOKS)
    varied = {key: given[key] for key in NAMES if key in given} if needs["varies"] else {}
    base = results_folder(settings, given["results_dir"])
    if given.get("folder"):
        refuse_within(base, Path(given["folder"]))  # before a folder is made among the images
    folder = (place(base, settings, needs, varied) if needs["varies"] else base) / "notebooks"
    RunStore(inside(base, folder)).check_writable()
    done, failed = folder / f"{name}.ipynb", folder / f"{name}.failed.ipynb"
    for path in (done, failed):
        check_writes_over(path)

    import papermill  # slow to import: after all that can be refused has been

    # No network and one thread a process, unless the caller says otherwise: no result may depend on
    # either.
    for variable in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "PYDEVD_DISABLE_FILE_VALIDATION"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault(
        "PYTHONWARNINGS", "ignore:IProgress not found"
    )  # bars are text here, not widgets
    start = time.monotonic()
    if verbose:
        print(f"notebook {name} (profile {given['profile']}) ...", file=sys.stderr, flush=True)
    # papermill writes after every cell: the copy gets its name when it is whole
    with tempfile.TemporaryDirectory(
        dir=folder, prefix=f".{name}.{HOST}.", suffix=".tmp"
    ) as temporary:
        running = Path(temporary, done.name)
        try:
            book = _started(
                papermill.execute_notebook,
                NOTEBOOKS / f"{name}.ipynb",
                running,
                parameters=given,
                kernel_name="python3",
                cwd=ROOT,
                progress_bar=False,
                start_timeout=300,
                # a kernel that is ended while it waits calls that an error
                extra_arguments=["--log-level=CRITICAL"],
                stderr_file=sys.stderr if verbose else None,
            )
            if any(cell.source and cell.get("execution_count", 0) is None for cell in book.cells):
                os.replace(running, failed)  # papermill takes sys.exit(0) for the end
                raise NotebookFailed(
                    f"notebook {name} was left by sys.exit before its last cell (executed copy: "
                    f"{failed}); let it run to its end"
                )
            os.replace(running, done)
            failed.unlink(missing_ok=True)
        except papermill.PapermillExecutionError as error:
            os.replace(running, failed)
            what = " ".join(str(error.evalue).split())
            raise NotebookFailed(
                f"notebook {name}, cell {error.exec_count}: {error.ename}: {what} (executed copy: "
                f"{failed})"
            ) from None
        except KeyboardInterrupt:  # the kernel got it too, which nobody waits to be told
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)
            raise
        except KeyError as error:  # NoSuchKernel is one
            raise NotebookFailed(
                f"notebook {name} has no kernel to run in: {error}; install it with "
                f"`{sys.executable} -m ipykernel install --sys-prefix --name python3`"
            ) from None
    if verbose:
        print(
            f"notebook {name} done in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True
        )
    return done


def keep_folders() -> None:
    """Let relative folders in variables mean the same in processes that work in another folder."""
    for variable in (DATA_VARIABLE, WEIGHTS_VARIABLE):
        if os.environ.get(variable):
            os.environ[variable] = str(user_path(os.environ[variable]))


def _started(execute: Callable[..., Any], *notebook: Any, **how: Any) -> Any:
    """Execute a notebook and return it; once more where its kernel ended before it was there.

    Jupyter chooses a kernel's ports before it starts it: of two that start at a time, one may find
    a port taken.
    """
    try:
        return execute(*notebook, **how)
    except RuntimeError as error:
        if "died before" not in str(error):
            raise
        return execute(*notebook, **how)
