"""A process beside the player that lifts what is held when the player is killed, or hangs.

An X server, and Windows, and macOS, keep a simulated key down when the program that pressed it dies. No handler runs
on SIGKILL, so somebody else has to know: each press is written to a pipe before it happens. When the pipe closes
without a good-bye, or nothing is heard for too long while something is held, the keys are lifted.

The pipe carries lines: ``+KeyW``, ``-KeyW``, ``+button 0``, ``.`` (still alive) and ``bye``.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable

from playserve_client.actuate.base import Backend

__all__ = ["SILENCE_S", "Watchdog", "main", "watch"]

#: How long the player may say nothing while something is held, seconds.
SILENCE_S = 1.0


class Watchdog:
    """The player's side: starts the process, tells it. A :class:`playserve_client.actuate.actuator.Witness`."""

    def __init__(self) -> None:
        # In a session of its own: Ctrl-C is for the player, which lifts its keys by itself.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "playserve_client.actuate.watchdog"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
        )
        self._lock = threading.Lock()

    def note(self, name: str, down: bool) -> None:
        """Tell of a press that comes, or of a release that was."""
        self._tell(("+" if down else "-") + name)

    def alive(self) -> None:
        """Tell that the player still plays."""
        self._tell(".")

    def close(self) -> None:
        """Say good-bye; nothing is held any more."""
        self._tell("bye")
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, line: str) -> None:
        # A watchdog that has died must not end the game.
        with self._lock, contextlib.suppress(OSError, ValueError):
            if self._process.stdin is not None:
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()


def watch(lines: Iterable[str], open_backend: Callable[[], Backend], silence_s: float = SILENCE_S) -> None:
    """Follow what is held, and lift it when the player says no more.

    Args:
        lines: What the player says; its end is the player's.
        open_backend: Gives what lifts keys; called at the first press, so that it is ready when it is needed.
        silence_s: See :data:`SILENCE_S`.
    """
    said: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in lines:
            said.put(line.strip())
        said.put(None)

    threading.Thread(target=read, name="watchdog-reader", daemon=True).start()
    held: set[str] = set()
    backend: Backend | None = None
    while True:
        try:
            line = said.get(timeout=silence_s if held else None)
        except queue.Empty:
            line = ""
        if line == "bye":
            break
        if line and line[0] == "+":
            held.add(line[1:])
            backend = backend or open_backend()
        elif line and line[0] == "-":
            held.discard(line[1:])
        elif not line and backend is not None:
            _lift(backend, held)
            held.clear()
        if line is None:
            break
    if backend is not None:
        backend.close()


def _lift(backend: Backend, held: set[str]) -> None:
    for name in sorted(held):
        with contextlib.suppress(Exception):  # one that cannot be lifted must not keep the others down
            if name.startswith("button "):
                backend.button(int(name.removeprefix("button ")), False)
            else:
                backend.key(name, False)
    with contextlib.suppress(Exception):
        backend.flush()


def main() -> None:
    """Watch over the player at the other end of stdin."""
    from playserve_client.actuate.platforms import open_backend
    from playserve_client.capture.platforms import detect_platform

    backend = open_backend(detect_platform())  # ready before the first key is
    watch(sys.stdin, lambda: backend)


if __name__ == "__main__":
    main()
