"""``playserve rollout`` as a user runs it: processes, signals, kills, the real emulator, the real server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TOYS = Path(__file__).parents[1] / "client" / "evaluate" / "toys"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TOYS), "PYTHONUNBUFFERED": "1", "GRPC_VERBOSITY": "NONE"}
TOY = ("--env", "toy_rollout:Toy", "--policy", "toy", "--no-baselines", "--argmax-episodes", "0", "--seed-start", "100")


def rollout(*arguments: object, **options) -> subprocess.Popen[str]:
    code = "import sys; from playserve.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, "rollout", *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    out, err = process.communicate(timeout=100)
    assert process.returncode == status, out + err
    return out + err


def games(out: Path) -> list[tuple[object, ...]]:
    episodes = json.loads((out / "results.json").read_text())["episodes"]
    return [(e["row"], e["number"], e["env_seed"], e["score"], e["steps"], e["digest"]) for e in episodes]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def toy_server(port: int, delay_s: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(TOYS / "toy_rollout.py"), str(port), str(delay_s)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("ready")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for_lines(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the games of 30 episodes of the toy in which nothing went wrong."""
    out, port = tmp_path_factory.mktemp("undisturbed"), free_port()
    with toy_server(port):
        text = finish(rollout(*TOY, "--episodes", 30, "--server", f"127.0.0.1:{port}", "--out", out, "--workers", 1))
    assert "agent (sampled)" in text
    return games(out)


def test_a_killed_server_costs_only_the_episodes_in_flight(tmp_path, undisturbed):
    port = free_port()
    options = ("--episodes", 30, "--server", f"127.0.0.1:{port}", "--out", tmp_path, "--envs", 3, "--workers", 1)
    with toy_server(port, 0.005) as server:
        process = rollout(*TOY, *options)
        wait_for_lines(tmp_path / "episodes.jsonl", 6, process)
        server.kill()
        server.wait()
    with toy_server(port):
        text = finish(process)
    assert games(tmp_path) == undisturbed
    report = json.loads((tmp_path / "results.json").read_text())
    assert 1 <= sum(e["attempts"] - 1 for e in report["episodes"]) <= 3
    assert "the server is back" in text
    assert "lost and played again" in text


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_stopped_evaluator_goes_on_where_it_was(tmp_path, undisturbed, number, status):
    port = free_port()
    options = ("--episodes", 30, "--server", f"127.0.0.1:{port}", "--out", tmp_path, "--envs", 3, "--workers", 1)
    with toy_server(port, 0.005):
        process = rollout(*TOY, *options, start_new_session=True)
        wait_for_lines(tmp_path / "episodes.jsonl", 6, process)
        if number is signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: to the workers too
        else:
            process.send_signal(number)
        text = finish(process, status)
        if number is not signal.SIGKILL:
            assert "not complete" in text
            assert json.loads((tmp_path / "results.json").read_text())["run"]["interrupted"]
        kept = (tmp_path / "episodes.jsonl").read_bytes().count(b"\n")
        assert 6 <= kept < 30
        finish(rollout(*TOY, *options))
    assert games(tmp_path) == undisturbed
    report = json.loads((tmp_path / "results.json").read_text())
    steps = sum(e["steps"] for e in report["episodes"])
    assert 0 < report["run"]["phases"]["agent (sampled)"]["steps"] < steps


def test_atari_without_a_server_prints_baselines(tmp_path):
    options = ("--game", "freeway", "--no-agent", "--episodes", 2, "--stickiness", 0.25, "--max-steps", 30,
               "--most-frequent", 1, "--envs", 2, "--workers", 1, "--out", tmp_path, "--record", 1)  # fmt: skip
    text = finish(rollout("atari", *options))
    for words in ("random", "most frequent action (1)", "expert", "stickiness 0.25", "cut after 30 steps", "video of"):
        assert words in text
    report = json.loads((tmp_path / "results.json").read_text())
    assert [row["key"] for row in report["rows"]] == ["random-s0.25", "constant-s0.25", "expert-s0.25"]
    assert all(e["steps"] == 30 and e["truncated"] for e in report["episodes"])
    assert report["packages"]["ale-py"]
    (video,) = report["videos"]
    assert (tmp_path / video["path"]).read_bytes().startswith(b"GIF89a")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("atari", "--game", "breakot"), "close names: breakout"),
        ((), "nothing to play"),
        (("--env", "toy_rollout:Toy"), "--policy"),
        (("--env", "no_such.module:Toy", "--policy", "p", "--no-agent"), "no_such"),
        (("--env", "toy_rollout:Toy", "--policy", "p", "--stickiness", "0"), "--stickiness"),
        (("atari", "--game", "pong", "--shard", "2/2"), "shard 2/2"),
        (("atari", "--game", "pong", "--no-agent", "--no-baselines"), "nothing to play"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(tmp_path, arguments, words, monkeypatch, capsys):
    from playserve.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(TOYS))
    assert main(["rollout", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err


def test_merge_of_shards(tmp_path, undisturbed):
    port = free_port()
    with toy_server(port):
        for i in range(2):
            out = tmp_path / f"{i}"
            server = f"127.0.0.1:{port}"
            finish(
                rollout(*TOY, "--episodes", 30, "--server", server, "--out", out, "--workers", 1, "--shard", f"{i}/2")
            )
    text = finish(rollout("merge", tmp_path / "0", tmp_path / "1", "--out", tmp_path / "all"))
    assert games(tmp_path / "all") == undisturbed
    assert "agent (sampled)" in text
    assert "one is missing" not in text
    text = finish(rollout("merge", tmp_path / "0", "--out", tmp_path / "part"), 2)
    assert "shard 1/2 is not there" in text


@pytest.mark.slow
def test_the_real_server_is_killed_and_started_again(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "freeway_policy.py").write_text(
        "import torch\n"
        "from playserve_trainer.models.atari import AtariConfig, AtariPolicy\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return AtariPolicy(AtariConfig(game='freeway', num_actions=3, width=4)).eval()\n"
    )
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    port = free_port()

    @contextlib.contextmanager
    def serve() -> Iterator[subprocess.Popen[str]]:
        code = "import sys; from playserve.cli import main; sys.exit(main())"
        arguments = ["serve", "--policy", "freeway=freeway_policy:make", "--port", str(port), "--fixed-batch"]
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments, "--max-batch", "8"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            while "ready" not in (line := process.stdout.readline()):
                assert line, "the server ended"
            yield process
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    options = ("--game", "freeway", "--server", f"127.0.0.1:{port}", "--episodes", 8, "--argmax-episodes", 2,
               "--baseline-episodes", 0, "--stickiness", 0.25, "--max-steps", 60, "--envs", 4)  # fmt: skip
    with serve():
        finish(rollout("atari", *options, "--out", tmp_path / "whole"))
    with serve() as server:
        process = rollout("atari", *options, "--out", tmp_path / "run")
        wait_for_lines(tmp_path / "run" / "episodes.jsonl", 2, process)
        server.kill()
        server.wait()
    with serve():
        finish(process)
    assert games(tmp_path / "run") == games(tmp_path / "whole")
    report = json.loads((tmp_path / "run" / "results.json").read_text())
    assert report["run"]["reconnects"] == 1
