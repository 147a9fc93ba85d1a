"""X servers for tests, each on a display that nobody else has."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["XServer", "free_port", "xserver"]


@dataclass(frozen=True, slots=True)
class XServer:
    """A running X server.

    Attributes:
        display: ":N".
        rfb_port: Where a viewer connects; 0: it has none.
    """

    display: str
    rfb_port: int = 0

    @property
    def env(self) -> dict[str, str]:
        """Return an environment for programs on it."""
        env = {key: value for key, value in os.environ.items() if key not in ("WAYLAND_DISPLAY", "XAUTHORITY")}
        return {**env, "DISPLAY": self.display, "SDL_VIDEODRIVER": "x11", "SDL_AUDIODRIVER": "dummy"}


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _forget_event_codes() -> None:
    """Make python-xlib forget the last server: it keeps one table of extensions' events for all, which differ."""
    if (protocol := sys.modules.get("Xlib.protocol.display")) is not None:
        protocol.Display.event_classes = sys.modules["Xlib.protocol.event"].event_class.copy()


@contextlib.contextmanager
def xserver(program: str, log: Path, *, width: int = 1024, height: int = 768) -> Iterator[XServer]:
    """Start Xvfb or Xvnc, and end it."""
    _forget_event_codes()
    port = 0
    if program == "Xvnc":
        port = free_port()
        arguments = ["-geometry", f"{width}x{height}", "-depth", "24", "-SecurityTypes", "None", "-localhost",
                     "-rfbport", str(port), "-AlwaysShared"]  # fmt: skip
    else:
        arguments = ["-screen", "0", f"{width}x{height}x24"]
    read, write = os.pipe()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [program, "-displayfd", str(write), *arguments, "-nolisten", "tcp", "-ac"],
            pass_fds=(write,), stdout=out, stderr=out,
        )  # fmt: skip
    os.close(write)
    try:
        with os.fdopen(read) as numbers:
            number = numbers.readline().strip()  # comes when the server takes clients; empty where it has died
        if not number:
            raise RuntimeError(f"{program} did not start: {log.read_text(errors='replace')[-2000:]}")
        yield XServer(f":{number}", port)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
