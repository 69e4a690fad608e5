"""Where a set comes from, as its manifest says: packages, archives, its split file."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import Field

from ..core.schema import Strict
from .plain_paths import PlainName, RelativePath, Url, is_plain

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sha1 = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class Source(Strict):
    """Where images come from, under which licence, and the line that the licence asks for."""

    package: str
    licence: str
    attribution: str
    url: Url | None = None


class SplitFile(Strict):
    """A fixed train / val / test split, fetched by the user: name in the folder, checksums, links.

    git_sha1: the file's id in a git repository, SHA-1 of b"blob <bytes>\\0" + content, for files
    that only a repository's listing vouches for.
    """

    name: RelativePath
    sha256: Sha256 | None = None
    md5: Md5 | None = None
    git_sha1: Sha1 | None = None
    url: Url | None = None
    mirrors: tuple[Url, ...] = ()


class Archive(Strict):
    """A file to fetch.

    manual: a page with terms to accept, or no direct link; `download` prints the manifest's
    `steps`.
    dead: reported gone. mirror_of: number (from 0) of the archive that this one replaces. unpack:
    false for a plain file. into: folder of the dataset that receives the content. only: the part of
    the archive that is wanted, taken without this prefix. inner: an archive inside.
    """

    url: Url
    name: PlainName | None = None  # the file's name where the link does not end in it
    size: int | None = Field(None, ge=1)  # bytes
    sha256: Sha256 | None = None
    md5: Md5 | None = None
    note: str = ""
    dead: bool = False
    manual: bool = False
    mirror_of: int | None = Field(None, ge=0)
    unpack: bool = True
    into: RelativePath = "."
    only: RelativePath | None = None
    inner: RelativePath | None = None

    @property
    def file_name(self) -> str:
        """The name under which it is kept."""
        last = PurePosixPath(unquote(urlsplit(self.url).path)).name
        return self.name or (last if is_plain(last) else "download")

    @property
    def plain_file(self) -> str:
        """Where it is kept in the dataset's folder if it is not unpacked."""
        return str(PurePosixPath(self.into, self.file_name))
