"""An authority of the test's own with its certificates, and a real inference server with a small policy."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from playserve_services.inference.app import InferenceServer
from playserve_services.inference.settings import ServeSettings
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        root = self._builder(self._name, self._key.public_key(), 1).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.root = folder / "root.pem"
        self.root.write_bytes(root.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: Any, days: float) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=days))
        )

    def issue(self, common_name: str, *, file: str = "", days: float = 1) -> Pair:
        """Return a certificate for a name, good at 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
        alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        signed = (
            self._builder(subject, key.public_key(), days)
            .add_extension(alternative, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        name = file or common_name or "nameless"
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        pair.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def make_authority(tmp_path: Path) -> Callable[[str], Authority]:
    return lambda name: Authority(tmp_path / name)


def _turns() -> TinyRecurrentPolicy:
    return TinyRecurrentPolicy(TinyRecurrentConfig(hidden=8))


def _live() -> TinyRecurrentPolicy:
    return TinyRecurrentPolicy(TinyRecurrentConfig(hidden=12, rate_hz=20.0))


Serve = Callable[..., AbstractAsyncContextManager[InferenceServer]]


@pytest.fixture
def serve() -> Serve:
    """A real server on loopback: policy `turns` waits for the game, `live` does not."""

    @asynccontextmanager
    async def run(**settings: Any) -> AsyncIterator[InferenceServer]:
        settings = {"port": 0, "slots": 4, "max_batch": 2, **settings}
        async with InferenceServer(ServeSettings(**settings), {"turns": _turns, "live": _live}) as server:
            yield server

    return run
