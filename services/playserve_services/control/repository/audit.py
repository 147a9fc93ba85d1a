"""Who changed what; and the registry's revision, which grows with what the view shows."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from playserve_services.control.models import AuditEntry, Registry

__all__ = ["SYSTEM", "Actor", "bump", "list_audit", "note", "now", "outrun", "revision"]


@dataclass(frozen=True, slots=True)
class Actor:
    """Who makes a change.

    Attributes:
        principal: Whom the key stands for.
        key_id: Which key or token; None: nobody was asked for one.
    """

    principal: str
    key_id: str | None = None


#: The control plane itself.
SYSTEM = Actor("control")
# Whatever is beyond that was not counted; and what heartbeats may name ends not far above.
_MOST_FOLLOWED = 2**52


def now() -> datetime.datetime:
    """Return the time in UTC, for records."""
    return datetime.datetime.now(datetime.UTC)


def revision(session: Session) -> int:
    """Return the registry's revision."""
    return session.execute(select(Registry.revision).where(Registry.id == 1)).scalar_one()


def bump(session: Session) -> int:
    """Count one more change that the view shows; return the new revision."""
    session.execute(update(Registry).where(Registry.id == 1).values(revision=Registry.revision + 1))
    return revision(session)


def outrun(session: Session, actor: Actor, known: int) -> None:
    """Count on from a revision that somebody follows and this registry has not reached.

    Replicas never go back to an older view. After the loss of a database the new registry begins at zero, and they
    would not listen to it until it had counted up to what they know.

    Args:
        session: Of a change.
        actor: Who follows it.
        known: That revision.
    """
    before = revision(session)
    if not before < known <= _MOST_FOLLOWED:
        return
    session.execute(update(Registry).where(Registry.id == 1).values(revision=known + 1))
    note(session, actor, "registry.outrun", "registry", before={"revision": before}, after={"revision": known + 1})


def note(
    session: Session,
    actor: Actor,
    action: str,
    subject: str,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Add a line to the audit. `before` and `after` hold no secrets: callers say what goes in, field by field."""
    entry = AuditEntry(
        at=now(), principal=actor.principal, key_id=actor.key_id, action=action, subject=subject,
        before=dict(before or {}), after=dict(after or {}),
    )  # fmt: skip
    session.add(entry)
    session.flush()


def list_audit(
    session: Session, *, subject: str = "", action: str = "", before_id: int | None = None, limit: int = 100
) -> Sequence[AuditEntry]:
    """Return lines of audit, newest first.

    Args:
        session: Of a read.
        subject: Only of this subject; empty: all.
        action: Only of this action; empty: all.
        before_id: Only older ones than this, for the next page.
        limit: At most so many.
    """
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if subject:
        query = query.where(AuditEntry.subject == subject)
    if action:
        query = query.where(AuditEntry.action == action)
    if before_id is not None:
        query = query.where(AuditEntry.id < before_id)
    return session.execute(query).scalars().all()
