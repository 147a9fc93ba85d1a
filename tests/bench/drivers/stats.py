"""Percentiles, and what one measurement gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

__all__ = ["Measurement", "percentile"]


def percentile(values: Sequence[float] | np.ndarray[Any, Any], q: float) -> float:
    """Return the q-th percentile (0..100) as a value that was really measured, NaN of nothing."""
    if len(values) == 0:
        return float("nan")
    return float(np.percentile(np.asarray(values), q, method="higher"))


@dataclass(slots=True)
class Measurement:
    """One measurement of one server in one round.

    Attributes:
        latencies_ms: Every latency, send to receipt.
        seconds: Measured time.
        steps: Steps answered in that time.
        missed: Steps answered later than their deadline, or never (paced loads only).
        unanswered: Those of `missed` that never got an answer.
        send_lag_ms: How late the driver itself was with each send (paced loads only): the driver's own jitter.
        max_compute_us: Largest compute time that the server reported.
        max_total_us: Largest arrival-to-departure time that the server reported.
        server_cpu_s: CPU time that the server used, when metered.
    """

    latencies_ms: np.ndarray[Any, Any]
    seconds: float
    steps: int
    missed: int = 0
    unanswered: int = 0
    send_lag_ms: np.ndarray[Any, Any] = field(default_factory=lambda: np.empty(0))
    max_compute_us: int = 0
    max_total_us: int = 0
    server_cpu_s: float | None = None

    @property
    def rate(self) -> float:
        """Steps a second."""
        return self.steps / self.seconds

    def summary(self) -> dict[str, float | int | None]:
        """Return the figures for tables and JSON."""
        cpu = None if self.server_cpu_s is None or not self.steps else self.server_cpu_s / self.steps * 1e6
        kept = {k: v for k, v in asdict(self).items() if k not in ("latencies_ms", "send_lag_ms", "server_cpu_s")}
        return {
            "p50_ms": percentile(self.latencies_ms, 50),
            "p90_ms": percentile(self.latencies_ms, 90),
            "p99_ms": percentile(self.latencies_ms, 99),
            "max_ms": percentile(self.latencies_ms, 100),
            "rate": self.rate,
            "send_lag_p99_ms": percentile(self.send_lag_ms, 99) if len(self.send_lag_ms) else None,
            "server_cpu_us_per_step": cpu,
            **kept,
        }
