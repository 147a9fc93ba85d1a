"""AdminService: what an operator can see and do on this server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import grpc

from playserve.errors import AccessDeniedError, PlayserveError, SessionClosedError
from playserve.v1 import admin_service_pb2 as ad
from playserve.v1 import admin_service_pb2_grpc
from playserve.v1 import policy_service_pb2 as ps
from playserve_services.aborting import abort
from playserve_services.auth.gate import Caller
from playserve_services.auth.keys import Scope
from playserve_services.inference.core import InferenceCore
from playserve_services.inference.sessions import EndReason, Session, SessionState
from playserve_services.inference.watching import Watching

__all__ = ["AdminServicer"]

_audit = logging.getLogger("playserve.audit")

Context = grpc.aio.ServicerContext[Any, Any]

_STATES = {
    SessionState.OPEN: ad.SESSION_STATE_OPEN,
    SessionState.DETACHED: ad.SESSION_STATE_DETACHED,
    SessionState.MOVING: ad.SESSION_STATE_MOVING,
    SessionState.DRAINING: ad.SESSION_STATE_DRAINING,
}


def _info(session: Session, now_ns: int) -> ad.SessionInfo:
    settings = session.settings
    return ad.SessionInfo(
        session_id=session.session_id,
        principal=session.principal,
        policy=session.policy.spec.name,
        version=session.policy.spec.version,
        state=_STATES[session.state],
        pace=ps.PACE_LIVE if session.live else ps.PACE_LOCKSTEP,
        age_us=(now_ns - session.opened_ns) // 1000,
        idle_us=(now_ns - session.heard_ns) // 1000,
        steps=session.steps,
        dropped=session.frames_dropped,
        consent=ps.Consent(watch=settings.watch, record=settings.record),
        client=session.client,
        num_envs=len(session.slots),
    )


class AdminServicer(admin_service_pb2_grpc.AdminServiceServicer):
    """Serves `playserve.v1.AdminService`.

    Args:
        core: Owns the sessions.
        drain: Begins a drain with a grace in seconds, or with the server's own when None.
        caller: Says who makes the call that is being served.
        watching: Who watches sessions.
    """

    def __init__(
        self,
        core: InferenceCore,
        drain: Callable[[float | None], None],
        caller: Callable[[], Caller],
        watching: Watching,
    ) -> None:
        self._core = core
        self._drain = drain
        self._caller = caller
        self._watching = watching
        self._started_ns = time.monotonic_ns()

    async def GetStatus(self, request: ad.GetStatusRequest, context: Context) -> ad.GetStatusResponse:
        """Return slots, sessions and versions."""
        catalog = self._core.catalog
        return ad.GetStatusResponse(
            server_version=version("playserve"),
            draining=self._core.draining,
            uptime_us=(time.monotonic_ns() - self._started_ns) // 1000,
            policies=[p.to_proto(catalog.aliases_of(p)) for p in catalog],
            sessions=len(self._core),
        )

    async def ListSessions(self, request: ad.ListSessionsRequest, context: Context) -> ad.ListSessionsResponse:
        """Return the sessions, oldest first."""
        now_ns = time.monotonic_ns()
        sessions = [s for s in self._core.sessions() if request.policy in ("", s.policy.spec.name)]
        return ad.ListSessionsResponse(sessions=[_info(s, now_ns) for s in sessions])

    async def EndSession(self, request: ad.EndSessionRequest, context: Context) -> ad.EndSessionResponse:
        """End one session: an admin anybody's, everybody else their own."""
        try:
            session = self._find(request.session_id)
        except PlayserveError as error:
            await abort(context, error)
            raise
        reason = request.reason or "an operator ended this session"
        _audit.info("%s ended session %s of %s: %s", self._caller().name, session.session_id, session.principal, reason)
        self._core.end(session, EndReason.ENDED_BY_OPERATOR, SessionClosedError(reason))
        return ad.EndSessionResponse()

    async def Drain(self, request: ad.DrainRequest, context: Context) -> ad.DrainResponse:
        """Begin a drain."""
        _audit.info("%s began a drain", self._caller().name)
        self._drain(request.grace_us / 1e6 if request.grace_us else None)
        return ad.DrainResponse(sessions=len(self._core))

    async def WatchSession(self, request: ad.WatchSessionRequest, context: Context) -> None:  # type: ignore[override]
        """Show a session whose player has consented, until it is over: to an admin, or to its player."""
        try:
            session = self._find(request.session_id)
            with self._watching.watch(session) as watcher:
                who, whom = self._caller().name, f"session {session.session_id} of {session.principal}"
                _audit.info("%s watches %s", who, whom)
                try:
                    await context.send_initial_metadata(())  # from here on nothing is missed
                    async for event in watcher.events():
                        await context.write(event)
                finally:
                    _audit.info("%s no longer watches %s; %d events were left out", who, whom, watcher.left_out)
        except PlayserveError as error:
            await abort(context, error)

    def _find(self, session_id: str) -> Session:
        """Return a session that the caller may see and end.

        Raises:
            SessionNotFoundError: There is none of this id.
            AccessDeniedError: It is somebody else's, and the caller is no admin.
        """
        session = self._core.find(session_id)
        caller = self._caller()
        # Whoever shows nothing is not known to be the one who opened it.
        owner = caller.name == session.principal and caller.principal.method != "anonymous"
        if not owner and not caller.principal.may(Scope.ADMIN):
            raise AccessDeniedError(f"session {session_id} belongs to somebody else")
        return session
