"""Mutual TLS: the subject of the caller's certificate, which the handshake has verified, is who calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from cryptography import x509

from playserve.errors import UnauthenticatedError
from playserve_services.auth.keys import MAX_PRINCIPAL, Scope
from playserve_services.auth.principal import AuthMethod, Credentials, Principal, now_utc

__all__ = ["Certificates"]


class Certificates:
    """Authenticates by the certificate of the connection, where a call brings no key or token.

    Args:
        scopes: What the holder of any certificate of the trusted authority may do.
        now: Wall clock.
    """

    methods: Sequence[AuthMethod] = ("certificate",)

    def __init__(self, scopes: frozenset[Scope], now: Callable[[], datetime] = now_utc) -> None:
        self._scopes = scopes
        self._now = now

    def handles(self, credentials: Credentials) -> bool:
        """Whether there is a certificate, and nothing else."""
        return credentials.bearer is None and credentials.certificate is not None

    async def authenticate(self, credentials: Credentials) -> Principal:
        """Return the certificate's subject, which is good until the certificate expires."""
        assert credentials.certificate is not None  # noqa: S101 - `handles` said so
        try:
            certificate = x509.load_pem_x509_certificate(credentials.certificate)
        except ValueError as error:
            raise UnauthenticatedError("the certificate cannot be read") from error
        subject = credentials.subject
        if not 0 < len(subject) <= MAX_PRINCIPAL:
            raise UnauthenticatedError(
                f"the certificate's common name has {len(subject)} characters, wanted 1 to {MAX_PRINCIPAL}"
            )
        principal = Principal(
            name=subject, scopes=self._scopes, method="certificate",
            key_id=f"certificate:{certificate.serial_number:x}", expires_at=certificate.not_valid_after_utc,
        )  # fmt: skip
        if principal.expired(self._now()):
            raise UnauthenticatedError("the certificate has expired")
        return principal

    def holds(self, principal: Principal) -> bool:
        """Whether the certificate has not expired."""
        return not principal.expired(self._now())
