"""How a program ends with an error: one sentence, and an exit code that tells whose it is."""

from __future__ import annotations

import errno
import os

from ..core.files import FORBIDDEN, OF_THE_MACHINE, printable


def exit_code(error: BaseException) -> int:
    """Return 75 (EX_TEMPFAIL: try again) for the machine's failure, 2 for what users can mend."""
    from ..runs.record import MachineFailure

    machine = isinstance(error, MachineFailure | MemoryError)
    return 75 if machine or (isinstance(error, OSError) and error.errno in OF_THE_MACHINE) else 2


def missing_package(error: ModuleNotFoundError) -> str:
    """Return the sentence for a package that a bare install does not have.

    Raises the error itself where a module of ours is missing: that is no fault of the install.
    """
    package = (error.name or "").partition(".")[0]
    if package in ("", __name__.partition(".")[0]):
        raise error
    return (
        f"the package {package} is missing: the commands need the packages of the suite, "
        "pip install 'blocklora[suite]'"
    )


def sentence(error: BaseException) -> str:
    """Return one line that says what is wrong; of an error of the system, with file and way out."""
    if isinstance(error, ModuleNotFoundError):
        return missing_package(error)
    from pydantic import ValidationError

    from ..core.schema import explain

    if isinstance(error, OSError) and error.errno and error.strerror:
        names = [
            os.fsdecode(n) for n in (error.filename, error.filename2) if isinstance(n, str | bytes)
        ]
        text = f"{' -> '.join(names) or 'what is written here'}: {error.strerror}"
        if names and error.errno in OF_THE_MACHINE:
            text += "; what was finished is kept, and the same command goes on once this is over"
        elif error.errno in FORBIDDEN:
            text += "; let this user read and write there, or choose another place"
        elif error.errno in (errno.EEXIST, errno.ENOTDIR):
            text += "; a folder is wanted, where a file stands: give another name, or move it away"
    else:
        text = (
            explain(error) if isinstance(error, ValidationError) else str(error) or "out of memory"
        )
    text = " ".join(text.split())
    if len(text) > 2000:  # a stranger's text or list; at the end stands what to do
        text = f"{text[:1500]} ... {text[-400:]}"
    return printable(text)
