"""`playserve control` for real: its actions, HTTP and HTTPS by uvicorn, and an inference server that follows it."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import ipaddress
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from playserve.errors import BadSettingError, StateError
from playserve_services.auth.keys import parse_key
from playserve_services.commands import control

RUN = """
import argparse, sys
from playserve_services.commands import control
parser = argparse.ArgumentParser()
control.configure(parser)
sys.exit(control.run(parser.parse_args()))
"""
LIMIT_S = 100.0


@pytest.fixture(autouse=True)
def _logs_as_they_are(monkeypatch) -> None:
    """What runs in this process shall not send its logs elsewhere."""
    monkeypatch.setattr("playserve_services.inference.logs.configure_logs", lambda log_format, level: None)


def run(*args: str) -> int:
    parser = argparse.ArgumentParser()
    control.configure(parser)
    return control.run(parser.parse_args(args))


@contextlib.contextmanager
def serving_control(log: Path, *flags: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start the service in a process of its own; yield it and its port."""
    pytest.importorskip("uvicorn")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PLAYSERVE_")}
    with log.open("w") as stderr:
        command = [sys.executable, "-c", RUN, "serve", "--port", "0", *flags]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env={**kept, **env})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"playserve control ready host=\S+ port=(\d+)", line)
        assert match, log.read_text()
        yield process, int(match[1])
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def eventually(probe: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while not (found := probe()):
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.05)
    return found


def test_the_first_admin_key_is_issued_once(tmp_path, capsys) -> None:
    assert run("init-key", "--data", str(tmp_path)) == 0
    first = capsys.readouterr().out.strip()
    assert parse_key(first)
    with pytest.raises(StateError, match="--again"):
        run("init-key", "--data", str(tmp_path))
    assert run("init-key", "--data", str(tmp_path), "--again", "--principal", "boss") == 0
    assert capsys.readouterr().out.strip() != first


