"""Sessions on their way to another server, and where those live now that have gone. Event loop's thread only; no I/O.

A move begins (:meth:`Moves.begin`) while the game goes on; at its end the session stands still (:meth:`Moves.hold`),
and then it leaves (:meth:`Moves.leave`), or stays and goes on as if nothing had been (:meth:`Moves.stay`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from playserve.errors import AccessDeniedError, StateError
from playserve_services.inference.sessions import EndReason, Session, SessionState

if TYPE_CHECKING:
    from playserve_services.inference.core import InferenceCore

__all__ = ["Moves", "NewHome"]


@dataclass(frozen=True, slots=True)
class NewHome:
    """Where a session lives that has moved.

    Attributes:
        address: "host:port".
        token: Resumes it there.
    """

    address: str
    token: bytes


class Moves:
    """See the module's docstring.

    Args:
        core: Owns the sessions.
        clock_ns: Monotonic clock.
        window_ns: How long it is told where a session has gone.
    """

    def __init__(self, core: InferenceCore, clock_ns: Callable[[], int], window_ns: int) -> None:
        self._core = core
        self._clock_ns = clock_ns
        self._window_ns = window_ns
        self._gone: dict[bytes, tuple[str, NewHome, int]] = {}  # by the token of before: principal, where, until
        self._watchers: dict[str, list[Callable[[], None]]] = {}

    def __len__(self) -> int:
        """Return of how many sessions it is told where they have gone."""
        return len(self._gone)

    def begin(self, session: Session) -> None:
        """Note that a session is being moved; it plays on.

        Raises:
            StateError: It is a rollout, which cannot be resumed and so cannot move; or it is closing.
        """
        if session.rollout or session.state not in (SessionState.OPEN, SessionState.DETACHED):
            what = "a rollout" if session.rollout else session.state.value
            raise StateError(f"session {session.session_id} is {what} and cannot move")
        session.move_to(SessionState.MOVING)

    def hold(self, session: Session, idle: Callable[[], bool]) -> None:
        """Let a moving session stand still once nothing of it is in the engine; what arrives from then on waits.

        `idle` is called then, and also if the session has ended; it says whether that is still wanted.
        """

        def stop() -> None:
            if idle() and session.state is SessionState.MOVING:
                session.held = session.slots[0].busy = True

        self._core.when_idle(session, stop)

    def stay(self, session: Session) -> None:
        """Go on with a session that did not move. One that is over, or closing, is left as it is."""
        held, session.held = session.held, False
        if session.state is SessionState.MOVING:
            attached = session.on_end is not None
            session.move_to(SessionState.OPEN if attached else SessionState.DETACHED)
            session.detached_ns = self._clock_ns()
        if held and not session.ended:
            session.slots[0].busy = False
            self._core.let_go(session)
        self._over(session)

    def leave(self, session: Session, home: NewHome) -> None:
        """End a moving session, which lives elsewhere now; its player is told where, now or when they ask."""
        self._gone[session.resume_token] = (session.principal, home, self._clock_ns() + self._window_ns)
        session.held = False
        if session.on_moved is not None:
            session.on_moved(home.address, home.token)
        self._core.end(session, EndReason.MOVED)
        self._over(session)

    def where(self, token: bytes, principal: str) -> NewHome | None:
        """Return where the session of a token has gone; None: it has not.

        Raises:
            AccessDeniedError: It belongs to somebody else.
        """
        whose, home, _ = self._gone.get(token, ("", None, 0))
        if home is not None and whose != principal:
            raise AccessDeniedError("that session belongs to somebody else")
        return home

    def when_over(self, session: Session, callback: Callable[[], None]) -> None:
        """Call `callback` once the session is not moving any more; at once if that is so now."""
        if session.state is not SessionState.MOVING:
            callback()
        else:
            self._watchers.setdefault(session.session_id, []).append(callback)

    def _over(self, session: Session) -> None:
        for callback in self._watchers.pop(session.session_id, []):
            callback()

    def tick(self) -> None:
        """Forget those who have gone so long ago that nobody will ask."""
        now_ns = self._clock_ns()
        for token in [token for token, (_, _, until_ns) in self._gone.items() if until_ns <= now_ns]:
            del self._gone[token]
