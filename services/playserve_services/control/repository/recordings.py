"""Where recorded sessions lie, and whose they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from playserve.errors import NotFoundError
from playserve_services.control.models import Recording
from playserve_services.control.repository.audit import Actor, note, now

__all__ = ["add_recording", "find_recording", "get_recording", "list_recordings", "remove_recording"]


def add_recording(session: Session, actor: Actor, principal: str, **fields: Any) -> Recording:
    """Keep where a recording lies; `fields` are the other columns of Recording."""
    row = Recording(principal=principal, created_at=now(), **fields)
    session.add(row)
    session.flush()
    note(session, actor, "recording.added", str(row.id), after={"principal": principal, "sha256": row.sha256})
    return row


def find_recording(session: Session, principal: str, url: str) -> Recording | None:
    """Return a principal's recording by where it lies; None: there is none."""
    query = select(Recording).where(Recording.principal == principal, Recording.url == url).order_by(Recording.id)
    return session.execute(query).scalars().first()


def get_recording(session: Session, recording_id: int, principal: str | None) -> Recording:
    """Return one recording.

    Args:
        session: Of a read or a change.
        recording_id: Its id.
        principal: Whose it must be; None: whosever.

    Raises:
        NotFoundError: There is none, or it is somebody else's, which is not told apart.
    """
    row = session.get(Recording, recording_id)
    if row is None or principal not in (None, row.principal):
        raise NotFoundError(f"there is no recording {recording_id}")
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


def remove_recording(session: Session, actor: Actor, row: Recording) -> bool:
    """Forget a recording; return whether nobody else has one at the same place."""
    session.delete(row)
    session.flush()
    note(session, actor, "recording.removed", str(row.id), before={"principal": row.principal, "sha256": row.sha256})
    others = select(func.count()).select_from(Recording).where(Recording.url == row.url)
    return session.execute(others).scalar_one() == 0
