"""One image file to RGB: scaled rightly, or refused with the reason. No torch.

Two ways to look at a file, a setting of the dataset (`image_loading` in its manifest):

as_clip   Pillow's convert("RGB"), as in the loaders of CLIP, CoOp and CLIP-LoRA: the colour under
          transparent pixels shows, and the camera's note on rotation (EXIF) is not read. What the
          paper's sets are looked at by.
upright   as a viewer shows it: turned as EXIF says, transparent pixels over white. For one's own.

Both alike: values of more than 8 bits are scaled to 8 by the file's own depth (Pillow's convert
cuts them off at 255, a white image); floats and 32-bit integers, whose white no file states, are
refused. Of an animation the first frame is taken. Colour profiles are not applied.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from ..core.files import ABSENT, FORBIDDEN, NO_FILE, regular_file

T = TypeVar("T")
Loading = Literal["as_clip", "upright"]
# times the shorter side: it grows to the resolution, so that a thread would fill the memory
LONGEST = 1000
# start other programs, or are no images
EXTERNAL = frozenset({"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"})
# tags of TIFF and EXIF
ORIENTATION, BITS, WHITE_IS_ZERO, SAMPLE_FORMAT, PLANES = 274, 258, 262, 339, 284
TURNS = dict(
    enumerate(
        (
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ),
        start=2,  # what EXIF's orientations 2 to 8 ask for; 1 is upright
    )
)
REDUCED, DNG = 254, 50706  # tags of a TIFF whose first image is the preview of a raw photograph
RAW = frozenset(".dng .cr2 .cr3 .nef .nrw .arw .orf .rw2 .raf .pef .srw".split())
# formats that spread values over all bits
DEEP = {"I;16": ("PNG", "TIFF", "JPEG2000"), "I": ("PPM", "PNG")}


class UnreadableImage(ValueError):
    """A file that is missing, does not decode, or whose values have no sure meaning: see `why`."""

    def __init__(self, path: Path, why: str) -> None:
        self.why = why
        super().__init__(
            f"image {path} {why}; `blocklora data verify` finds all such files of its dataset"
        )


def read(path: Path, loading: Loading = "as_clip") -> Image.Image:
    """Return the image in RGB.

    UnreadableImage names a file that cannot be read; an OSError of the machine (a disk or a network
    that fails, too many open files) is no fault of the image and is raised as it is.
    """
    return _open(path, _upright if loading == "upright" else _as_clip)


def image_size(path: Path, loading: Loading = "as_clip") -> tuple[int, int]:
    """Return (width, height) of what `read` returns, from the file's head."""
    return _open(path, lambda image: _turned_size(image) if loading == "upright" else image.size)


def fault(path: Path, thorough: bool = True) -> str:
    """Why the file cannot be read, such as 'is missing' or 'cannot be decoded (...)'; '' if it can.

    thorough: decode it; otherwise only where its head or its end looks wrong.
    """
    try:
        _open(path, _as_clip if thorough or cut_short(path) else lambda image: None)
    except UnreadableImage as error:
        return error.why
    return ""


def frames(path: Path) -> int:
    """Number of images in a file that holds one after another (animations); 1 of unreadable ones.

    A photograph with a preview beside it (MPO) is one image.
    """
    try:
        return _open(
            path, lambda image: 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        )
    except UnreadableImage:
        return 1


def is_image(path: Path) -> bool:
    """Whether a file is an image by what it holds, whatever its name."""
    try:
        with regular_file(path) as file, Image.open(file, formats=_formats(signed=True)):
            return True
    except Image.DecompressionBombError:
        return True
    except OSError as error:
        if error.errno is not None and error.errno not in ABSENT | NO_FILE | FORBIDDEN:
            raise
    except Exception:  # Pillow raises many kinds on what is no image
        return False
    return False


@cache
def endings() -> frozenset[str]:
    """Endings of file names that say 'image', in small letters with the dot: Pillow's, and others.

    The others are taken for images too, so that they are refused by name and not left out.
    """
    readable = set(_formats())
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in readable}
    usual = ".jpg .jpeg .jfif .jpe .png .webp .bmp .gif .tif .tiff .ppm .pgm .avif .jp2"
    unread = ".heic .heif .hif .jxl .svg .svgz .eps"
    return frozenset(
        (known | set(usual.split()) | set(unread.split()) | RAW) - {".mpg", ".mpeg", ".h5", ".hdf"}
    )


def cut_short(path: Path) -> bool:
    """Whether a JPEG's or PNG's end mark is missing near the end; the image may still be whole.

    True for a file that is not there.
    """
    try:
        with regular_file(path) as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 64))  # some writers pad the end
            tail = file.read()
    except OSError:
        return True
    return b"\xff\xd9" not in tail and b"IEND" not in tail


@cache
def _formats(signed: bool = False) -> tuple[str, ...]:
    """Formats that Pillow reads by itself; signed: only those that a file's first bytes tell."""
    Image.init()
    found = [name for name in Image.ID if name not in EXTERNAL]
    return tuple(name for name in found if not signed or Image.OPEN[name][1] is not None)


