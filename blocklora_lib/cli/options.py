"""How options of the command line are read: paths as a person means them, errors as sentences."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..core.files import user_path
from ..core.paths import PROFILES, bundled
from ..core.schema import UnknownName
from .exits import exit_code, sentence
from .lines import say

UsageError: Any = typer.BadParameter.__bases__[0]  # typer has a click of its own since 0.26
NoArgs: Any = sys.modules[UsageError.__module__].NoArgsIsHelpError


def path(text: str) -> Path:
    """Read an option that names a file or a folder, see `files.user_path`.

    Raises OSError: of a ValueError typer would show the text alone.
    """
    try:
        return user_path(text)
    except ValueError as error:
        raise OSError(str(error)) from None


def _version(asked: bool) -> None:
    if asked:
        say(__version__)
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which, and end.")
]
ResultsOption = Annotated[
    Path | None, typer.Option("--results", parser=path, help="Results folder [results/<profile>].")
]
RootOption = Annotated[
    Path | None, typer.Option(parser=path, help="Folder of all datasets [$BLOCKLORA_DATA or data].")
]


def there(results: Path | None) -> Path | None:
    """Return a results folder that is only read; refuse one that does not exist, a slip, and that
    of a notebook's variant: the records on which it rests stand with the profile's results.
    """
    from ..suite.variant import is_variant

    if results and not results.is_dir():
        raise FileNotFoundError(f"no results folder {results}; `blocklora reproduce` makes one")
    if results and is_variant(results):
        raise ValueError(
            f"{results} has the figures and tables of a notebook with other parameters, which "
            f"`blocklora export` takes; runs, claims and report are of {results.parent.parent}"
        )
    return results


# commands that take up what was finished when they are given again; the others begin anew
GO_ON = ("grid", "rates", "notebook", "reproduce", "data download", "weights fetch")
JOB = "BLOCKLORA_JOB"  # set where the engine runs a command, and says itself that it was stopped


def stopped(words: Sequence[str]) -> str:
    """Return what is said of an interrupted command, given its words.

    >>> stopped(["data", "download", "dtd"]), stopped(["claims"]), stopped(["grid", "--list"])
    ('stopped; the same command goes on', 'stopped', 'stopped')
    """
    goes_on = " ".join(words[:1]) in GO_ON or " ".join(words[:2]) in GO_ON
    return "stopped; the same command goes on" if goes_on and "--list" not in words else "stopped"


class OneSentence(TyperGroup):
    """What the user did wrong is a sentence and exit code 2; BLOCKLORA_TRACEBACK=1 shows the rest.

    A failure of the machine is exit code 75 (EX_TEMPFAIL: try again), an interrupt 130, with a word
    on whether the same command goes on, an output that nobody reads any more 141, as shells say it
    of SIGPIPE; 1 is for what was done and is not whole: runs that are recorded as failed, records
    or images that are damaged.
    """

    def make_context(self, info_name: Any, args: list[str], *more: Any, **extra: Any) -> Any:
        words = [*args]  # reading them takes them away
        try:
            context = super().make_context(info_name, args, *more, **extra)
            context.meta[__name__] = words
            return context
        except UsageError as error:
            if isinstance(error, NoArgs):
                raise
            raise _refused(error) from None

    def invoke(self, ctx: Any) -> Any:
        # a name that the terminal cannot show is no reason to stop
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        # Pillow's remarks on odd files: what cannot be read is refused by name, all else is as it
        # should be
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            if "--help" not in sys.argv:
                bundled(PROFILES)
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            if not os.environ.get(JOB):
                say(stopped(ctx.meta[__name__]), err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:  # whoever reads, as `head`, has seen enough; work may be undone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None
        except UsageError as error:
            raise _refused(error) from None
        except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
            if os.environ.get("BLOCKLORA_TRACEBACK"):
                raise
            say(f"error: {sentence(error)}", err=True)
            raise typer.Exit(exit_code(error)) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            raise UnknownName("command", args[0], self.list_commands(ctx))
        return super().resolve_command(ctx, args)


def own_folder(dataset: str, known: Collection[str], others: Collection[str] = ()) -> Path | None:
    """Return the folder of one's own images that a dataset's name means; None for a known name.

    A known name wins over a folder of that name here, which is then meant by ./NAME. The folder of
    a path need not be there. UnknownName says that one's own images are given by a path. others:
    datasets that are not to be had now; a folder of such a name is refused, since either may be
    meant.
    """
    if os.sep in dataset or "\\" in dataset or dataset.startswith(("~", ".")):
        return None if dataset in known else user_path(dataset)
    if dataset in known:
        return None
    if not os.path.exists(dataset):
        beside = f"one's own images are given by the path of their folder, such as ./{dataset}"
        raise UnknownName("dataset", dataset, known, beside)
    if dataset in others:
        raise ValueError(
            f"{dataset!r} is a dataset that the profile does not have "
            f"(it has {', '.join(sorted(known))}), "
            f"and a folder here: if the folder is meant, write ./{dataset}"
        )
    return user_path(dataset)


def refuse_beside(ctx: typer.Context, option: str, *takes: str) -> None:
    """ValueError for what the command line gives beside an option that has no use for it.

    takes: the parameters, by their names in Python, that go with the option.
    """
    takes = (*takes, option.removeprefix("--"))
    others = [
        p.opts[0]
        for p in ctx.command.params
        if p.name and p.name not in takes and is_given(ctx, p.name)
    ]
    if others:
        told = ", ".join(others)
        raise ValueError(f"{told}: of no effect beside {option}; leave out the one or the other")


def is_given(ctx: typer.Context, name: str) -> bool:
    """Whether the command line itself gives a parameter; neither its default nor a variable."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refused(error: Any) -> typer.Exit:
    """Say what is wrong with a command line, in one sentence."""
    where = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
    say(f"error: {' '.join(error.format_message().split())}{where}", err=True)
    return typer.Exit(2)


def given(words: list[str] | None, option: str) -> dict[str, Any]:
    """Read NAME=VALUE of an option that may be given several times; values are YAML's."""
    from ..core.yaml_data import parse_yaml

    found: dict[str, Any] = {}
    for word in words or ():
        name, _, text = word.partition("=")
        if not (name and text.strip()):
            raise ValueError(f"cannot read {option} {word!r}; write {option} NAME=VALUE")
        if name in found:
            raise ValueError(f"{option} {name} is given twice; give it once")
        found[name] = parse_yaml(text, f"{option} {name}")
    return found


def parameters(words: list[str]) -> dict[str, str]:
    """Read '-p NAME VALUE -p NAME VALUE ...', papermill's way of writing them."""
    given = {}
    for i in range(0, len(words), 3):
        if words[i] != "-p" or len(words[i : i + 3]) < 3:
            raise ValueError(
                f"cannot read {' '.join(words[i:])!r}; parameters are written -p NAME VALUE"
            )
        if words[i + 1] in given:
            raise ValueError(f"parameter {words[i + 1]!r} is given twice; give each once")
        given[words[i + 1]] = words[i + 2]
    return given
