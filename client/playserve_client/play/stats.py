"""Numbers of a running game: for the status line, and for the JSON file at its end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from playserve.settings import Consent
from playserve_client.play.core import PlayCore
from playserve_client.results import StepResult

__all__ = ["PlayStats", "percentiles"]

_WINDOW_S = 2.0
_KEPT = 100_000  # latencies, newest: over an hour at 20 Hz


def percentiles(values: Sequence[float]) -> dict[str, float | int]:
    """Return count, smallest, p50, p99 and largest, in the values' own unit; only the count where there are none."""
    if not values:
        return {"count": 0}
    p50, p99 = np.percentile(np.asarray(values), [50, 99])
    low, high = float(min(values)), float(max(values))
    return {"count": len(values), "min": low, "p50": float(p50), "p99": float(p99), "max": high}


class PlayStats:
    """Collects; thread-safe.

    Args:
        clock: Seconds, monotonic.
        consent: What operators may do with the session; the status line says so all the time.
    """

    def __init__(self, clock: Callable[[], float], *, consent: Consent | None = None) -> None:
        allowed = consent or Consent()
        may = [word for word, given in (("watched", allowed.watch), ("recorded", allowed.record)) if given]
        self._may_be = f" | may be {' and '.join(may)}" if may else ""
        self._clock, self._lock = clock, threading.Lock()
        self._frames: deque[float] = deque(maxlen=4096)
        self._began = clock()
        self.rounds_ms: deque[float] = deque(maxlen=_KEPT)
        self.model_ms: deque[float] = deque(maxlen=_KEPT)
        self.loop_ms: deque[float] = deque(maxlen=_KEPT)  # capture to applied action
        self.outside_model_ms: deque[float] = deque(maxlen=_KEPT)  # the same, without the model's time
        self.capture_ms: deque[float] = deque(maxlen=_KEPT)
        self.server_drops = 0
        self.errors = 0
        self.last_error = ""
        self.revision = 0

    def frame(self, captured_at: float, capture_s: float) -> None:
        """A frame was captured and resized."""
        with self._lock:
            self._frames.append(captured_at)
            self.capture_ms.append(capture_s * 1e3)

    def result(self, result: StepResult) -> None:
        """An answer came, in time or not."""
        with self._lock:
            model_ms = result.times.compute_us / 1e3
            self.model_ms.append(model_ms)
            if result.round_trip_s is not None:
                self.rounds_ms.append(result.round_trip_s * 1e3)
            self.server_drops += len(result.dropped)
            self.revision = result.config_revision

    def applied(self, captured_at: float, applied_at: float, model_ms: float) -> None:
        """An action was applied."""
        with self._lock:
            loop_ms = (applied_at - captured_at) * 1e3
            self.loop_ms.append(loop_ms)
            self.outside_model_ms.append(loop_ms - model_ms)

    def error(self, error: Exception) -> None:
        """A step failed."""
        with self._lock:
            self.errors += 1
            self.last_error = str(error)

    def rate_hz(self) -> float:
        """Return frames a second, over the last two seconds."""
        with self._lock:
            now = self._clock()
            since = min(_WINDOW_S, max(1e-3, now - self._began))
            return sum(1 for at in self._frames if now - at < since) / since

    def line(self, core: PlayCore, instruction: str) -> str:
        """Return the status line."""
        with self._lock:
            rounds, models = list(self.rounds_ms)[-40:], list(self.model_ms)[-40:]
            drops = self.server_drops + core.tally.missed + core.tally.stale
        round_trip = f"{np.median(rounds):.1f} ms" if rounds else "-"
        model = f"{np.median(models):.1f} ms" if models else "-"
        who = core.state + (f": {core.reason}" if core.state == "waiting" and core.reason else "")
        return (
            f"{self.rate_hz():4.1f} Hz | round trip {round_trip} | model {model} | drops {drops} | "
            f'"{instruction}" | {who}{self._may_be}'
        )

    def report(self, core: PlayCore) -> dict[str, Any]:
        """Return everything as a JSON value."""
        with self._lock:
            seconds = self._clock() - self._began
            return {
                "seconds": seconds,
                "tally": asdict(core.tally),
                "ended": core.ended,
                "mean_rate_hz": core.tally.frames / seconds if seconds > 0 else 0.0,
                "frame_interval_ms": percentiles((np.diff(list(self._frames)) * 1e3).tolist()),
                "capture_ms": percentiles(self.capture_ms),
                "round_trip_ms": percentiles(self.rounds_ms),
                "model_ms": percentiles(self.model_ms),
                "capture_to_applied_ms": percentiles(self.loop_ms),
                "capture_to_applied_without_model_ms": percentiles(self.outside_model_ms),
                "server_drops": self.server_drops,
                "step_errors": self.errors,
                "last_step_error": self.last_error,
            }
