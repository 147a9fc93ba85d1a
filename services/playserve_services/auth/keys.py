"""API keys: ``psk_<id>_<secret>``. Whoever checks a key holds only its digest.

The secret has 256 random bits, so that one round of SHA-256 is enough: there is nothing to guess from. The id names the
key in logs, quotas and audits; the secret is shown once, when the key is issued.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from playserve.errors import BadSettingError

__all__ = ["MAX_PRINCIPAL", "ApiKey", "Quota", "Scope", "check_key", "issue_key", "parse_key"]

#: Most characters of a principal's name.
MAX_PRINCIPAL = 128
_KEY = re.compile(r"psk_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", re.ASCII)


class Scope(StrEnum):
    """What a key lets its holder do."""

    PLAY = "play"
    ROLLOUT = "rollout"
    PUBLISH = "publish"
    REPLICA = "replica"
    """Of an inference server: reads the registry's view, and says how it is. It is trusted with the addresses that it
    tells, which the control plane dials with its own key."""
    ADMIN = "admin"


class Quota(BaseModel):
    """Limits of one key; None: no limit of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sessions: int | None = Field(default=None, ge=0)
    """Play sessions at once."""
    environments: int | None = Field(default=None, ge=0)
    """Rollout environments at once."""
    frames_per_s: float | None = Field(default=None, gt=0)
    """Live steps a second over all its sessions; what is above is dropped and counted in-band."""


class ApiKey(BaseModel):
    """What is kept of a key. It holds no secret."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    secret_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    principal: str = Field(min_length=1, max_length=MAX_PRINCIPAL)
    """Who it stands for: sessions and recordings belong to a principal, whichever of its keys was used."""
    scopes: frozenset[Scope]
    quota: Quota = Quota()
    expires_at: datetime | None = None
    """With a time zone; None: it holds until it is revoked."""


def issue_key(
    principal: str, scopes: frozenset[Scope], quota: Quota | None = None, expires_at: datetime | None = None
) -> tuple[str, ApiKey]:
    """Return a new key, to be shown once, and what to keep of it."""
    identity, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    kept = ApiKey(
        id=identity, secret_sha256=_digest(secret), principal=principal, scopes=scopes, quota=quota or Quota(),
        expires_at=expires_at,
    )  # fmt: skip
    return f"psk_{identity}_{secret}", kept


def parse_key(text: str) -> tuple[str, str]:
    """Return id and secret.

    Raises:
        BadSettingError: It has not the form of a key. The message does not repeat it.
    """
    if not (match := _KEY.fullmatch(text)):
        raise BadSettingError("that is not an API key: wanted psk_<12 hex digits>_<43 characters>")
    return match[1], match[2]


def check_key(text: str, keys: Mapping[str, ApiKey]) -> ApiKey | None:
    """Return the key that `text` is, by id in `keys`, or None. Takes as long for a wrong secret as for a right one."""
    try:
        identity, secret = parse_key(text)
    except BadSettingError:
        return None
    kept = keys.get(identity)
    # Without such a key the digest is compared all the same, so that the time does not tell which ids there are.
    matches = hmac.compare_digest(_digest(secret), kept.secret_sha256 if kept else "0" * 64)
    return kept if matches else None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
