"""What the routes work with: the collaborators that `app` built, and who is calling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from playserve.errors import AccessDeniedError, PlayserveError, UnauthenticatedError
from playserve_services.auth.keys import Scope
from playserve_services.auth.principal import Authenticator, Credentials
from playserve_services.control.database import Database
from playserve_services.control.fleet import Fleet
from playserve_services.control.history import History
from playserve_services.control.jobs.runner import JobRunner
from playserve_services.control.metrics import ControlMetrics
from playserve_services.control.publishing import Publisher
from playserve_services.control.recordings import RecordingStore
from playserve_services.control.repository.audit import Actor
from playserve_services.control.settings import ControlSettings

__all__ = [
    "Admin", "Anybody", "Caller", "Context", "Ctx", "MayPublish", "Replicas", "authenticate", "caller_of", "context_of",
    "wanting",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The collaborators of one control plane."""

    settings: ControlSettings
    database: Database
    authenticator: Authenticator
    publisher: Publisher
    fleet: Fleet
    jobs: JobRunner
    metrics: ControlMetrics
    history: History
    recordings: RecordingStore


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


def context_of(request: Request) -> Context:
    """Return the collaborators of the application that was called."""
    context: Context = request.app.state.context
    return context


Ctx = Annotated[Context, Depends(context_of)]
_bearer = HTTPBearer(auto_error=False, description="An API key (psk_...), or a JSON Web Token.", scheme_name="apiKey")


async def authenticate(context: Context, bearer: str | None) -> Caller:
    """Return who calls with this key or token.

    Args:
        context: The control plane.
        bearer: What came; None: nothing did.

    Raises:
        UnauthenticatedError: Keys are required, and this is none that holds.
        ServerUnavailableError: It is a token, and its issuer's keys cannot be had.
        NotReadyError: The database does not answer.
    """
    try:
        if bearer is None and context.settings.keys_required:
            raise UnauthenticatedError("no key or token; wanted the header Authorization: Bearer ...")
        found = await context.authenticator.authenticate(Credentials(bearer=bearer))
    except PlayserveError as error:
        context.metrics.refused.labels(error.reason or error.code.name).inc()
        raise
    return Caller(Actor(found.name, None if found.method == "anonymous" else found.key_id), found.scopes)


async def caller_of(
    context: Ctx, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Caller:
    """Return who is calling; raises what :func:`authenticate` does."""
    return await authenticate(context, None if credentials is None else credentials.credentials)


Anybody = Annotated[Caller, Depends(caller_of)]


def wanting(scope: Scope) -> Callable[..., Caller]:
    """Return a dependency: the caller, or AccessDeniedError where they have neither `scope` nor that of an admin."""

    def check(context: Ctx, caller: Anybody) -> Caller:
        if not caller.scopes & {scope, Scope.ADMIN}:
            context.metrics.refused.labels("PERMISSION_DENIED").inc()
            have = ", ".join(sorted(caller.scopes)) or "none"
            raise AccessDeniedError(f"that needs a key with the scope {scope}; this one has: {have}")
        return caller

    return check


Admin = Annotated[Caller, Depends(wanting(Scope.ADMIN))]
MayPublish = Annotated[Caller, Depends(wanting(Scope.PUBLISH))]
#: An inference server, or an admin.
Replicas = Annotated[Caller, Depends(wanting(Scope.REPLICA))]
