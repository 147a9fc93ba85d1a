"""Several processes of this machine for one run: this one, and others that run the same command."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError, ServerFault

__all__ = ["local_processes", "started_as"]

_LEAVE_S = 30.0
_TAIL_LINES = 8
_LOOK_S = 0.2


def started_as() -> int:
    """Return the rank that torchrun or :func:`local_processes` gave this process; 0 if neither started it."""
    return int(os.environ.get("RANK", "0")) if "WORLD_SIZE" in os.environ else 0


@contextmanager
def local_processes(
    count: int, out: Path, command: Sequence[str] | None = None, *, again: str = "--resume"
) -> Iterator[None]:
    """Have `count` processes run this command for the length of the block; each learns its rank as from torchrun.

    In a process that has a rank already, nothing happens.

    Args:
        count: Processes in all; 1: nothing happens.
        out: Folder of the run; what the others print goes to process-1.log and so on in it.
        command: What the others run; None: the command of this process.
        again: The flag that goes on after one of them died.

    Raises:
        BadSettingError: `count` is below 1, or torchrun started another number of processes.
        ServerFault: One of the others died.
    """
    if count < 1:
        raise BadSettingError(f"--processes is at least 1, not {count}")
    known = os.environ.get("WORLD_SIZE")
    if known is not None and count not in (1, int(known)):
        raise BadSettingError(f"--processes is {count}, but torchrun started {known}: leave --processes out")
    if count == 1 or known is not None:
        yield
        return
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is public, but not listed

    from playserve_trainer.train.parallel import GONE

    out.mkdir(parents=True, exist_ok=True)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # on any free port
    variables = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{store.port}", "WORLD_SIZE": f"{count}",
        "LOCAL_WORLD_SIZE": f"{count}", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    others: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        stack.callback(_dismiss, others)
        others.extend(_start(command or _this_command(), rank, variables, out) for rank in range(1, count))
        stack.enter_context(_watched(others, store, GONE))
        stack.enter_context(_variables(_of_rank(0, variables)))
        try:
            yield
        except RuntimeError as error:
            raise _lost(others, out, again) or error from error


@contextmanager
def _watched(others: Sequence[subprocess.Popen[bytes]], store: Any, key: str) -> Iterator[None]:
    """Set `key` when one of the others has ended: who waits for them to join would wait for hours."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_S):
            if any(process.poll() is not None for process in others):
                store.set(key, "")
                return

    thread = threading.Thread(target=watch, name="playserve-others", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _start(command: Sequence[str], rank: int, variables: Mapping[str, str], out: Path) -> subprocess.Popen[bytes]:
    with _log(out, rank).open("wb") as log:
        return subprocess.Popen(
            command,
            env={**os.environ, **_of_rank(rank, variables)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _this_command() -> list[str]:
    return [sys.executable, "-c", "import sys; from playserve.cli import main; sys.exit(main())", *sys.argv[1:]]


def _of_rank(rank: int, variables: Mapping[str, str]) -> dict[str, str]:
    return {**variables, "RANK": f"{rank}", "LOCAL_RANK": f"{rank}"}


def _log(out: Path, rank: int) -> Path:
    return out / f"process-{rank}.log"


@contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _lost(others: Sequence[subprocess.Popen[bytes]], out: Path, again: str) -> ServerFault | None:
    """Return what to say of the first of the others that died; None: none did."""
    for rank, process in enumerate(others, start=1):
        try:
            status = process.wait(1.0)
        except subprocess.TimeoutExpired:
            continue
        if status:
            lines = _log(out, rank).read_text(errors="replace").splitlines()[-_TAIL_LINES:]
            told = "".join(f"\n{line}" for line in lines)
            return ServerFault(f"process {rank} ended with status {status}; {again} goes on from the last save{told}")
    return None


def _dismiss(others: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for the others; those that do not leave are ended."""
    for process in others:
        try:
            process.wait(_LEAVE_S if sys.exc_info()[0] is None else 1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
