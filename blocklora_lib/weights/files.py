"""The files behind a backbone's weights and their checksum. No torch: a grid is listed without it.

`backbone.pretrained` is 'bundled', 'none', a tag of open_clip (see tags), or the path of a
checkpoint or of a folder that holds one.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from ..core.files import user_path
from ..core.paths import POCKET_MODEL, bundled
from ..data.content import file_digests
from .spec import BUNDLED, BackboneSpec

FOLDER = "BLOCKLORA_WEIGHTS"  # a folder of one's own for files that were fetched by hand
CONFIG = "open_clip_config.json"  # beside a checkpoint: how its model looks at images
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# Which of several checkpoints in a folder is meant; open_clip's own order.
PREFERRED = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)


def is_path(pretrained: str) -> bool:
    """Whether `pretrained` is a path: it has a character that no tag has, such as / or a dot."""
    return re.fullmatch(r"[\w-]+", pretrained) is None


def with_checksum(spec: BackboneSpec) -> BackboneSpec:
    """Return the spec with the SHA-256 of the weights' files, where they are files of this machine.

    Of a tag of open_clip only the profile can say the checksum; load_backbone compares it with what
    was fetched. A tag gets open_clip's spelling: small letters and underscores.
    """
    files = weight_files(spec)
    if not files:
        if is_path(spec.pretrained) or spec.pretrained in ("bundled", "none"):
            return spec
        return spec.model_copy(update={"pretrained": spec.pretrained.lower().replace("-", "_")})
    digest = _remembered(tuple(files), stamps(files))
    if spec.checksum and spec.checksum != digest:
        raise ValueError(
            f"weights of backbone {spec.name} ({files[-1]}) "
            f"have SHA-256 {digest[:12]}.., the spec says {spec.checksum[:12]}..; "
            "restore the file, or leave checksum empty to take the file as it is"
        )
    return spec.model_copy(update={"checksum": digest})


def weight_files(spec: BackboneSpec) -> list[Path]:
    """The checkpoint, unless open_clip has it by a tag, and before it the config beside it.

    Raises OSError or ValueError, in a sentence, if the checkpoint is not there or is not one file.
    """
    own = BUNDLED.get(spec.name)
    files = [bundled(POCKET_MODEL / f"{own}.json")] if own else []
    if spec.pretrained == "bundled":
        if own is None:
            raise ValueError(
                f"backbone {spec.name} has no bundled weights; "
                f"only {', '.join(BUNDLED)} have, others take a tag or path"
            )
        files.append(POCKET_MODEL / f"{own}.safetensors")
    elif is_path(spec.pretrained):
        path = _checkpoint(spec)
        files += [path.with_name(CONFIG)] if path.with_name(CONFIG).is_file() else []
        files.append(path)
    for path in files:
        _check(path, str(path), spec)
    return files


def sha256(files: Sequence[Path]) -> str:
    """SHA-256 of these files' bytes, one after another."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        except OSError as error:
            raise OSError(f"{path} cannot be read ({error.strerror}); {_WAY_OUT}") from None
    return digest.hexdigest()


def stamps(files: Sequence[Path]) -> tuple[tuple[int, ...], ...]:
    """What changes when a file does: device, inode, size, and both times in nanoseconds."""
    found = [os.stat(path) for path in files]
    return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in found)


@lru_cache(maxsize=32)  # a grid is listed many times in a process, and a checkpoint has gigabytes
def _remembered(files: tuple[Path, ...], _stamps: tuple[tuple[int, ...], ...]) -> str:
    if len(files) == 1:  # what an earlier process found of an unchanged file is taken, as of images
        (found,) = file_digests(files[0].parent, [files[0].name])
        if re.fullmatch(r"[0-9a-f]{64}", found):
            return found
    return sha256(files)


_WAY_OUT = (
    "restore it, or set backbone.pretrained to another checkpoint's path, "
    "a tag of open_clip or 'none' (random)"
)


def _checkpoint(spec: BackboneSpec) -> Path:
    """The file that a path means: itself, or the checkpoint in a folder."""
    path = user_path(spec.pretrained)
    told = spec.pretrained if str(path) == spec.pretrained else f"{spec.pretrained} ({path})"
    if not path.is_dir():
        _check(path, told, spec)
        return path
    try:
        found = sorted(
            p.name for p in path.iterdir() if p.suffix.lower() in ENDINGS and p.is_file()
        )
    except OSError as error:
        raise OSError(
            f"folder {told} of {spec.name} cannot be read ({error.strerror}); {_WAY_OUT}"
        ) from None
    chosen = next(
        (name for name in PREFERRED if name in found), found[0] if len(found) == 1 else None
    )
    if chosen is None:
        what = f"several checkpoints ({', '.join(found)})" if found else "no checkpoint"
        raise ValueError(
            f"backbone.pretrained of {spec.name} is the folder {told}, which holds {what}; "
            f"give the path of the file (it ends in {', '.join(ENDINGS)})"
        )
    return path / chosen


def _check(path: Path, told: str, spec: BackboneSpec) -> None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"backbone checkpoint {told} of {spec.name} is missing; {_WAY_OUT}"
        ) from None
    except OSError as error:
        raise OSError(
            f"backbone checkpoint {told} of {spec.name} cannot be read ({error.strerror}); "
            f"{_WAY_OUT}"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"backbone checkpoint {told} of {spec.name} is no regular file; {_WAY_OUT}")
