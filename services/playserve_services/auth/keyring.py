"""The API keys that hold: from a file, from the registry's view, or both; looked at again whenever they change."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from playserve.errors import BadSettingError, DataLossError, UnauthenticatedError
from playserve.files import read_json, stamp, write_private
from playserve_services.auth.keys import ApiKey, check_key
from playserve_services.auth.principal import AuthMethod, Credentials, Principal, now_utc
from playserve_services.validation import in_words

__all__ = ["ApiKeys", "KeyFile", "KeyFileWatch", "KeyRing"]

_log = logging.getLogger(__name__)
_PREFIX = "psk_"


class _Document(BaseModel):
    """What a key file holds: digests, no secret."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = 1
    keys: list[ApiKey] = []


class KeyFile:
    """A file of API keys, written whole or not at all, for its owner's eyes only.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, *, missing_ok: bool = False) -> list[ApiKey]:
        """Return its keys, oldest first.

        Args:
            missing_ok: Whether no file is the same as no keys.

        Raises:
            BadSettingError: There is no such file, or it cannot be read.
            DataLossError: It is damaged.
        """
        try:
            document = read_json(self.path)
        except OSError as error:
            raise BadSettingError(f"cannot read the key file {self.path}: {error.strerror}") from error
        if document is None:
            if missing_ok:
                return []
            raise BadSettingError(f"no key file {self.path}; `playserve keys issue --file {self.path}` makes one")
        try:
            return _Document.model_validate(document).keys
        except ValidationError as error:
            raise DataLossError(f"{self.path} is no key file: {in_words(error.errors())}") from error

    def change(self, change: Callable[[list[ApiKey]], Iterable[ApiKey]], *, missing_ok: bool = False) -> None:
        """Replace its keys by what `change` makes of them; two processes do so one after the other.

        Raises:
            What :meth:`read` and `change` raise; the file is then as it was.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.with_name(f".{self.path.name}.lock")):
            keys = list(change(self.read(missing_ok=missing_ok)))
            write_private(self.path, _Document(keys=keys).model_dump_json(indent=2) + "\n")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock, by a file that stays; where the system has no such locks, there is none."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows
        yield
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class KeyRing:
    """Keys by id, from several sources. Event loop's thread only."""

    def __init__(self) -> None:
        self._sources: dict[str, dict[str, ApiKey]] = {}
        self.keys: dict[str, ApiKey] = {}

    def replace(self, source: str, keys: Iterable[ApiKey]) -> None:
        """Replace the keys of one source; those that it had and has no more are revoked by that."""
        self._sources[source] = {key.id: key for key in keys}
        self.keys = {identity: key for each in self._sources.values() for identity, key in each.items()}


class ApiKeys:
    """Authenticates by API key.

    Args:
        ring: The keys that hold.
        now: Wall clock.
    """

    methods: Sequence[AuthMethod] = ("api_key",)

    def __init__(self, ring: KeyRing, now: Callable[[], datetime] = now_utc) -> None:
        self._ring = ring
        self._now = now

    def handles(self, credentials: Credentials) -> bool:
        """Whether they are an API key."""
        return credentials.bearer is not None and credentials.bearer.startswith(_PREFIX)

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Return the principal of a key that is known and has not expired."""
        key = check_key(credentials.bearer or "", self._ring.keys)
        if key is None:
            raise UnauthenticatedError("the API key is not known here, or was revoked")
        principal = Principal(
            name=key.principal, scopes=key.scopes, method="api_key", key_id=key.id, quota=key.quota,
            expires_at=key.expires_at,
        )  # fmt: skip
        if principal.expired(self._now()):
            raise UnauthenticatedError(f"API key {key.id} has expired")
        return principal

    def holds(self, principal: Principal) -> bool:
        """Whether its key is still there, for the same principal, with the same scopes or more, and not expired."""
        key = self._ring.keys.get(principal.key_id)
        return (
            key is not None
            and key.principal == principal.name
            and key.scopes >= principal.scopes
            and not (key.expires_at is not None and self._now() >= key.expires_at)
        )


class KeyFileWatch:
    """Puts a key file's keys into a ring, whenever the file has changed.

    A file that cannot be read leaves the ring as it was: a half-made change must not lock everybody out.

    Args:
        file: The file.
        ring: Where its keys go.
    """

    def __init__(self, file: KeyFile, ring: KeyRing) -> None:
        self._file = file
        self._ring = ring
        self._stamp: tuple[int, int, int] | None = None

    def load(self) -> None:
        """Read it for the first time; raises what :meth:`KeyFile.read` raises."""
        self._stamp = stamp(self._file.path)
        self._ring.replace("file", self._file.read())

    def look(self) -> bool:
        """Read it again if it has changed; return whether that failed."""
        newest = stamp(self._file.path)
        if newest == self._stamp:
            return False
        self._stamp = newest
        try:
            keys = self._file.read()
        except (BadSettingError, DataLossError) as error:
            _log.error("the keys stay as they were: %s", error)
            return True
        self._ring.replace("file", keys)
        _log.info("%d API keys read from %s", len(keys), self._file.path)
        return False
