"""`playserve serve` as an operator types it: what it refuses, and what it says."""

from __future__ import annotations

import socket
import subprocess
from typing import Any

import pytest
from contract_kit.servers import environment, playserve

from playserve.cli import main


def _run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        playserve("serve", *args), env=environment(**env), capture_output=True, text=True, timeout=100, check=False
    )


_MEMORY = ("--policy", "memory=contract_kit.served:memory")


def test_help_names_every_setting() -> None:
    from playserve_services.inference.settings import ServeSettings

    shown = _run("--help")
    assert shown.returncode == 0
    for name in ServeSettings.model_fields:
        assert f"--{name.replace('_', '-')}" in shown.stdout
    assert "--policy" in shown.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((*_MEMORY, "--port", "0", "--host", "0.0.0.0"), "insecure-listen"),
        ((), "--store or --policy"),
        ((*_MEMORY, "--port", "70000"), "port"),
        ((*_MEMORY, "--slots", "0"), "slots"),
        ((*_MEMORY, "--idle-timeout-s", "-1"), "idle_timeout_s"),
        ((*_MEMORY, "--precision", "int4"), "precision"),
        ((*_MEMORY, "--port", "many"), "port"),
        (("--nonsense",), "nonsense"),
        (("--policy", "memory"), "NAME=MODULE:FACTORY"),
        (("--policy", "a=no_such_module:f"), "no_such_module"),
        (("--policy", "a=contract_kit.served:nothing"), "nothing"),
        (("--policy", "a=contract_kit.served:SLOW_STEP_S"), "not a function"),
        (("--policy", "../a=contract_kit.served:memory"), "../a"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_flags_are_refused_in_one_line(
    args: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["serve", *args])
    except SystemExit as exit_:  # argparse's own
        status = exit_.code
    assert status == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert said in shown.err.splitlines()[-1]


def test_a_bad_variable_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PLAYSERVE_SLOTS", "few")
    assert main(["serve", *_MEMORY]) == 2
    assert "slots" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--port", "--metrics-port"])
def test_a_port_in_use_is_named(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        args: tuple[str, ...] = () if flag == "--port" else ("--port", "0")
        done = _run(*_MEMORY, *args, flag, str(port))
    assert done.returncode == 2, done
    assert not done.stdout
    assert "Traceback" not in done.stderr
    assert str(port) in done.stderr.splitlines()[-1]


def test_a_store_that_is_not_there_is_an_empty_one(serve: Any, connect: Any, tmp_path: Any) -> None:
    server = serve("memory", flags=["--store", str(tmp_path / "nothing")])
    assert connect(server.address).versions("memory") == ["1"]
