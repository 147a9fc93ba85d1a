"""Watching a session: who may see it gets its steps as they came, and their answers. The player never waits for them.

Everything runs on the event loop's thread. A watcher who reads slowly misses events; one whose session's player takes
the consent back sees nothing from then on, not even what had been laid up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator

from playserve.errors import AccessDeniedError, QuotaExceededError
from playserve.v1 import admin_service_pb2 as ad
from playserve.v1 import policy_service_pb2 as ps
from playserve_services.inference.sessions import Session

__all__ = ["Watcher", "Watching"]

#: So many events wait for a watcher; then the oldest are left out. At 20 Hz these are 0.4 s.
_MOST_EVENTS = 8
#: So many steps wait for their answer.
_MOST_STEPS = 16
_MOST_WATCHERS = 8
_LOOK_S = 0.5


class Watcher:
    """What one watcher has not read yet.

    Args:
        session: Who is watched.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.left_out = 0
        self._events: deque[ad.WatchSessionResponse] = deque()
        self._steps: dict[int, ps.Step] = {}
        self._woken = asyncio.Event()

    def step(self, step: ps.Step) -> None:
        """A step arrived. It is shown with its answer, or once it is clear that there will be none."""
        if step.observe_only:
            self._show(step)
            return
        self._steps[step.seq] = step
        if len(self._steps) > _MOST_STEPS:
            self._show(self._steps.pop(next(iter(self._steps))))

    def result(self, result: ps.StepResult) -> None:
        """An answer leaves; the steps before it that have none will not get one."""
        for seq in [seq for seq in self._steps if seq < result.seq]:
            self._show(self._steps.pop(seq))
        step = self._steps.pop(result.seq, None)
        if step is not None:  # else it came before anybody watched, or is a repeat
            self._show(step, result)

    def wake(self) -> None:
        """Let :meth:`events` look at the session again."""
        self._woken.set()

    def _show(self, step: ps.Step, result: ps.StepResult | None = None) -> None:
        self._events.append(ad.WatchSessionResponse(step=step, result=result))
        if len(self._events) > _MOST_EVENTS:
            self._events.popleft()
            self.left_out += 1
        self._woken.set()

    async def events(self) -> AsyncIterator[ad.WatchSessionResponse]:
        """Yield what happens until the session is over.

        Raises:
            AccessDeniedError: The player took the consent back.
        """
        while not self.session.ended:
            _check_consent(self.session)
            if self._events:
                yield self._events.popleft()
                continue
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), _LOOK_S)


class Watching:
    """Who watches whom on this server. Truth value: whether anybody watches at all."""

    def __init__(self) -> None:
        self._watchers: dict[str, list[Watcher]] = {}

    def __len__(self) -> int:
        """Return how many watch."""
        return sum(map(len, self._watchers.values()))

    def __bool__(self) -> bool:
        """Whether anybody watches; asked at each step, so that nobody's game pays for what nobody sees."""
        return bool(self._watchers)

    @contextlib.contextmanager
    def watch(self, session: Session) -> Iterator[Watcher]:
        """Watch a session while the context lasts.

        Raises:
            AccessDeniedError: Its player has not consented. Rollouts never do.
            QuotaExceededError: Eight watch it already.
        """
        _check_consent(session)
        watchers = self._watchers.setdefault(session.session_id, [])
        if len(watchers) >= _MOST_WATCHERS:
            raise QuotaExceededError(f"session {session.session_id} has {_MOST_WATCHERS} watchers, which is the most")
        watcher = Watcher(session)
        watchers.append(watcher)
        try:
            yield watcher
        finally:
            watchers.remove(watcher)
            if not watchers:
                self._watchers.pop(session.session_id, None)

    def step(self, session: Session, step: ps.Step) -> None:
        """Tell a session's watchers of a step that the server took."""
        for watcher in self._of(session):
            watcher.step(step)

    def result(self, session: Session, result: ps.StepResult) -> None:
        """Tell a session's watchers of an answer."""
        for watcher in self._of(session):
            watcher.result(result)

    def _of(self, session: Session) -> list[Watcher]:
        watchers = self._watchers.get(session.session_id, [])
        if session.settings.watch:
            return watchers
        for watcher in watchers:
            watcher.wake()  # the consent was taken back
        return []


def _check_consent(session: Session) -> None:
    if not session.settings.watch:
        raise AccessDeniedError(f"the player of session {session.session_id} does not consent to being watched")
