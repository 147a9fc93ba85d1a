"""Recorded games, a terminal to look at, and a browser."""

from __future__ import annotations

import bz2
import fcntl
import os
import pty
import select
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
from chromium import browser, browser_process  # noqa: F401 - fixtures

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
