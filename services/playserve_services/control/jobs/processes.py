"""The processes of jobs: started with a lock in their hand, found again by it, stopped, and their results read."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from playserve.errors import DataLossError
from playserve.files import read_json
from playserve_services.control.jobs.keeper import EXIT_NAME, LOG_NAME, OLD_LOG_NAME

__all__ = [
    "capture", "exit_status", "is_alive", "kill", "log_tail", "playserve_argv", "signal_stop", "start", "try_lock",
]  # fmt: skip

_LOCK_NAME = "alive.lock"
# What a job's process gets of our environment: never our settings, which hold the database's password.
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH",
         "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "XDG_CACHE_HOME")  # fmt: skip


def playserve_argv(arguments: Sequence[str]) -> list[str]:
    """Return the command line of this very installation's ``playserve``."""
    return [sys.executable, "-c", "import sys; from playserve.cli import main; sys.exit(main())", *arguments]


def capture(arguments: Sequence[str], timeout_s: float) -> str:
    """Return what a ``playserve`` command prints.

    Raises:
        subprocess.SubprocessError: It failed, or took longer than `timeout_s` seconds.
    """
    done = subprocess.run(
        playserve_argv(arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
        timeout=timeout_s, env=_environment(),
    )  # fmt: skip
    return done.stdout


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _KEPT if name in os.environ}


def try_lock(path: Path) -> int | None:
    """Return an open file that holds the lock at `path`, or None where somebody else holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def start(
    folder: Path, arguments: Sequence[str], variables: Mapping[str, str], *, log_bytes: int
) -> subprocess.Popen[bytes]:
    """Start a ``playserve`` command under a keeper, in a session of its own.

    Args:
        folder: Of the job; log, lock and result go there.
        arguments: Of ``playserve``.
        variables: Environment variables beside those that every job gets.
        log_bytes: A log that is longer is put aside, and begun anew; one such is kept.

    Raises:
        OSError: The folder or the process could not be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = try_lock(folder / _LOCK_NAME)
    if lock is None:
        raise FileExistsError(f"{folder} belongs to a process that runs")
    try:
        with (folder / LOG_NAME).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "playserve_services.control.jobs.keeper", str(folder), str(lock),
                 str(log_bytes), *playserve_argv(arguments)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                pass_fds=(lock,), env={**_environment(), "PYTHONUNBUFFERED": "1", **variables},
            )  # fmt: skip
    finally:
        os.close(lock)  # the child's copy holds the lock on


def is_alive(folder: Path) -> bool:
    """Return whether the job's command, or its keeper, runs."""
    try:
        lock = try_lock(folder / _LOCK_NAME)
    except FileNotFoundError:
        return False
    if lock is None:
        return True
    os.close(lock)
    return False


def exit_status(folder: Path) -> int | None:
    """Return how the command ended (negative: by that signal), or None where nobody wrote it down."""
    try:
        value = read_json(folder / EXIT_NAME)
    except DataLossError:
        return None
    status = None if value is None else value.get("status")
    return status if isinstance(status, int) else None


def log_tail(folder: Path, limit: int) -> bytes:
    """Return the last `limit` bytes of a job's log, also where it was begun anew; nothing where it has none."""
    newest = _tail(folder / LOG_NAME, limit)
    return _tail(folder / OLD_LOG_NAME, limit - len(newest)) + newest


def _tail(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            return file.read(limit)
    except FileNotFoundError:
        return b""


def signal_stop(pid: int) -> None:
    """Ask a living job to save what it has and to end; its keeper passes that on."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def kill(pid: int) -> None:
    """Kill a living job's whole session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
