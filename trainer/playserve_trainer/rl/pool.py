"""The learner's end of the actors: starts the processes, takes their unrolls into a bounded queue, reports deaths."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from types import TracebackType

from playserve.errors import BadSettingError, MalformedMessageError
from playserve_client.workers import send, worker_processes
from playserve_trainer.rl.actors import ActorSettings, act
from playserve_trainer.rl.errors import ActorsLostError
from playserve_trainer.rl.unrolls import Unroll

__all__ = ["ActorPool"]

_TICK_S = 0.2
_PATIENCE_S = 5.0


class ActorPool:
    """Actor processes for the length of a `with` block.

    A full queue stops the reader, then the pipes, then the environments: nothing grows. One process that dies is
    reported and the others go on.

    Args:
        settings: What every process is told.
        num_envs: Environments, spread over the processes.
        processes: How many.
        queue_size: Unrolls that may wait.
        note: Takes lines for people.
    """

    def __init__(
        self,
        settings: ActorSettings,
        *,
        num_envs: int,
        processes: int,
        queue_size: int,
        note: Callable[[str], None],
    ) -> None:
        if not 1 <= processes <= num_envs:
            raise BadSettingError(f"{processes} actor processes for {num_envs} environments: wanted 1 to {num_envs}")
        self._settings, self._num_envs, self._processes, self._note = settings, num_envs, processes, note
        self._queue: queue.Queue[Unroll] = queue.Queue(queue_size)
        self._stack = contextlib.ExitStack()
        self._stop = threading.Event()
        self._lost: list[str] = []
        self._live: dict[Connection, str] = {}
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ActorPool:
        connections = self._stack.enter_context(
            worker_processes(
                act, dataclasses.asdict(self._settings), self._processes, name="playserve-actor", patience_s=_PATIENCE_S
            )
        )
        for index, connection in enumerate(connections):
            send(connection, {"env_ids": list(range(index, self._num_envs, self._processes))})
            self._live[connection] = f"actor {index}"
        self._thread = threading.Thread(target=self._read, name="playserve-unrolls", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._stack.close()

    @property
    def waiting(self) -> int:
        """Unrolls in the queue."""
        return self._queue.qsize()

    @property
    def lost(self) -> tuple[str, ...]:
        """What became of the processes that are gone."""
        return tuple(self._lost)

    def take(self, timeout_s: float) -> Unroll | None:
        """Return the next unroll; None if none came in time.

        Raises:
            ActorsLostError: All processes are gone, and nothing is left of what they sent.
        """
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            if len(self._lost) == self._processes and self._queue.empty():
                raise ActorsLostError(f"no actor is left: {'; '.join(self._lost)}") from None
            return None

    def _read(self) -> None:
        """Run in the reader's thread."""
        while not self._stop.is_set() and self._live:
            for ready in wait(list(self._live), timeout=_TICK_S):
                assert isinstance(ready, Connection)  # noqa: S101 - only connections were waited for
                try:
                    data = ready.recv_bytes()
                except (EOFError, OSError):
                    self._lose(ready, "died")
                    continue
                if data.startswith(b"{"):
                    self._lose(ready, f"failed: {json.loads(data)['error']}")
                    continue
                try:
                    self._put(Unroll.from_bytes(data))
                except MalformedMessageError as error:
                    self._lose(ready, f"is not understood: {error}")

    def _put(self, unroll: Unroll) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(unroll, timeout=_TICK_S)
                return

    def _lose(self, connection: Connection, what: str) -> None:
        name = self._live.pop(connection)
        self._lost.append(f"{name} {what}")
        self._note(f"{name} {what}; {len(self._live)} of {self._processes} actor processes go on")
