"""One download: what has come of it, and how to get the rest, within a time of which it is sure.

A server may send a byte now and then, for ever: so the answer is read by a thread, and the caller
looks at how much comes. A thread that is given up writes nothing more.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...core.files import printable, write_whole
from ...core.json_data import read_json

if TYPE_CHECKING:
    import requests

Say = Callable[[str], None]
_CHUNK = 1 << 14  # small: a slow server is judged by the chunks that came
_UNKNOWN_HOST = "the host is not known (no network?)"
_NUMBER = re.compile(r"[0-9]{1,18}")


class DownloadError(OSError):
    """A file that could not be fetched; the sentence says from where and why."""


class Settings(NamedTuple):
    """Patience: tries of an address, seconds between (times the try), seconds without an answer.

    slowest: bytes a second, over twice `timeout`, below which nobody waits on. longest: seconds
    that all tries of a file may take together; what came stays for a later call.
    """

    tries: int = 4
    wait: float = 2.0
    timeout: float = 30.0
    slowest: int = 1024
    longest: float = 86_400.0


class Resuming:
    """One download: what has come of it, and how to get the rest."""

    def __init__(
        self, url: str, target: Path, known: str | None, say: Say, settings: Settings
    ) -> None:
        self.part = target.with_name(f"{target.name}.part")
        self.about = target.with_name(f"{target.name}.part.json")
        self.url, self.name, self.known = url, target.name, known
        self.say, self.settings, self.resumed = say, settings, False
        self.came, self.ends = 0, time.monotonic() + settings.longest

    def forget(self) -> None:
        """Remove what lies here of it."""
        self.part.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)

    def complete(self) -> None:
        """Ask until the part is the whole file, or patience ends."""
        import requests
        import urllib3

        broken = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, ValueError)
        for attempt in range(1, self.settings.tries + 1):
            try:
                self._watched()
                return
            except broken as error:  # ValueError: of an address that a server gives
                why = _why(error)
                status = getattr(getattr(error, "response", None), "status_code", None)
                final = status is not None and status < 500 and status not in (408, 429)
                # one answer is enough where there is no network, or no such host
                if final or why == _UNKNOWN_HOST or attempt == self.settings.tries:
                    raise DownloadError(f"{self.name} from {self.url}: {why}") from None
                self.say(f"{self.name}: {why}; try {attempt + 1} of {self.settings.tries}")
                time.sleep(self.settings.wait * attempt)

    def _watched(self) -> None:
        """One request by a thread, given up where too little comes or all takes too long."""
        import requests

        given_up, errors = threading.Event(), list[BaseException]()

        def ask() -> None:
            try:
                self._get(given_up)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        window = 2 * self.settings.timeout
        try:
            while thread.is_alive():
                before = self.came
                thread.join(max(0.0, min(window, self.ends - time.monotonic())))
                if thread.is_alive() and time.monotonic() >= self.ends:
                    raise DownloadError(
                        f"{self.name} from {self.url} took longer than "
                        f"{self.settings.longest:g} s; the same command goes on from what came"
                    )
                if thread.is_alive() and self.came - before < self.settings.slowest * window:
                    raise requests.exceptions.ConnectionError(
                        f"only {self.came - before} bytes came in {window:.0f} s"
                    )
        finally:
            given_up.set()
        if errors:
            raise errors[0]

    def _get(self, given_up: threading.Event) -> None:
        """One request; returns when the part is the whole file."""
        import requests

        have, headers = self._what_is_here()
        # 'identity': bytes as they lie on the server, for the checksum is of these
        headers |= {"Accept-Encoding": "identity", "User-Agent": "blocklora-data"}
        answer = requests.get(self.url, headers=headers, stream=True, timeout=self.settings.timeout)
        with answer:
            if given_up.is_set():
                return
            if answer.status_code == 416:
                # nothing comes after `have`: the part is whole, or of another file
                whole = re.fullmatch(
                    r"bytes \*/([0-9]{1,18})", answer.headers.get("Content-Range", "")
                )
                if whole and int(whole[1]) == have:
                    return
                self.part.unlink(missing_ok=True)
                raise requests.exceptions.ConnectionError(
                    f"the server has no byte {have}; starting over"
                )
            answer.raise_for_status()
            self._refuse(answer)
            start, whole_size = self._place_of(answer, have)
            if answer.headers.get("Content-Type", "").startswith("text/html") and not self.known:
                raise DownloadError(
                    f"{self.url} answers with a web page instead of {self.name}; the link has moved"
                )
            length = answer.headers.get("Content-Length", "")
            total = start + int(length) if _NUMBER.fullmatch(length) else None
            total = total if whole_size is None else whole_size
            free = self._check_room(total, start)
            if not start:  # what came from elsewhere is never taken for the beginning of this
                self.part.unlink(missing_ok=True)
            self._note(answer)
            self._write(answer, start, total, start + free // 2, given_up)

    def _what_is_here(self) -> tuple[int, dict[str, str]]:
        """(bytes of this file that lie here, headers that ask for the rest)."""
        try:
            about = read_json(self.about)
            have = self.part.stat().st_size
            validator = about.get("validator") if about.get("url") == self.url else None
            same_file = self.known is not None and about.get("known") == self.known
        except (OSError, ValueError, AttributeError):
            return 0, {}
        # without a validator the checksum is the judge
        if not have or not (isinstance(validator, str) or same_file):
            return 0, {}
        return have, {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})

    def _refuse(self, answer: requests.Response) -> None:
        """DownloadError for what is no answer of a file, or not to be trusted without checksum."""
        if answer.status_code not in (200, 206):
            what = printable(f"{answer.status_code} {answer.reason}"[:200])
            raise DownloadError(
                f"{self.url} answers {what} instead of {self.name}; get it in a browser"
            )
        if self.known:
            return
        hops = [hop.url for hop in (*answer.history, answer)]
        if self.url.startswith("https:") and (open_ := [u for u in hops if u[:6] != "https:"]):
            raise DownloadError(
                f"{self.url} leads to {printable(open_[0])}, which is not encrypted, and "
                f"there is no checksum of {self.name}; get it in a browser"
            )
        packed = answer.headers.get("Content-Encoding", "identity")
        # some servers say so of a file that is packed itself
        if packed != "identity" and not self.name.endswith((".gz", ".tgz", ".bz2", ".xz")):
            raise DownloadError(
                f"{self.url} sends {self.name} packed ({printable(packed[:40])}), which was not "
                "asked for, and there is no checksum of it; get it in a browser"
            )

    def _place_of(self, answer: requests.Response, have: int) -> tuple[int, int | None]:
        """Where the answer's first byte belongs, and how long it says that the whole file is."""
        import requests

        if answer.status_code != 206:
            if have:
                self.say(f"{self.name}: the server sends the whole file again; starting over")
            return 0, None
        stated = answer.headers.get("Content-Range", "")
        given = re.match(r"bytes ([0-9]{1,18})-[0-9]+(?:/([0-9]{1,18}))?", stated)
        if not given or int(given[1]) != have:
            self.part.unlink(missing_ok=True)
            raise requests.exceptions.ConnectionError(
                "the server sent another range than asked for"
            )
        self.say(f"{self.name}: going on after {have} bytes")
        self.resumed = True
        return have, int(given[2]) if given[2] else None

    def _check_room(self, total: int | None, start: int) -> int:
        """Return the bytes that are free; DownloadError where what is to come needs more."""
        free = shutil.disk_usage(self.part.parent).free
        if total is not None and total - start > free:
            raise DownloadError(
                f"{self.name} needs {total - start} more bytes, "
                f"{self.part.parent} has {free} free; make room, or give another --root"
            )
        return free

    def _note(self, answer: requests.Response) -> None:
        etag = answer.headers.get("ETag", "")
        # a weak ETag must not stand in If-Range (RFC 9110, 13.1.5)
        validator = (
            etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")
        )
        facts = {"url": self.url, "validator": validator, "known": self.known}
        write_whole(self.about, json.dumps(facts))

    def _write(
        self,
        answer: requests.Response,
        start: int,
        total: int | None,
        most: int,
        given_up: threading.Event,
    ) -> None:
        """Write what comes; most: bytes of a file whose length the server does not say."""
        import requests
        from tqdm import tqdm

        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW  # never what a link leads to
        with (
            open(os.open(self.part, flags, 0o666), "wb") as file,
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
                if given_up.is_set():
                    return
                file.write(chunk)
                self.came += len(chunk)
                bar.update(len(chunk))
                if total is None and file.tell() > most:
                    raise DownloadError(
                        f"{self.name} from {self.url} has no stated length and would fill the "
                        f"disk: it ended at byte {file.tell()}; get it in a browser"
                    )
            file.truncate()
            if total is not None and file.tell() != total:
                raise requests.exceptions.ConnectionError(
                    f"the connection ended at byte {file.tell()} of {total}"
                )


def _why(error: Exception) -> str:
    """A network error in few words; what the server said of itself is only shown."""
    response = getattr(error, "response", None)
    if response is not None:
        return printable(f"{response.status_code} {response.reason}"[:200])
    text = str(error)
    if "NameResolution" in text or "getaddrinfo" in text:
        return _UNKNOWN_HOST
    if "refused" in text:
        return "connection refused"
    if "imed out" in text:
        return "no answer in time"
    if "IncompleteRead" in text:
        return "the connection ended early"
    return printable(" ".join(text.split())[:200])
