"""A notebook's kernel is started once more where it ended before it was there."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from blocklora_lib.suite.execution import _started, run_notebook

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


def test_an_interrupt_leaves_no_word_of_asyncio(tmp_path, monkeypatch, caplog):
    """The kernel dies of the same Ctrl-C, and the task that waited for it is asked no more."""
    import papermill

    loop, tasks = asyncio.new_event_loop(), []

    async def fail():
        raise RuntimeError("Kernel died")

    def interrupted(*_, **__):
        tasks.append(loop.create_task(fail()))
        loop.run_until_complete(asyncio.sleep(0))
        raise KeyboardInterrupt

    logger = logging.getLogger("asyncio")
    level = logger.level
    monkeypatch.setattr(papermill, "execute_notebook", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_notebook("01_method", "smoke", {}, tmp_path, verbose=False)
        tasks.clear()
        gc.collect()
    finally:
        logger.setLevel(level)
        loop.close()
    assert "never retrieved" not in caplog.text
    assert [*(tmp_path / "notebooks").iterdir()] == []


def test_results_among_the_images_are_refused_before_a_folder_is_made(tmp_path):
    """The notebook refused them, too, and its failed copy stood where a class would."""
    place = tmp_path / "results"
    with pytest.raises(ValueError, match="would lie among the images"):
        run_notebook("18_your_data", "smoke", {"folder": str(tmp_path)}, place)
    assert not place.exists()
