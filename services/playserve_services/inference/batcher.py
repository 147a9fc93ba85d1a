"""Which slots go into the next batch: earliest deadline first over all policies, lockstep in what live leaves.

Loop's thread only; no clocks: the time is an argument.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque

from playserve_services.inference.catalog import LoadedPolicy
from playserve_services.inference.sessions import Slot

__all__ = ["Batcher"]


class _Queue:
    """The ready slots of one policy version: live ones by deadline, lockstep ones in order of arrival."""

    __slots__ = ("live", "lockstep")

    def __init__(self) -> None:
        self.live: list[tuple[int, int, Slot]] = []
        self.lockstep: deque[tuple[int, Slot]] = deque()


class Batcher:
    """Picks batches.

    Args:
        max_batch: Most slots of a batch.
        lockstep_patience_ns: A lockstep slot counts as due so long after it became ready, so that live sessions cannot
            starve it for ever.
        live_dispatch_ns: While live sessions are open, no batch that holds lockstep slots may be expected to take
            longer than this, since a live frame may arrive just after it has begun; half of it where live slots share
            the batch.
    """

    def __init__(self, max_batch: int, lockstep_patience_ns: int, live_dispatch_ns: int) -> None:
        self._max_batch = max_batch
        self._patience_ns = lockstep_patience_ns
        self._live_dispatch_ns = live_dispatch_ns
        self._queues: dict[LoadedPolicy, _Queue] = {}
        self._order = itertools.count()
        self.waiting = 0

    def add(self, slot: Slot, now_ns: int) -> None:
        """Enter a ready slot, unless it stands here already (it then keeps its earlier place)."""
        if slot.queued:
            return
        slot.queued = True
        self.waiting += 1
        queue = self._queues.get(slot.session.policy)
        if queue is None:
            queue = self._queues[slot.session.policy] = _Queue()
        if slot.session.live:
            heapq.heappush(queue.live, (slot.queue[-1].deadline_ns, next(self._order), slot))
        else:
            queue.lockstep.append((now_ns + self._patience_ns, slot))

    def _head(self, queue: _Queue) -> int | None:
        """Return the earliest deadline of a queue, after throwing out slots that are no longer ready."""
        while queue.live and not queue.live[0][2].ready():
            self._forget(heapq.heappop(queue.live)[2])
        while queue.lockstep and not queue.lockstep[0][1].ready():
            self._forget(queue.lockstep.popleft()[1])
        heads = [queue.live[0][0]] if queue.live else []
        if queue.lockstep:
            heads.append(queue.lockstep[0][0])
        return min(heads) if heads else None

    def _forget(self, slot: Slot) -> None:
        slot.queued = False
        self.waiting -= 1

    def pick(self, now_ns: int, live_open: bool) -> tuple[LoadedPolicy, list[Slot]] | None:
        """Take the slots of the next batch: one version, at least one slot; None when nothing is ready."""
        best: LoadedPolicy | None = None
        best_ns = 0
        slack_ns = 1 << 62
        for policy in list(self._queues):
            queue = self._queues[policy]
            head_ns = self._head(queue)
            if head_ns is None:
                del self._queues[policy]
                continue
            if queue.live:
                slack_ns = min(slack_ns, queue.live[0][0] - now_ns)
            if best is None or head_ns < best_ns:
                best, best_ns = policy, head_ns
        if best is None:
            return None
        return best, self._fill(best, slack_ns, live_open)

    def _fill(self, policy: LoadedPolicy, slack_ns: int, live_open: bool) -> list[Slot]:
        queue, model, most = self._queues[policy], policy.time_model, self._max_batch
        # A batch that is late whatever its size is made as big as it can be: that is what catches up.
        late = model.predict(1) * 1e9 > slack_ns
        live_limit = most if late else model.max_rows(slack_ns / 1e9, most)
        lockstep_limit = 0 if late else live_limit
        if live_open:
            lockstep_limit = min(lockstep_limit, model.max_rows(self._live_dispatch_ns / 1e9, most))
        overdue = bool(queue.lockstep) and (not queue.live or queue.lockstep[0][0] < queue.live[0][0])
        if overdue:  # one lockstep slot has a place, come what may
            lockstep_limit = max(lockstep_limit, 1)
            live_limit = min(live_limit, most - 1)
        slots: list[Slot] = []
        while queue.live and len(slots) < live_limit:
            self._take(heapq.heappop(queue.live)[2], slots)
        if slots and live_open:
            # These live frames may have waited for a whole dispatch already: half of one more is enough.
            lockstep_limit = min(lockstep_limit, model.max_rows(self._live_dispatch_ns / 2e9, most))
        room = max(lockstep_limit, len(slots) + overdue)
        while queue.lockstep and len(slots) < min(room, most):
            self._take(queue.lockstep.popleft()[1], slots)
        return slots

    def _take(self, slot: Slot, slots: list[Slot]) -> None:
        self._forget(slot)
        if slot.ready():
            slots.append(slot)
