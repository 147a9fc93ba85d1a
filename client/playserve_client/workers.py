"""Worker processes that take one job after another: what recorder, importer and replayer share.

Workers and parent exchange JSON over pipes. A worker whose parent is gone leaves by itself; Ctrl-C is the parent's.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, TypeVar

from playserve.errors import ServerFault

__all__ = [
    "Teller", "dismiss", "receive", "send", "share_out", "signals_call", "sigterm_interrupts", "worker_life",
    "worker_processes",
]  # fmt: skip

JobT = TypeVar("JobT")


def send(connection: Connection, message: Mapping[str, Any]) -> None:
    """Send a message; from either end."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection, what: str) -> dict[str, Any]:
    """Return a worker's next message.

    Raises:
        ServerFault: The worker died, or its message has an "error"; `what` says what it was doing: "importing game 3".
    """
    try:
        message: dict[str, Any] = json.loads(connection.recv_bytes())
    except (EOFError, ConnectionError):
        raise ServerFault(f"a worker died {what}; the same command goes on from here") from None
    if "error" in message:
        raise ServerFault(f"a worker failed {what}: {message['error']}")
    return message


@contextmanager
def worker_processes(
    target: Callable[[Connection, str], None],
    config: Mapping[str, Any],
    count: int,
    *,
    name: str,
    patience_s: float = 0.0,
) -> Iterator[list[Connection]]:
    """Start workers; yield the parent's ends of their pipes. At the end the pipes are closed and the workers gone.

    Args:
        target: Runs in each worker with its end of the pipe and `config` as JSON.
        config: A JSON object.
        count: How many.
        name: Of the processes.
        patience_s: How long a worker may take to leave by itself; then it is terminated.
    """
    # spawn: a fork would copy the parent's threads' locks; each worker holds only its own end of its own pipe, so
    # that it sees the parent go.
    context = multiprocessing.get_context("spawn")
    processes, connections = [], []
    try:
        for index in range(count):
            ours, theirs = context.Pipe()
            arguments = (theirs, json.dumps(dict(config)))
            process = context.Process(target=target, args=arguments, name=f"{name}-{index}", daemon=True)
            with _interrupts_held_back():
                process.start()
            theirs.close()
            processes.append(process)
            connections.append(ours)
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            if patience_s:
                process.join(timeout=patience_s)
            if process.is_alive():
                process.terminate()
            process.join()


def share_out(
    connections: Sequence[Connection],
    next_job: Callable[[int], JobT | None],
    start: Callable[[JobT], Mapping[str, Any]],
    take: Callable[[Connection, JobT], bool],
) -> None:
    """Keep workers busy until there are no more jobs and the last one is done.

    Args:
        connections: The workers.
        next_job: Returns another job, or None, when so many workers are busy.
        start: Returns the message that begins a job.
        take: Receives one message of a worker; returns whether its job is done.
    """
    busy: dict[Connection, JobT] = {}
    idle = list(connections)
    while True:
        while idle and (job := next_job(len(busy))) is not None:
            connection = idle.pop()
            busy[connection] = job
            send(connection, start(job))
        if not busy:
            return
        for ready in wait(list(busy)):
            assert isinstance(ready, Connection)  # noqa: S101 - only connections were waited for
            if take(ready, busy[ready]):
                del busy[ready]
                idle.append(ready)


@contextmanager
def signals_call(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    """Have signals call `handler` within the block, and what they called before after it; in the main thread.

    Args:
        handler: Is given the signal's number and the frame in which it came.
        numbers: Of the signals.
    """
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Have SIGTERM end the block as Ctrl-C does; in the main thread."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with signals_call(interrupt, signal.SIGTERM):
        yield


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Start processes without SIGINT: one that comes while they still import is not theirs to report."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def dismiss(connections: Sequence[Connection], what: str) -> None:
    """Let workers finish what they have begun, and wait until they have; `what` says what that is, for errors."""
    for connection in connections:
        send(connection, {})
    for connection in connections:
        receive(connection, what)


class _ParentGoneError(Exception):
    """Nobody is at the other end of the pipe."""


@contextmanager
def worker_life(connection: Connection) -> Iterator[Iterator[dict[str, Any]]]:
    """Live in a worker: yield its jobs, which end when the parent dismisses it, and all of the block if that is gone.

    An error that leaves the block is told to the parent. SIGINT is ignored: a terminal sends it to the whole group,
    and the parent decides.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield _jobs(connection)
    except (_ParentGoneError, ConnectionError):
        return
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent reports it
        with suppress(ConnectionError):
            send(connection, {"error": f"{type(error).__name__}: {error}"})


def _jobs(connection: Connection) -> Iterator[dict[str, Any]]:
    while True:
        try:
            job = json.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            raise _ParentGoneError from None
        if not job:
            return
        yield job


class Teller:
    """Tells the parent of frames as ``{"progress": n}``, but not of each few.

    Args:
        connection: The worker's end.
        every: Frames a message.
    """

    def __init__(self, connection: Connection, every: int = 4096) -> None:
        self._connection, self._every, self._waiting = connection, every, 0

    def __call__(self, frames: int) -> None:
        """Count frames; less than 0 where some are taken back."""
        self._waiting += frames
        if abs(self._waiting) >= self._every:
            self.flush()

    def flush(self) -> None:
        """Tell of what was not told yet."""
        if self._waiting:
            send(self._connection, {"progress": self._waiting})
            self._waiting = 0
