"""Runs that train until the held-out loss rises, and returns' rounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from playserve_trainer import checkpoint
from playserve_trainer.grid.cell import read_cell
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.grid.returns import Scores, next_round
from playserve_trainer.grid.study import Returns

_STUDY = """
study = "toy-data"
family = "atari"
tasks = ["toy"]
unique = [0.3, 1.0]
size = { dial = "width", values = [1] }
stop = { rule = "held-out", patience = 2, every_epochs = 1.0, at_least_steps = 2 }
training = { batch_size = 16, warmup_steps = 2, lr = 0.05, log_every_steps = 5 }
evaluation = { samples = 96, batch_size = 32, held_out = 0.3 }
[tiers.t]
budgets = [4e9]
"""


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_best_checkpoint_is_kept_and_the_run_stops(
    toy_data: Path, tmp_path: Path, grid_command: Callable[..., int], interrupted: bool
) -> None:
    study, out = tmp_path / "study.toml", tmp_path / "grid"
    study.write_text(_STUDY)
    assert grid_command("plan", study, "--tier", "t", "--data", toy_data, "--out", out, "--no-probe") == 0
    folder = GridFolder(out)
    plan = folder.plan()
    index = next(i for i, run in enumerate(plan.runs) if run.unique == 0.3)
    name = plan.runs[index].cells[0].cell
    if interrupted:  # what a kill leaves: everything but the cell, and a history that lags behind the state
        assert grid_command("run", out, "--index", index, "--threads", 1) == 0
        path = folder.run(plan.runs[index].name) / "held_out.json"
        history = json.loads(path.read_text())
        history["evaluations"].pop()
        path.write_text(json.dumps(history))
        first = read_cell(folder.cells / f"{name}.json")
        (folder.cells / f"{name}.json").unlink()
    assert grid_command("run", out, "--index", index, "--threads", 1) == 0
    cell = read_cell(folder.cells / f"{name}.json")
    history = json.loads((folder.run(cell.run) / "held_out.json").read_text())
    losses = {item["step"]: item["loss"] for item in history["evaluations"]}
    assert cell.loss == min(losses.values())
    assert cell.stop == "held-out loss rose"
    assert cell.epochs == cell.samples / cell.unique_samples > 0.5
    best = min(losses, key=lambda step: losses[step])
    assert [step for step in losses if step > best] == list(losses)[-2:]  # patience
    assert cell.flops_run is not None
    assert cell.flops < cell.flops_run
    assert checkpoint.read_manifest(folder.run(cell.run) / "best").samples_seen == cell.samples
    assert 60 <= cell.unique_samples <= 140  # one or two of about five episodes
    if interrupted:
        assert (cell.loss, cell.samples, cell.checkpoint) == (first.loss, first.samples, first.checkpoint)


def test_rounds_go_on_until_the_error_is_small_enough_or_the_cap_is_reached() -> None:
    rules = Returns(command=("atari",), episodes=4, target_se={"*": 1.0, "exact": 0.0}, cap=50)
    assert next_round(Scores(), rules, "a") == 4
    assert next_round(Scores((1.0, 2.0)), rules, "a") == 2  # a round that was broken off
    assert next_round(Scores((5.0,) * 4), rules, "a") == 0
    assert next_round(Scores((0.0, 4.0, 0.0, 4.0)), rules, "a") == 2  # se 1.15: 5.3 episodes would do
    assert next_round(Scores((0.0, 90.0, 0.0, 90.0)), rules, "a") == 4  # an early spread is a guess
    assert next_round(Scores((0.0, 90.0) * 20), rules, "a") == 10
    assert next_round(Scores((0.0, 90.0) * 25), rules, "a") == 0
    assert next_round(Scores((0.0, 90.0) * 20), rules, "exact") == 10
    assert Scores((1.0,)).se is None
    assert Scores((1.0, 3.0)).se == pytest.approx(1.0)
