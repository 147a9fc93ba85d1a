"""Inference servers as their heartbeats tell of them, what they are told, and their sessions as last reported."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from playserve.errors import NotFoundError
from playserve.specs import check_policy_name
from playserve_services.control.models import Replica, ReplicaSession
from playserve_services.control.repository.audit import Actor, bump, note, now, outrun

__all__ = [
    "Beat", "SessionFacts", "forget_replica", "get_replica", "heartbeat", "is_fresh", "list_replicas", "list_sessions",
    "put_sessions", "remove_session", "want_drain",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """One heartbeat; see :class:`playserve_services.control.models.Replica`."""

    instance: str
    address: str
    admin_address: str
    server_version: str
    slots_total: int
    slots_used: int
    versions: Mapping[str, Sequence[str]]
    view_revision: int
    draining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFacts:
    """One session of a replica."""

    session_id: str
    principal: str
    policy: str
    facts: Mapping[str, Any]


def heartbeat(session: Session, actor: Actor, name: str, beat: Beat) -> Replica:
    """Register a replica, or renew what is known of it.

    A new instance under an old name is a restarted server: it is not told to drain any more. A replica that follows a
    newer view than there is knew a registry that was lost: this one counts on from there.

    Raises:
        BadSettingError: The name is none.
    """
    at = now()
    row = session.get(Replica, check_policy_name(name))
    known = {"address": beat.address, "admin_address": beat.admin_address, "instance": beat.instance}
    if row is None:
        row = Replica(name=name, drain_wanted=False, registered_at=at)
        _fill(row, beat, at)
        session.add(row)
        note(session, actor, "replica.registered", name, after=known)
    else:
        before = {key: getattr(row, key) for key in known}
        restarted = row.instance != beat.instance
        _fill(row, beat, at)
        if restarted and row.drain_wanted:
            row.drain_wanted = False
            bump(session)
        if before != known:
            note(session, actor, "replica.registered", name, before=before, after=known)
    session.flush()
    outrun(session, actor, beat.view_revision)
    return row


def _fill(row: Replica, beat: Beat, at: datetime.datetime) -> None:
    row.instance, row.address, row.admin_address = beat.instance, beat.address, beat.admin_address
    row.server_version, row.view_revision, row.draining = beat.server_version, beat.view_revision, beat.draining
    row.slots_total, row.slots_used = beat.slots_total, beat.slots_used
    row.versions = {policy: list(versions) for policy, versions in beat.versions.items()}
    row.heartbeat_at = at


def list_replicas(session: Session) -> Sequence[Replica]:
    """Return every replica, by name."""
    return session.execute(select(Replica).order_by(Replica.name)).scalars().all()


def get_replica(session: Session, name: str) -> Replica:
    """Return one replica.

    Raises:
        BadSettingError: That can be no name.
        NotFoundError: None of that name has been heard of.
    """
    row = session.get(Replica, check_policy_name(name))
    if row is None:
        known = ", ".join(row.name for row in list_replicas(session)) or "none"
        raise NotFoundError(f"no replica {name!r} has been heard of; there are: {known}")
    return row


def is_fresh(row: Replica, timeout_s: float) -> bool:
    """Return whether a replica was heard of within `timeout_s` seconds. Both times are of this side's wall clock."""
    return abs((now() - row.heartbeat_at).total_seconds()) <= timeout_s


def want_drain(session: Session, actor: Actor, name: str, *, wanted: bool) -> Replica:
    """Have the view tell a replica to drain, or not any more; raises as :func:`get_replica`."""
    row = get_replica(session, name)
    if row.drain_wanted != wanted:
        row.drain_wanted = wanted
        session.flush()
        bump(session)
        note(session, actor, "replica.drain", name, before={"wanted": not wanted}, after={"wanted": wanted})
    return row


def forget_replica(session: Session, actor: Actor, name: str) -> None:
    """Forget a replica and its sessions; it is back with its next heartbeat. Raises as :func:`get_replica`."""
    row = get_replica(session, name)
    drained = row.drain_wanted
    session.execute(delete(ReplicaSession).where(ReplicaSession.replica == name))
    session.delete(row)
    session.flush()
    if drained:
        bump(session)
    note(session, actor, "replica.forgotten", name, before={"address": row.address})


def put_sessions(session: Session, replica: str, sessions: Sequence[SessionFacts]) -> None:
    """Replace what is known of a replica's sessions; of a replica that was forgotten meanwhile, nothing is kept."""
    session.execute(delete(ReplicaSession).where(ReplicaSession.replica == replica))
    if session.get(Replica, replica) is None:
        return
    at = now()
    for item in sessions:
        session.add(
            ReplicaSession(
                replica=replica, session_id=item.session_id, principal=item.principal, policy=item.policy,
                facts=dict(item.facts), reported_at=at,
            )
        )  # fmt: skip
    session.flush()


def list_sessions(session: Session, replica: str = "") -> Sequence[ReplicaSession]:
    """Return the sessions as last reported, of one replica or of all."""
    query = select(ReplicaSession).order_by(ReplicaSession.replica, ReplicaSession.session_id)
    if replica:
        query = query.where(ReplicaSession.replica == replica)
    return session.execute(query).scalars().all()


def remove_session(session: Session, actor: Actor, replica: str, session_id: str, reason: str) -> None:
    """Note that a session was ended."""
    session.execute(
        delete(ReplicaSession).where(ReplicaSession.replica == replica, ReplicaSession.session_id == session_id)
    )
    note(session, actor, "session.ended", f"{replica}/{session_id}", after={"reason": reason})
