"""One Rollout stream from the evaluator's side: read by a thread of its own, opened again after a restart."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
from playserve_client.rollout import Rollout

__all__ = ["Deliver", "EvaluatorStream", "may_reopen", "reopen"]

#: Takes (rows, tags, actions), int64 [n] each, in the stream's thread.
Deliver = Callable[[NDArray[np.int64], NDArray[np.int64], NDArray[np.integer[Any]]], None]

# Rows that wait longer than this for the server's answer wait for a server that is gone.
_SILENCE_S = 60.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 2.0


class EvaluatorStream:
    """Sends rows and delivers their actions.

    Args:
        rollout: An open rollout; closed with this.
        deliver: Takes the actions.
        wake: Called in the stream's thread after an error was put where :meth:`take_error` finds it.
        silence_s: How long rows may wait for the server.
    """

    def __init__(
        self, rollout: Rollout, deliver: Deliver, wake: Callable[[], None], silence_s: float = _SILENCE_S
    ) -> None:
        self._rollout, self._deliver, self._wake, self._silence_s = rollout, deliver, wake, silence_s
        self._errors: queue.SimpleQueue[PlayserveError] = queue.SimpleQueue()
        self._closing = False
        self._sent = self._answered = 0  # rows; each is written by one thread only
        self._thread = threading.Thread(target=self._read, name="rollout-actions", daemon=True)
        self._thread.start()

    @property
    def spec(self) -> PolicySpec:
        """Return the spec of the policy version in use."""
        return self._rollout.spec

    def send(
        self, rows: Sequence[int], tags: Sequence[int], inputs: Mapping[str, NDArray[Any]], seeds: Sequence[int]
    ) -> None:
        """Send one step of some rows; without effect once the stream has ended (an error says so)."""
        self._sent += len(rows)
        try:
            self._rollout.send(rows, tags, inputs, episode_seeds=seeds)
        except PlayserveError as error:
            self._trouble(error)

    def take_error(self) -> PlayserveError | None:
        """Return the next error: of a row where its `env_id` is set, else the one that ended the stream."""
        try:
            return self._errors.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        """End the stream and its thread."""
        self._closing = True
        self._rollout.close()
        self._thread.join()

    def _read(self) -> None:
        while not self._closing:
            before, asked = self._sent, time.monotonic()
            try:
                batch = self._rollout.recv(self._silence_s)
            except TimeoutExceededError as error:
                # Nothing to wait for is no trouble; an answer in less than the time to wait is how the stream ended.
                if before > self._answered or time.monotonic() - asked < self._silence_s / 2:
                    return self._trouble(error)
            except PlayserveError as error:
                self._answered += 1
                self._trouble(error)
                if error.env_id is None:
                    return None
            else:
                self._answered += len(batch)
                self._deliver(batch.env_ids, batch.episode_ids, np.asarray(batch.actions))
        return None

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