def _open(path: Path, look: Callable[[Image.Image], T]) -> T:
    try:
        with regular_file(path) as file, Image.open(file, formats=_formats()) as image:
            if unfit := _unfit(path, image):
                raise UnreadableImage(path, unfit)
            return look(image)
    except (UnreadableImage, MemoryError):
        raise
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        why = (
            f"is larger than {limit:,} pixels, "
            "as a file made to fill the memory would be; make it smaller"
        )
    except OSError as error:
        if error.errno in ABSENT:
            why = "is missing"
        elif error.errno in NO_FILE:
            why = "is no regular file"
        elif error.errno in FORBIDDEN:
            why = f"may not be read ({error.strerror})"
        elif error.errno is not None:
            raise
        else:
            why = _reason(path, error)
    except Exception as error:  # Pillow raises many kinds on damaged files
        why = _reason(path, error)
    raise UnreadableImage(path, why)


def _reason(path: Path, error: Exception) -> str:
    if path.is_file() and not path.stat().st_size:
        return "cannot be decoded (the file is empty)"
    text = " ".join(str(error).replace(str(path), "the file").split()) or type(error).__name__
    if text.startswith("cannot identify image file"):
        text = f"Pillow knows no image format in it; save {path.suffix or 'it'} as JPEG or PNG"
    return f"cannot be decoded ({text})"


def _unfit(path: Path, image: Any) -> str:
    """Why an image's values have no sure meaning as pixels, or its shape none as a view; or ''."""
    short, long = sorted(image.size)
    if short < 1 or long > LONGEST * short:
        return (
            f"is {image.width} x {image.height}: a side is over {LONGEST} times the other; cut it"
        )
    tiff = image.format == "TIFF"
    raw = tiff and (DNG in image.tag_v2 or any(value & 1 for value in _numbers(image, REDUCED)))
    if raw or path.suffix.lower() in RAW:
        return (
            "is a camera's raw file, of which Pillow reads a preview at most; "
            "save it as JPEG, PNG or TIFF"
        )
    deep_planes = (
        tiff and _numbers(image, PLANES) == (2,) and max(_numbers(image, BITS), default=1) > 8
    )
    if deep_planes and len(image.getbands()) > 1:
        return (
            "holds 16-bit colours in separate planes, whose bytes Pillow mixes up; save it as PNG, "
            "or as a TIFF of interleaved channels"
        )
    deep = DEEP.get(image.mode[:4]) if image.mode[0] == "I" else None
    if image.mode == "F":
        kind = "floating-point"
    elif deep and image.format not in deep:
        kind = "32-bit or signed"
    elif tiff and 2 in _numbers(image, SAMPLE_FORMAT):
        kind = "signed"
    else:
        return ""
    return (
        f"holds {kind} numbers, and nothing says which is white; "
        "save it with 8 or 16 bits a channel"
    )


def _numbers(image: Any, tag: int) -> tuple[int, ...]:
    found = image.tag_v2.get(tag, ())
    return found if isinstance(found, tuple) else (found,)


def _as_clip(image: Image.Image) -> Image.Image:
    return _eight_bits(image).convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    shown = _eight_bits(image)
    if shown.has_transparency_data:
        white = Image.new("RGBA", shown.size, "white")
        white.alpha_composite(shown.convert("RGBA"))
        shown = white
    shown = shown.convert("RGB")
    turn = _orientation(image)
    return shown if turn == 1 else shown.transpose(TURNS[turn])


def _turned_size(image: Image.Image) -> tuple[int, int]:
    """Pillow's TIFF has turned the size already, as it will the pixels."""
    width, height = image.size
    return (
        (height, width) if image.format != "TIFF" and _orientation(image) > 4 else (width, height)
    )


def _orientation(image: Image.Image) -> int:
    """EXIF's note on how the camera was held, 1 (upright) to 8; damaged notes turn nothing."""
    try:
        turn = image.getexif().get(ORIENTATION, 1)
    except Exception:
        # as many kinds as there are ways to damage EXIF; viewers show such an image unturned
        return 1
    return turn if turn in TURNS else 1


def _eight_bits(image: Any) -> Any:
    """Return the image with 8 bits a channel, its transparent value in the same scale."""
    raw = image.tile[0].args if image.format == "PNG" and image.tile else None
    clear = image.info.get("transparency")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        image.load()
        # Pillow keeps the high bytes of the pixels alone
        if raw == "RGB;16B" and clear is not None:
            image.info["transparency"] = tuple(value >> 8 for value in clear)
        elif raw in ("L;2", "L;4") and clear is not None:
            # and spreads these over 0..255, but not `clear`
            image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}[raw]
        return image
    white = 2 ** _numbers(image, BITS)[0] - 1 if image.format == "TIFF" else 2**16 - 1
    # PGM's are spread over 16 bits whatever its own white
    values = np.asarray(image).astype(np.int64)
    grey = ((values * 255 + white // 2) // white).clip(0, 255).astype(np.uint8)
    if image.format == "TIFF" and _numbers(image, WHITE_IS_ZERO) == (0,):
        grey = 255 - grey
    if clear is None:
        return Image.fromarray(grey)
    return Image.merge(
        "LA", (Image.fromarray(grey), Image.fromarray(np.uint8(255) * (values != clear)))
    )
