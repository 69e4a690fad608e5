"""Unpack a tar or zip file that nobody vouches for: nothing is written outside a folder of its own.

Python's filter for tar files (PEP 706) keeps members inside, those of zip files too; what it leaves
unchecked is checked here: sizes, counts, depth, names of other systems, links to nothing. Files are
unpacked into a temporary folder beside the target and renamed at the end: a refused, damaged or
interrupted archive leaves nothing behind.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .streams import DAMAGES, Budget, Member, UnsafeArchive, members_of

DEEPEST = 64  # folders in one another; Python's own ways through them are recursive
_NO_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)


@dataclass(frozen=True)
class Limits:
    """What an archive may become. Images hardly compress: real sets stay far below both.

    members: files, folders and links; beyond a few, each takes some bytes of the archive. ratio:
    bytes read or written per byte of archive, above a floor in bytes.
    """

    members: int = 3_000_000
    ratio: int = 50
    floor: int = 1 << 28

    def bytes(self, archive: Path) -> int:
        """Most bytes that this archive may be unpacked to."""
        return max(self.floor, self.ratio * archive.stat().st_size)

    def count(self, archive: Path) -> int:
        """Most members that this archive may have."""
        return min(self.members, max(5_000, archive.stat().st_size // 32))


@contextmanager
def unpacked(archive: Path, beside: Path, limits: Limits | None = None) -> Iterator[Path]:
    """Unpack into a temporary folder in `beside`, hand it over, and remove what is left in the end.

    UnsafeArchive: a path or link out of the folder, a device, too many, too large or too deep
    members. ValueError: a damaged or unknown archive. Both name the file and the member.
    """
    work = Path(tempfile.mkdtemp(prefix=f".{archive.name[:200]}.", dir=beside))
    try:
        files = unpack(archive, work, limits)
        if (found := count(work, os.listdir(work))) != files:
            raise OSError(
                f"{work} has {found:,} of the {files:,} files of {archive}: something else is at "
                "work there; end it and try again"
            )
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def unpack(archive: Path, folder: Path, limits: Limits | None = None) -> int:
    """Unpack into an existing folder, return how many files and links; errors as `unpacked`."""
    limits = limits or Limits()
    try:
        if not hasattr(tarfile, "data_filter"):
            raise NotImplementedError("it takes Python 3.11.4 or later")
        budget = Budget(archive, limits.bytes(archive))
        return _write(archive, members_of(archive, budget), folder, limits.count(archive), budget)
    except DAMAGES as error:
        raise ValueError(
            f"archive {archive} is damaged or no tar or zip file ({error}); "
            "delete it and download it again"
        ) from None
    except NotImplementedError as error:
        raise ValueError(
            f"archive {archive} cannot be read here ({error}); unpack it by hand"
        ) from None


def count(folder: Path, names: Iterable[str]) -> int:
    """Return how many files and links stand under these names of a folder."""
    found, todo = 0, [os.path.join(folder, name) for name in names]
    while todo:
        path = todo.pop()
        if os.path.isdir(path) and not os.path.islink(path):
            todo += [entry.path for entry in os.scandir(path)]
        else:
            found += os.path.lexists(path)
    return found


def _write(
    archive: Path, members: Iterable[Member], folder: Path, most: int, budget: Budget
) -> int:
    """Write the members; return how many files and links these are."""
    files, links = 0, []
    for number, (info, content) in enumerate(members, 1):
        if number > most:
            raise UnsafeArchive(
                f"archive {archive} has more than {most} members; it was not unpacked"
            )
        name, link = _inside(archive, info, folder)
        if name == "." and info.isdir():
            continue
        if name.count("/") > DEEPEST:
            raise _unsafe(archive, info, f"lies in more than {DEEPEST} folders, one in another")
        if info.issym():
            links.append((info, name))
            continue
        path = folder / name
        with _in_its_place(archive, info):
            path.parent.mkdir(parents=True, exist_ok=True)
            if info.isdir():
                path.mkdir(exist_ok=True)
                continue
            if not info.islnk():
                with content() as source, path.open("xb") as file:
                    budget.copy(source, file)
            elif (folder / link).is_file():  # no link is here yet
                os.link(folder / link, path)
            else:
                raise _unsafe(archive, info, f"is a link to {link!r}, which is no file before it")
        files += 1
    for info, _ in links:  # last, so that no file is written through a link
        name, link = _inside(archive, info, folder)  # again, now that some links are there
        with _in_its_place(archive, info):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(link, folder / name)
    root = folder.resolve()
    for info, name in links:
        try:
            inside = (folder / name).resolve(strict=True).is_relative_to(root)
        except (OSError, RuntimeError):  # a loop is a RuntimeError of pathlib's
            inside = False
        if not inside:
            raise _unsafe(archive, info, f"is a link to {info.linkname!r}, not in the archive")
    return files + len(links)


def _inside(archive: Path, info: tarfile.TarInfo, folder: Path) -> tuple[str, str]:
    """(path, target of a link) of a member that stays inside, as far as the links go that exist."""
    texts = [info.name, info.linkname] if info.issym() or info.islnk() else [info.name]
    if info.issym() and not info.linkname:
        raise _unsafe(archive, info, "is a link to nothing")
    for text in texts:
        if re.match(r"/|[A-Za-z]:|.*[\\\0]", text, re.DOTALL):
            raise _unsafe(archive, info, f"has {text!r}, which is not a relative path with /")
    try:
        safe = tarfile.data_filter(info, str(folder))
    except tarfile.SpecialFileError:
        why = "is a device; only files, folders and links are unpacked"
        raise _unsafe(archive, info, why) from None
    except (tarfile.FilterError, OSError, UnicodeError) as error:
        raise _unsafe(archive, info, f"leads out of its folder ({error})") from None
    return os.path.normpath(safe.name), os.path.normpath(safe.linkname)


@contextmanager
def _in_its_place(archive: Path, info: tarfile.TarInfo) -> Iterator[None]:
    try:
        yield
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise _unsafe(archive, info, "stands where another member already is") from None
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_NAME:
            raise  # of the disk
        raise _unsafe(archive, info, "has a name that no file can have here") from None


def _unsafe(archive: Path, info: tarfile.TarInfo, why: str) -> UnsafeArchive:
    return UnsafeArchive(f"archive {archive}: member {info.name!r} {why}; nothing of it was kept")
