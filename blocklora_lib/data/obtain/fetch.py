"""Fetch one file, check it, and go on where an interrupted download stopped.

What has come so far stands in NAME.part, what it belongs to in NAME.part.json. A later try asks the
server for the rest (HTTP Range, with If-Range so that a file changed meanwhile is not mixed with
the old one). A server without ranges answers with the whole file: then it starts over, and says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from ...core.files import write_whole
from ...core.json_data import read_json

if TYPE_CHECKING:
    import requests

Say = Callable[[str], None]
_CHUNK = 1 << 18
_UNKNOWN_HOST = "the host is not known (no network?)"
_DRIVES = ("drive.google.com", "docs.google.com")


class DownloadError(OSError):
    """A file that could not be fetched; the sentence says from where and why."""


class Settings(NamedTuple):
    """Patience: tries of an address, seconds between (times the try), seconds without an answer."""

    tries: int = 4
    wait: float = 2.0
    timeout: float = 30.0


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
    if target.is_file() and not _differs(target, known):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        download = _Resuming(url, target, known, say, settings or Settings())
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


class _Resuming:
    """One download: what has come of it, and how to get the rest."""

    def __init__(
        self, url: str, target: Path, known: str | None, say: Say, settings: Settings
    ) -> None:
        self.part = target.with_name(f"{target.name}.part")
        self.about = target.with_name(f"{target.name}.part.json")
        self.url, self.name, self.known = url, target.name, known
        self.say, self.settings, self.resumed = say, settings, False

    def forget(self) -> None:
        """Remove what lies here of it."""
        self.part.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)

    def complete(self) -> None:
        """Ask until the part is the whole file, or patience ends."""
        import requests
        import urllib3

        for attempt in range(1, self.settings.tries + 1):
            try:
                self._get()
                return
            except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
                why = _why(error)
                status = getattr(getattr(error, "response", None), "status_code", None)
                final = status is not None and status < 500 and status not in (408, 429)
                # one answer is enough where there is no network, or no such host
                if final or why == _UNKNOWN_HOST or attempt == self.settings.tries:
                    raise DownloadError(f"{self.name} from {self.url}: {why}") from None
                self.say(f"{self.name}: {why}; try {attempt + 1} of {self.settings.tries}")
                time.sleep(self.settings.wait * attempt)

    def _get(self) -> None:
        """One request; returns when the part is the whole file."""
        import requests

        have, headers = self._what_is_here()
        # 'identity': bytes as they lie on the server, for the checksum is of these
        headers |= {"Accept-Encoding": "identity", "User-Agent": "blocklora-data"}
        answer = requests.get(self.url, headers=headers, stream=True, timeout=self.settings.timeout)
        with answer:
            if answer.status_code == 416:
                # nothing comes after `have`: the part is whole, or of another file
                whole = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
                if whole and int(whole[1]) == have:
                    return
                self.part.unlink(missing_ok=True)
                raise requests.exceptions.ConnectionError(
                    f"the server has no byte {have}; starting over"
                )
            answer.raise_for_status()
            start = self._start_of(answer, have)
            if answer.headers.get("Content-Type", "").startswith("text/html") and not self.known:
                raise DownloadError(
                    f"{self.url} answers with a web page instead of {self.name}; the link has moved"
                )
            length = answer.headers.get("Content-Length", "")
            total = start + int(length) if length.isdigit() else None
            self._check_room(total, start)
            self._note(answer)
            self._write(answer, start, total)

    def _what_is_here(self) -> tuple[int, dict[str, str]]:
        """(bytes of this file that lie here, headers that ask for the rest)."""
        try:
            about = read_json(self.about)
            have = self.part.stat().st_size
        except (OSError, ValueError):
            return 0, {}
        validator = about.get("validator") if about.get("url") == self.url else None
        # without a validator the checksum is the judge
        same_file = self.known is not None and about.get("known") == self.known
        if not have or not (validator or same_file):
            return 0, {}
        return have, {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})

    def _start_of(self, answer: requests.Response, have: int) -> int:
        """Where the answer's first byte belongs."""
        import requests

        if answer.status_code != 206:
            if have:
                self.say(f"{self.name}: the server sends the whole file again; starting over")
            return 0
        given = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
        if not given or int(given[1]) != have:
            self.part.unlink(missing_ok=True)
            raise requests.exceptions.ConnectionError(
                "the server sent another range than asked for"
            )
        self.say(f"{self.name}: going on after {have} bytes")
        self.resumed = True
        return have

    def _check_room(self, total: int | None, start: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if total is not None and total - start > free:
            raise DownloadError(
                f"{self.name} needs {total - start} more bytes, "
                f"{self.part.parent} has {free} free; make room, or give another --root"
            )

    def _note(self, answer: requests.Response) -> None:
        etag = answer.headers.get("ETag", "")
        # a weak ETag must not stand in If-Range (RFC 9110, 13.1.5)
        validator = (
            etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")
        )
        facts = {"url": self.url, "validator": validator, "known": self.known}
        write_whole(self.about, json.dumps(facts))

    def _write(self, answer: requests.Response, start: int, total: int | None) -> None:
        import requests
        from tqdm import tqdm

        with (
            self.part.open("r+b" if start else "wb") as file,
            tqdm(
                desc=self.name,
                total=total,
                initial=start,
                unit="B",
                unit_scale=True,
                disable=not sys.stderr.isatty(),
            ) as bar,
        ):
            file.seek(start)
            for chunk in answer.raw.stream(_CHUNK, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))
            file.truncate()
            if total is not None and file.tell() != total:
                raise requests.exceptions.ConnectionError(
                    f"the connection ended at byte {file.tell()} of {total}"
                )


def _why(error: Exception) -> str:
    """A network error in few words."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"{response.status_code} {response.reason}"
    text = str(error)
    if "NameResolution" in text or "getaddrinfo" in text:
        return _UNKNOWN_HOST
    if "refused" in text:
        return "connection refused"
    if "imed out" in text:
        return "no answer in time"
    if "IncompleteRead" in text:
        return "the connection ended early"
    return " ".join(text.split())[:200]
