"""The page of the command line, from the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer.main

from blocklora_lib.cli.app import app


def markdown() -> str:
    """Return the page: every command with its arguments and options."""
    parts = [
        "# The command line",
        "`.venv/bin/blocklora` in a clone, `blocklora` where the wheel is installed. A mistake is "
        "one sentence and exit code 2; 1 is for what was done and is not whole, 75 for a failure "
        "of the machine (the same command goes on from there), 130 for an interrupt.",
    ]
    for name, command in _commands(typer.main.get_command(app), "blocklora"):
        parts += [f"## {name}", _text(command.help)]
        rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            parts.append("\n".join(["| | | Default |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for word, child in inner.items():
        yield from _commands(child, f"{name} {word}")


def _row(parameter: Any) -> str:
    option = parameter.param_type_name == "option"
    names = ", ".join(f"`{o}`" for o in parameter.opts) if option else f"`{parameter.name.upper()}`"
    default = parameter.default
    shown = "" if default in (None, False, "") or callable(default) else f"`{default}`"
    cells = (
        names,
        _text(getattr(parameter, "help", "") or ""),
        "required" if parameter.required else shown,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _text(text: str) -> str:
    return re.sub(r"([<>_*])", r"\\\1", " ".join((text or "").split()))
