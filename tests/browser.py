"""A headless Chromium, driven over its DevTools protocol through a pipe: no port, no driver of its own.

The protocol is https://chromedevtools.github.io/devtools-protocol/; messages are JSON, each ended by a zero byte
(`--remote-debugging-pipe`: Chromium reads descriptor 3 and writes descriptor 4).
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from infra import browser

#: How long Chromium may keep silent while something is asked of it.
_SILENCE_SECONDS = 60.0
#: Both ends of the pipe get their numbers, then Chromium takes this process over.
_ENTER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
_FLAGS = (
    "--headless",
    "--hide-scrollbars",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",  # small in containers
    "--no-first-run",
    "--no-sandbox",  # which a container's root may not set up; the pages are our own
    "--remote-debugging-pipe",
)


class Chromium:
    """A browser with an empty profile of its own; `with Chromium() as it:` ends it whatever happens."""

    def __init__(self) -> None:
        found = browser.install()
        self._profile = tempfile.TemporaryDirectory(prefix="peerless-chromium-", ignore_cleanup_errors=True)
        reads, self._out = _pipe()
        self._in, writes = _pipe()
        command = [sys.executable, "-c", _ENTER, str(reads), str(writes), str(found.path), *_FLAGS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=(reads, writes),
            env={**os.environ, **found.environ, "HOME": self._profile.name},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(reads)
        os.close(writes)
        self._number, self._buffer = 0, b""
        self.told: list[dict[str, Any]] = []
        """Events of the protocol that have come, in order."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._out)
        os.close(self._in)
        with self._process, contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._profile.cleanup()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol, and its result. Raises AssertionError with what Chromium says against it."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(self._out, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.told.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def wait(self, method: str, **parameters: Any) -> None:
        """Until an event of this name with these parameters has come."""
        wanted = parameters.items()
        while not any(each.get("method") == method and wanted <= each["params"].items() for each in self.told):
            self.told.append(self._next())

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], _SILENCE_SECONDS)
            assert ready, f"Chromium said nothing for {_SILENCE_SECONDS:.0f} seconds"
            read = os.read(self._in, 1 << 20)
            assert read, f"Chromium has ended (status {self._process.wait()})"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


class Page:
    """A page of a file, laid out for a screen `wide` CSS pixels wide, or as the `media` print."""

    def __init__(self, chromium: Chromium, file: Path, *, wide: int, dark: bool = False, media: str = "") -> None:
        self._chromium = chromium
        target = chromium.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = chromium.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        screen = {"width": wide, "height": 900, "deviceScaleFactor": 1, "mobile": wide < 600}
        self._call("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self._call("Page.setLifecycleEventsEnabled", enabled=True)
        chromium.told.clear()
        loader = self._call("Page.navigate", url=file.resolve().as_uri())["loaderId"]
        chromium.wait("Page.lifecycleEvent", loaderId=loader, name="load")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression, as JSON has it."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def requests(self) -> list[str]:
        """What the page has asked for, itself included."""
        return [
            message["params"]["request"]["url"]
            for message in self._chromium.told
            if message.get("method") == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """What stands in the console, and what was thrown."""
        names = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(message) for message in self._chromium.told if message.get("method") in names]

    def picture(self) -> bytes:
        """The whole page as PNG."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def printed(self) -> bytes:
        """The page as PDF."""
        return base64.b64decode(self._call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._chromium.call(method, self._session, **parameters)


def _main() -> None:
    """`python -m tests.browser REPORT.html PICTURE.png [SECTION …]`: a picture of a report, or of some sections."""
    file, target, *wanted = sys.argv[1:]
    with Chromium() as browser:
        page = Page(browser, Path(file), wide=1000)
        if wanted:
            page.evaluate(
                "document.querySelectorAll('nav, main > section').forEach(each => "
                f"{json.dumps(wanted)}.includes(each.id) || each.remove())"
            )
        Path(target).write_bytes(page.picture())


def _pipe() -> tuple[int, int]:
    """The ends for reading and writing, both beyond the descriptors that Chromium wants."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high[0], high[1]


if __name__ == "__main__":
    _main()
