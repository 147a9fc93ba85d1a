"""Headless Chromium with one page, driven over its debugging pipe: nothing is installed for it but the browser."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["Browser", "browser", "browser_process"]

WAIT_S = 60.0


class Browser:
    """Headless Chromium with one page, driven over its debugging pipe.

    Args:
        program: Its path.
        profile: An empty folder.
    """

    def __init__(self, program: str, profile: Path) -> None:
        here_read, there_write = os.pipe()
        there_read, here_write = os.pipe()
        # Chromium reads commands from 3 and answers on 4; ends of ours must not be in the way there.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (there_read, there_write)]
        arguments = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
            "--disable-dev-shm-usage", "--disable-background-networking", f"--user-data-dir={profile}", "about:blank",
        ]  # fmt: skip
        null = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, ends[0], 3), (os.POSIX_SPAWN_DUP2, ends[1], 4)]
        actions += [(os.POSIX_SPAWN_DUP2, null, number) for number in (0, 1, 2)]
        self._pid = os.posix_spawn(program, arguments, os.environ, file_actions=actions, setpgroup=0)
        for end in (*ends, there_read, there_write, null):
            os.close(end)
        self._in, self._out, self._rest, self._number = here_read, here_write, b"", 0
        self.requests: list[str] = []
        #: Errors that the page's console shows: of scripts, and of what its policy forbids.
        self.problems: list[str] = []
        self._session = ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Network.enable")
        self._call("Page.enable")
        self._call("Runtime.enable")
        self._call("Log.enable")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _note(self, answer: dict[str, Any]) -> None:
        if answer.get("method") == "Network.requestWillBeSent":
            self.requests.append(answer["params"]["request"]["url"])
        elif answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
            self.problems.append(answer["params"]["entry"]["text"])
        elif answer.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(answer["params"]["exceptionDetails"]))

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_S
        while b"\0" not in self._rest:
            left = deadline - time.monotonic()
            assert left > 0, "no answer from the browser"
            if select.select([self._in], [], [], left)[0]:
                data = os.read(self._in, 1 << 20)
                assert data, "the browser ended"
                self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        value: dict[str, Any] = json.loads(message)
        return value

    def open(self, page: Path | str, ready: str = "") -> None:
        """Open a page, a file or a URL, and wait until its replays are ready, or until `ready` is true."""
        self._call("Page.navigate", url="about:blank")  # a page that asks now and then asks no more
        self.run("1")
        self.requests.clear()
        self.problems.clear()
        self._call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        self.wait_for(
            ready
            or "document.readyState === 'complete' && document.querySelectorAll('.nhr').length > 0 && "
            "[...document.querySelectorAll('.nhr')].every((replay) => replay.dataset.ready)"
        )

    def wait_for(self, ready: str) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + WAIT_S
        while not self._is(ready):
            assert time.monotonic() < deadline, self.run("location.href + ': ' + document.body.innerText")
            time.sleep(0.02)

    def _is(self, ready: str) -> bool:
        try:
            return bool(self.run(ready))
        except AssertionError as error:
            # A page goes, and the next is not there yet, or not whole.
            if any(word in str(error) for word in ("context", "navigated", "of null")):
                return False
            raise

    def look(self, scheme: str = "light", width: int = 1000, height: int = 800) -> None:
        """Set the size of the page and whether the system is dark or light."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )  # fmt: skip
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def cookies(self) -> list[dict[str, Any]]:
        """Return the cookies that the page's address gets."""
        found: list[dict[str, Any]] = self._call("Network.getCookies")["cookies"]
        return found

    def forget(self) -> None:
        """Forget every cookie."""
        self._call("Network.clearBrowserCookies")

    def type(self, text: str) -> None:
        """Put text where the focus is."""
        self._call("Input.insertText", text=text)

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press and release keys, by their DOM names."""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, " ": 32,
                 "Tab": 9, "Enter": 13}  # fmt: skip
        for key in keys:
            value: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0]))}
            if len(key) == 1 or key == "Enter":
                value["text"] = "\r" if key == "Enter" else key
            self._call("Input.dispatchKeyEvent", type="keyDown", **value)
            self._call("Input.dispatchKeyEvent", type="keyUp", **{**value, "text": ""})

    def screenshot(self, path: Path, width: int = 1000, height: int = 800) -> None:
        """Save what the page shows, as a PNG."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )  # fmt: skip
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def close(self) -> None:
        self._session = ""
        try:
            self._call("Browser.close")
        except (AssertionError, OSError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture(scope="session")
def browser_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Browser]]:
    """Return a place for the one browser of the session, closed at its end."""
    place: list[Browser] = []
    yield place
    for browser in place:
        browser.close()


@pytest.fixture
def browser(
    browser_process: list[Browser], require_program: Callable[[str], None], tmp_path_factory: pytest.TempPathFactory
) -> Browser:
    """Return headless Chromium; the test is skipped by name where there is none."""
    require_program("chromium")
    if not browser_process:
        program = shutil.which("chromium")
        assert program is not None
        browser_process.append(Browser(program, tmp_path_factory.mktemp("chromium")))
    return browser_process[0]
