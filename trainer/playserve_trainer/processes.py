"""Child processes of demos and grids: ``playserve`` commands that end when they are done, and one server that stays."""

from __future__ import annotations

import ctypes
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playserve.errors import NotReadyError, ServerFault

__all__ = ["before_exec", "playserve_argv", "run_command", "serve", "shown", "stop_process"]

_READY = re.compile(r"playserve ready host=(\S+) port=(\d+)")
_READY_TIMEOUT_S = 120.0
_LEAVE_S = 30.0
_PR_SET_PDEATHSIG = 1
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def playserve_argv() -> list[str]:
    """Return the ``playserve`` of this very installation."""
    beside = shutil.which("playserve", path=str(Path(sys.executable).parent))
    return (
        [beside] if beside else [sys.executable, "-c", "import sys; from playserve.cli import main; sys.exit(main())"]
    )


def shown(command: Sequence[str]) -> str:
    """Return a command as one would type it."""
    return shlex.join(["playserve", *command])


def run_command(command: Sequence[str], variables: Mapping[str, str] | None = None) -> int:
    """Run one ``playserve`` command on this terminal; return its exit status.

    An interrupt is passed on once, and the command has half a minute to save what it has.

    Args:
        command: Its arguments.
        variables: Environment variables that it gets unless they are set already.

    Raises:
        KeyboardInterrupt: Came here, or the command ended by one.
    """
    # Python forgets an exception that a signal raises while it forks; a held-back signal comes inside the try.
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    process = subprocess.Popen(
        [*playserve_argv(), *command],
        process_group=0,
        stdin=subprocess.DEVNULL,
        preexec_fn=before_exec(),
        env={**(variables or {}), **os.environ},
    )
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        status = process.wait()
    except KeyboardInterrupt:
        stop_process(process, signal.SIGINT)
        raise
    if status in (130, 143, -signal.SIGINT, -signal.SIGTERM):
        raise KeyboardInterrupt
    return status


@contextmanager
def serve(command: Sequence[str], log: Path) -> Iterator[str]:
    """Run a policy server for the length of the block; yield its "host:port" once it is ready.

    Raises:
        ServerFault: It ended before it was ready.
        NotReadyError: It was not ready in time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [*playserve_argv(), *command],
            process_group=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            preexec_fn=before_exec(),
        )
    try:
        yield _address(process, log)
    finally:
        stop_process(process, signal.SIGTERM)
        if process.stdout is not None:
            process.stdout.close()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    assert process.stdout is not None  # noqa: S101 - it was opened with a pipe
    descriptor, text, deadline = process.stdout.fileno(), "", time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if not select.select([descriptor], [], [], 0.2)[0]:
            continue
        chunk = os.read(descriptor, 4096)
        text += chunk.decode(errors="replace")
        match = _READY.search(text)
        if match:
            return f"{match[1]}:{match[2]}"
        if not chunk:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise ServerFault(f"the policy server ended with status {process.wait()} before it was ready:\n{tail}")
    raise NotReadyError(f"the policy server was not ready within {_READY_TIMEOUT_S:g} s; see {log}")


def stop_process(process: subprocess.Popen[Any], signum: int) -> None:
    """Send a signal, and kill the process and its group where that does not end it in half a minute."""
    if process.poll() is not None:
        return
    process.send_signal(signum)
    try:
        process.wait(_LEAVE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def before_exec() -> Callable[[], None]:
    """Return what a child runs first: on Linux, a demo that is killed outright leaves nothing behind."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return prepare
