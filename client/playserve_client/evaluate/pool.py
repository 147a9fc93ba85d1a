"""The worker processes as their parent sees them: started, fed, watched, started again. Knows nothing of servers.

Thread-safe where it says so: the thread that receives actions from a server hands them on by itself.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import playserve.errors
from playserve.actions import DesktopAction
from playserve.errors import BadSettingError, PlayserveError
from playserve_client.evaluate import messages
from playserve_client.evaluate.errors import WorkerFailedError
from playserve_client.evaluate.observations import EnvSpec, SharedRows
from playserve_client.evaluate.plan import EnvChoice
from playserve_client.evaluate.waiting import Waiter
from playserve_client.evaluate.worker import work

__all__ = ["Events", "WorkerPool"]

# A worker that owes an answer and says nothing for so long is taken for dead.
_SILENCE_S = 300.0
_STOP_S = 2.0
_MAX_RESTARTS = 5


@dataclass(slots=True)
class Events:
    """What happened since the last look.

    Attributes:
        ready: (row, tag) of rows whose observation lies in shared memory.
        finished: Episodes that ended, as `worker` describes them.
        usable: Rows whose worker is new: episodes can be assigned to them.
        lost: Rows whose worker died; they become usable again by themselves.
        steps: Environment steps that were made.
        woken: Whether :meth:`WorkerPool.wake` was called.
    """

    ready: list[tuple[int, int]] = field(default_factory=list)
    finished: list[dict[str, Any]] = field(default_factory=list)
    usable: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    steps: int = 0
    woken: bool = False


class _Handle:
    """One worker process."""

    def __init__(self, index: int, rows: range) -> None:
        self.index, self.rows = index, rows
        self.process: Any = None
        self.connection: Connection | None = None
        self.lock = threading.Lock()
        self.attached = False
        self.restarts = 0
        self.heard = time.monotonic()

    def send(self, message: bytes) -> None:
        """Send, from any thread; a worker that is gone is noticed elsewhere."""
        with self.lock:
            if self.connection is None:
                return
            try:
                self.connection.send_bytes(message)
            except (BrokenPipeError, ConnectionError, OSError):
                return


class WorkerPool:
    """A context manager that starts `workers` processes over `rows` environments and stops them.

    Args:
        env: The environment.
        stickiness: Of the first environment that each worker makes.
        rows: Environments.
        workers: Processes; no more than rows are started.
        actions_dir: Where workers write each episode's actions; None: nowhere.
        knowledge: The file that local players draw from, or None.
        silence_s: How long a worker may be silent while it owes something; None: 300 s.
        dial: Further arguments of the environment's factory, JSON values; they are told to workers only.
    """

    def __init__(
        self,
        env: EnvChoice,
        *,
        stickiness: float | None,
        rows: int,
        workers: int,
        actions_dir: Path | None = None,
        knowledge: Path | None = None,
        silence_s: float | None = None,
        dial: Mapping[str, Any] | None = None,
    ) -> None:
        if rows < 1 or workers < 1:
            raise BadSettingError(f"envs and workers are at least 1, not {rows} and {workers}")
        self.rows = rows
        self.restarts = 0
        self.spec: EnvSpec | None = None
        self._instructions: dict[int, str] = {}  # of the episode in each row that has one
        self._env, self._stickiness, self._actions_dir = env, stickiness, actions_dir
        self._knowledge, self._dial = knowledge, dict(dial or {})
        self._silence_s = _SILENCE_S if silence_s is None else silence_s
        # spawn: a fork would copy the locks of gRPC's threads.
        self._context = multiprocessing.get_context("spawn")
        bounds = [rows * i // min(workers, rows) for i in range(min(workers, rows) + 1)]
        self._handles = [_Handle(i, range(a, b)) for i, (a, b) in enumerate(itertools.pairwise(bounds))]
        self._owner = np.array([handle.index for handle in self._handles for _ in handle.rows])
        # Rows that a worker owes an observation or a result; touched element by element, from two threads.
        self._owing = np.zeros(rows, bool)
        self._shared: SharedRows | None = None
        self._wake_ours, self._wake_theirs = self._context.Pipe(duplex=False)
        self._wake_lock = threading.Lock()
        self._waiter = Waiter()
        self._waiter.add(self._wake_ours)

    def __enter__(self) -> WorkerPool:
        try:
            for handle in self._handles:
                self._start(handle)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def workers(self) -> int:
        """Return the number of processes."""
        return len(self._handles)

    def usable_rows(self) -> list[int]:
        """Return the rows whose workers are there."""
        return [row for handle in self._handles if handle.attached for row in handle.rows]

    def pids(self) -> list[int]:
        """Return the process ids, for tests and logs."""
        return [handle.process.pid for handle in self._handles if handle.process is not None]

    def read(self, name: str, rows: Sequence[int]) -> NDArray[Any]:
        """Return a copy of the observations `name` of some rows, [n, *shape]."""
        assert self._shared is not None  # noqa: S101 - no row is ready before the memory is there
        return self._shared.read(name, rows)

    def assign(self, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Begin episodes: each task names its `row`, `tag`, `player`, `stickiness`, seeds, `action` and `path`."""
        for handle in self._handles:
            mine = [dict(task) for task in tasks if task["row"] in handle.rows]
            if mine:
                self._owe(handle, [task["row"] for task in mine])
                handle.send(messages.json_message({"assign": mine}))

    def instructions(self, rows: Sequence[int]) -> list[str] | None:
        """Return the instructions of the episodes in some rows; None: they have none. Thread-safe."""
        known = self._instructions
        return [known.get(row, "") for row in rows] if known else None

    def act(
        self,
        rows: NDArray[np.int64],
        tags: NDArray[np.int64],
        actions: NDArray[np.integer[Any]] | Sequence[DesktopAction],
    ) -> None:
        """Hand actions to rows that wait for them. Thread-safe."""
        if not isinstance(actions, np.ndarray):
            self._act_desktop(rows.tolist(), tags.tolist(), actions)
            return
        table_N3 = np.stack([rows, tags, actions.astype(np.int64)], axis=1)
        owners = self._owner[rows]
        for index in sorted(set(owners.tolist())):
            table = table_N3[owners == index]
            self._owe(self._handles[index], table[:, 0])
            self._handles[index].send(messages.actions_message(table))

    def _act_desktop(self, rows: Sequence[int], tags: Sequence[int], actions: Sequence[DesktopAction]) -> None:
        for handle in self._handles:
            mine = [item for item in zip(rows, tags, actions, strict=True) if item[0] in handle.rows]
            if mine:
                self._owe(handle, [row for row, _, _ in mine])
                handle.send(messages.desktop_message(mine))

    def stepping(self) -> bool:
        """Return whether any worker owes an observation or a result. Thread-safe."""
        return bool(self._owing.any())

    def wake(self) -> None:
        """Let :meth:`poll` return. Thread-safe."""
        with self._wake_lock:
            self._wake_theirs.send_bytes(b"!")

    def poll(self, timeout_s: float) -> Events:
        """Wait for something to happen, at most `timeout_s`, and return everything that has.

        Raises:
            PlayserveError: An environment raised, or a worker died too often.
        """
        events = Events()
        by_connection = {handle.connection: handle for handle in self._handles}
        for ready in self._waiter.wait(timeout_s):
            if ready is self._wake_ours:
                events.woken = True
                self._wake_ours.recv_bytes()
            else:
                self._read(by_connection[ready], events)
        self._watch(events)
        return events

    def close(self) -> None:
        """Stop the workers: by closing their pipes, then by force."""
        for handle in self._handles:
            self._hang_up(handle)
        self._waiter.close()
        self._wake_ours.close()
        deadline = time.monotonic() + _STOP_S
        for handle in self._handles:
            if handle.process is not None:
                handle.process.join(max(0.0, deadline - time.monotonic()))
                _end(handle.process)
                handle.process = None
        if self._shared is not None:
            self._shared.close(destroy=True)
            self._shared = None

    def _start(self, handle: _Handle) -> None:
        ours, theirs = self._context.Pipe()
        config = {
            "env": {**asdict(self._env), "options": dict(self._env.options)},
            "dial": self._dial,
            "stickiness": self._stickiness,
            "first_row": handle.rows.start,
            "rows": len(handle.rows),
            "actions": str(self._actions_dir) if self._actions_dir is not None else "",
            "knowledge": str(self._knowledge) if self._knowledge is not None else "",
        }
        name = f"rollout-{handle.index}"
        handle.process = self._context.Process(target=work, args=(theirs, json.dumps(config)), name=name, daemon=True)
        handle.process.start()
        theirs.close()  # so that the worker's death closes the pipe
        handle.attached = False
        handle.heard = time.monotonic()
        self._waiter.add(ours)
        with handle.lock:
            handle.connection = ours

    def _hang_up(self, handle: _Handle) -> None:
        with handle.lock:
            if handle.connection is not None:
                self._waiter.remove(handle.connection)
                handle.connection.close()
                handle.connection = None

    def _owe(self, handle: _Handle, rows: Any) -> None:
        if not self._owing[handle.rows.start : handle.rows.stop].any():
            handle.heard = time.monotonic()
        self._owing[rows] = True

    def _read(self, handle: _Handle, events: Events) -> None:
        assert handle.connection is not None  # noqa: S101 - it was waited for
        try:
            message = handle.connection.recv_bytes()
        except (EOFError, ConnectionError, OSError):
            self._lost(handle, events)
        else:
            self._take(handle, message, events)

    def _take(self, handle: _Handle, message: bytes, events: Events) -> None:
        handle.heard = time.monotonic()
        if message[0] == messages.READY:
            table = messages.array_of(message, 2)
            events.steps += int(table[0, 0])
            self._owing[table[1:, 0]] = False
            events.ready.extend((row, tag) for row, tag in table[1:].tolist())
            return
        value = messages.json_of(message)
        if "finished" in value:
            self._owing[value["finished"]["row"]] = False
            events.finished.append(value["finished"])
        elif "instruction" in value:
            self._instructions[value["instruction"]["row"]] = value["instruction"]["text"]
        elif "failed" in value:
            raise _typed(value["kind"], value["failed"])
        elif "hello" in value:
            self._hello(handle, EnvSpec.from_json(value["hello"]))
            events.usable.extend(handle.rows)

    def _hello(self, handle: _Handle, spec: EnvSpec) -> None:
        if self._shared is None:
            self.spec, self._shared = spec, SharedRows.create(spec, self.rows)
        if spec != self.spec:
            raise WorkerFailedError(f"worker {handle.index} made an environment of {spec}; the others of {self.spec}")
        handle.attached = True
        handle.send(messages.json_message({"attach": self._shared.name, "rows": self.rows}))

    def _watch(self, events: Events) -> None:
        now = time.monotonic()
        for handle in self._handles:
            owes = not handle.attached or self._owing[handle.rows.start : handle.rows.stop].any()
            if owes and now - handle.heard > self._silence_s:
                self._lost(handle, events)

    def _lost(self, handle: _Handle, events: Events) -> None:
        self._hang_up(handle)
        code = _end(handle.process)
        if handle.attached:
            events.lost.extend(handle.rows)
            events.ready = [item for item in events.ready if item[0] not in handle.rows]
            events.usable = [row for row in events.usable if row not in handle.rows]
        handle.restarts += 1
        self.restarts += 1
        if handle.restarts > _MAX_RESTARTS:
            raise WorkerFailedError(
                f"worker {handle.index} died {handle.restarts} times, last with exit status {code}; finished episodes "
                "are kept"
            )
        self._owing[handle.rows.start : handle.rows.stop] = False
        self._instructions = {row: text for row, text in self._instructions.items() if row not in handle.rows}
        self._start(handle)


def _end(process: Any) -> int | None:
    """End a worker that may be running still; return its exit status."""
    process.join(0.1)
    if process.is_alive():
        process.terminate()
        process.join(_STOP_S)
    if process.is_alive():
        process.kill()
        process.join()
    code: int | None = process.exitcode
    return code


def _typed(kind: str, text: str) -> PlayserveError:
    """Return the error that a worker reported as the exception it was, where that is one of ours."""
    found = getattr(playserve.errors, kind, None)
    if isinstance(found, type) and issubclass(found, PlayserveError):
        return found(text)
    return WorkerFailedError(f"an environment failed: {text}")
