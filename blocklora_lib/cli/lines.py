"""What a command says on a terminal, where words of others may be in it."""

from __future__ import annotations

import typer

from ..core.files import printable


def say(text: object, err: bool = False) -> None:
    """Print lines of which a terminal only shows the characters, whoever wrote them.

    Names and messages come out of files of others, too: a record's, a draw's, a server's. Data that
    a program reads (`--json`, a draw) are printed as they are, by `typer.echo`.
    """
    typer.echo("\n".join(map(printable, str(text).split("\n"))), err=err)
