"""What the routes work with: the collaborators that `app` built, and who is calling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from playserve.errors import AccessDeniedError, BadSettingError, UnauthenticatedError
from playserve_services.auth.keys import Scope, check_key, parse_key
from playserve_services.control.database import Database
from playserve_services.control.fleet import Fleet
from playserve_services.control.jobs.runner import JobRunner
from playserve_services.control.metrics import ControlMetrics
from playserve_services.control.models import ApiKeyRow
from playserve_services.control.publishing import Publisher
from playserve_services.control.repository.audit import Actor, now
from playserve_services.control.repository.keys import holds, key_of
from playserve_services.control.settings import ControlSettings

__all__ = [
    "Admin", "Anybody", "Caller", "Context", "Ctx", "MayPublish", "admin_of", "caller_of", "context_of", "publisher_of",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The collaborators of one control plane."""

    settings: ControlSettings
    database: Database
    publisher: Publisher
    fleet: Fleet
    jobs: JobRunner
    metrics: ControlMetrics


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling.

    Attributes:
        actor: For the audit.
        scopes: What they may do.
    """

    actor: Actor
    scopes: frozenset[Scope]

    @property
    def is_admin(self) -> bool:
        """Whether they may do everything."""
        return Scope.ADMIN in self.scopes

    def owns(self, principal: str) -> bool:
        """Whether something of `principal` is theirs to see and to end."""
        return self.is_admin or principal == self.actor.principal


_ANONYMOUS = Caller(Actor("anonymous"), frozenset(Scope))


def context_of(request: Request) -> Context:
    """Return the collaborators of the application that was called."""
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(context_of)]
_bearer = HTTPBearer(auto_error=False, description="An API key: psk_...", scheme_name="apiKey")


def caller_of(context: Ctx, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Caller:
    """Return who is calling.

    Raises:
        UnauthenticatedError: Keys are required, and there is none that holds.
    """
    if not context.settings.keys_required:
        return _ANONYMOUS
    if credentials is None:
        context.metrics.refused.labels("UNAUTHENTICATED").inc()
        raise UnauthenticatedError("no API key; wanted the header Authorization: Bearer psk_...")
    key = _find(context.database, credentials.credentials)
    if key is None:
        context.metrics.refused.labels("UNAUTHENTICATED").inc()
        raise UnauthenticatedError("the API key is unknown, revoked or expired")
    return key


def _find(database: Database, text: str) -> Caller | None:
    try:
        identity, _ = parse_key(text)
    except BadSettingError:
        return None
    with database.read() as session:
        row = session.get(ApiKeyRow, identity)
    # check_key takes as long where there is no such key.
    kept = {row.id: key_of(row)} if row is not None and holds(row, now()) else {}
    key = check_key(text, kept)
    return None if key is None else Caller(Actor(key.principal, key.id), key.scopes)


Anybody = Annotated[Caller, Depends(caller_of)]


def _wanting(scope: Scope, context: Context, caller: Caller) -> Caller:
    if not caller.scopes & {scope, Scope.ADMIN}:
        context.metrics.refused.labels("PERMISSION_DENIED").inc()
        have = ", ".join(sorted(caller.scopes)) or "none"
        raise AccessDeniedError(f"that needs a key with the scope {scope}; this one has: {have}")
    return caller


def admin_of(context: Ctx, caller: Anybody) -> Caller:
    """Return the caller, or raise AccessDeniedError where they are no admin."""
    return _wanting(Scope.ADMIN, context, caller)


def publisher_of(context: Ctx, caller: Anybody) -> Caller:
    """Return the caller, or raise AccessDeniedError where they may not publish."""
    return _wanting(Scope.PUBLISH, context, caller)


Admin = Annotated[Caller, Depends(admin_of)]
MayPublish = Annotated[Caller, Depends(publisher_of)]
