"""Fetch one file, check it, and go on where an interrupted download stopped.

What has come so far stands in NAME.part, what it belongs to in NAME.part.json. A later try asks the
server for the rest (HTTP Range, with If-Range so that a file changed meanwhile is not mixed with
the old one). A server without ranges answers with the whole file: then it starts over, and says so.
One process at a time fetches a file: another waits, and finds it there.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import urlsplit

from ...core.locks import locked
from .resuming import DownloadError, Resuming, Say, Settings

_DRIVES = ("drive.google.com", "docs.google.com")


def is_direct(url: str | None) -> bool:
    """Whether a program can fetch this address: http(s), no page of Google Drive."""
    parts = urlsplit(url or "")
    return parts.scheme in ("http", "https") and (parts.hostname or "").lower() not in _DRIVES


def known_hash(sha256: str | None, md5: str | None) -> str | None:
    """The best checksum at hand as 'sha256:...' or 'md5:...', or None."""
    return f"sha256:{sha256}" if sha256 else f"md5:{md5}" if md5 else None


def git_sha1(content: bytes) -> str:
    """git's name for a file of this content: SHA-1 over a header and the content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def fetch(
    url: str, target: Path, known: str | None, say: Say = print, settings: Settings | None = None
) -> Path:
    """Fetch url to `target` and return it. known: of `known_hash`; None: nothing is checked.

    A target that is there and has the right checksum is left alone. DownloadError: no answer, an
    answer that is no file, a wrong checksum (the file is removed then); a part that came stays for
    the next try.
    """
    if not is_direct(url):
        raise DownloadError(f"{url} cannot be fetched by a program; open it in a browser")
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f"{target.name}.part.lock"), say):
        return _fetch(url, target, known, say, settings or Settings())


def _fetch(url: str, target: Path, known: str | None, say: Say, settings: Settings) -> Path:
    if target.is_file() and not _differs(target, known):
        return target
    for _ in range(2):
        download = Resuming(url, target, known, say, settings)
        download.complete()
        found = _differs(download.part, known)
        if not found:
            os.replace(download.part, target)
        download.forget()
        if not found:
            return target
        reason = f"{target.name} from {url} has a wrong checksum ({found})"
        if not download.resumed:
            break
        say(f"{reason}; it had been resumed, so it starts over")
    raise DownloadError(f"{reason}; it was removed")


def _differs(file: Path, known: str | None) -> str:
    """How a file's checksum differs from the known one; empty if it does not."""
    if known is None:
        return ""
    algorithm, _, wanted = known.partition(":")
    with file.open("rb") as content:
        got = hashlib.file_digest(content, algorithm).hexdigest()
    return "" if got == wanted.lower() else f"{got[:12]} instead of {wanted[:12]}"
