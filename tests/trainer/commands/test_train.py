"""``playserve train``: from recordings to a checkpoint whose manifest is true; resumable after any kill."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from playserve.errors import BadSettingError, NotFoundError, PlayserveError, StateError
from playserve_client.recordings import list_episodes
from playserve_trainer import checkpoint
from playserve_trainer.commands import train
from playserve_trainer.data.episodes import load_episodes
from playserve_trainer.flops import count_flops
from playserve_trainer.store import CheckpointStore
from playserve_trainer.train.state import read_state

Record = Callable[..., Path]

_SMALL = ["--width", "1", "--batch-size", "16", "--threads", "1", "--eval-samples", "32", "--save-every-s", "0"]


def _main(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    train.configure(parser)
    return train.run(parser.parse_args(["atari", *argv]))


def _new(root: Path, out: Path, *more: str) -> list[str]:
    return ["--game", "toy", "--data", str(root), "--out", str(out), *_SMALL, *more]


def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_manifest_and_the_summary_tell_the_truth(record_toy: Record, tmp_path: Path) -> None:
    root, out = record_toy(), tmp_path / "run"
    assert _main(*_new(root, out, "--max-steps", "60", "--lr", "0.01", "--seed", "3")) == 0
    policy, manifest = checkpoint.load(out / "checkpoint")
    data = load_episodes(root / "atari" / "toy", held_out_fraction=0.1).report
    assert manifest.samples_seen == 60 * 16
    assert manifest.flops == 60 * 16 * count_flops(policy).training
    assert manifest.flops_6nd == 6 * policy.num_params() * 60 * 16
    assert manifest.num_params == policy.num_params() == sum(p.numel() for p in policy.parameters())
    assert manifest.data_digest == data.digest
    assert manifest.seed == 3
    assert manifest.code_version.startswith("0.")
    assert manifest.metrics["accuracy"] > 0.6  # 1/4 by chance
    assert (manifest.config["game"], manifest.config["num_actions"], manifest.config["width"]) == ("toy", 4, 1)
    assert manifest.policy_spec().environment["frame_skip"] == "4"
    summary = _read(out / "summary.json")
    assert summary["held_out"]["loss"] == manifest.metrics["loss"]
    assert (summary["samples_seen"], summary["flops"]) == (manifest.samples_seen, manifest.flops)
    assert summary["data"]["digest"] == data.digest
    assert summary["finished"]
    config = _read(out / "config.json")
    assert (config["model"], config["seed"], config["lr"], config["family"]) == ({"width": 1}, 3, 0.01, "atari")
    assert config["batch_size"] == 16


def test_damaged_files_are_told_at_the_end(
    record_toy: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = record_toy(), tmp_path / "run"
    bad = list_episodes(root)[2]
    bad.write_bytes(bad.read_bytes()[:500])
    assert _main(*_new(root, out, "--max-steps", "2")) == 0
    printed = capsys.readouterr().out
    assert "1 damaged files were left out" in printed
    assert str(bad) in printed
    summary = _read(out / "summary.json")
    assert [item["path"] for item in summary["data"]["damaged"]] == [str(bad)]
    assert summary["data"]["episodes"] == 5


def test_a_finished_run_can_be_published_and_gone_on_with(record_toy: Record, tmp_path: Path) -> None:
    root, out, store = record_toy(), tmp_path / "run", tmp_path / "store"
    to_store = ["--publish", "toy", "--store", str(store)]
    assert _main(*_new(root, out, "--max-steps", "3"), *to_store) == 0
    assert _main("--out", str(out), "--resume", "--max-steps", "5", *to_store) == 0
    published = CheckpointStore(store)
    versions = [entry.version for entry in published.list()]
    assert len(versions) == 2
    seen = [published.manifest("toy", version).samples_seen for version in versions]
    assert sorted(seen) == [48, 80]
    assert _read(out / "summary.json")["published"]["version"] == published.latest("toy")
    whole = tmp_path / "whole"
    assert _main(*_new(root, whole, "--max-steps", "5", "--schedule", "constant")) == 0


def test_sequences_train_as_well(record_toy: Record, tmp_path: Path) -> None:
    out = tmp_path / "run"
    argv = _new(record_toy(range(12)), out, "--max-steps", "2", "--sequence-length", "8", "--held-out", "0.3")
    assert _main(*argv, "--batch-size", "4") == 0
    assert _read(out / "summary.json")["samples_seen"] == 2 * 4 * 8


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (["--max-steps", "5", "--publish", "toy"], BadSettingError, "--publish and --store go together"),
        (["--max-steps", "5", "--store", "s"], BadSettingError, "--publish and --store go together"),
        (["--max-steps", "5", "--publish", "No Name", "--store", "s"], BadSettingError, "No Name"),
        ([], BadSettingError, "give the run a limit"),
        (["--max-steps", "-5"], BadSettingError, "max_steps is above 0"),
        (["--max-steps", "5", "--schedule", "constant", "--final-lr-fraction", "0.5"], BadSettingError, "no effect"),
        (["--max-steps", "5", "--width", "0"], BadSettingError, "width is at least 1"),
        (["--max-steps", "5", "--game", "pong"], BadSettingError, "holds atari/toy, not atari/pong"),
        (["--max-steps", "5", "--data", "/nowhere"], NotFoundError, "/nowhere is no directory"),
        (["--max-steps", "5", "--device", "abacus"], BadSettingError, "abacus"),
        (["--resume"], NotFoundError, "nothing to resume"),
    ],
)
def test_wrong_settings_are_typed_errors(
    record_toy: Record, tmp_path: Path, change: list[str], error: type[PlayserveError], message: str
) -> None:
    root = record_toy(range(2)) / "atari" / "toy"
    with pytest.raises(error, match=message):
        _main(*_new(root, tmp_path / "run"), *change)


def test_a_run_is_not_overwritten_and_keeps_its_settings(record_toy: Record, tmp_path: Path) -> None:
    root, out = record_toy(range(3)), tmp_path / "run"
    assert _main(*_new(root, out, "--max-steps", "2")) == 0
    with pytest.raises(StateError, match="holds a run already"):
        _main(*_new(root, out, "--max-steps", "2"))
    with pytest.raises(BadSettingError, match="lr was"):
        _main("--out", str(out), "--resume", "--lr", "0.5")
    with pytest.raises(BadSettingError, match="model was"):
        _main("--out", str(out), "--resume", "--width", "2")


_PROGRAM = """
import argparse, sys
from playserve_trainer.commands import train
parser = argparse.ArgumentParser()
train.configure(parser)
sys.exit(train.run(parser.parse_args(sys.argv[1:])))
"""


def _start(*argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, "atari", *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _wait_for_step(process: subprocess.Popen[bytes], out: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the run ended with {process.returncode} before it could be stopped")
        metrics = out / "metrics.jsonl"
        if metrics.exists() and any(f'"step": {step},' in line for line in metrics.read_text().splitlines()):
            return
        time.sleep(0.005)
    pytest.fail(f"step {step} was not reached")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_as_if_nothing_had_been(record_toy: Record, tmp_path: Path, signum: int) -> None:
    root, whole, cut = record_toy(), tmp_path / "whole", tmp_path / "cut"
    # A constant rate: a cosine looks at the limit, and the two runs have different ones at first.
    settings = ["--schedule", "constant", "--log-every-steps", "1", "--save-every-steps", "4"]
    process = _start(*_new(root, cut, *settings, "--max-steps", "100000"))
    _wait_for_step(process, cut, 9)
    process.send_signal(signum)
    assert process.wait(timeout=60) == (130 if signum == signal.SIGINT else -signal.SIGKILL)
    assert not (cut / "checkpoint").exists()
    saved, reached = read_state(cut)[0].step, _last_step(cut)
    # A signal that can be caught loses nothing, a kill at most what came after the last save.
    assert saved == reached if signum == signal.SIGINT else 0 <= reached - saved <= 4
    limit = ["--max-steps", str(saved + 6)]
    assert _main("--out", str(cut), "--resume", *limit) == 0
    assert _main(*_new(root, whole, *settings, *limit)) == 0
    weights = [load_file(out / "checkpoint" / "model.safetensors") for out in (whole, cut)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    steps = [json.loads(line)["step"] for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert _last_step(cut) == saved + 6


def _last_step(out: Path) -> int:
    lines = (out / "metrics.jsonl").read_text().split("\n")[:-1]  # a kill may have cut the last one
    return max(int(json.loads(line)["step"]) for line in lines)
