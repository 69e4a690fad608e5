"""Files to pixels: every mode that Pillow opens is scaled rightly or refused by name."""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from pathlib import Path
from socket import AF_UNIX, socket

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blocklora_lib.data import decoding
from blocklora_lib.data.decoding import UnreadableImage, fault, frames, image_size, is_image, read
from blocklora_lib.data.image_files import ImageFiles

# every sixteenth bit is somewhere set
RAMP = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
EIGHT = np.round(RAMP / 257).astype(np.uint8)  # 65535 / 257 = 255


def pixels(path: Path, loading: str = "upright") -> np.ndarray:
    return np.asarray(read(path, loading)).astype(int)


def tiff(
    path: Path, data: bytes, bits: int, photometric: int = 1, sample_format: int = 1, end: str = "<"
) -> Path:
    """A 16 x 16 TIFF of one channel, written tag by tag: Pillow writes too few kinds of them."""
    tags = [
        (256, 16),
        (257, 16),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 134),
        (277, 1),
        (278, 16),
    ]
    tags += [(279, len(data)), (339, sample_format)]
    head = (b"II*\0" if end == "<" else b"MM\0*") + struct.pack(end + "IH", 8, len(tags))
    entries = b"".join(struct.pack(end + "HHII", tag, 4, 1, value) for tag, value in tags)
    assert len(head) + len(entries) + 4 == 134
    path.write_bytes(head + entries + struct.pack(end + "I", 0) + data)
    return path


def planes(path: Path, pixels: np.ndarray) -> Path:
    """A TIFF of separate planes from (H, W, 3), uint8 or uint16, which Pillow cannot write."""
    height, width, _ = pixels.shape  # ten tags end at byte 134, three lists of three at 170
    bits, size = 8 * pixels.itemsize, pixels[..., 0].nbytes
    three = [(258, [bits] * 3), (273, [170 + i * size for i in range(3)]), (279, [size] * 3)]
    tags = [
        (256, width),
        (257, height),
        *three[:1],
        (259, 1),
        (262, 2),
        *three[1:2],
        (277, 3),
        (278, height),
    ]
    tags, far, beyond = [*tags, three[2], (284, 2)], b"", 134
    entries = b""
    for tag, value in tags:
        if isinstance(value, list):
            entries += struct.pack("<HHII", tag, 4, 3, beyond + len(far))
            far += struct.pack("<3I", *value)
        else:
            entries += struct.pack("<HHII", tag, 4, 1, value)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + far
    path.write_bytes(head + np.moveaxis(pixels, -1, 0).tobytes())
    return path


