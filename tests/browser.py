"""A headless Chromium, driven as a person does: a page is opened, clicked and typed into.

It speaks Chromium's own protocol over a socket, so that a page's content policy stays in force, and
keeps what the page asked of a network, and every error that it told.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
QUIET = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars
--disable-component-update --disable-background-networking --disable-sync
--remote-debugging-port=0 --remote-allow-origins=*""".split()
PAINTED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), "ArrowRight": (39, "")}


class Browser:
    """One window. `fetched`: addresses that were asked for, outside of the page itself; `errors`:
    what went wrong in the page, in its own words.
    """

    def __init__(self, folder: Path, width: int = 1280, height: int = 900) -> None:
        from websocket import create_connection  # jupyter_server's own

        words = [CHROMIUM, *QUIET, f"--window-size={width},{height}", f"--user-data-dir={folder}"]
        self._process = subprocess.Popen(
            [*words, "about:blank"], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        told = itertools.islice(self._process.stderr, 200)
        port = next(m[1] for line in told if (m := re.search(r"ws://[^/]*:(\d+)/", line)))
        at = self._get(f"http://127.0.0.1:{port}/json/list")
        page = next(entry for entry in at if entry["type"] == "page")
        self._socket = create_connection(page["webSocketDebuggerUrl"], timeout=120)
        self._numbers, self.fetched, self.errors = itertools.count(1), [], []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.size(width, height)

    @staticmethod
    def _get(address: str) -> list[dict]:
        from urllib.request import urlopen

        with urlopen(address, timeout=60) as answer:
            return json.load(answer)

    def send(self, method: str, **parameters) -> dict:
        """Ask Chromium something and return its answer; what it tells meanwhile is noted."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _note(self, method: str, said: dict) -> None:
        if method == "Network.requestWillBeSent":
            address = said["request"]["url"]
            self.fetched += [address] * (not address.startswith(("data:", "about:")))
        elif method == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(said["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and said["type"] == "error":
            self.errors.append(str([arg.get("value") for arg in said["args"]]))
        elif method == "Page.javascriptDialogOpening":
            if said["type"] != "beforeunload":
                self.errors.append(f"a dialog: {said['message']}")
            self._socket.send(
                json.dumps({"id": 0, "method": "Page.handleJavaScriptDialog",
                            "params": {"accept": True}})
            )  # fmt: skip

    def open(self, address: str) -> None:
        """Go to an address, from an empty page, and wait until it is loaded."""
        for place in ("about:blank", address):  # one after the other: a page may ask before it goes
            self.send("Page.navigate", url=place)
            there = f"(location.href === 'about:blank') === {json.dumps(place == 'about:blank')}"
            self.wait(f"document.readyState === 'complete' && {there}", 300)
        self.run(PAINTED)  # before, Chromium lets a click fall

    def run(self, expression: str):
        """Return the value of an expression, awaited."""
        found = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 120):
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(expression)):
            assert time.monotonic() < end, f"not within {seconds} s: {expression}"
            time.sleep(0.1)
        return value

    def see(self, expression: str, wanted, seconds: float = 60) -> None:
        """Look until an expression has this value: what follows a click comes a moment later."""
        end = time.monotonic() + seconds
        while (value := self.run(expression)) != wanted and time.monotonic() < end:
            time.sleep(0.05)
        assert value == wanted, expression

    def click(self, selector: str, text: str = "") -> None:
        """Click with the mouse in the middle of the first element that is shown and has this text;
        it is scrolled to before.
        """
        found = self.wait(
            f"""(async () => {{
              const nodes = [...document.querySelectorAll({json.dumps(selector)})]
              const node = nodes.find((one) => one.checkVisibility() &&
                one.textContent.includes({json.dumps(text)}))
              if (!node) return null
              node.scrollIntoView({{block: "center", inline: "center", behavior: "instant"}})
              await {PAINTED}
              const box = node.getBoundingClientRect()
              return [box.x + box.width / 2, box.y + box.height / 2]
            }})()""",
            60,
        )
        for kind, button in (("Moved", "none"), ("Pressed", "left"), ("Released", "left")):
            self.send("Input.dispatchMouseEvent", type=f"mouse{kind}", x=found[0], y=found[1],
                      button=button, clickCount=1)  # fmt: skip

    def press(self, key: str, times: int = 1) -> None:
        """Press a key."""
        code, text = KEYS.get(key) or (ord(key.upper()), key)
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text,
                          windowsVirtualKeyCode=code)  # fmt: skip

    def type(self, text: str) -> None:
        """Write into what has the focus."""
        self.send("Input.insertText", text=text)

    def size(self, width: int, height: int) -> None:
        """Make the window so large."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip

    def screenshot(self, path: Path) -> None:
        """Write what is seen."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        """End it."""
        self.send("Browser.close")
        self._socket.close()
        self._process.stderr.close()
        self._process.wait(60)