def test_nothing_stands_before_a_key_that_a_script_reads(tmp_path) -> None:
    issued = subprocess.run(
        [sys.executable, "-c", RUN, "init-key", "--data", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert parse_key(issued.stdout.strip())
    assert issued.stderr == ""


def test_a_registry_is_made_again_from_the_store(tmp_path, checkpoint, capsys) -> None:
    from playserve_trainer.store import CheckpointStore

    store = CheckpointStore(tmp_path / "store")
    for _ in range(2):
        store.publish("p", checkpoint)
    store.set_alias("p", "stable", "1")
    flags = ["--data", str(tmp_path / "new"), "--store", str(tmp_path / "store")]
    assert run("sync", *flags) == 0
    assert capsys.readouterr().out.splitlines() == [
        "registered p/1", "registered p/2", "registered p/stable", "2 versions and 1 aliases registered, 0 failed",
    ]  # fmt: skip
    # Aliases of policies that are known are the registry's own business.
    store.set_alias("p", "stable", "2")
    store.publish("p", checkpoint)
    (tmp_path / "store" / "p" / "3" / "model.safetensors").write_bytes(b"damaged")
    assert run("sync", *flags) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("failed p/3: ")
    assert told[1] == "0 versions and 0 aliases registered, 1 failed"


def test_a_lost_registry_is_told_at_the_start(tmp_path, checkpoint) -> None:
    from playserve_trainer.store import CheckpointStore

    CheckpointStore(tmp_path / "data" / "store").publish("p", checkpoint)
    with serving_control(tmp_path / "log", "--data", str(tmp_path / "data")):
        assert "`playserve control sync`" in (tmp_path / "log").read_text()


def test_the_database_goes_up_and_down(tmp_path, capsys) -> None:
    from playserve_services.control.migrate import head_revision

    assert run("migrate", "--data", str(tmp_path)) == 0
    assert run("migrate", "--data", str(tmp_path), "--down", "base") == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [f"the registry is at revision {head_revision()}", "the registry is at revision base"]


def test_settings_that_make_no_sense_are_one_line(tmp_path) -> None:
    with pytest.raises(BadSettingError, match=r"host '0\.0\.0\.0' can be reached by others"):
        run("serve", "--data", str(tmp_path), "--host", "0.0.0.0")
    with pytest.raises(BadSettingError, match="max_jobs"):
        run("serve", "--data", str(tmp_path), "--max-jobs", "-1")


def test_every_flag_is_a_setting() -> None:
    from playserve_services.control.settings import ControlSettings

    parser = argparse.ArgumentParser()
    control.configure(parser)
    flags = set(vars(parser.parse_args(["serve"]))) - {"action", "act"}
    secrets = {"database", "job_key", "replica_key"}  # others on the machine can read flags
    assert flags == set(ControlSettings.model_fields) - secrets


def test_it_serves_over_http_and_starts_again_with_what_it_knew(tmp_path, checkpoint) -> None:
    flags = ["--data", str(tmp_path / "data"), "--require-keys"]
    issued = subprocess.run(
        [sys.executable, "-c", RUN, "init-key", *flags[:2]], capture_output=True, text=True, check=True
    )
    headers = {"Authorization": f"Bearer {issued.stdout.strip()}"}
    log = tmp_path / "log"
    with serving_control(log, *flags) as (process, port):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
            files = {name: (checkpoint / file).open("rb") for name, file in
                     (("manifest", "manifest.json"), ("weights", "model.safetensors"))}  # fmt: skip
            with contextlib.ExitStack() as stack:
                for file in files.values():
                    stack.enter_context(file)
                made = client.post("/v1/policies/p/versions", files=files)
            assert made.status_code == 201, made.text
            assert client.put("/v1/policies/p/aliases/stable", json={"version": "1"}).status_code == 200
            first = client.get("/v1/view")
            assert "server" not in first.headers
            assert client.get("/v1/view", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
            assert httpx.get(f"http://127.0.0.1:{port}/v1/view").status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    with serving_control(log, *flags) as (process, port):
        again = httpx.get(f"http://127.0.0.1:{port}/v1/view", headers=headers)
        assert again.json() == first.json()
    assert issued.stdout.strip()[-43:] not in log.read_text()


def test_a_port_that_is_taken_is_said(tmp_path) -> None:
    with serving_control(tmp_path / "log", "--data", str(tmp_path / "a")) as (_, port):
        command = [sys.executable, "-c", RUN, "serve", "--data", str(tmp_path / "b"), "--port", str(port)]
        other = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert other.returncode != 0
        assert f"cannot listen on 127.0.0.1:{port}" in other.stderr


def _certificate(folder: Path) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1)).add_extension(names, critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def test_it_serves_over_https_beyond_loopback_with_keys_only(tmp_path) -> None:
    certificate, key = _certificate(tmp_path)
    flags = ["--data", str(tmp_path / "data"), "--host", "0.0.0.0", "--tls-cert", str(certificate)]
    with serving_control(tmp_path / "log", *flags, "--tls-key", str(key)) as (_, port):
        context = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context) as client:
            assert client.get("/healthz").json() == {"status": "alive"}
            assert client.get("/v1/policies").status_code == 401


def test_a_certificate_that_is_none_is_said(tmp_path) -> None:
    pytest.importorskip("uvicorn")
    with pytest.raises(BadSettingError, match="TLS certificate"):
        run("serve", "--data", str(tmp_path), "--port", "0", "--tls-cert", str(tmp_path / "c"), "--tls-key", "k")


def test_an_inference_server_follows_the_registry(tmp_path, checkpoint, capsys) -> None:
    from contract_kit.servers import serving

    from playserve_trainer.store import CheckpointStore

    store = tmp_path / "store"
    for _ in range(2):
        CheckpointStore(store).publish("p", checkpoint)
    flags = ["--data", str(tmp_path / "data")]
    run("init-key", *flags)
    key = capsys.readouterr().out.strip()  # who follows a registry takes its keys only
    env = {"PLAYSERVE_CONTROL_REPLICA_KEY": key}
    with serving_control(tmp_path / "log", *flags, "--store", str(store), **env) as (_, port):
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=60) as client:
            assert client.post("/v1/store/sync").json()["registered"] == ["p/1", "p/2"]
            client.put("/v1/policies/p/aliases/stable", json={"version": "1"})
            flags = ["--store", str(store), "--registry", url, "--registry-poll-s", "0.1", "--replica", "r-0",
                     "--registry-cache", str(tmp_path / "cache.json"), "--admin-port", "0"]  # fmt: skip
            with serving([], *flags) as server:

                def replica() -> Any:
                    return next(iter(client.get("/v1/replicas").json()), None)

                shown = eventually(replica, "the first heartbeat")
                assert (shown["name"], shown["address"]) == ("r-0", server.address)
                revision = client.put("/v1/policies/p/aliases/stable", json={"version": "2"}).json()["revision"]
                eventually(lambda: replica()["view_revision"] == revision, "the new view")
                assert set(replica()["versions"]["p"]) == {"1", "2"}
                assert client.get("/v1/sessions").json() == {"sessions": [], "unreachable": []}
                assert client.post("/v1/replicas/r-0/drain").json()["told"]
                assert server.wait() == 0  # nobody played, so that the drain is over at once
