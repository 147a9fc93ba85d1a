"""Recorded games, a terminal to look at, and a browser."""

from __future__ import annotations

import base64
import bz2
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playserve_client.nethack.tty import TtyChunk

WAIT_S = 60.0


@dataclass(frozen=True)
class Recorded:
    """A ttyrec that nle wrote, and what the player saw."""

    path: Path
    truth: TtyChunk

    def lines(self, step: int) -> list[str]:
        return [row.tobytes().decode("ascii") for row in self.truth.chars[step]]


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Return 500 steps of a random walk that opens menus now and then, of a seed that lives so long."""
    pytest.importorskip("nle")
    from playserve_client.envs.nethack import NetHackEnv
    from playserve_client.nethack.keys import ACTION_KEYS

    folder = tmp_path_factory.mktemp("nle_data")
    environment = NetHackEnv(ttyrec_dir=folder)
    random = np.random.default_rng(3)
    choices = [*range(16), *[ACTION_KEYS.index(ord(key)) for key in "      is\x1b\r"]]
    seen: list[dict[str, Any]] = []
    observation, _ = environment.reset(seed=5)
    for _ in range(500):
        action = int(random.choice(choices))
        seen.append({**observation, "key": ACTION_KEYS[action]})
        observation, _, terminated, truncated, _ = environment.step(action)
        assert not terminated
        assert not truncated
    environment.close()
    (path,) = folder.rglob("*.ttyrec3.bz2")
    truth = TtyChunk(
        chars=np.stack([frame["tty_chars"] for frame in seen]),
        colors=np.stack([frame["tty_colors"] for frame in seen]),
        cursor=np.stack([frame["tty_cursor"] for frame in seen]),
        keys=np.array([frame["key"] for frame in seen], np.uint8),
        scores=np.zeros(len(seen), np.int32),
        expert=np.ones(len(seen), np.bool_),
    )
    return Recorded(path, truth)


class PseudoTerminal:
    """A program in a pseudo-terminal of 80 columns, and what its screen shows (NLE's terminal reads it).

    Args:
        command: The program and its arguments.
        rows: Height of the terminal.
        folder: Where the recording of the terminal may lie.
    """

    def __init__(self, command: list[str], folder: Path, rows: int = 28) -> None:
        self.rows, self._folder, self._output = rows, folder, b""
        self.master, self.slave = pty.openpty()
        self._set_size()
        self.before = termios.tcgetattr(self.slave)
        # TERM=ansi is what NLE's small terminal understands whole.
        environment = {**os.environ, "TERM": "ansi", "LC_ALL": "C.UTF-8"}
        for name in ("LINES", "COLUMNS", "NO_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            command, stdin=self.slave, stdout=self.slave, stderr=self.slave, env=environment, start_new_session=True
        )

    def _set_size(self) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", self.rows, 80, 0, 0))

    def resize(self, rows: int) -> None:
        """Change the height, and tell the program as a terminal does."""
        self._read(0.0)
        self.rows, self._output = rows, b""
        self._set_size()
        self.process.send_signal(signal.SIGWINCH)

    def send(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def _read(self, seconds: float) -> None:
        if select.select([self.master], [], [], seconds)[0]:
            self._output += os.read(self.master, 1 << 16)

    @property
    def output(self) -> bytes:
        return self._output

    def lines(self) -> list[str]:
        """Return what the terminal shows now."""
        from nle._pyconverter import Converter

        # What the program wrote, a key (at which NLE's converter gives the screen), and a record that ends the file.
        path = self._folder / "terminal.ttyrec2.bz2"
        parts = ((0, self._output or b" "), (1, b"x"), (0, b" "))
        path.write_bytes(
            bz2.compress(b"".join(struct.pack("<iiiB", 0, 0, len(d), channel) + d for channel, d in parts))
        )
        converter = Converter(self.rows, 80, 2)
        converter.load_ttyrec(str(path), 1, 0)
        chars = np.zeros((1, self.rows, 80), np.uint8)
        colors, cursor = np.zeros((1, self.rows, 80), np.int8), np.zeros((1, 2), np.int16)
        converter.convert(
            chars, colors, cursor, np.zeros(1, np.int64), np.zeros(1, np.uint8), np.zeros(1, np.int32)
        )  # fmt: skip
        return [row.tobytes().decode("latin-1").rstrip() for row in chars[0]]

    def wait_for(self, wanted: Callable[[list[str]], bool]) -> list[str]:
        """Return the screen as soon as it is as wanted."""
        deadline = time.monotonic() + WAIT_S
        while True:
            lines = self.lines()
            if wanted(lines):
                return lines
            assert time.monotonic() < deadline, "\n".join(lines)
            assert self.process.poll() is None, "\n".join(lines)
            self._read(1.0)

    def wait_for_end(self) -> int:
        deadline = time.monotonic() + WAIT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            self._read(0.1)
        self._read(0.0)
        return int(self.process.returncode)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def pseudo_terminal(tmp_path: Path) -> Iterator[Callable[..., PseudoTerminal]]:
    """Return a function that starts ``playserve`` with arguments in a pseudo-terminal."""
    started: list[PseudoTerminal] = []

    def start(*arguments: str, rows: int = 28) -> PseudoTerminal:
        command = [str(Path(sys.executable).parent / "playserve"), *arguments]
        started.append(PseudoTerminal(command, tmp_path, rows))
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()


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
        self._session = ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Network.enable")
        self._call("Page.enable")

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
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])

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

    def open(self, page: Path, ready: str = "") -> None:
        """Open a page and wait until its replays are ready, or until `ready` is true."""
        self.requests.clear()
        self._call("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + WAIT_S
        ready = ready or (
            "document.readyState === 'complete' && document.querySelectorAll('.nhr').length > 0 && "
            "[...document.querySelectorAll('.nhr')].every((replay) => replay.dataset.ready)"
        )
        while not self.run(ready):
            assert time.monotonic() < deadline, self.run("document.body.innerText")
            time.sleep(0.02)

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press and release keys, by their DOM names."""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, " ": 32}
        for key in keys:
            value: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0]))}
            if len(key) == 1:
                value["text"] = key
            self._call("Input.dispatchKeyEvent", type="keyDown", **value)
            self._call("Input.dispatchKeyEvent", type="keyUp", **{**value, "text": ""})

    def screenshot(self, path: Path, width: int = 1000, height: int = 800) -> None:
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
