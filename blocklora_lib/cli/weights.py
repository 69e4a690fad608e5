"""`blocklora weights`: which weights a profile's backbone has, fetch them, check a file. Thin."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from ..weights.files import is_path, with_checksum
from .lines import say

if TYPE_CHECKING:
    from ..weights.spec import BackboneSpec
    from ..weights.tags import Source

weights_app = typer.Typer(help="The weights of a profile's backbone.", no_args_is_help=True)

ProfileOption = Annotated[
    str, typer.Option("--profile", "-P", help="Name of a profile, or a YAML file.")
]


@weights_app.command()
def find(profile: ProfileOption = "pocket") -> None:
    """Which file the backbone's weights are, where it lies, its checksum; without the network.

    Ends with 1 if it is not here.
    """
    from ..clip.tokenizers import fetch_parts
    from ..weights.obtain import locate, missing, network, ways

    stated, spec = _backbone(profile)
    with network(False):
        source = locate(spec)
        if source is None and spec.pretrained != "none":
            say(f"{missing(spec)}: {ways(spec)}", err=True)
            raise typer.Exit(1)
        fetch_parts(spec)
    _tell(spec, source, stated)


@weights_app.command()
def fetch(profile: ProfileOption = "pocket") -> None:
    """Fetch the weights, and what tokenizer and text tower need, as open_clip would; check them.

    HF_HUB_OFFLINE=1 does not count here. What is on this machine already is not fetched again.
    """
    from ..clip.tokenizers import fetch_parts
    from ..weights.obtain import download, locate, network

    stated, spec = _backbone(profile)
    with network(True):
        source = locate(spec)
        if source is None and spec.pretrained != "none":
            source = download(spec, say)
        fetch_parts(spec)
    _tell(spec, source, stated)


@weights_app.command()
def check(
    file: Annotated[str, typer.Argument(help="A checkpoint, or a folder that holds one.")],
    model: Annotated[
        str, typer.Option(help="open_clip's name, such as ViT-B-16-quickgelu, or PocketCLIP.")
    ],
) -> None:
    """Load a checkpoint into a model: say what is missing, left over, NaN or another model's."""
    from ..clip.backbone import load_backbone
    from ..weights.obtain import locate
    from ..weights.spec import BackboneSpec

    path = file if is_path(file) else os.path.join(".", file)  # here a word is a file, never a tag
    spec = with_checksum(BackboneSpec(name=model, pretrained=path))
    backbone = load_backbone(spec, "cpu")
    _tell(spec, locate(spec), "")
    _say(
        "tensors",
        f"{backbone.weights['tensors']} (SHA-256 of their values, whatever the file's format)",
    )
    numbers = sum(p.numel() for p in backbone.model.parameters())
    _say("loads", f"all {numbers:,} numbers of {model}, none of them NaN or infinite")


def _backbone(profile: str) -> tuple[str, BackboneSpec]:
    """(the checksum that the profile states, its backbone with the checksum of files here)."""
    from ..runs.profile_files import load_profile

    spec = load_profile(profile).backbone
    return spec.checksum, with_checksum(spec)


def _tell(spec: BackboneSpec, source: Source | None, stated: str) -> None:
    from ..weights.stated import refuse_other_activation

    _say("backbone", f"{spec.name}, pretrained: {spec.pretrained}, precision: {spec.precision}")
    if source is None:
        return _say("weights", "random, always the same ones: there is no file")
    refuse_other_activation(spec, source, openai=False)
    for path in source.files:
        _say("file", str(path))
    _say("SHA-256", source.sha256)
    if stated:
        _say("", "as the profile says")
    if source.stated:
        _say(
            "",
            f"as its publisher says{'' if len(source.stated) == 64 else f' ({source.stated}..)'}",
        )
    for model, tag in source.published:
        _say("", f"the file that open_clip knows as {model}, pretrained: {tag}")
    if not (stated or source.stated or source.published):
        _say("", "nobody says what it should be; backbone.checksum in the profile would")


def _say(what: str, text: str) -> None:
    say(f"{what:10}{text}")
