"""A server that is full, or drains, sends players on to a peer that has room."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence

from playserve_services.inference.catalog import LoadedPolicy
from playserve_services.inference.handoff.metrics import HandoffMetrics
from playserve_services.inference.handoff.peers import Peer, Peers, Place, fitting

__all__ = ["Redirect"]

#: What peers said is believed for so long: a crowd of players is one question.
_FRESH_S = 1.0


class Redirect:
    """Knows which peer has room. Event loop's thread only.

    Args:
        peers: The other replicas, at addresses that players reach, too.
        metrics: Counted here.
        clock: Monotonic clock in seconds.
    """

    def __init__(self, peers: Peers, metrics: HandoffMetrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._peers = peers
        self._metrics = metrics
        self._clock = clock
        self._turn = asyncio.Lock()
        self._found: Sequence[Peer] = ()
        self._looked = -_FRESH_S

    async def __call__(self, policy: LoadedPolicy) -> str | None:
        """Return where a session of a version may be opened, or None."""
        place: Place = (policy.spec.name, policy.spec.version, policy.pool.digest)
        async with self._turn:
            if self._clock() - self._looked >= _FRESH_S:
                self._found = await self._peers.look()
                self._looked = self._clock()
        best = fitting(random.sample(list(self._found), len(self._found)), place)
        if not best:
            return None
        if place in best[0].free:
            best[0].free[place] -= 1
        self._metrics.redirected.labels(policy.spec.name).inc()
        return best[0].address
