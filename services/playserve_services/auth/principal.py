"""Who calls, and how that is found out: the interface of every way to authenticate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from playserve.errors import UnauthenticatedError
from playserve_services.auth.keys import Quota, Scope

__all__ = ["Anonymous", "AuthMethod", "Authenticator", "Credentials", "FirstOf", "OpenDoor", "Principal", "now_utc"]

#: Name of the way by which somebody was authenticated.
AuthMethod = str


def now_utc() -> datetime:
    """Return the wall clock's time; keys and tokens expire by it."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who calls.

    Attributes:
        name: Sessions and recordings belong to it, whichever of its keys was used.
        scopes: What it may do.
        method: How it was authenticated: "anonymous", "api_key", "jwt" or "certificate".
        key_id: Names the key or token in logs and quotas; it is no secret.
        quota: Limits of that key.
        expires_at: With a time zone; None: never by itself.
    """

    name: str
    scopes: frozenset[Scope]
    method: AuthMethod
    key_id: str
    quota: Quota = field(default_factory=Quota)
    expires_at: datetime | None = None

    def may(self, scope: Scope) -> bool:
        """Whether it may do that. An admin may do anything: it could give itself a key for it."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def expired(self, now: datetime) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and now >= self.expires_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a call brought.

    Attributes:
        bearer: Of the metadata ``authorization: Bearer ...``; never in a repr, and so in no log. Empty: there is such
            metadata, and it is of another form, or came twice; None: there is none.
        certificate: The caller's verified certificate as PEM; None: it showed none.
        subject: That certificate's common name.
    """

    bearer: str | None = field(default=None, repr=False)
    certificate: bytes | None = field(default=None, repr=False)
    subject: str = ""


class Authenticator(Protocol):
    """One way to find out who calls. Event loop's thread only."""

    @property
    def methods(self) -> Sequence[AuthMethod]:
        """`Principal.method` of those that it finds."""
        ...

    def handles(self, credentials: Credentials) -> bool:
        """Whether these credentials are of its kind."""
        ...

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Return who calls.

        Raises:
            UnauthenticatedError: The credentials are not good. The message repeats nothing of them.
        """
        ...

    def holds(self, principal: Principal) -> bool:
        """Whether what `principal` was authenticated with is still good: neither expired nor revoked."""
        ...


class Anonymous:
    """Everybody without credentials is one and the same principal.

    Args:
        scopes: What everybody may do.
    """

    methods: Sequence[AuthMethod] = ("anonymous",)

    def __init__(self, scopes: frozenset[Scope] = frozenset(Scope)) -> None:
        self._principal = Principal(name="anonymous", scopes=scopes, method="anonymous", key_id="anonymous")

    def handles(self, credentials: Credentials) -> bool:
        """Take whoever shows nothing; a key or token that is shown must be good."""
        return credentials.bearer is None

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Return the one principal that there is."""
        return self._principal

    def holds(self, principal: Principal) -> bool:
        """Nothing can end it."""
        return True


class OpenDoor(Anonymous):
    """Of a server that knows no keys: a key that a client sends all the same is not looked at."""

    def handles(self, credentials: Credentials) -> bool:
        """Take everybody."""
        return True


class FirstOf:
    """Asks the first of several authenticators that knows the kind of credentials.

    Args:
        authenticators: In the order in which they are asked.
    """

    def __init__(self, authenticators: Sequence[Authenticator]) -> None:
        self._all = tuple(authenticators)
        self._by_method = {method: one for one in self._all for method in one.methods}

    @property
    def methods(self) -> Sequence[AuthMethod]:
        """Those of all."""
        return tuple(self._by_method)

    def handles(self, credentials: Credentials) -> bool:
        """Whether one of them does."""
        return any(one.handles(credentials) for one in self._all)

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Ask the first that handles the credentials; UnauthenticatedError where none does."""
        for one in self._all:
            if one.handles(credentials):
                return await one.authenticate(credentials)
        came = "a key or token of a kind that this server does not take"
        if not credentials.bearer:
            came = "nothing" if credentials.bearer is None else "metadata 'authorization' of another form"
        raise UnauthenticatedError(
            f"{came} came; wanted metadata 'authorization: Bearer ...', or a certificate, by way of "
            f"{', '.join(self.methods) or 'nothing that is set up'}"
        )

    def holds(self, principal: Principal) -> bool:
        """Ask the one that found the principal."""
        one = self._by_method.get(principal.method)
        return one is not None and one.holds(principal)
