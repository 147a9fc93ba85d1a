"""API keys as they are kept: issued, looked up, revoked. The secret passes through once and stays nowhere."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from playserve.errors import BadSettingError, NotFoundError
from playserve_services.auth.keys import ApiKey, Quota, Scope, issue_key
from playserve_services.control.models import ApiKeyRow
from playserve_services.control.repository.audit import Actor, bump, note, now

__all__ = ["add_key", "holds", "key_of", "list_keys", "live_keys", "revoke_key"]


def add_key(
    session: Session,
    actor: Actor,
    principal: str,
    scopes: frozenset[Scope],
    quota: Quota | None = None,
    expires_at: datetime.datetime | None = None,
) -> tuple[str, ApiKeyRow]:
    """Issue a key; return it, to be shown once, and what is kept.

    Raises:
        BadSettingError: It would have no scope, or has expired already.
    """
    if not scopes:
        raise BadSettingError(f"a key without scopes lets nobody do anything; wanted some of {', '.join(Scope)}")
    if expires_at is not None and expires_at <= now():
        raise BadSettingError(f"expires_at {expires_at.isoformat()} is over already")
    text, kept = issue_key(principal, scopes, quota, expires_at)
    row = ApiKeyRow(
        id=kept.id, secret_sha256=kept.secret_sha256, principal=principal, scopes=sorted(scopes),
        quota=kept.quota.model_dump(mode="json"), expires_at=expires_at, created_at=now(), created_by=actor.principal,
    )  # fmt: skip
    session.add(row)
    session.flush()
    bump(session)
    after = {"principal": principal, "scopes": sorted(scopes), "quota": row.quota,
             "expires_at": expires_at.isoformat() if expires_at else None}  # fmt: skip
    note(session, actor, "key.issued", row.id, after=after)
    return text, row


def key_of(row: ApiKeyRow) -> ApiKey:
    """Return a row as the type that keys are checked by."""
    return ApiKey(
        id=row.id, secret_sha256=row.secret_sha256, principal=row.principal,
        scopes=frozenset(Scope(scope) for scope in row.scopes), quota=Quota.model_validate(row.quota),
        expires_at=row.expires_at,
    )  # fmt: skip


def holds(row: ApiKeyRow, at: datetime.datetime) -> bool:
    """Return whether a key is neither revoked nor expired."""
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > at)


def list_keys(session: Session) -> Sequence[ApiKeyRow]:
    """Return every key that ever was, oldest first."""
    return session.execute(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.id)).scalars().all()


def live_keys(session: Session) -> list[ApiKey]:
    """Return the keys that hold now, by id."""
    at = now()
    rows = session.execute(select(ApiKeyRow).where(ApiKeyRow.revoked_at.is_(None)).order_by(ApiKeyRow.id)).scalars()
    return [key_of(row) for row in rows if holds(row, at)]


def revoke_key(session: Session, actor: Actor, key_id: str) -> ApiKeyRow:
    """Revoke a key, for good; doing it again changes nothing.

    Raises:
        NotFoundError: There is none of that id.
    """
    row = session.get(ApiKeyRow, key_id)
    if row is None:
        raise NotFoundError(f"no key has the id {key_id!r}")
    if row.revoked_at is None:
        row.revoked_at = now()
        session.flush()
        bump(session)
        note(session, actor, "key.revoked", row.id, before={"principal": row.principal})
    return row
