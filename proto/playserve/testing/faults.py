"""Limits of the fake server, and the faults that a test asks for."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Literal

from playserve.errors import PlayserveError

__all__ = ["Settings"]


@dataclass(slots=True)
class Settings:
    """Shared by all streams of one fake server; thread-safe where streams change it.

    Attributes:
        max_message_bytes: Largest message, and most bytes that the inputs of one may unpack to.
        max_steps_in_flight: Steps that may wait unanswered.
        idle_timeout_s: Time without a message after which a session expires.
        detach_window_s: How long a session outlives its stream.
        delay_s: Time that each step takes.
        draining: Whether new sessions are refused.
    """

    max_message_bytes: int
    max_steps_in_flight: int
    idle_timeout_s: float
    detach_window_s: float
    delay_s: float = 0.0
    draining: bool = False
    _results_left: int = 0
    _lose_answer: bool = False
    _step_failures: dict[int, PlayserveError] = field(default_factory=dict)
    _row_failures: dict[int, PlayserveError] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def drop_stream_after(self, results: int, *, lose_answer: bool) -> None:
        """Drop the Play stream that sends the `results`-th result from now."""
        with self._lock:
            self._results_left, self._lose_answer = results, lose_answer

    def take_drop(self) -> Literal["", "before", "after"]:
        """Count one result; say whether its stream is dropped before or after it is sent."""
        with self._lock:
            self._results_left -= 1
            if self._results_left != 0:
                self._results_left = max(self._results_left, 0)
                return ""
            return "before" if self._lose_answer else "after"

    def fail_step(self, seq: int, error: PlayserveError) -> None:
        """Make the next step with this seq fail, once."""
        with self._lock:
            self._step_failures[seq] = error

    def take_failure(self, seq: int) -> PlayserveError | None:
        """Return the error that a step is to fail with."""
        with self._lock:
            return self._step_failures.pop(seq, None)

    def fail_row(self, env_id: int, error: PlayserveError) -> None:
        """Make the next row of this environment fail, once."""
        with self._lock:
            self._row_failures[env_id] = error

    def take_row_failure(self, env_id: int) -> PlayserveError | None:
        """Return the error that a row is to fail with."""
        with self._lock:
            return self._row_failures.pop(env_id, None)
