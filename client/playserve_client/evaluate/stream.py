"""One Rollout stream from the evaluator's side: answers are delivered by the thread that reads them."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import (
    CancelledError,
    EngineFailedError,
    ExhaustedError,
    NotFoundError,
    PlayserveError,
    ServerFault,
    ServerUnavailableError,
    SessionEndedError,
    TimeoutExceededError,
)
from playserve.specs import PolicySpec
from playserve_client.channels import stream_was_lost
from playserve_client.evaluate.gathering import Gathering
from playserve_client.rollout import Rollout

__all__ = ["Deliver", "EvaluatorStream", "Read", "may_reopen", "reopen"]

#: Returns the policy's inputs of some rows by name, [n, *shape] each.
Read = Callable[[Sequence[int]], Mapping[str, NDArray[Any]]]
#: Takes (rows, tags, actions), int64 [n] each or a list of desktop actions, in the stream's thread.
Deliver = Callable[[NDArray[np.int64], NDArray[np.int64], Any], None]

# Rows that wait longer than this for the server's answer wait for a server that is gone.
_SILENCE_S = 60.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 2.0


class EvaluatorStream:
    """Sends rows and delivers their actions.

    A message costs the processor as much as many rows do, so rows that become ready while a message is on its way wait
    for one another until they are half of all, or all of them (`gathering` finds out which is faster), or its answer is
    here: nobody waits longer than one answer takes, and a few milliseconds for all.

    Args:
        rollout: An open rollout; closed with this.
        read: Returns the inputs of rows that were submitted.
        deliver: Takes the actions.
        wake: Called after an error was put where :meth:`take_error` finds it, and where :meth:`patience_s` changed.
        stepping: Returns whether any environment is stepped or reset now. Thread-safe.
        silence_s: How long rows may wait for the server.
        instructions: Returns the instructions of the episodes of some rows, or None where they have none.
    """

    def __init__(
        self,
        rollout: Rollout,
        read: Read,
        deliver: Deliver,
        wake: Callable[[], None],
        stepping: Callable[[], bool] = lambda: False,
        silence_s: float = _SILENCE_S,
        instructions: Callable[[Sequence[int]], Sequence[str] | None] | None = None,
    ) -> None:
        self._rollout, self._read, self._deliver, self._wake = rollout, read, deliver, wake
        self._stepping = stepping
        self._silence_s = silence_s
        self._instructions = instructions
        self._heard = time.monotonic()  # or began to wait
        self._ended = False
        self._errors: queue.SimpleQueue[PlayserveError] = queue.SimpleQueue()
        self._closing = False
        self._lock = threading.Lock()  # guards what follows; rows are sent by whichever thread finds them sendable
        self._gathering = Gathering(rollout.num_envs)
        self._held_since: float | None = None
        self._pending: list[tuple[int, int, int]] = []
        self._messages_of: dict[int, deque[int]] = {}  # by row, in the order of its answers
        self._rows_left: dict[int, int] = {}  # by message that is on its way
        self._messages = 0
        rollout.listen(self._take_answers)

    @property
    def spec(self) -> PolicySpec:
        """Return the spec of the policy version in use."""
        return self._rollout.spec

    def submit(self, rows: Sequence[tuple[int, int, int]]) -> None:
        """Send one step of some rows, (row, tag, sampling seed) each, as soon as that is sensible.

        Their inputs may be read until their actions are delivered. Once the stream has ended this has no effect: an
        error says so.
        """
        with self._lock:
            self._pending.extend(rows)
            self._send_pending()

    def patience_s(self, most_s: float) -> float:
        """Return how long :meth:`flush` may be left uncalled, at most `most_s`."""
        with self._lock:
            if self._held_since is None:
                return most_s
            return min(most_s, max(0.0, self._held_since + self._gathering.hold_s - time.monotonic()))

    def flush(self) -> None:
        """Send what has waited long enough for others; notice a server that is gone."""
        if self._held_since is not None:
            with self._lock:
                self._send_pending()
        if self._rows_left and not self._ended and time.monotonic() - self._heard > self._silence_s:
            self._trouble(TimeoutExceededError(f"rows were not answered in {self._silence_s:g} s"))
            self._ended = True

    def _send_pending(self) -> None:
        if not self._pending or self._waits():
            return
        self._held_since = None
        # A row that was begun anew while it waited is there twice: the newer one counts.
        newest = {row: (tag, seed) for row, tag, seed in self._pending}
        self._pending = []
        rows = list(newest)
        if not self._rows_left:
            self._heard = time.monotonic()
        self._messages += 1
        self._rows_left[self._messages] = len(rows)
        for row in rows:
            self._messages_of.setdefault(row, deque()).append(self._messages)
        try:
            self._rollout.send(
                rows,
                [tag for tag, _ in newest.values()],
                self._read(rows),
                [seed for _, seed in newest.values()],
                instructions=None if self._instructions is None else self._instructions(rows),
            )
        except PlayserveError as error:
            self._trouble(error)

    def _waits(self) -> bool:
        """Return whether pending rows wait for more."""
        if len(self._pending) >= self._gathering.rows:
            return False
        if self._rows_left:
            return True
        hold_s, now = self._gathering.hold_s, time.monotonic()
        if not hold_s or not self._stepping():
            return False
        if self._held_since is None:
            self._held_since = now
        return now - self._held_since < hold_s

    def _account(self, rows: Iterable[int]) -> None:
        """Take rows off their messages; before their actions are delivered, or they might be on their way again."""
        with self._lock:
            for row in rows:
                if not (messages := self._messages_of.get(row)):
                    continue  # the server answers what nobody asked
                message = messages.popleft()
                self._rows_left[message] -= 1
                if self._rows_left[message] == 0:
                    del self._rows_left[message]

    def take_error(self) -> PlayserveError | None:
        """Return the next error: of a row where its `env_id` is set, else the one that ended the stream."""
        try:
            return self._errors.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """End the stream."""
        self._closing = True
        self._rollout.close()

    def _take_answers(self) -> None:
        """Deliver all that has come. In the stream's thread."""
        while not self._closing and not self._ended:
            try:
                batch = self._rollout.take()
            except PlayserveError as error:
                self._trouble(error)
                self._ended = error.env_id is None
                if error.env_id is not None:
                    self._account([error.env_id])
            else:
                if batch is None:
                    return
                self._account(batch.env_ids.tolist())
                self._deliver(batch.env_ids, batch.episode_ids, batch.actions)
                self._gathering.answered(len(batch.env_ids))
            self._heard = time.monotonic()
            with self._lock:
                held = self._held_since
                self._send_pending()
                newly_held = held is None and self._held_since is not None
            if newly_held:
                self._wake()

    def _trouble(self, error: PlayserveError) -> None:
        if not self._closing:
            self._errors.put(error)
            self._wake()


def may_reopen(error: PlayserveError) -> bool:
    """Return whether a stream that ended with `error` may be opened again."""
    gone = (ServerUnavailableError, SessionEndedError, TimeoutExceededError, CancelledError, EngineFailedError)
    return isinstance(error, gone) or stream_was_lost(error) or (isinstance(error, ServerFault) and not error.reason)


def reopen(
    open_rollout: Callable[[], Rollout],
    wait_s: float,
    *,
    first: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> Rollout:
    """Return an open rollout, trying for `wait_s` seconds with growing pauses.

    Args:
        open_rollout: Opens one.
        wait_s: Time after which the last error is raised.
        first: Whether nothing was open before: then a policy that is not there, or slots that are taken, are errors
            at once; after a restart they may still come.
        pause: Sleeps.
    """
    deadline, pause_s = time.monotonic() + wait_s, _FIRST_PAUSE_S
    while True:
        try:
            return open_rollout()
        except PlayserveError as error:
            patient = may_reopen(error) or (not first and isinstance(error, NotFoundError | ExhaustedError))
            if not patient or time.monotonic() + pause_s > deadline:
                raise
        pause(pause_s)
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)
