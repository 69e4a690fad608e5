"""A web server on 127.0.0.1 that breaks off, forgets ranges, changes files, answers errors."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Files by path; how each misbehaves; what was asked for: (path, Range, If-Range)."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges, self.etag, self.html = True, '"one"', False
        self.drip = 0.0  # seconds between the bytes of an answer
        self.length = True  # whether an answer says how long it is
        self.reason = "Not Found"  # of a file that is not there
        self.break_after: list[int] = []  # the next answers stop after so many bytes
        self.errors: dict[str, list[int]] = {}  # the next answers for a path are these errors
        # the next answers for a path: status, headers, body, to the letter
        self.given: dict[str, list[tuple[int, dict[str, str], bytes]]] = {}
        self.asked: list[tuple[str, str | None, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                server.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted, condition = request.headers.get("Range"), request.headers.get("If-Range")
        self.asked.append((request.path, wanted, condition))
        if self.given.get(request.path):
            status, headers, body = self.given[request.path].pop(0)
            request.send_response(status)
            for name, value in headers.items():
                request.send_header(name, value)
            request.end_headers()
            return request.wfile.write(body) and None
        if self.errors.get(request.path) or request.path not in self.files:
            if self.errors.get(request.path):
                return request.send_error(self.errors[request.path].pop(0))
            return request.send_error(404, self.reason)
        content, start = self.files[request.path], 0
        if wanted and self.ranges and condition in (None, self.etag):
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(content):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(content)}")
                request.send_header("Content-Length", "0")
                return request.end_headers()
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            request.send_response(200)
        body = content[start:]
        if self.length:
            request.send_header("Content-Length", str(len(body)))
        request.send_header(
            "Content-Type", "text/html" if self.html else "application/octet-stream"
        )
        if self.etag:
            request.send_header("ETag", self.etag)
        request.end_headers()
        if self.break_after:
            body = body[: self.break_after.pop(0)]
            request.close_connection = True
        with suppress(OSError):  # whoever asked may have gone
            for byte in body if self.drip else ():
                request.wfile.write(bytes([byte]))
                time.sleep(self.drip)
            request.wfile.write(b"" if self.drip else body)


@contextmanager
def serve(monkeypatch) -> Iterator[Server]:
    """A server for one test, reached without a proxy."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()
