"""JSON Web Tokens: signed by an issuer whose public keys come from a JWKS, from a file or a URL."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import jwt

from playserve.errors import BadSettingError, ServerUnavailableError, UnauthenticatedError
from playserve.files import stamp
from playserve_services.auth.http import HttpError, check_url, fetch
from playserve_services.auth.keys import MAX_PRINCIPAL, Scope
from playserve_services.auth.principal import AuthMethod, Credentials, Principal, now_utc

__all__ = ["ALGORITHMS", "FileJwks", "JwksSource", "Jwts", "TokenRules", "UrlJwks", "jwks_at"]

_log = logging.getLogger(__name__)

#: Asymmetric ones only: with a shared secret, whoever can check a token can make one. "none" is not among them.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_KEY_TYPES = ("RSA", "EC", "OKP")
# A token with an unknown key is a reason to look again, but nobody shall make us ask the issuer all the time.
_COOLDOWN_S = 10.0
_MAX_BYTES = 1 << 20


class JwksSource(Protocol):
    """Where an issuer's public keys come from."""

    async def keys(self, *, wanted: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the JWKs by their id; look again if `wanted` is not among those that are known.

        Raises:
            ServerUnavailableError: There has never been an answer.
        """
        ...


def _parse(data: bytes, where: str) -> dict[str, Mapping[str, Any]]:
    """Return the usable keys of a JWKS: asymmetric, for signatures, with an id."""
    try:
        keys = jwt.PyJWKSet.from_json(data.decode()).keys
    except (jwt.PyJWTError, ValueError, AttributeError, TypeError) as error:
        raise BadSettingError(f"{where} is no JWKS: {type(error).__name__}") from error
    documents = [key._jwk_data for key in keys]  # what PyJWT took; it has no name in public for it
    return {
        str(document["kid"]): document
        for document in documents
        if document.get("kid") and document.get("kty") in _KEY_TYPES and document.get("use", "sig") == "sig"
    }


class FileJwks:
    """Keys from a file, read again when it changes.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, Mapping[str, Any]] = {}
        self._read()

    def _read(self) -> None:
        try:
            newest = stamp(self._path)
            if newest is None or newest != self._stamp:
                self._keys = _parse(self._path.read_bytes(), str(self._path))
                self._stamp = newest
        except OSError as error:
            raise BadSettingError(f"cannot read the JWKS {self._path}: {error.strerror}") from error

    async def keys(self, *, wanted: str) -> Mapping[str, Mapping[str, Any]]:
        """See the protocol. A file that has become unreadable leaves the keys as they were."""
        try:
            self._read()
        except BadSettingError as error:
            _log.error("the keys of the token issuer stay as they were: %s", error)
        return self._keys


class UrlJwks:
    """Keys from a URL, kept for a while, and longer when the issuer does not answer.

    Args:
        url: https, or http to loopback.
        refresh_s: Age at which they are fetched anew.
        timeout_s: Longest wait for the issuer.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self, url: str, refresh_s: float = 300.0, timeout_s: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._url = url
        self._refresh_s = refresh_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._keys: dict[str, Mapping[str, Any]] | None = None
        self._fetched = self._tried = -1e9
        self._lock = asyncio.Lock()

    async def keys(self, *, wanted: str) -> Mapping[str, Mapping[str, Any]]:
        """See the protocol."""
        if not self._fresh(wanted):
            async with self._lock:  # one request, however many ask
                if not self._fresh(wanted) and self._clock() - self._tried >= _COOLDOWN_S:
                    await self._fetch()
        if self._keys is None:
            raise ServerUnavailableError("the token issuer's keys cannot be had now", retry_after_s=_COOLDOWN_S)
        return self._keys

    def _fresh(self, wanted: str) -> bool:
        return self._keys is not None and wanted in self._keys and self._clock() - self._fetched < self._refresh_s

    async def _fetch(self) -> None:
        self._tried = self._clock()
        try:
            answer = await asyncio.to_thread(fetch, self._url, timeout_s=self._timeout_s, max_bytes=_MAX_BYTES)
            if answer.status != 200:
                raise HttpError(f"status {answer.status}")
            self._keys = _parse(answer.body, self._url)
            self._fetched = self._clock()
        except (HttpError, BadSettingError) as error:
            _log.warning("the keys of the token issuer stay as they were: %s: %s", self._url, error)


def jwks_at(where: str) -> JwksSource:
    """Return the keys at a path or a URL.

    Raises:
        BadSettingError: The file is no JWKS, or the URL may not be asked.
    """
    return UrlJwks(check_url("jwt_jwks", where)) if "://" in where else FileJwks(Path(where))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What a token must say.

    Attributes:
        issuer: Its `iss`.
        audience: Among its `aud`.
        leeway_s: How far the issuer's clock may be off.
    """

    issuer: str
    audience: str
    leeway_s: float = 10.0


class Jwts:
    """Authenticates by JSON Web Token: the principal is its `sub`, what it may do its `scope`, by spaces.

    Args:
        rules: What it must say.
        jwks: Whose signature it must have.
        now: Wall clock, for streams that outlive their token.
    """

    methods: Sequence[AuthMethod] = ("jwt",)

    def __init__(self, rules: TokenRules, jwks: JwksSource, now: Callable[[], datetime] = now_utc) -> None:
        self._rules = rules
        self._jwks = jwks
        self._now = now

    def handles(self, credentials: Credentials) -> bool:
        """Whether they have the form of a signed token."""
        return credentials.bearer is not None and credentials.bearer.count(".") == 2

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Return the principal of a token that is signed, for us, and in its time."""
        token = credentials.bearer or ""
        claims = self._claims(token, await self._key(token))
        subject, scope = claims["sub"], claims.get("scope", "")
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_PRINCIPAL:
            raise UnauthenticatedError(f"the token's sub is no text of 1 to {MAX_PRINCIPAL} characters")
        if not isinstance(scope, str):
            raise UnauthenticatedError("the token's scope is no text")
        known = {member.value for member in Scope}  # others are for other services
        return Principal(
            name=subject, scopes=frozenset(Scope(word) for word in scope.split() if word in known), method="jwt",
            key_id=f"jwt:{subject}", expires_at=datetime.fromtimestamp(claims["exp"] + self._rules.leeway_s, UTC),
        )  # fmt: skip

    def holds(self, principal: Principal) -> bool:
        """Whether the token has not expired."""
        return not principal.expired(self._now())

    async def _key(self, token: str) -> jwt.PyJWK:
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise UnauthenticatedError("the token is no JWT") from error
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS:
            raise UnauthenticatedError(f"the token is not signed by one of {', '.join(ALGORITHMS)}")
        if not isinstance(key_id, str):
            raise UnauthenticatedError("the token does not name its key (kid)")
        document = (await self._jwks.keys(wanted=key_id)).get(key_id)
        # A key that says what it is for is used for nothing else.
        if document is None or document.get("alg", algorithm) != algorithm:
            raise UnauthenticatedError("the token's key is not among the issuer's, or not for that algorithm")
        try:
            return jwt.PyJWK(dict(document), algorithm=algorithm)
        except jwt.PyJWTError as error:
            raise UnauthenticatedError("the token's key is not one for its algorithm") from error

    def _claims(self, token: str, key: jwt.PyJWK) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                issuer=self._rules.issuer,
                audience=self._rules.audience,
                leeway=self._rules.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            # The class says what is wrong; its text may quote what the token says.
            raise UnauthenticatedError(f"the token is not good: {type(error).__name__}") from error
