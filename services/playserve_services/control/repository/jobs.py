"""Jobs as the registry knows them, and the states that they go through.

::

    queued -> running -> succeeded | failed | cancelled | lost
    queued -> cancelled
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from playserve.errors import NotFoundError, StateError
from playserve_services.control.models import Job
from playserve_services.control.repository.audit import Actor, note, now

__all__ = ["ENDED", "JobState", "add_job", "claim_next", "end_job", "get_job", "list_jobs", "want_cancel"]

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled", "lost"]
#: States that do not change any more.
ENDED = ("succeeded", "failed", "cancelled", "lost")


def add_job(session: Session, actor: Actor, kind: str, request: Mapping[str, Any], owner: str) -> Job:
    """Add a job that waits."""
    row = Job(
        id=secrets.token_hex(8), kind=kind, request=dict(request), state="queued", owner=owner, message="",
        cancel_wanted=False, created_at=now(), created_by=actor.principal,
    )  # fmt: skip
    session.add(row)
    session.flush()
    note(session, actor, "job.created", row.id, after={"kind": kind, "request": row.request})
    return row


def get_job(session: Session, job_id: str) -> Job:
    """Return a job, or raise NotFoundError."""
    row = session.get(Job, job_id)
    if row is None:
        raise NotFoundError(f"there is no job {job_id!r}")
    return row


def list_jobs(session: Session, *, state: str = "", owner: str = "", limit: int = 100) -> Sequence[Job]:
    """Return jobs, newest first; of one state or owner, where one is given."""
    query = select(Job).order_by(Job.created_at.desc(), Job.id).limit(limit)
    if state:
        query = query.where(Job.state == state)
    if owner:
        query = query.where(Job.owner == owner)
    return session.execute(query).scalars().all()


def claim_next(session: Session, owner: str) -> Job | None:
    """Set the oldest waiting job of an owner to running and return it; None where none waits."""
    query = select(Job).where(Job.state == "queued", Job.owner == owner).order_by(Job.created_at, Job.id).limit(1)
    row = session.execute(query).scalars().first()
    if row is not None:
        row.state, row.started_at = "running", now()
        session.flush()
    return row


def want_cancel(session: Session, actor: Actor, job_id: str) -> Job:
    """Cancel a job: at once where it waits, else it is told to end.

    Raises:
        NotFoundError: There is none.
        StateError: It has ended.
    """
    row = get_job(session, job_id)
    if row.state in ENDED:
        raise StateError(f"job {job_id} has ended already: {row.state}")
    if not row.cancel_wanted:
        row.cancel_wanted = True
        note(session, actor, "job.cancelled", row.id, before={"state": row.state})
    if row.state == "queued":
        end_job(session, row, "cancelled", "cancelled before it began")
    session.flush()
    return row


def end_job(session: Session, row: Job, state: JobState, message: str, exit_status: int | None = None) -> None:
    """Set the last state of a job."""
    row.state, row.message, row.exit_status, row.ended_at = state, message, exit_status, now()
    session.flush()
