"""`blocklora peft`: adapter files to and from PEFT's checkpoints. Thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .lines import say
from .options import path

peft_app = typer.Typer(
    help="Adapters as LoRA checkpoints of the PEFT library, and back.", no_args_is_help=True
)

FileArgument = Annotated[Path, typer.Argument(parser=path, help="An adapter file of ours.")]
FolderArgument = Annotated[
    Path,
    typer.Argument(parser=path, help="PEFT's: adapter_config.json and adapter_model.safetensors."),
]


@peft_app.command(name="export")
def write(file: FileArgument, folder: FolderArgument) -> None:
    """Write an adapter file as a PEFT checkpoint, which PeftModel.from_pretrained reads."""
    from ..adapters.formats.peft_export import export_peft_file

    say(export_peft_file(file, folder))


@peft_app.command(name="import")
def read(folder: FolderArgument, file: FileArgument) -> None:
    """Write a PEFT LoRA checkpoint as an adapter file; what has no counterpart is refused."""
    from ..adapters.formats.peft_import import import_peft_file

    import_peft_file(folder, file)
    say(file)