def png(path: Path, depth: int, colour: int, row: bytes, clear: bytes = b"") -> Path:
    """A PNG of one row of two pixels, with a transparent value."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0))
    head += chunk(b"tRNS", clear) if clear else b""
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(b"\0" + row))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("loading", ["as_clip", "upright"])
@pytest.mark.parametrize("kind", ["png", "tif", "big-endian", "pgm", "jp2", "white is zero"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, kind, loading):
    path, expected = tmp_path / "ramp", EIGHT
    if kind in ("png", "tif", "jp2"):
        path = tmp_path / f"ramp.{kind}"
        Image.fromarray(RAMP).save(path)
    elif kind == "pgm":
        path.write_bytes(b"P5 16 16 65535\n" + RAMP.astype(">u2").tobytes())
    elif kind == "big-endian":
        tiff(path, RAMP.astype(">u2").tobytes(), 16, end=">")
    else:
        tiff(path, RAMP.astype("<u2").tobytes(), 16, photometric=0)
        expected = 255 - EIGHT
    assert np.array_equal(pixels(path, loading), np.repeat(expected[..., None], 3, 2))


def test_white_is_what_the_file_s_own_depth_says(tmp_path):
    twelve = (RAMP >> 4).reshape(-1)
    packed = bytearray()  # two values of 12 bits in three bytes
    for one, two in zip(twelve[::2].tolist(), twelve[1::2].tolist(), strict=True):
        packed += bytes([one >> 4, (one & 15) << 4 | two >> 8, two & 255])
    expected = np.round(twelve / 4095 * 255).reshape(16, 16)
    assert np.array_equal(pixels(tiff(tmp_path / "a.tif", bytes(packed), 12))[..., 0], expected)
    (tmp_path / "b.pgm").write_bytes(b"P5 16 16 4095\n" + (RAMP >> 4).astype(">u2").tobytes())
    assert np.abs(pixels(tmp_path / "b.pgm")[..., 0] - expected).max() <= 1  # by way of 16 bits


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 65535), min_size=1, max_size=40))
def test_any_sixteen_bits(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("any") / "x.png"
    Image.fromarray(np.array([values], dtype=np.uint16)).save(path)
    assert pixels(path)[0, :, 1].tolist() == [int(v / 257 + 0.5) for v in values]


def test_sixteen_bits_of_colour_are_their_high_bytes_or_nearer(tmp_path):
    (tmp_path / "x.ppm").write_bytes(
        b"P6 16 16 65535\n" + np.repeat(RAMP[..., None], 3, 2).astype(">u2").tobytes()
    )
    assert np.abs(pixels(tmp_path / "x.ppm")[..., 2] - EIGHT).max() <= 1
    path = png(tmp_path / "x.png", 16, 2, struct.pack(">6H", 1000, 2000, 3000, 40000, 50000, 60000))
    assert (
        np.abs(pixels(path)[0] - np.array([[1000, 2000, 3000], [40000, 50000, 60000]]) / 257).max()
        <= 1
    )


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (
            lambda p: Image.fromarray((RAMP / 65535).astype(np.float32)).save(p),
            "floating-point numbers",
        ),
        (lambda p: Image.fromarray(RAMP.astype(np.float32)).save(p), "floating-point numbers"),
        (
            lambda p: Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(p),
            "floating-point numbers",
        ),
        (lambda p: Image.fromarray(RAMP.astype(np.int32)).save(p), "32-bit or signed numbers"),
        (lambda p: tiff(p, RAMP.astype("<u4").tobytes(), 32), "32-bit or signed numbers"),
        (
            lambda p: tiff(p, RAMP.astype("<i2").tobytes(), 16, sample_format=2),
            "32-bit or signed numbers",
        ),
        (lambda p: tiff(p, EIGHT.tobytes(), 8, sample_format=2), "holds signed numbers"),
        (lambda p: planes(p, np.stack([RAMP] * 3, -1)), "16-bit colours in separate planes"),
        (
            lambda p: Image.new("L", (1, 1001)).save(p),
            "is 1 x 1001: a side is over 1000 times the other",
        ),
        (lambda p: p.write_bytes(b""), "the file is empty"),
        (lambda p: p.write_bytes(b"words"), "no image format in it; save .tif as JPEG or PNG"),
        (
            lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
            "no image format",
        ),
        (lambda p: p.mkdir(), "is no regular file"),
        (lambda p: socket(AF_UNIX).bind(str(p)), "is no regular file"),
        (os.mkfifo, "is no regular file"),  # nobody writes to it: reading it would never end
        (lambda p: p.symlink_to(p.name), "is missing"),
        (lambda p: None, "is missing"),
    ],
)
def test_what_has_no_sure_meaning_is_refused_before_any_decoding(tmp_path, write, says):
    path = tmp_path / "x.tif"
    write(path)
    assert says in fault(path, thorough=False)
    for look in (read, image_size, lambda p: read(p, "upright")):
        with pytest.raises(UnreadableImage, match=r"x\.tif .*blocklora data verify") as error:
            look(path)
        assert says in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "tags"), [("x.nef", {}), ("x.tif", {254: 1}), ("x.tif", {50706: b"\1\4\0\0"})]
)
def test_a_raw_photograph_s_preview_is_not_taken_for_it(tmp_path, name, tags):
    Image.new("RGB", (16, 12)).save(tmp_path / name, "TIFF", tiffinfo=tags)
    assert fault(tmp_path / name, thorough=False).startswith("is a camera's raw file")


def test_deep_numbers_of_a_format_without_a_white_are_refused(tmp_path):
    head = b"".join(
        f"{key:8}= {value:>20}".ljust(80).encode()
        for key, value in dict(SIMPLE="T", BITPIX=16, NAXIS=2, NAXIS1=4, NAXIS2=4).items()
    )
    (tmp_path / "x.fits").write_bytes((head + b"END".ljust(80)).ljust(2880) + bytes(2880))
    with Image.open(tmp_path / "x.fits") as image:
        assert image.mode.startswith("I")
    assert "holds 32-bit or signed numbers" in fault(tmp_path / "x.fits", thorough=False)


def test_the_way_out_of_a_float_image_is_a_way_out(tmp_path):
    values = np.linspace(-3, 7, 256).reshape(16, 16)
    scaled = (values + 3) / 10 * 65535
    Image.fromarray(scaled.astype(np.uint16)).save(tmp_path / "x.tif")
    assert fault(tmp_path / "x.tif") == ""


@pytest.mark.slow
def test_a_huge_image_is_found_by_its_head(tmp_path):
    path = tmp_path / "huge.png"
    Image.new("1", (14000, 14000)).save(path)  # 24 kB, and 588 MB of RGB
    assert fault(path, thorough=False).startswith("is larger than 178,956,970 pixels")
    (found,) = ImageFiles([path]).faults(thorough=False)
    assert "make it smaller" in found
    assert is_image(path)


@pytest.mark.parametrize(
    "mode", ["RGBA", "LA", "PA", "P bytes", "P index", "L value", "RGB value", "webp"]
)
def test_what_lies_under_transparent_pixels_shows_as_in_clips_loader_or_is_covered_with_white(
    tmp_path, mode
):
    path = tmp_path / ("x.webp" if mode == "webp" else "x.png" if mode != "PA" else "x.gif")
    colour = np.array([[[200, 40, 90], [10, 220, 30]]], dtype=np.uint8)
    if mode in ("LA", "L value"):
        colour[:] = [[[60] * 3, [170] * 3]]
    alpha = np.array([[0, 255]], dtype=np.uint8)
    if mode in ("RGBA", "webp"):
        alpha[0, 1] = 128
        Image.fromarray(np.dstack([colour, alpha])).save(path, lossless=True, exact=True)
    elif mode == "LA":
        Image.merge("LA", [Image.fromarray(colour[..., 0]), Image.fromarray(alpha)]).save(path)
    elif mode in ("L value", "RGB value"):
        image = Image.fromarray(colour[..., 0] if mode == "L value" else colour)
        image.save(path, transparency=60 if mode == "L value" else (200, 40, 90))
    else:
        image = Image.new("P", (2, 1))
        image.putpalette(colour.reshape(-1).tobytes())
        image.putdata([0, 1])
        image.save(path, transparency=0 if mode in ("P index", "PA") else bytes([0, 255]))
    share = alpha[..., None] / 255
    assert np.abs(pixels(path, "upright") - (share * colour + (1 - share) * 255)).max() <= 1
    assert np.array_equal(
        pixels(path, "as_clip"), np.asarray(Image.open(path).convert("RGB")).astype(int)
    )
    assert pixels(path, "as_clip")[0, 0].tolist() == colour[0, 0].tolist()


@pytest.mark.parametrize(
    ("depth", "colour", "row", "clear"),
    [
        (16, 0, struct.pack(">2H", 500, 60000), struct.pack(">H", 500)),
        (
            16,
            2,
            struct.pack(">6H", 1000, 2000, 3000, *[60000] * 3),
            struct.pack(">3H", 1000, 2000, 3000),
        ),
        (8, 0, bytes([9, 233]), struct.pack(">H", 9)),
        (4, 0, bytes([0x5E]), struct.pack(">H", 5)),
        (2, 0, bytes([0b10_11_0000]), struct.pack(">H", 2)),
        (1, 0, bytes([0b01_000000]), struct.pack(">H", 0)),
    ],
)
def test_a_transparent_value_is_of_the_file_s_own_depth(tmp_path, depth, colour, row, clear):
    found = pixels(png(tmp_path / "x.png", depth, colour, row, clear))
    assert found[0, 0].tolist() == [255] * 3
    bright = {16: 60000 / 257, 8: 233, 4: 14 * 17, 2: 255, 1: 255}[depth]
    assert np.abs(found[0, 1] - bright).max() <= 1
    hidden = {16: 500 / 257 if colour == 0 else 1000 / 257, 8: 9, 4: 85, 2: 170, 1: 0}[depth]
    assert abs(pixels(tmp_path / "x.png", "as_clip")[0, 0, 0] - hidden) <= 1


# where EXIF 2.32 says that row 0 and column 0 of the stored image lie, undone by numpy
ORIENTED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tif", "tif packed", "webp"])
def test_a_turned_photograph_stands_upright_in_ones_own_sets_only(tmp_path, turn, kind):
    stored = np.random.default_rng(turn).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    path, exif = tmp_path / f"x.{kind[:4].strip()}", Image.Exif()
    exif[274] = turn
    options = {"compression": "tiff_lzw"} if kind == "tif packed" else {}
    options |= {"lossless": True} if kind == "webp" else {}
    Image.fromarray(stored).save(path, exif=exif, **options)
    shown = ORIENTED[turn](stored)
    assert np.array_equal(pixels(path), shown)
    assert image_size(path, "upright") == (shown.shape[1], shown.shape[0])
    assert image_size(path) == read(path).size
    if not kind.startswith("tif"):  # Pillow itself turns those, in CLIP's loader too
        assert np.array_equal(pixels(path, "as_clip"), stored)


@pytest.mark.parametrize("turn", [0, 9, 65535])
def test_a_note_that_makes_no_sense_turns_nothing(tmp_path, turn):
    exif = Image.Exif()
    exif[274] = turn
    Image.new("RGB", (6, 4)).save(tmp_path / "x.jpg", exif=exif)
    assert (
        read(tmp_path / "x.jpg", "upright").size
        == image_size(tmp_path / "x.jpg", "upright")
        == (6, 4)
    )
    plain = io.BytesIO()
    Image.new("RGB", (6, 4)).save(plain, "JPEG")
    broken = b"\xff\xe1\x00\x14Exif\0\0MM\0\x2a\xff\xff\xff\xff\xff\xff"
    (tmp_path / "y.jpg").write_bytes(plain.getvalue()[:2] + broken + plain.getvalue()[2:])
    assert read(tmp_path / "y.jpg", "upright").size == (6, 4)


def test_planes_of_eight_bits_come_in_as_they_are(tmp_path):
    colours = np.stack([EIGHT, EIGHT[::-1], EIGHT.T], -1)
    assert (pixels(planes(tmp_path / "x.tif", colours)) == colours).all()


def test_other_ways_to_store_colour_come_in_as_they_are(tmp_path):
    random = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    smooth = Image.fromarray(random).resize((64, 64), Image.Resampling.BICUBIC)
    for mode, name in (
        ("CMYK", "x.jpg"),
        ("CMYK", "x.tif"),
        ("YCbCr", "y.tif"),
        ("1", "one.png"),
        ("LAB", "z.tif"),
    ):
        if mode == "LAB":
            from PIL import ImageCms

            profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
            image = ImageCms.profileToProfile(smooth, *profiles, outputMode="LAB")
        else:
            image = smooth.convert(mode)
        image.save(tmp_path / name)
        expected = np.asarray(smooth.convert("1") if mode == "1" else smooth).astype(int)
        expected = np.repeat(expected[..., None] * 255, 3, 2) if mode == "1" else expected
        off = np.abs(pixels(tmp_path / name) - expected)
        assert off.mean() < {"1": 1e-9, "CMYK": 4, "YCbCr": 2, "LAB": 3}[mode], (mode, name)
        assert np.array_equal(pixels(tmp_path / name), pixels(tmp_path / name, "as_clip"))


@pytest.mark.parametrize("name", ["x.gif", "x.webp", "x.png", "x.tif"])
def test_of_an_animation_the_first_frame_is_taken_and_counted(tmp_path, name):
    shown = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if name == "x.webp" else {}
    shown[0].save(tmp_path / name, save_all=True, append_images=shown[1:], **options)
    assert frames(tmp_path / name) == 3
    assert (pixels(tmp_path / name) == [255, 0, 0]).all()
    shown[0].save(tmp_path / f"one{name}")
    assert frames(tmp_path / f"one{name}") == 1


def test_an_image_is_known_by_what_it_holds(tmp_path):
    Image.new("RGB", (5, 5), "teal").save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    (tmp_path / "b").write_bytes((tmp_path / "a.jpg").read_bytes())
    assert is_image(tmp_path / "b")
    assert fault(tmp_path / "a.jpg") == ""
    assert (pixels(tmp_path / "a.jpg") == [0, 128, 128]).all()
    for i, content in enumerate(
        [b"", b"x", b"cat,dog\n1,2\n" * 99, b"%PDF-1.7\n", b"<svg></svg>", bytes(5000)]
    ):
        (tmp_path / str(i)).write_bytes(content)
        assert not is_image(tmp_path / str(i)), content[:20]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM])
def test_a_machine_that_fails_is_no_fault_of_the_image(tmp_path, monkeypatch, code):
    path = tmp_path / "x.png"
    Image.new("L", (2, 2)).save(path)

    def fails(*_):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(decoding, "regular_file", fails)
    with pytest.raises(OSError, match=r"x\.png") as error:
        fault(path, thorough=True)
    assert error.value.errno == code
    monkeypatch.undo()

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", full)
    with pytest.raises(MemoryError):
        read(path)
