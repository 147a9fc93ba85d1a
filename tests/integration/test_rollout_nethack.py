"""``playserve rollout nethack`` as a user runs it: the real game, the real server, a small policy with memory."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from playserve.cli import main

pytest.importorskip("nle")
pytest.importorskip("torch")

MAIN = "import sys; from playserve.cli import main; sys.exit(main())"
POLICY = """
import torch
from playserve_trainer.models.nethack import NetHackConfig, NetHackPolicy

def make():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    policy = NetHackPolicy(NetHackConfig(width=16)).eval()
    torch.nn.init.normal_(policy.head.weight, std=0.3)  # so that what it sees and remembers matters
    return policy
"""
OPTIONS = ("--max-steps", 100, "--no-progress", 60, "--episodes", 8, "--baseline-episodes", 2, "--envs", 3,
           "--workers", 1)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("nethack")
    (folder / "tiny_nethack.py").write_text(POLICY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1", "GRPC_VERBOSITY": "NONE"}
    return {"folder": folder, "port": port, "environment": environment}


@contextlib.contextmanager
def serve(place) -> Iterator[subprocess.Popen[str]]:
    arguments = ["serve", "--policy", "nethack=tiny_nethack:make", "--port", f"{place['port']}", "--fixed-batch",
                 "--max-batch", "4", "--slots", "16"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments],
        env=place["environment"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
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


def play(place, out: Path, *more: object) -> subprocess.Popen[str]:
    arguments = ["rollout", "nethack", "--server", f"127.0.0.1:{place['port']}", *OPTIONS, "--out", out, *more]
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        env=place["environment"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    return out + err


def read(out: Path) -> dict[str, object]:
    report: dict[str, object] = json.loads((out / "results.json").read_text())
    return report


def games(report) -> list[dict[str, object]]:
    kept = ("row", "number", "env_seed", "score", "steps", "terminated", "truncated", "digest", "facts")
    return [{key: episode[key] for key in kept} for episode in report["episodes"]]


def test_an_agent_with_memory_is_measured_through_shards_and_a_lost_server(place):
    folder: Path = place["folder"]
    with serve(place) as server:
        shards = [play(place, folder / f"{index}", "--shard", f"{index}/2") for index in range(2)]
        text = finish(play(place, folder / "whole", "--record", 2))
        for shard in shards:
            finish(shard)
        process = play(place, folder / "lost")
        journal = folder / "lost" / "episodes.jsonl"
        while not journal.exists() or journal.read_bytes().count(b"\n") < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        server.kill()
        server.wait()
    with serve(place):
        finish(process)
    whole = read(folder / "whole")
    assert [(row["key"], row["episodes"]) for row in whole["rows"]] == [
        ("sample", 8), ("random", 2), ("constant", 2), ("frequencies", 2), ("bigram", 2), ("walk", 2),
        ("expert-recorded", 146),
    ]  # fmt: skip
    for words in ("AutoAscend (recorded)", "agent (sampled)", "previous-key bigram", "how agent (sampled) ended",
                  "cut after 100 steps", "60 steps in which no turn", "turns", "depth", "level", "best baseline",
                  "temperature 1", "recording of episode 1 (sample"):  # fmt: skip
        assert words in text
    for episode in whole["episodes"]:
        assert set(episode["facts"]) == {"turns", "depth", "experience_level", "end"}
    agent = [episode for episode in whole["episodes"] if episode["row"] == "sample"]
    assert len({episode["digest"] for episode in agent}) == 8
    assert [(item["row"], item["number"]) for item in whole["recordings"]] == [("sample", 0), ("sample", 1)]
    assert all((folder / "whole" / item["path"]).exists() for item in whole["recordings"])
    assert not whole["notes"][:-1]

    assert main(["rollout", "merge", f"{folder / '0'}", f"{folder / '1'}", "--out", f"{folder / 'merged'}"]) == 0
    merged = read(folder / "merged")
    assert games(merged) == games(whole)
    assert merged["rows"] == whole["rows"]

    lost = read(folder / "lost")
    assert games(lost) == games(whole)
    assert lost["run"]["reconnects"] == 1
    assert sum(episode["attempts"] - 1 for episode in lost["episodes"]) >= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--character", "mon-hum-neu"), "mon-hum-neu"),
        (("--stickiness", "0.25"), "--stickiness"),
        (("--env-option", "colour=1"), "colour"),
        (("--data", "no-such-folder"), "no-such-folder"),
        (("--no-progress", "0"), "no_progress"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(tmp_path, arguments, words, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["rollout", "nethack", "--no-agent", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert "Traceback" not in err
