"""Replicas and their sessions. Replicas register themselves by heartbeats; calls to them go to their AdminService."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from playserve.errors import AccessDeniedError, PlayserveError, SessionNotFoundError
from playserve_services.control.context import Admin, Anybody, Context, Ctx, Replicas
from playserve_services.control.models import Replica
from playserve_services.control.problems import RESPONSES
from playserve_services.control.repository.audit import revision
from playserve_services.control.repository.replicas import (
    forget_replica,
    get_replica,
    heartbeat,
    is_fresh,
    list_replicas,
    list_sessions,
    put_sessions,
    remove_session,
    want_drain,
)
from playserve_services.control.schemas import (
    DrainIn,
    DrainOut,
    EndedOut,
    HeartbeatIn,
    HeartbeatOut,
    NameInPath,
    ReplicaOut,
    SessionOut,
    SessionsOut,
    Unreachable,
)

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["fleet"], responses=RESPONSES)


def _out(context: Context, row: Replica) -> ReplicaOut:
    return ReplicaOut.of(row, fresh=is_fresh(row, context.settings.replica_timeout_s))


@router.get("/replicas")
def get_replicas(context: Ctx, caller: Anybody) -> list[ReplicaOut]:
    """Return every replica, by name."""
    with context.database.read() as session:
        return [_out(context, row) for row in list_replicas(session)]


@router.get("/replicas/{name}")
def get_one_replica(name: NameInPath, context: Ctx, caller: Anybody) -> ReplicaOut:
    """Return one replica."""
    with context.database.read() as session:
        return _out(context, get_replica(session, name))


@router.put("/replicas/{name}")
def put_replica(name: NameInPath, body: HeartbeatIn, context: Ctx, caller: Replicas) -> HeartbeatOut:
    """Take a replica's heartbeat."""
    if body.figures is not None:
        context.history.add(name, body.instance, body.figures.counts())
    with context.database.change() as session:
        row = heartbeat(session, caller.actor, name, body.beat())
        return HeartbeatOut(drain=row.drain_wanted, revision=revision(session))


@router.delete("/replicas/{name}", status_code=204)
def delete_replica(name: NameInPath, context: Ctx, caller: Admin) -> None:
    """Forget a replica; it is back with its next heartbeat."""
    with context.database.change() as session:
        forget_replica(session, caller.actor, name)


@router.post("/replicas/{name}/drain")
def drain_replica(name: NameInPath, context: Ctx, caller: Admin, body: DrainIn | None = None) -> DrainOut:
    """Have a replica take no new sessions: by the view, and at once where it answers."""
    with context.database.change() as session:
        row = want_drain(session, caller.actor, name, wanted=True)
    try:
        playing = context.fleet.drain(row, None if body is None else body.grace_s)
    except PlayserveError as error:
        return DrainOut(name=name, drain_wanted=True, told=False, sessions=None, problem=str(error))
    return DrainOut(name=name, drain_wanted=True, told=True, sessions=playing)


@router.delete("/replicas/{name}/drain")
def undo_drain(name: NameInPath, context: Ctx, caller: Admin) -> ReplicaOut:
    """Take the drain out of the view. A server that has begun to drain goes on; its restart takes sessions again."""
    with context.database.change() as session:
        return _out(context, want_drain(session, caller.actor, name, wanted=False))


@router.get("/sessions")
def get_sessions(
    context: Ctx,
    caller: Anybody,
    replica: Annotated[str, Query(pattern=r"^([a-z0-9][a-z0-9._-]{0,127})?$")] = "",
    policy: Annotated[str, Query(pattern=r"^([a-z0-9][a-z0-9._-]{0,127})?$")] = "",
) -> SessionsOut:
    """Return the sessions of the fleet; without an admin's key one's own.

    Replicas are asked now; of those that do not answer, the sessions are as last reported, and they are named.
    """
    with context.database.read() as session:
        replicas = [get_replica(session, replica)] if replica else list_replicas(session)
    timeout_s = context.settings.replica_timeout_s
    answers = context.fleet.sessions([row for row in replicas if is_fresh(row, timeout_s) and row.admin_address])
    unreachable = [
        Unreachable(replica=name, reason=answer.reason or answer.code.name, detail=str(answer))
        for name, answer in answers.items()
        if isinstance(answer, PlayserveError)
    ]
    unreachable += [
        Unreachable(replica=row.name, reason="UNAVAILABLE", detail="silent, or without an admin address")
        for row in replicas
        if row.name not in answers
    ]
    told = {name: answer for name, answer in answers.items() if not isinstance(answer, PlayserveError)}
    # Who only looks takes no turn among those who change something, unless there is news.
    with context.database.change() if told else context.database.read() as session:
        for name, sessions in told.items():
            put_sessions(session, name, sessions)
        rows = list_sessions(session, replica)
    shown = [row for row in rows if policy in ("", row.policy) and caller.owns(row.principal)]
    return SessionsOut(sessions=[SessionOut.of(row) for row in shown], unreachable=unreachable)


@router.delete("/replicas/{name}/sessions/{session_id}")
def end_session(
    name: NameInPath,
    session_id: Annotated[str, Path(pattern=r"^[A-Za-z0-9_.-]{1,128}$")],
    context: Ctx,
    caller: Anybody,
    reason: Annotated[str, Query(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = "an operator ended this session",
) -> EndedOut:
    """End a session: an admin anybody's, others their own."""
    with context.database.read() as session:
        row = get_replica(session, name)
    if not caller.is_admin:
        _check_owner(context, caller, row, session_id)
    context.fleet.end_session(row, session_id, reason)
    with context.database.change() as session:
        remove_session(session, caller.actor, name, session_id, reason)
    return EndedOut(replica=name, session_id=session_id)


def _check_owner(context: Context, caller: Anybody, row: Replica, session_id: str) -> None:
    answer = context.fleet.sessions([row])[row.name]
    if isinstance(answer, PlayserveError):
        raise answer
    owner = next((item.principal for item in answer if item.session_id == session_id), None)
    if owner is None:
        raise SessionNotFoundError(f"replica {row.name} has no session {session_id!r}")
    if not caller.owns(owner):
        raise AccessDeniedError(f"session {session_id!r} belongs to somebody else")
