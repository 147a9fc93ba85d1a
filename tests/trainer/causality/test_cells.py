"""Causality of a grid's cells: each finished cell once, labelled by what tells cells apart, and drawn from there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from playserve.errors import BadSettingError
from playserve_trainer.causality.cells import measure_cells
from playserve_trainer.causality.clips import open_subject
from playserve_trainer.causality.score import ScoreSettings, score
from playserve_trainer.commands import causality, grid
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.store import CheckpointStore

_STUDY = """
study = "toy-p2p"
title = "a toy"
family = "p2p"
tasks = ["all"]
unique = [0.5, 1.0]

[size]
dial = "size"
values = ["1m"]

[training]
batch_size = 2
sequence_length = 8
warmup_steps = 1

[evaluation]
samples = 16
batch_size = 2
sequence_length = 8
held_out = 0.5

[variants.base]
model = { layers = 1, history = 8, text_encoder = "none", dropout = 0.0 }
options = { augment = false }

[tiers.small]
budgets = [1e9]
"""


def _run(module: ModuleType, *argv: object) -> int:
    parser = argparse.ArgumentParser()
    module.configure(parser)
    status: int = module.run(parser.parse_args([str(arg) for arg in argv]))
    return status


@pytest.fixture(scope="module")
def grid_of_doom(tmp_path_factory: pytest.TempPathFactory, record_doom: Callable[..., Path]) -> Path:
    """Return a finished grid of two shares of a made-up Doom."""
    root = tmp_path_factory.mktemp("grid-of-doom")
    for scenario in ("basic", "take_cover"):
        for seed in range(5):
            record_doom(root / "data", scenario, seed, size=96)  # of the size 1m
    (root / "toy.toml").write_text(_STUDY)
    out = root / "grid"
    assert _run(grid, "plan", root / "toy.toml", "--tier", "small", "--data", root / "data", "--out", out,
                "--no-probe") == 0  # fmt: skip
    assert _run(grid, "run", out, "--workers", 1) == 0
    return out


def test_every_cell_is_measured_once_and_can_be_drawn(grid_of_doom: Path, tmp_path: Path) -> None:
    assert _run(causality, "grid", grid_of_doom) == 0
    cells = {path.stem: json.loads(path.read_text()) for path in (grid_of_doom / "cells").glob("*.json")}
    assert len(cells) == 2
    for measure in ("score", "intervene"):
        found = {path.stem: json.loads(path.read_text()) for path in (grid_of_doom / "causality" / measure).glob("*")}
        assert found.keys() == cells.keys()
        for name, value in found.items():
            assert value["labels"]["unique_samples"] == cells[name]["unique_samples"]
            assert value["data"]["held_out"] == 0.5
    times = {path: path.stat().st_mtime_ns for path in grid_of_doom.glob("causality/*/*.json")}
    assert _run(causality, "grid", grid_of_doom) == 0  # nothing is left to do
    assert times == {path: path.stat().st_mtime_ns for path in grid_of_doom.glob("causality/*/*.json")}
    files = sorted((grid_of_doom / "causality" / "score").glob("*.json"))
    assert _run(causality, "plot", *files, "--x", "unique_samples", "--out", tmp_path) == 0
    points = json.loads((tmp_path / "causality.json").read_text())["points"]
    assert [point["x"] for point in points] == sorted(cell["unique_samples"] for cell in cells.values())


def test_a_cell_gets_the_score_that_its_checkpoint_gets(grid_of_doom: Path, tmp_path: Path) -> None:
    folder = GridFolder(grid_of_doom)
    cell = json.loads(sorted(folder.cells.glob("*.json"))[0].read_text())
    (file,) = measure_cells(folder, cells=[cell["cell"]], measures=["score"])
    place = cell["checkpoint"]
    directory = CheckpointStore(place["store"]).fetch(place["name"], place["version"], tmp_path)
    subject = open_subject(directory, grid_of_doom.parent / "data", held_out=0.5)
    assert json.loads(file.read_text())["score"] == score(subject, ScoreSettings())["score"]


def test_what_is_not_there_is_refused(grid_of_doom: Path) -> None:
    folder = GridFolder(grid_of_doom)
    with pytest.raises(BadSettingError, match="no finished cells: nobody"):
        measure_cells(folder, cells=["nobody"])
    with pytest.raises(BadSettingError, match="no measures: luck"):
        measure_cells(folder, measures=["luck"])
