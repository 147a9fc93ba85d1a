"""TLS: both clients against a real gRPC server with certificates that the test makes with openssl."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import grpc
import numpy as np
import pytest
from twins import client, opened, settle

from playserve.cli import main
from playserve.errors import BadSettingError, ServerUnavailableError
from playserve.testing import FakePolicyServer
from playserve_client import TlsConfig
from playserve_client.commands import policies, rollout
from playserve_client.commands.dialing import tls_of

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

FRAME = np.zeros((2, 2, 3), np.uint8)
NAME = "playserve.test"


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path


def self_signed(folder: Path, name: str, alternative: str) -> Pair:
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-addext", f"subjectAltName={alternative}", "-keyout", str(pair.key),
         "-out", str(pair.certificate)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return pair


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Of a server that is dialled by its address."""
    return self_signed(tmp_path_factory.mktemp("here"), "here", "IP:127.0.0.1")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Of a server whose name is not its address."""
    return self_signed(tmp_path_factory.mktemp("named"), "named", f"DNS:{NAME}")


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Of a client."""
    return self_signed(tmp_path_factory.mktemp("caller"), "caller", "DNS:caller")


@pytest.fixture(params=["sync", "aio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def serve(pair: Pair, callers: Pair | None = None) -> FakePolicyServer:
    credentials = grpc.ssl_server_credentials(
        [(pair.key.read_bytes(), pair.certificate.read_bytes())],
        None if callers is None else callers.certificate.read_bytes(),
        require_client_auth=callers is not None,
    )
    return FakePolicyServer({"two": lambda inputs, context: 2}, credentials=credentials)


async def plays(kind: str, address: str, tls: object) -> None:
    async with client(kind, address, tls=tls) as c:
        await settle(c.wait_ready(20))
        async with opened(c.play("two")) as session:
            assert await settle(session.step(FRAME)) == 2
        async with opened(c.rollout("two", 1)) as rollout:
            await settle(rollout.send([0], [0], FRAME[None]))
            assert len(await settle(rollout.recv())) == 1


async def is_refused(kind: str, address: str, tls: object) -> None:
    async with client(kind, address, tls=tls, timeout_s=5) as c:
        with pytest.raises(ServerUnavailableError):
            await settle(c.list_policies())
        with pytest.raises(ServerUnavailableError):
            await settle(c.play("two"))


async def test_a_server_with_a_certificate_of_its_own(kind: str, here: Pair) -> None:
    with serve(here) as server:
        await plays(kind, server.address, TlsConfig(root_certificates=here.certificate))
        await plays(kind, server.address, grpc.ssl_channel_credentials(here.certificate.read_bytes()))


async def test_nobody_is_trusted_by_default_and_plain_text_does_not_pass(kind: str, here: Pair, named: Pair) -> None:
    with serve(here) as server:
        await is_refused(kind, server.address, True)
        await is_refused(kind, server.address, TlsConfig(root_certificates=named.certificate))
        await is_refused(kind, server.address, False)


async def test_a_server_by_another_name(kind: str, named: Pair) -> None:
    with serve(named) as server:
        await plays(kind, server.address, TlsConfig(root_certificates=named.certificate, server_name=NAME))
        await is_refused(kind, server.address, TlsConfig(root_certificates=named.certificate))
        await is_refused(kind, server.address, TlsConfig(root_certificates=named.certificate, server_name="other.test"))


async def test_a_server_that_wants_to_know_its_callers(kind: str, here: Pair, caller: Pair) -> None:
    with serve(here, callers=caller) as server:
        known = TlsConfig(root_certificates=here.certificate, certificate=caller.certificate, private_key=caller.key)
        await plays(kind, server.address, known)
        await is_refused(kind, server.address, TlsConfig(root_certificates=here.certificate))


async def test_a_session_moves_between_servers_with_tls(kind: str, here: Pair) -> None:
    tls = TlsConfig(root_certificates=here.certificate)
    with serve(here) as first, serve(here) as second:
        async with client(kind, first.address, tls=tls) as c, opened(c.play("two")) as session:
            first.move_session(session.session_id, second)
            assert await settle(session.step(FRAME)) == 2
            assert session.address == second.address


def test_commands_dial_with_tls(here: Pair, named: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(named) as server:
        command = ["policies", "--server", server.address, "--tls-ca", str(named.certificate)]
        assert main([*command, "--tls-server-name", NAME]) == 0
        assert "two" in capsys.readouterr().out
        assert main(["policies", "--server", server.address, "--tls-ca", str(here.certificate)]) != 0


@pytest.mark.parametrize("command", [policies, rollout])
def test_the_flags_of_tls(command: ModuleType, here: Pair) -> None:
    parser = argparse.ArgumentParser()
    command.configure(parser)

    def tls(*arguments: str) -> object:
        return tls_of(parser.parse_args(arguments))

    assert tls() is False
    assert tls("--tls") is True
    assert tls("--tls-server-name", NAME) == TlsConfig(server_name=NAME)
    flags = ("--tls-ca", "a.pem", "--tls-cert", "b.pem", "--tls-key", "b.key")
    assert tls("--tls", *flags) == TlsConfig(
        root_certificates=Path("a.pem"), certificate=Path("b.pem"), private_key=Path("b.key")
    )


def test_certificates_travel_as_json() -> None:
    whole = TlsConfig(
        root_certificates=Path("a.pem"), certificate=Path("b.pem"), private_key=Path("b.key"), server_name=NAME
    )
    for config in (whole, TlsConfig(), TlsConfig(server_name=NAME)):
        assert TlsConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert TlsConfig.from_json({}) == TlsConfig()


def test_files_that_cannot_serve_are_named(tmp_path: Path, here: Pair) -> None:
    with pytest.raises(BadSettingError, match=r"cannot read .*gone\.pem: No such file"):
        TlsConfig(root_certificates=tmp_path / "gone.pem").credentials()
    text = tmp_path / "text"
    text.write_text("hello")
    with pytest.raises(BadSettingError, match="is no PEM file"):
        TlsConfig(root_certificates=text).credentials()
    with pytest.raises(BadSettingError, match="go together"):
        TlsConfig(certificate=here.certificate).credentials()
