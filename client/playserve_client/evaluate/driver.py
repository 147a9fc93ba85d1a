"""Plays assignments to their end: hands them to rows, carries observations to the stream, replays what was lost.

One :class:`Driver` plays one queue. Nothing here waits for one environment while another is ready.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from playserve.errors import PlayserveError, ServerFault, ServerUnavailableError
from playserve.specs import PolicySpec
from playserve_client.evaluate.errors import WorkerFailedError
from playserve_client.evaluate.observations import match_inputs
from playserve_client.evaluate.plan import Assignment, Row
from playserve_client.evaluate.pool import Events, WorkerPool
from playserve_client.evaluate.stream import EvaluatorStream, may_reopen, reopen
from playserve_client.rollout import Rollout

__all__ = ["Driver", "Finished", "PhaseReport"]

_TICK_S = 0.5
# An episode that was begun so often and never ended will not end.
_MAX_ATTEMPTS = 20
_MAX_ROW_FAILURES = 3
_FIRST_WAIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One episode that was played to its end.

    Attributes:
        assignment: Which.
        attempts: How often it was begun; more than 1: replayed with the same seeds.
        version: Policy version; empty for local players.
        score: Sum of unclipped rewards.
        steps: Steps of the environment.
        terminated: Whether the game ended by itself.
        truncated: Whether it was cut.
        digest: Digest of actions and rewards: equal digests are equal games.
        seconds: How long the last attempt took.
        facts: What the environment said of the episode at its end.
    """

    assignment: Assignment
    attempts: int
    version: str
    score: float
    steps: int
    terminated: bool
    truncated: bool
    digest: str
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class PhaseReport:
    """What playing one queue took.

    Attributes:
        steps: Environment steps, those of lost attempts included.
        seconds: From the first assignment to the last result.
        replayed: Attempts that were lost and played again.
        reconnects: Times that the stream was opened again.
    """

    steps: int = 0
    seconds: float = 0.0
    replayed: int = 0
    reconnects: int = 0


@dataclass(slots=True)
class _Current:
    """The episode in a row."""

    assignment: Assignment
    tag: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """Whom the driver tells.

    Attributes:
        finished: Takes each episode as it ends.
        progress: Takes (steps just made, episodes just ended).
        note: Takes lines for people: a lost server, a dead worker.
        opened: Takes the policy's spec whenever a stream was opened.
    """

    finished: Callable[[Finished], None]
    progress: Callable[[int, int], None] = lambda _steps, _episodes: None
    note: Callable[[str], None] = lambda _text: None
    opened: Callable[[PolicySpec], None] = lambda _spec: None


@dataclass(slots=True)
class Tags:
    """Source of the wire's episode ids: they rise over all rows and streams of a run."""

    last: int = 0

    def next(self) -> int:
        """Return the next one."""
        self.last += 1
        return self.last


