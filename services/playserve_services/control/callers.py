"""Who calls the control plane: by an API key of its own registry, or by a token of an issuer that is trusted."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool

from playserve.errors import BadSettingError, UnauthenticatedError
from playserve_services.auth.keys import check_key, parse_key
from playserve_services.auth.principal import Anonymous, Authenticator, AuthMethod, Credentials, FirstOf, Principal
from playserve_services.control.database import Database
from playserve_services.control.models import ApiKeyRow
from playserve_services.control.repository.audit import now
from playserve_services.control.repository.keys import holds, key_of
from playserve_services.control.settings import ControlSettings

__all__ = ["RegistryKeys", "authenticator_of"]


def authenticator_of(settings: ControlSettings, database: Database) -> Authenticator:
    """Return what finds out who calls.

    Raises:
        BadSettingError: The file of an issuer's keys is none, or their URL may not be asked.
    """
    if not settings.keys_required:
        return _Anybody()
    found: list[Authenticator] = [RegistryKeys(database)]
    if tokens := settings.tokens():
        found.append(tokens)
    return FirstOf(found)


class _Anybody(Anonymous):
    """Of a control plane that asks for no keys: what is shown all the same is not looked at."""

    def handles(self, credentials: Credentials) -> bool:
        return True


class RegistryKeys:
    """Authenticates by the API keys of the registry, as they are at that moment.

    Args:
        database: The registry.
    """

    methods: Sequence[AuthMethod] = ("api_key",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def handles(self, credentials: Credentials) -> bool:
        """Whether they are no token, so that whoever mistypes a key is told of keys."""
        return credentials.bearer is not None and credentials.bearer.count(".") != 2

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Return the principal of a key that is known, not revoked and not expired."""
        found = await run_in_threadpool(self._find, credentials.bearer or "")
        if found is None:
            raise UnauthenticatedError("the API key is unknown, revoked or expired")
        return found

    def holds(self, principal: Principal) -> bool:
        """Whether its key still holds, for the same principal with the same scopes or more. Asks the database."""
        with self._database.read() as session:
            row = session.get(ApiKeyRow, principal.key_id)
        if row is None or not holds(row, now()):
            return False
        key = key_of(row)
        return key.principal == principal.name and key.scopes >= principal.scopes

    def _find(self, text: str) -> Principal | None:
        try:
            identity, _ = parse_key(text)
        except BadSettingError:
            return None
        with self._database.read() as session:
            row = session.get(ApiKeyRow, identity)
        # check_key takes as long where there is no such key.
        kept = {row.id: key_of(row)} if row is not None and holds(row, now()) else {}
        key = check_key(text, kept)
        if key is None:
            return None
        return Principal(
            name=key.principal, scopes=key.scopes, method="api_key", key_id=key.id, quota=key.quota,
            expires_at=key.expires_at,
        )  # fmt: skip
