"""Several processes that share a run of a grid: started by ``--processes`` or by torchrun, killed, and gone on with."""

from __future__ import annotations

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

from playserve.errors import BadSettingError, StateError
from playserve_trainer.grid import indexed
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.store import CheckpointStore

_PATIENCE_S = 200.0
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
_RUN = ["-m", "playserve_trainer.grid", "run"]

Command = Callable[..., int]
Make = Callable[[str], GridFolder]


@pytest.fixture
def make(toy_study: Path, toy_data: Path, tmp_path: Path, grid_command: Command) -> Make:
    """Return a function that plans a grid of one run, which crosses two budgets."""
    text, _ = toy_study.read_text().split("[variants.broken]")
    study = tmp_path / "pair.toml"
    tier = "[tiers.pair]\nbudgets = [2e8, 1e9]\ntuning = { candidates = [] }\n"
    study.write_text(text.replace("values = [1, 2]", "values = [1]") + tier)

    def plan(name: str) -> GridFolder:
        out = tmp_path / name
        assert grid_command("plan", study, "--tier", "pair", "--data", toy_data, "--out", out, "--no-probe") == 0
        assert len(GridFolder(out).plan().runs) == 1
        return GridFolder(out)

    return plan


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.timeout(300)
def test_two_processes_leave_the_cells_of_one_though_one_of_them_is_killed(
    make: Make, grid_command: Command, cells_of: Callable[[Path], dict[str, dict[str, Any]]]
) -> None:
    alone, shared = make("alone"), make("shared")
    name = shared.plan().runs[0].name
    assert grid_command("run", alone.root, "--index", 0, "--threads", 1) == 0
    grid = subprocess.Popen(
        [sys.executable, *_RUN, str(shared.root), "--processes", "2"], env=_ENVIRONMENT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + _PATIENCE_S
    while not list(shared.cells.glob("*.json")):
        assert grid.poll() is None, grid.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    worker = json.loads((shared.workers / "0.json").read_text())
    assert worker["run"] == name
    (other,) = _children(worker["pid"])
    os.kill(other, signal.SIGKILL)
    assert "process 1 ended with status -9" in grid.communicate(timeout=_PATIENCE_S)[1]
    assert grid.returncode == 1
    failure = json.loads(shared.failure(name).read_text())
    assert failure["reason"] == "ServerFault: process 1 ended with status -9; --retry-failed goes on from the last save"
    assert len(shared.open_cells(shared.plan().runs[0])) == 1

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*torchrun, *_RUN, str(shared.root), "--index", "0"], env=_ENVIRONMENT, capture_output=True, text=True,
        timeout=_PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert not shared.failure(name).exists()
    one, two = cells_of(alone.root), cells_of(shared.root)
    assert one.keys() == two.keys()
    for cell, value in one.items():
        got = two[cell]
        clusters, got_clusters = value.pop("clusters"), got.pop("clusters")
        for key in ("loss", "loss_se"):
            # A toy is soon learnt to the last bit, and the last bits are the machine's.
            assert got.pop(key) == pytest.approx(value.pop(key), rel=1e-3, abs=1e-6)
        assert got.pop("accuracy") == pytest.approx(value.pop("accuracy"), abs=0.02)
        assert got == value
        assert got_clusters["loss_sum"] == pytest.approx(clusters["loss_sum"], rel=1e-2, abs=1e-4)
        assert (got_clusters["ids"], got_clusters["labels"]) == (clusters["ids"], clusters["labels"])
        assert CheckpointStore(shared.root / "store").latest(cell) == "1"  # one process alone publishes, and once
    steps = [json.loads(line) for line in (shared.run(name) / "metrics.jsonl").read_text().splitlines()]
    logged = [line["step"] for line in steps if line["kind"] == "train"]
    assert logged == sorted(set(logged))  # one process alone writes


def test_the_death_of_the_first_process_is_told_by_another(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make("grid")
    run = folder.plan().runs[0]
    lost = RuntimeError("connection closed by peer")
    monkeypatch.setattr(indexed, "_GONE_S", 0.2)
    with folder.claim(run.name) as ours:  # the first one lives: what there is to tell, it tells
        assert ours
        indexed._tell(folder, run, lost, 1)
        assert not folder.failure(run.name).exists()
        with pytest.raises(StateError, match="is being trained by another process"):
            indexed.train_index(folder, 0, store=str(folder.root / "store"))
    indexed._tell(folder, run, lost, 1)
    reason = "process 0 died; process 1 saw RuntimeError: connection closed by peer"
    assert json.loads(folder.failure(run.name).read_text())["reason"] == reason
    indexed._tell(folder, run, ValueError("later"), 1)
    assert json.loads(folder.failure(run.name).read_text())["reason"] == reason


def test_processes_that_do_not_fit_are_refused(
    make: Make, grid_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make("grid").root
    with pytest.raises(BadSettingError, match="--processes is at least 1, not 0"):
        grid_command("run", out, "--workers", 1, "--processes", 0)
    with pytest.raises(BadSettingError, match="--workers is 1, not 2"):
        grid_command("run", out, "--workers", 2, "--processes", 2)
    with pytest.raises(BadSettingError, match="batches of 16 cannot be shared by 3 processes"):
        grid_command("run", out, "--processes", 3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadSettingError, match=r"torchrun started 2 processes.* say which with --index"):
        grid_command("run", out)
