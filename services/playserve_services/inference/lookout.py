"""What can only be seen by looking now and then: streams that nobody reads, the number of tasks, a clock that jumps."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from playserve_services.inference.metrics import Metrics

__all__ = ["Lookout"]

_log = logging.getLogger(__name__)
_JUMP_S = 1.0


def _wall_s() -> float:
    return datetime.now(UTC).timestamp()


class Lookout:
    """See the module's docstring. Event loop's thread only.

    Args:
        metrics: What it sees.
        wall_s: Wall clock in seconds.
        steady_s: Monotonic clock in seconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        wall_s: Callable[[], float] = _wall_s,
        steady_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._wall_s = wall_s
        self._steady_s = steady_s
        self._apart_s = wall_s() - steady_s()

    def look(self) -> None:
        """Look; called a few times a second."""
        metrics = self._metrics
        metrics.streams_stalled.set(sum(outbox.stalled() for outbox in metrics.outboxes))
        metrics.tasks.set(len(asyncio.all_tasks()))
        apart_s = self._wall_s() - self._steady_s()
        jumped_s, self._apart_s = apart_s - self._apart_s, apart_s
        if abs(jumped_s) > _JUMP_S:
            metrics.clock_jumps.inc()
            _log.warning("the wall clock jumped by %+.1f s; keys and certificates expire by it, games do not", jumped_s)
