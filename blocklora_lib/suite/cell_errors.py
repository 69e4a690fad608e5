"""How a cell's error is told where a notebook runs: in one sentence, as the commands tell it."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from ..core.schema import explain


def explain_errors() -> None:
    """Have the running kernel tell a ValidationError as a sentence; nothing where none runs.

    Its own text is several lines with an address, and of what was given it says least.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is not None and not shell.custom_exceptions:  # the user's own stay
        shell.set_custom_exc((ValidationError,), _tell)


def _tell(
    shell: Any,
    kind: type[ValidationError],
    error: ValidationError,
    traceback: TracebackType,
    tb_offset: int | None = None,
) -> None:
    told = ValueError(explain(error))
    shell.showtraceback((ValueError, told, traceback), tb_offset=tb_offset)
