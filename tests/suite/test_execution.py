"""A notebook's kernel is started once more where it ended before it was there."""

from __future__ import annotations

import pytest

from blocklora_lib.suite.execution import _started

TAKEN = RuntimeError("Kernel died before replying to kernel_info")  # as jupyter_client says it


def executing(*ends):
    """A stand-in for papermill's function that ends so, call by call, and the list of its calls."""
    calls = []

    def execute(*notebook, **how):
        calls.append((notebook, how))
        if end := ends[len(calls) - 1]:
            raise end

    return execute, calls


def test_a_port_that_was_taken_costs_a_second_start():
    execute, calls = executing(TAKEN, None)
    _started(execute, "a.ipynb", cwd="here")
    assert calls == [(("a.ipynb",), {"cwd": "here"})] * 2


@pytest.mark.parametrize("ends", [(TAKEN, TAKEN), (RuntimeError("Kernel died"),)])
def test_what_fails_otherwise_or_again_is_an_error(ends):
    execute, calls = executing(*ends)
    with pytest.raises(RuntimeError, match="Kernel died"):
        _started(execute, "a.ipynb")
    assert len(calls) == len(ends)
