"""What both sessions, sync and async, say of themselves, and the rules by which both live. No I/O."""

from __future__ import annotations

from playserve.errors import PlayserveError, StateError, TimeoutExceededError
from playserve.specs import PolicySpec
from playserve.v1 import policy_service_pb2 as ps
from playserve_client.channels import stream_was_lost
from playserve_client.results import StepResult
from playserve_client.session_core import PING_INTERVAL_S, SessionCore
from playserve_client.tracing import SessionTracer

__all__ = [
    "CLOSE_WAIT_S",
    "FIRST_BACKOFF_S",
    "LAST_BACKOFF_S",
    "SessionView",
    "ended_by",
    "may_resume",
    "ping_interval_s",
]

#: Longest wait for a server to agree to the end of a stream.
CLOSE_WAIT_S = 5.0
#: Pauses between attempts to resume double from the first to the last.
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 1.0


class SessionView:
    """Read-only facts of a session."""

    _core: SessionCore

    @property
    def spec(self) -> PolicySpec:
        """Return the spec of the policy version in use."""
        if self._core.spec is None:
            raise StateError("the session is not open yet")
        return self._core.spec

    @property
    def opened(self) -> ps.Opened:
        """Return the server's last answer to Open: limits, timeouts, seed."""
        if self._core.opened is None:
            raise StateError("the session is not open yet")
        return self._core.opened

    @property
    def session_id(self) -> str:
        """Return the public id, for operators and logs."""
        return self.opened.session_id

    @property
    def resume_token(self) -> bytes:
        """Return the secret that resumes this session, here or in another process."""
        return self.opened.resume_token

    @property
    def route(self) -> str:
        """Return the routing key of this session's streams, which load balancers may go by."""
        return self._core.route

    @property
    def address(self) -> str | None:
        """Return the "host:port" where the session lives; None: the only one that its client was given."""
        return self._core.address

    @property
    def tracer(self) -> SessionTracer | None:
        """Return what traces its steps; None: nobody does."""
        return self._core.tracer

    @property
    def seed(self) -> int:
        """Return the seed that the session was opened with."""
        return self.opened.seed

    @property
    def episode_id(self) -> int:
        """Return the episode in progress."""
        return self._core.episode_id

    @property
    def last_seq(self) -> int:
        """Return the number of the last step that was sent; 0: none."""
        return self._core.last_seq

    @property
    def last_result(self) -> StepResult | None:
        """Return the newest result that has come."""
        return self._core.last_result


def ping_interval_s(opened: ps.Opened | ps.RolloutOpened) -> float:
    """Return how long a stream may be silent before it pings, seconds."""
    return min(PING_INTERVAL_S, opened.idle_timeout_us / 3e6) if opened.idle_timeout_us else PING_INTERVAL_S


def may_resume(error: PlayserveError | None, *, moved: bool, again: bool) -> bool:
    """Return whether to dial again after a stream ended.

    Args:
        error: How it ended; None: with OK.
        moved: Whether the server had said where the session lives now.
        again: Whether this was an attempt to resume already: a server that is only coming up is then waited for.
    """
    if moved and error is None:
        return True
    coming_up = again and error is not None and (error.reason in ("NOT_READY", "DRAINING") or _timed_out(error))
    return stream_was_lost(error) or coming_up


def _timed_out(error: PlayserveError) -> bool:
    return isinstance(error, TimeoutExceededError)


def ended_by(error: PlayserveError | None, *, closing: bool) -> PlayserveError:
    """Return the error that every later call of a session or rollout raises.

    Args:
        error: How its stream ended; None: with OK.
        closing: Whether this side had closed it.
    """
    if closing:
        return StateError("it is closed")
    return error if error is not None else StateError("the server ended the stream")
