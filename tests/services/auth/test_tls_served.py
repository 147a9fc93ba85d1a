"""A real server with TLS: both clients, certificates of callers, and certificates that change while it runs."""

from __future__ import annotations

import asyncio
import logging
import shutil
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from twins import client, opened, settle

from playserve.errors import AccessDeniedError, BadSettingError, ServerUnavailableError, UnauthenticatedError
from playserve_client import TlsConfig
from playserve_services.auth.certificates import Certificates
from playserve_services.auth.keyring import KeyFile
from playserve_services.auth.keys import Scope, issue_key
from playserve_services.auth.principal import Credentials
from playserve_services.inference.tls import CertificateFiles, ServerTls

FRAME = np.zeros((8, 8), np.uint8)


@pytest.fixture(params=["sync", "aio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def plays(kind: str, port: int, tls: Any, **options: Any) -> None:
    """Play a step. The sync client must not block the loop that its server runs on."""

    def in_thread() -> None:
        async def run() -> None:
            async with client(kind, f"127.0.0.1:{port}", tls=tls, timeout_s=20, **options) as c:
                async with opened(c.play("turns")) as session:
                    await settle(session.step(FRAME))

        asyncio.run(run())

    await asyncio.to_thread(in_thread)


def files(pair: Any) -> dict[str, Path]:
    return {"tls_cert": pair.certificate, "tls_key": pair.key}


async def test_both_clients_play_over_tls_and_nobody_in_plain_text(kind: str, serve: Any, authority: Any) -> None:
    async with serve(**files(authority.issue("server")), admin_port=0, health_port=0) as server:
        trusted = TlsConfig(root_certificates=authority.root)
        await plays(kind, server.port, trusted)
        for tls in (False, True):
            with pytest.raises(ServerUnavailableError):
                await plays(kind, server.port, tls)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.health_port}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert (await check(health_pb2.HealthCheckRequest(service="liveness"), timeout=20)).status == 1


async def test_mutual_tls_makes_the_certificates_subject_the_principal(
    kind: str, serve: Any, authority: Any, make_authority: Callable[[str], Any]
) -> None:
    ann, stranger = authority.issue("ann"), make_authority("elsewhere").issue("ann")
    async with serve(**files(authority.issue("server")), tls_client_ca=authority.root, slots=2) as server:

        def tls(pair: Any) -> TlsConfig:
            return TlsConfig(root_certificates=authority.root, certificate=pair.certificate, private_key=pair.key)

        seen: list[str] = []
        opening = server.core.open
        server.core.open = lambda request: (seen.append(request.principal), opening(request))[1]  # type: ignore[method-assign]
        await plays(kind, server.port, tls(ann))
        assert seen == ["ann"]
        for other in (tls(stranger), TlsConfig(root_certificates=authority.root)):
            with pytest.raises(ServerUnavailableError):
                await plays(kind, server.port, other)
        with pytest.raises(UnauthenticatedError, match="common name has 0 characters"):
            await plays(kind, server.port, tls(authority.issue("")))


async def test_a_certificate_with_fewer_scopes_or_beside_keys(serve: Any, authority: Any, tmp_path: Path) -> None:
    ann = authority.issue("ann")
    tls = TlsConfig(root_certificates=authority.root, certificate=ann.certificate, private_key=ann.key)
    mutual = {**files(authority.issue("server")), "tls_client_ca": authority.root}
    async with serve(**mutual, tls_client_scopes="rollout") as server:
        with pytest.raises(AccessDeniedError):
            await plays("aio", server.port, tls)
    text, kept = issue_key("bob", frozenset({Scope.PLAY}))
    KeyFile(tmp_path / "keys").change(lambda _: [kept], missing_ok=True)
    async with serve(**mutual, keys=tmp_path / "keys") as server:
        with pytest.raises(UnauthenticatedError, match="nothing came"):
            await plays("aio", server.port, tls)  # where there are keys, a certificate is not enough by itself
        await plays("aio", server.port, tls, api_key=text)


async def _common_name(port: int, root: Path) -> str:
    context = ssl.create_default_context(cafile=str(root))
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        certificate = writer.get_extra_info("peercert")
        return str(dict(pair for group in certificate["subject"] for pair in group)["commonName"])
    finally:
        writer.close()


def _replace(old: Any, new: Any) -> None:
    for source, target in ((new.certificate, old.certificate), (new.key, old.key)):
        shutil.copy(source, target)


async def test_new_certificates_are_served_without_a_restart_and_running_sessions_notice_nothing(
    serve: Any, authority: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pair = authority.issue("first", file="server")
    async with serve(**files(pair), admin_port=0) as server:
        trusted = TlsConfig(root_certificates=authority.root)
        async with client("aio", f"127.0.0.1:{server.port}", tls=trusted, timeout_s=20) as c:
            session = await c.play("turns")
            assert await _common_name(server.port, authority.root) == "first"
            _replace(pair, authority.issue("second"))
            for port in (server.port, server.admin_port, server.port):
                assert await _common_name(port, authority.root) == "second"
            await session.step(FRAME)
            shutil.copy(authority.issue("third").certificate, pair.certificate)  # half a change: the key is another's
            assert await _common_name(server.port, authority.root) == "second"
            assert "the certificates stay as they were" in caplog.text
            _replace(pair, authority.issue("third"))
            assert await _common_name(server.port, authority.root) == "third"
            await session.step(FRAME)
            await session.close()
        sample = server.metrics.registry.get_sample_value
        assert sample("playserve_certificate_reloads_total", {"result": "taken"}) == 2
        assert sample("playserve_certificate_reloads_total", {"result": "refused"}) == 1
    assert "PRIVATE KEY" not in caplog.text


def test_files_that_cannot_serve_are_refused_at_the_start(authority: Any, tmp_path: Path) -> None:
    good, other = authority.issue("good"), authority.issue("other")
    with pytest.raises(BadSettingError, match=r"TLS with .*gone\.pem.*No such file"):
        ServerTls(CertificateFiles(certificate=tmp_path / "gone.pem", key=good.key))
    with pytest.raises(BadSettingError, match=r"(?i)mismatch"):
        ServerTls(CertificateFiles(certificate=good.certificate, key=other.key))
    (tmp_path / "text").write_text("hello")
    with pytest.raises(BadSettingError, match="TLS with"):
        ServerTls(CertificateFiles(certificate=good.certificate, key=good.key, client_ca=tmp_path / "text"))


async def test_a_certificate_holds_until_it_expires(authority: Any) -> None:
    pair = authority.issue("ann", days=1)
    late = Certificates(frozenset({Scope.PLAY}))
    credentials = Credentials(certificate=pair.certificate.read_bytes(), subject="ann")
    principal = await late.authenticate(credentials)
    assert principal.expires_at is not None
    after = principal.expires_at
    over = Certificates(frozenset({Scope.PLAY}), lambda: after)
    assert late.holds(principal)
    assert not over.holds(principal)
    with pytest.raises(UnauthenticatedError, match="has expired"):
        await over.authenticate(credentials)
