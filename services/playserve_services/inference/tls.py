"""The server's certificates: read from files, and again when these change, without a restart."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from playserve.errors import BadSettingError
from playserve.files import stamp

__all__ = ["CertificateFiles", "ServerTls"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """PEM files.

    Attributes:
        certificate: The server's certificate chain.
        key: Its private key.
        client_ca: Authorities whose certificates callers must show; None: callers show none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Return what they hold.

        Raises:
            BadSettingError: A file cannot be read, is no PEM, or the key is not the certificate's.
        """
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, self.key, password="")  # gRPC would take a wrong pair in silence
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
            roots = None if self.client_ca is None else self.client_ca.read_bytes()
            pair = self.key.read_bytes(), self.certificate.read_bytes()
        except OSError as error:  # ssl's errors are among them
            why = error.strerror if error.strerror and not isinstance(error, ssl.SSLError) else error
            raise BadSettingError(f"TLS with {self._names()}: {why}") from error
        return grpc.ssl_server_certificate_configuration([pair], roots)

    def _names(self) -> str:
        return ", ".join(str(path) for path in (self.certificate, self.key, self.client_ca) if path is not None)

    def stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Return what changes when one of the files does, or what its links point at."""
        return tuple(stamp(path) for path in (self.certificate, self.key, self.client_ca) if path is not None)


class ServerTls:
    """Credentials for the server's ports. New connections get the newest certificates, running ones keep theirs.

    Files that are being changed, and do not fit together for the moment, leave the old ones in force.

    Args:
        files: Where certificates are.
        on_reload: Told of each attempt to take new files whether it succeeded, in one of gRPC's threads.
    """

    def __init__(self, files: CertificateFiles, on_reload: Callable[[bool], None] = lambda ok: None) -> None:
        self._files = files
        self._on_reload = on_reload
        self._stamp = files.stamp()
        self._initial = files.read()
        self._lock = threading.Lock()

    def credentials(self) -> grpc.ServerCredentials:
        """Return credentials for one port; certificates of clients are wanted where an authority is named."""
        reader = _PortCertificates(self)
        return grpc.dynamic_ssl_server_credentials(
            self._initial,
            reader.fetch,  # type: ignore[arg-type] # None, which the stubs forget, says that nothing has changed
            require_client_authentication=self._files.client_ca is not None,
        )

    def newest(self) -> tuple[object, grpc.ServerCertificateConfiguration]:
        """Return the newest certificates that fit together, and a mark that is another when they are others."""
        with self._lock:
            newest = self._files.stamp()
            if newest != self._stamp:
                self._stamp = newest  # a bad pair is tried again when the files change again
                try:
                    self._initial = self._files.read()
                    _log.info("certificates read again from %s", self._files.certificate)
                    self._on_reload(True)
                except BadSettingError as error:
                    _log.error("the certificates stay as they were: %s", error)
                    self._on_reload(False)
            return self._initial, self._initial


class _PortCertificates:
    """What one port serves; gRPC asks at each new connection, in a thread of its own."""

    def __init__(self, tls: ServerTls) -> None:
        self._tls = tls
        self._served, _ = tls.newest()

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        mark, configuration = self._tls.newest()
        if mark is self._served:
            return None  # no change
        self._served = mark
        return configuration
