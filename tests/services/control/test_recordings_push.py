"""`playserve recordings` against a real control plane: pushed, taken up where it broke off, listed, pulled."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_authority import Authority

from playserve.errors import (
    AccessDeniedError,
    BadSettingError,
    DataLossError,
    NotFoundError,
    ServerFault,
    ServerUnavailableError,
    UnauthenticatedError,
)
from playserve_client import TlsConfig
from playserve_client.commands import recordings
from playserve_client.pushing.bundle import Bundle
from playserve_client.pushing.push import Facts, Pusher, pull
from playserve_client.pushing.rest import ControlRest
from playserve_client.pushing.units import Unit

pytest.importorskip("uvicorn", reason="the control plane's HTTP server")

_RUN = (
    "import sys, argparse; from playserve_services.commands import control as c; p = argparse.ArgumentParser(); "
    "c.configure(p); sys.exit(c.run(p.parse_args()))"
)


@contextlib.contextmanager
def serving(folder: Path, *flags: str) -> Iterator[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PLAYSERVE_")}
    command = [sys.executable, "-c", _RUN, "serve", "--port", "0", "--data", str(folder), *flags]
    with (folder.parent / "control.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=kept)
    with process:
        try:
            assert process.stdout is not None
            found = re.search(r"port=(\d+)", process.stdout.readline())
            assert found, (folder.parent / "control.log").read_text()
            yield f"{'https' if '--tls-cert' in flags else 'http'}://127.0.0.1:{found[1]}"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("plane") / "data") as made:
        yield made


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    folder = tmp_path / "games" / "one"
    folder.mkdir(parents=True)
    (folder / "annotation.proto").write_bytes(os.urandom(100))
    (folder / "192x192.mp4").write_bytes(os.urandom(9_000_000))  # three pieces
    return folder


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    recordings.configure(parser)
    return recordings.run(parser.parse_args(words))


def test_recordings_go_there_and_come_back(url: str, recording: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PLAYSERVE_CONTROL_URL", url)
    (recording.parent / "b.ttyrec").write_bytes(b"terminal")
    assert run("push", str(recording.parent), "--dry-run") == 0
    assert "2 recordings" in capsys.readouterr().out
    assert run("push", str(recording.parent), "--policy", "p", "--version", "3", "--json") == 0
    told = capsys.readouterr()
    pushed = json.loads(told.out)
    assert "uploading: " in told.err
    assert {(row["format"], row["name"], row["policy"]) for row in pushed} == {
        ("p2p", "games/one", "p"), ("ttyrec", "games/b.ttyrec", "p"),
    }  # fmt: skip
    assert run("list", "--policy", "p") == 0
    assert "games/one" in capsys.readouterr().out
    ids = [str(row["id"]) for row in pushed]
    assert run("pull", *ids, "--out", str(tmp_path / "out")) == 0
    assert (tmp_path / "out" / "b.ttyrec").read_bytes() == b"terminal"
    for file in recording.iterdir():
        assert (tmp_path / "out" / "one" / file.name).read_bytes() == file.read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.ttyrec", "one"]
    with pytest.raises(BadSettingError, match="is there already"):
        run("pull", ids[0], ids[1], "--out", str(tmp_path / "out"))
    with pytest.raises(NotFoundError):
        run("pull", "99999", "--out", str(tmp_path / "out"))


class Flaky(ControlRest):
    """A connection that breaks before some calls."""

    def __init__(self, url: str, breaks: set[int]) -> None:
        super().__init__(url)
        self.breaks, self.calls, self.sent = breaks, 0, 0

    def call(self, method: str, path: str, **more: Any) -> Any:
        self.calls += 1
        if self.calls in self.breaks:
            raise ServerUnavailableError("the network is away")
        self.sent += len(more.get("data") or b"")
        return super().call(method, path, **more)


def test_an_upload_goes_on_where_it_broke_off(url: str, recording: Path) -> None:
    bundle, counted = Bundle(recording), []
    with Flaky(url, {1, 3, 6}) as rest:  # before the first piece, between two, and before the end
        pusher = Pusher(rest, Facts(), counted.append, sleep=lambda seconds: None)
        listed = pusher.push(Unit(recording, "p2p", "one"), bundle)
        assert rest.sent == bundle.size  # nothing twice
        again = pusher.push(Unit(recording, "p2p", "one"), bundle)
    assert listed["sha256"] == bundle.sha256()
    assert again["id"] == listed["id"]
    assert sum(counted[: len(counted) // 2]) <= bundle.size


def test_a_network_that_stays_away_is_said(url: str, recording: Path) -> None:
    with Flaky(url, set(range(1, 100))) as rest:
        waits: list[float] = []
        with pytest.raises(ServerUnavailableError):
            Pusher(rest, Facts(), sleep=waits.append).push(Unit(recording, "p2p", "one"), Bundle(recording))
    assert waits == [1, 2, 4, 8]
    with pytest.raises(ServerUnavailableError, match="refused"), ControlRest("http://127.0.0.1:1") as rest:
        rest.call("GET", "/v1/recordings")


def test_a_recording_that_changes_meanwhile_is_refused(url: str, recording: Path) -> None:
    bundle = Bundle(recording)

    class Changing(ControlRest):
        def call(self, method: str, path: str, **more: Any) -> Any:
            if method == "PUT":
                (recording / "192x192.mp4").write_bytes(os.urandom(9_000_000))
            return super().call(method, path, **more)

    with Changing(url) as rest, pytest.raises(DataLossError, match="sha256"):
        Pusher(rest, Facts()).push(Unit(recording, "p2p", "one"), bundle)


def test_what_leads_out_of_a_folder_is_not_unpacked(url: str, tmp_path: Path) -> None:
    import io
    import tarfile

    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as archive:
        member = tarfile.TarInfo("../../outside")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    with ControlRest(url) as rest:
        # A sender of their own makes: our client would not bundle it, and the server does not look inside.
        listed = Pusher(rest, Facts()).push(Unit(evil, "p2p", "../../../evil"), Bundle(evil))
        with pytest.raises(DataLossError, match="no tar of a recording"):
            pull(rest, listed["id"], tmp_path / "a" / "b" / "out")
    assert not list(tmp_path.glob("**/outside"))
    assert not (tmp_path / "a" / "b" / "out" / "evil").exists()


def test_a_key_is_wanted_and_never_sent_in_plain_text_elsewhere(tmp_path: Path, recording: Path) -> None:
    with pytest.raises(BadSettingError, match="plain text"):
        ControlRest("http://control.example:8080", key="psk_x")
    for wrong in ("control:8080", "ftp://x", "http://", "https://me:hunter2@host"):
        with pytest.raises(BadSettingError, match="wanted https") as refused:
            ControlRest(wrong)
        assert "hunter2" not in str(refused.value)
    with serving(tmp_path / "data", "--require-keys") as url:
        with ControlRest(url) as rest, pytest.raises(UnauthenticatedError):
            Pusher(rest, Facts()).push(Unit(recording, "p2p", "one"), Bundle(recording))
        done = subprocess.run(
            [sys.executable, "-c", _RUN, "init-key", "--data", str(tmp_path / "data")],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        admin = done.stdout.strip()
        with ControlRest(url, key=admin) as rest:
            issued = rest.call("POST", "/v1/keys", value={"principal": "ann", "scopes": ["play"]})
        with ControlRest(url, key=issued["key"]) as rest:
            listed = Pusher(rest, Facts()).push(Unit(recording, "p2p", "one"), Bundle(recording))
            assert listed["principal"] == "ann"
            with pytest.raises(AccessDeniedError):
                Pusher(rest, Facts(principal="bob")).push(Unit(recording, "p2p", "one"), Bundle(recording))


def test_a_control_plane_is_trusted_by_its_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    pair = authority.issue("control")
    flags = ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key)]
    with serving(tmp_path / "data", *flags) as url:
        with ControlRest(url, tls=TlsConfig(root_certificates=authority.root)) as rest:
            assert rest.call("GET", "/v1/recordings") == []
        with ControlRest(url) as rest, pytest.raises(ServerUnavailableError, match="certificate"):
            rest.call("GET", "/v1/recordings")
    with pytest.raises(BadSettingError, match="certificates"):
        ControlRest(url, tls=TlsConfig(root_certificates=tmp_path / "missing"))


def test_what_is_no_control_plane_is_said() -> None:
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302 if self.path == "/redirect" else 200)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with ControlRest(f"http://127.0.0.1:{server.server_port}") as rest:
                with pytest.raises(ServerFault, match="no JSON"):
                    rest.call("GET", "/v1/recordings")
                with pytest.raises(ServerFault, match="redirect"):
                    rest.call("GET", "/redirect")
        finally:
            server.shutdown()
            thread.join()
