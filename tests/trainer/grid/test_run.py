"""``playserve grid run`` end to end on toy data: cells, checkpoints, failures, kills, completion indices."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from playserve.errors import BadSettingError, NotFoundError
from playserve_trainer import checkpoint
from playserve_trainer.grid.cell import read_cell
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.grid.running import publish_once
from playserve_trainer.grid.tuning import choose_rate
from playserve_trainer.store import CheckpointStore

Command = Callable[..., int]
Cells = Callable[[Path], dict[str, dict[str, Any]]]

_PROGRAM = """
import argparse, sys
from playserve_trainer.commands import grid
parser = argparse.ArgumentParser()
grid.configure(parser)
sys.exit(grid.run(parser.parse_args(sys.argv[1:])))
"""
_PATIENCE_S = 200.0


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts ``playserve grid`` in a process of its own, which ends with the test."""
    with contextlib.ExitStack() as stack:

        def begin(*argv: object) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *map(str, argv)], env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield begin


def _wait(ready: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not ready():
        assert process.poll() is None, f"ended with {process.returncode} before there was anything to disturb"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_every_cell_tells_the_truth(finished_grid: Path) -> None:
    folder = GridFolder(finished_grid)
    plan = folder.plan()
    cells = {path.stem: read_cell(path) for path in folder.cells.glob("*.json")}
    broken = [cell.cell for run in plan.runs if run.variant == "broken" for cell in run.cells]
    assert set(cells) == set(plan.cells) - set(broken)
    store = CheckpointStore(finished_grid / "store")
    for cell in cells.values():
        run = plan.run(cell.run)
        assert cell.budget <= cell.flops < cell.budget + run.flops_per_sample * run.samples_per_step
        assert cell.flops == cell.samples * run.flops_per_sample
        assert cell.held_out == (cell.budget == 6e8)
        assert cell.epochs == cell.samples / cell.unique_samples
        assert cell.loss == pytest.approx(sum(cell.clusters["loss_sum"]) / sum(cell.clusters["labels"]))
        assert cell.labels == sum(cell.clusters["labels"])
        assert cell.checkpoint == {"store": str(finished_grid / "store"), "name": cell.cell, "version": "1"}
        manifest = store.manifest(cell.cell, "1")
        assert (manifest.flops, manifest.samples_seen, manifest.seed) == (cell.flops, cell.samples, cell.seed)
        assert (manifest.num_params, manifest.data_digest) == (cell.params, cell.data_digest)
        assert manifest.metrics["loss"] == pytest.approx(cell.loss, rel=1e-5)
        assert manifest.origin["unique_samples"] == cell.unique_samples
        assert manifest.origin["epochs"] == pytest.approx(cell.epochs)
        assert cell.threads == 1
    # The same held-out samples in every cell, whatever the run: they can be compared in pairs.
    assert len({cell.held_out_digest for cell in cells.values()}) == 1
    assert len({tuple(cell.clusters["ids"]) for cell in cells.values()}) == 1
    assert len({cell.loss for cell in cells.values()}) == len(cells)
    # One run crossed both budgets, and went on learning.
    crossed = [cells[cell.cell] for cell in plan.run("toy.base.n2.s0").cells]
    assert [cell.budget for cell in crossed] == [2e8, 6e8]
    assert crossed[1].loss < crossed[0].loss


def test_the_learning_rate_of_a_size_is_the_best_of_its_short_runs(finished_grid: Path) -> None:
    folder = GridFolder(finished_grid)
    plan = folder.plan()
    for size in (1, 2):
        run = plan.run(f"toy.base.n{size}.s0")
        results = [json.loads(folder.tuning(name).read_text()) for name in run.tuned_by]
        best = min(results, key=lambda result: result["loss"])
        chosen = choose_rate(folder, run)
        assert (chosen.lr, chosen.at_edge) == (best["lr"], True)  # of two candidates each is at the edge
        cells = [read_cell(folder.cells / f"{cell.cell}.json") for cell in run.cells]
        assert {(cell.lr, cell.lr_at_edge) for cell in cells} == {(best["lr"], True)}


def test_a_run_that_fails_is_no_result(finished_grid: Path, grid_command: Command, capsys: Any) -> None:
    folder = GridFolder(finished_grid)
    failure = json.loads(folder.failure("toy.broken.n1.s0").read_text())
    assert failure["reason"].startswith("TrainingDivergedError: the loss of step")
    assert any("TrainingDivergedError" in line for line in failure["log"])
    assert not list(folder.cells.glob("*broken*"))
    assert not list((finished_grid / "store").glob("*broken*"))
    assert grid_command("status", finished_grid, "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert status["runs"] == {"done": len(folder.plan().runs) - 1, "running": 0, "failed": 1, "waiting": 0}
    assert status["cells"]["done"] == status["cells"]["planned"] - 1
    failed = [run for run in status["each"] if run["state"] == "failed"]
    assert failed[0]["reason"] == failure["reason"]
    spent = status["overhead"]
    assert 0 < spent["training_s"] < spent["busy_s"]
    assert json.loads(folder.account.read_text())["cells"] == status["cells"]
    assert grid_command("status", finished_grid) == 0
    printed = capsys.readouterr().out
    assert "TrainingDivergedError" in printed
    assert "budget: 95%" in printed


@pytest.mark.timeout(300)
def test_a_grid_that_is_killed_goes_on_to_the_same_cells(
    planned_grid: Callable[..., Path], finished_grid: Path, cells_of: Cells, start: Start
) -> None:
    out = planned_grid()
    folder = GridFolder(out)
    process = start("run", out, "--workers", 2)
    _wait(lambda: list(folder.cells.glob("*.json")), process)
    process.send_signal(signal.SIGSTOP)  # so that it does not see the workers go
    for account in folder.workers.glob("*.json"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(account.read_text())["pid"], signal.SIGKILL)
    process.kill()
    assert process.wait(timeout=_PATIENCE_S) == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in folder.cells.glob("*.json")}
    assert before
    assert start("run", out, "--workers", 2).wait(timeout=_PATIENCE_S) == 1
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was done stays
    assert cells_of(out) == cells_of(finished_grid)
    for name in cells_of(out):
        assert CheckpointStore(out / "store").latest(name) == "1"  # nothing was published twice


@pytest.mark.timeout(300)
def test_a_worker_that_is_killed_is_a_failure_until_it_is_tried_again(
    planned_grid: Callable[..., Path], grid_command: Command, start: Start
) -> None:
    out = planned_grid("long")
    folder = GridFolder(out)
    process = start("run", out, "--workers", 1)
    _wait(lambda: list(folder.cells.glob("*.json")), process)
    running = json.loads((folder.workers / "0.json").read_text())
    os.kill(running["pid"], signal.SIGKILL)
    _wait(lambda: folder.failure(running["run"]).exists(), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=_PATIENCE_S) == 143
    failure = json.loads(folder.failure(running["run"]).read_text())
    assert failure["reason"] == "its worker was killed by signal 9, perhaps because memory ran out"
    index = [run.name for run in folder.plan().runs].index(running["run"])
    assert grid_command("run", out, "--index", index, "--threads", 1) == 0  # an index that is started again is a retry
    assert folder.is_done(folder.plan().run(running["run"]))


def test_a_completion_index_picks_the_run(
    planned_grid: Callable[..., Path], grid_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = planned_grid()
    folder = GridFolder(out)
    runs = folder.plan().runs
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    for _ in range(2):  # the second time there is nothing to do
        assert grid_command("run", out, "--threads", 1) == 0
    assert [path.stem for path in (out / "tuning").glob("*.json")] == [runs[1].name]
    broken = [run.name for run in runs].index("toy.broken.n1.s0")
    with pytest.raises(Exception, match="the loss of step"):
        grid_command("run", out, "--index", broken, "--threads", 1)
    assert folder.failure("toy.broken.n1.s0").exists()
    with pytest.raises(BadSettingError, match=rf"has runs 0 to {len(runs) - 1}$"):
        grid_command("run", out, "--index", 99)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "one")
    with pytest.raises(BadSettingError, match="JOB_COMPLETION_INDEX is a number"):
        grid_command("run", out)


def test_the_same_weights_are_published_once(finished_grid: Path, tmp_path: Path) -> None:
    folder = finished_grid / "runs" / "toy.base.n1.s0" / "checkpoint"
    assert [publish_once(str(tmp_path), "a", folder) for _ in range(2)] == ["1", "1"]
    other = finished_grid / "runs" / "toy.base.n1.s1" / "checkpoint"
    assert publish_once(str(tmp_path), "a", other) == "2"
    assert checkpoint.read_manifest(folder).origin["cell"] == "toy-grid.toy.base.n1.c6e8.s0"


def test_wrong_folders_and_counts_are_typed_errors(
    tmp_path: Path, planned_grid: Callable[..., Path], grid_command: Command
) -> None:
    with pytest.raises(NotFoundError, match=r"no plan\.json"):
        grid_command("run", tmp_path)
    with pytest.raises(BadSettingError, match="--workers is at least 1, not 0"):
        grid_command("run", planned_grid(), "--workers", 0)
