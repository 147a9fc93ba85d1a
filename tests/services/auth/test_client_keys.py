"""Where a client's key goes, and where not."""

from __future__ import annotations

import argparse
from pathlib import Path

import grpc
import pytest
from twins import client, opened, settle

from playserve.errors import BadSettingError
from playserve.testing import FakePolicyServer
from playserve_client import TlsConfig
from playserve_client.channels import ClientSettings, is_loopback_target
from playserve_client.commands.dialing import add_dial_arguments, dial_options, key_of, tls_of


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_dial_arguments(parser.add_argument)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "LOCALHOST:1", "[::1]:50051", "::1", "unix:/tmp/x", "dns:///localhost:1",
     "dns:localhost:1", "ipv4:127.0.0.1:1,127.0.0.2:2", "ipv6:[::1]:1"],
)  # fmt: skip
def test_addresses_of_this_machine(address: str) -> None:
    assert is_loopback_target(address)


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1:1", "server.test:1", "localhost.evil.test:1", "127.0.0.1.evil.test:1", "[2001:db8::1]:1", "0.0.0.0:1",
     "dns:///server.test:1", "dns://127.0.0.1/server.test:1", "ipv4:127.0.0.1:1,10.0.0.1:1", "xds:///localhost:1", ""],
)  # fmt: skip
def test_addresses_of_other_machines(address: str) -> None:
    assert not is_loopback_target(address)


@pytest.mark.parametrize("kind", ["sync", "aio"])
async def test_a_key_does_not_cross_the_network_in_plain_text_unless_told_so(kind: str) -> None:
    with pytest.raises(BadSettingError, match="cross the network in plain text") as refused:
        async with client(kind, "server.test:1", api_key="psk_secret"):
            pass
    assert "psk_secret" not in str(refused.value)
    async with client(kind, "server.test:1", api_key="psk_secret", allow_insecure_key=True):
        pass
    async with client(kind, "server.test:1", api_key="psk_secret", tls=True):
        pass
    async with client(kind, "server.test:1"):
        pass


@pytest.mark.parametrize("kind", ["sync", "aio"])
async def test_a_key_works_on_this_machine_and_one_that_is_none_is_not_repeated(kind: str) -> None:
    with FakePolicyServer({"two": lambda inputs, context: 2}, api_keys=["geheim"]) as server:
        async with client(kind, server.address, api_key="geheim\n") as c, opened(c.play("two")):
            pass
        async with client(kind, server.address, api_key="geheim\nx") as c:
            with pytest.raises(BadSettingError, match="characters that no key has") as refused:
                await settle(c.list_policies())
            assert "geheim" not in str(refused.value)


def test_settings_do_not_show_the_key() -> None:
    assert "geheim" not in repr(ClientSettings(address="a:1", api_key="geheim"))
    with pytest.raises(BadSettingError, match="b:1"):
        ClientSettings(address="localhost:1", api_key="geheim").credentials("b:1")
    credentials = grpc.ssl_channel_credentials()
    assert ClientSettings(address="b:1", api_key="geheim", tls=credentials).credentials() is credentials


def test_a_key_comes_from_a_flag_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    environment = {"PLAYSERVE_API_KEY": "from-env"}
    assert key_of(parsed(), {}) is None
    assert key_of(parsed(), environment) == "from-env"
    assert key_of(parsed(), {"PLAYSERVE_TOKEN": "a.b.c"}) == "a.b.c"
    assert key_of(parsed("--api-key", "flag"), environment) == "flag"
    assert key_of(parsed("--token", "a.b.c"), environment) == "a.b.c"
    assert key_of(parsed("--token", f"@{file}"), {}) == "from-file"
    assert key_of(parsed(), {"PLAYSERVE_API_KEY": f"@{file}"}) == "from-file"
    with pytest.raises(BadSettingError, match="both given"):
        key_of(parsed("--api-key", "a", "--token", "b"), {})
    with pytest.raises(BadSettingError, match="both set"):
        key_of(parsed(), {"PLAYSERVE_API_KEY": "a", "PLAYSERVE_TOKEN": "b"})
    with pytest.raises(BadSettingError, match="cannot read a key"):
        key_of(parsed("--api-key", "@/nowhere/key"), {})


def test_roots_may_come_from_the_environment() -> None:
    environment = {"PLAYSERVE_CA": "env.pem"}
    assert tls_of(parsed(), environment) is False
    assert tls_of(parsed("--tls"), environment) == TlsConfig(root_certificates=Path("env.pem"))
    assert tls_of(parsed("--tls-ca", "a.pem"), environment) == TlsConfig(root_certificates=Path("a.pem"))
    assert dial_options(parsed("--api-key", "k", "--insecure-key")) == {
        "tls": False, "api_key": "k", "allow_insecure_key": True
    }  # fmt: skip
