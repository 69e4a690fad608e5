"""The files behind a backbone's weights and their checksum.  No torch: a grid is listed without it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .paths import POCKET_MODEL
from .specs import BackboneSpec

POCKET = "PocketCLIP"  # registered with open_clip under its config file's name


def with_checksum(spec: BackboneSpec) -> BackboneSpec:
    """Return the spec with the SHA-256 of the files that make the weights, where they are files of this
    machine.

    Of a tag of open_clip only the profile can say the checksum; load_backbone compares it with what was
    fetched.
    """
    files = weight_files(spec)
    if not files:
        return spec
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    if spec.checksum and spec.checksum != digest:
        raise ValueError(
            f"weights of backbone {spec.name} ({files[-1]}) have SHA-256 {digest[:12]}.., the spec says "
            f"{spec.checksum[:12]}..; restore the file, or leave checksum empty to take the file as it is"
        )
    return spec.model_copy(update={"checksum": digest})


def weight_files(spec: BackboneSpec) -> list[Path]:
    """PocketCLIP's config, and the checkpoint unless open_clip fetches it by a tag."""
    files = [POCKET_MODEL / "pocketclip.json"] if spec.name == POCKET else []
    if spec.pretrained == "bundled":
        if spec.name != POCKET:
            raise ValueError(
                f"backbone {spec.name} has no bundled weights; only {POCKET} is, others take a tag or path"
            )
        files.append(POCKET_MODEL / "pocketclip.safetensors")
    elif "/" in spec.pretrained or Path(spec.pretrained).suffix in (".safetensors", ".pt", ".bin", ".pth"):
        files.append(Path(spec.pretrained))
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(
                f"backbone checkpoint {path} of {spec.name} is missing; restore it, or set "
                "backbone.pretrained to another checkpoint's path, a tag of open_clip or 'none' (random)"
            )
    return files
