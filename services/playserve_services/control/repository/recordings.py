"""Where recorded sessions lie, and whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from playserve_services.control.models import Recording
from playserve_services.control.repository.audit import Actor, note, now

__all__ = ["add_recording", "list_recordings"]


def add_recording(session: Session, actor: Actor, principal: str, **fields: Any) -> Recording:
    """Keep where a recording lies; `fields` are the other columns of Recording."""
    row = Recording(principal=principal, created_at=now(), **fields)
    session.add(row)
    session.flush()
    note(session, actor, "recording.added", str(row.id), after={"principal": principal, "sha256": row.sha256})
    return row


def list_recordings(
    session: Session, *, principal: str | None = None, policy: str = "", limit: int = 100
) -> Sequence[Recording]:
    """Return recordings, newest first; of one principal (None: of all) and policy (empty: of all)."""
    query = select(Recording).order_by(Recording.id.desc()).limit(limit)
    if principal is not None:
        query = query.where(Recording.principal == principal)
    if policy:
        query = query.where(Recording.policy == policy)
    return session.execute(query).scalars().all()
