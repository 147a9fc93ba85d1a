"""Sessions: who plays where; ending one; watching one that has consented."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Path, Query, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from playserve.errors import AccessDeniedError, SessionNotFoundError
from playserve_services.control.context import Ctx
from playserve_services.control.pages.access import CheckedViewer, Viewer, Visitor, still_signed_in
from playserve_services.control.pages.rendering import PAGE_HEADERS, render
from playserve_services.control.pages.watching import events
from playserve_services.control.repository.audit import note
from playserve_services.control.repository.replicas import get_replica
from playserve_services.control.routes import fleet as rest
from playserve_services.control.schemas import NameInPath, SessionOut

__all__ = ["router"]

router = APIRouter()

SessionId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


@router.get("/sessions")
def sessions_page(
    request: Request,
    context: Ctx,
    viewer: Visitor,
    policy: Annotated[str, Query(pattern=r"^([a-z0-9][a-z0-9._-]{0,127})?$")] = "",
) -> Response:
    """Show the sessions of the fleet that the viewer may see."""
    found = rest.get_sessions(context, viewer.caller, replica="", policy=policy)
    return render(request, "sessions.html", viewer, section="sessions", found=found, policy=policy)


def _session(context: Ctx, viewer: Viewer, name: str, session_id: str) -> SessionOut:
    """Return a session that the viewer may see; raises SessionNotFoundError otherwise."""
    found = rest.get_sessions(context, viewer.caller, replica=name, policy="")
    for row in found.sessions:
        if row.session_id == session_id:
            return row
    raise SessionNotFoundError(f"replica {name} has no session {session_id!r} that you may see")


@router.get("/sessions/{name}/{session_id}/end")
def end_page(name: NameInPath, session_id: SessionId, request: Request, context: Ctx, viewer: Visitor) -> Response:
    """Ask whether a session is really to end."""
    row = _session(context, viewer, name, session_id)
    return render(request, "end_session.html", viewer, section="sessions", row=row)


@router.post("/sessions/{name}/{session_id}/end")
def send_end(
    name: NameInPath,
    session_id: SessionId,
    request: Request,
    context: Ctx,
    viewer: CheckedViewer,
    reason: Annotated[str, Form(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = "",
) -> Response:
    """End a session."""
    rest.end_session(name, session_id, context, viewer.caller, reason or "an operator ended this session")
    return RedirectResponse(f"{request.scope['root_path']}/sessions?done=ended", 303)


@router.get("/sessions/{name}/{session_id}")
def watch_page(name: NameInPath, session_id: SessionId, request: Request, context: Ctx, viewer: Visitor) -> Response:
    """Show what a session that has consented sees and does."""
    row = _session(context, viewer, name, session_id)
    return render(request, "watch.html", viewer, section="sessions", row=row)


@router.get("/sessions/{name}/{session_id}/events")
def watch_events(
    name: NameInPath, session_id: SessionId, request: Request, context: Ctx, viewer: Visitor
) -> StreamingResponse:
    """Stream what a session sees and does, as server-sent events."""
    row = _session(context, viewer, name, session_id)
    if not row.facts.get("watch"):
        raise AccessDeniedError(f"the player of session {session_id} does not consent to being watched")
    with context.database.change() as session:
        replica = get_replica(session, name)
        note(session, viewer.caller.actor, "session.watched", f"{name}/{session_id}",
             after={"principal": row.principal, "policy": row.policy})  # fmt: skip
    stream = events(context.fleet, replica, session_id, row.policy, lambda: still_signed_in(request, context))
    return StreamingResponse(stream, media_type="text/event-stream", headers=PAGE_HEADERS)