class Driver:
    """Plays one queue of assignments.

    Args:
        pool: Workers.
        rows: The table's rows by key: who plays an assignment, and under which stickiness.
        callbacks: Whom to tell.
        tags: Wire ids.
        open_rollout: Opens a stream of so many environments; None: all players of the queue are local.
        reconnect_s: How long a server may be away.
        instruction: Of every episode; None: what the environment says.
    """

    def __init__(
        self,
        pool: WorkerPool,
        rows: Mapping[str, Row],
        callbacks: Callbacks,
        tags: Tags,
        *,
        open_rollout: Callable[[int], Rollout] | None = None,
        reconnect_s: float = 60.0,
        instruction: str | None = None,
    ) -> None:
        self._instruction = instruction
        self._pool, self._rows, self._callbacks, self._tags = pool, rows, callbacks, tags
        self._open_rollout, self._reconnect_s = open_rollout, reconnect_s
        self._queue: deque[Assignment] = deque()
        self._current: dict[int, _Current] = {}
        self._free: list[int] = []
        self._attempts: dict[tuple[str, int], int] = {}
        self._row_failures: dict[tuple[str, int], int] = {}
        self._stream: EvaluatorStream | None = None
        self._version = ""
        self._names: dict[str, str] = {}
        self._num_envs = 0
        self.report = PhaseReport()

    def play(self, assignments: Iterable[Assignment]) -> PhaseReport:
        """Play all of them; return what it took. Each result goes to `callbacks.finished` as it comes."""
        self._queue.extend(assignments)
        if not self._queue:
            return self.report
        self._num_envs = min(self._pool.rows, len(self._queue))
        started = time.monotonic()
        try:
            self._await_spec()
            if self._open_rollout is not None:
                self._open(_FIRST_WAIT_S, first=True)
            self._free = [row for row in self._pool.usable_rows() if row < self._num_envs]
            started = time.monotonic()
            self._assign()
            while self._queue or self._current:
                patience_s = _TICK_S if self._stream is None else self._stream.patience_s(_TICK_S)
                self._handle(self._pool.poll(patience_s))
                if self._stream is not None:
                    self._stream.flush()
        finally:
            self.report.seconds = time.monotonic() - started
            self._close_stream()
        return self.report

    def _await_spec(self) -> None:
        """Wait for the first worker: only it knows what the environment shows."""
        while self._pool.spec is None:
            self._pool.poll(_TICK_S)

    def _open(self, wait_s: float, *, first: bool = False) -> None:
        assert self._open_rollout is not None  # noqa: S101 - the callers have checked
        open_rollout, num_envs = self._open_rollout, self._num_envs
        rollout = reopen(lambda: open_rollout(num_envs), wait_s, first=first)
        try:
            assert self._pool.spec is not None  # noqa: S101 - awaited before
            self._names = match_inputs(self._pool.spec, rollout.spec)
            self._callbacks.opened(rollout.spec)
        except BaseException:
            rollout.close()
            raise
        self._version = rollout.spec.version
        self._stream = EvaluatorStream(
            rollout,
            self._inputs,
            self._pool.act,
            self._pool.wake,
            self._pool.stepping,
            instructions=self._pool.instructions if rollout.spec.takes_instruction else None,
        )

    def _inputs(self, rows: Sequence[int]) -> dict[str, NDArray[Any]]:
        return {name: self._pool.read(shown, rows) for name, shown in self._names.items()}

    def _close_stream(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _handle(self, events: Events) -> None:
        for result in events.finished:
            self._finish(result)
        self._lose([row for row in events.lost if row in self._current], "a worker died")
        self._free = [row for row in self._free if row not in events.lost]
        self._free += [row for row in events.usable if row < self._num_envs]
        if events.steps:
            self.report.steps += events.steps
            self._callbacks.progress(events.steps, 0)
        if events.woken and self._stream is not None:
            self._errors(self._stream)
        self._send(events)
        self._assign()

    def _finish(self, result: Mapping[str, Any]) -> None:
        current = self._current.get(result["row"])
        if current is None or current.tag != result["tag"]:
            return  # of an attempt that was given up
        del self._current[result["row"]]
        self._free.append(result["row"])
        assignment = current.assignment
        self._callbacks.finished(
            Finished(
                assignment=assignment,
                attempts=self._attempts[assignment.row, assignment.number],
                version=self._version,
                score=result["score"],
                steps=result["steps"],
                terminated=result["terminated"],
                truncated=result["truncated"],
                digest=result["digest"],
                seconds=result["seconds"],
                facts=result["facts"],
            )
        )
        self._callbacks.progress(0, 1)

    def _lose(self, rows: Iterable[int], why: str) -> None:
        """Put the episodes of `rows` back: they are played again from their start, first of all."""
        lost = [self._current.pop(row).assignment for row in list(rows)]
        if lost:
            self.report.replayed += len(lost)
            numbers = ", ".join(str(a.number) for a in lost)
            self._callbacks.note(f"{why}: {len(lost)} episodes are played again ({numbers})")
        self._queue.extendleft(reversed(lost))

    def _errors(self, stream: EvaluatorStream) -> None:
        while (error := stream.take_error()) is not None:
            if error.env_id is not None:
                self._row_failed(error.env_id, error)
            elif may_reopen(error):
                self._reconnect(error)
                return
            else:
                raise error

    def _row_failed(self, row: int, error: PlayserveError) -> None:
        current = self._current.get(row)
        if current is None:
            return
        key = (current.assignment.row, current.assignment.number)
        self._row_failures[key] = self._row_failures.get(key, 0) + 1
        if not isinstance(error, ServerFault | ServerUnavailableError) or self._row_failures[key] > _MAX_ROW_FAILURES:
            raise error
        self._lose([row], f"the server failed in a step ({error})")
        self._free.append(row)

    def _reconnect(self, error: PlayserveError) -> None:
        self._callbacks.note(f"the server is lost ({error}); trying again for {self._reconnect_s:g} s")
        self._close_stream()
        rows = list(self._current)
        self._lose(rows, "the server was lost")
        self._free += rows
        self._open(self._reconnect_s)
        self.report.reconnects += 1
        self._callbacks.note("the server is back")

    def _send(self, events: Events) -> None:
        if self._stream is None or not events.ready:
            return
        ready = [
            (row, tag, current.assignment.sampling_seed)
            for row, tag in events.ready
            if (current := self._current.get(row)) is not None and current.tag == tag
        ]
        if ready:
            self._stream.submit(ready)

    def _assign(self) -> None:
        tasks = []
        while self._queue and self._free:
            row, assignment = self._free.pop(0), self._queue.popleft()
            key = (assignment.row, assignment.number)
            self._attempts[key] = self._attempts.get(key, 0) + 1
            if self._attempts[key] > _MAX_ATTEMPTS:
                raise WorkerFailedError(
                    f"episode {assignment.number} of {assignment.row} was begun {_MAX_ATTEMPTS} times and never ended"
                )
            self._current[row] = _Current(assignment, self._tags.next())
            tasks.append(self._task(row, self._current[row]))
        if tasks:
            self._pool.assign(tasks)

    def _task(self, row: int, current: _Current) -> dict[str, Any]:
        assignment = current.assignment
        table_row = self._rows[assignment.row]
        return {
            "row": row,
            "tag": current.tag,
            "player": table_row.kind,
            "action": table_row.action,
            "stickiness": table_row.stickiness,
            "env_seed": assignment.env_seed,
            "sampling_seed": assignment.sampling_seed,
            "instruction": self._instruction,
            "path": f"{assignment.row}/{assignment.number:06d}.npz",
        }
