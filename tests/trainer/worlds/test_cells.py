"""Worlds of a grid are judged once each, and a table says loss beside quality."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from playserve.errors import BadSettingError
from playserve_trainer.data.tokens.cache import TokenCache
from playserve_trainer.grid.cell import Cell, write_cell
from playserve_trainer.laws.reading import read_cells
from playserve_trainer.store import CheckpointStore
from playserve_trainer.worlds.cells import judge_cells
from playserve_trainer.worlds.judging import JudgeSettings

SETTINGS = JudgeSettings(starts=6, horizons=(1, 3), resamples=10)


def grid(root: Path, cache: TokenCache, world: Path, family: str = "wm-token") -> Any:
    """Return a finished grid of two sizes, as far as judging looks at it."""
    store = CheckpointStore(str(root / "store"))
    for size in (8, 16):
        name = f"toy.bars.base.n{size}.c1e9.s0"
        store.publish(name, world)
        cell = Cell(
            cell=name, run=f"n{size}", study="toy", tier="small", family=family, task="bars", variant="base",
            size=size, unique=1.0, budget=10**9, seed=0, held_out=False, flops=10**9, flops_convention="exact",
            flops_6nd=10**9, params=1000 * size, params_non_embedding=900 * size, samples=10_000,
            unique_samples=1000, epochs=10.0, loss=2.0 / size, loss_se=None, accuracy=None, labels=100, wall_s=1.0,
            lr=1e-3, lr_at_edge=None, batch_size=4, schedule="constant", data_digest="", held_out_digest="",
            code_version="", created_at="", checkpoint={"store": str(root / "store"), "name": name, "version": "1"},
            clusters={"ids": [], "loss_sum": [], "labels": []}, stop="budget",
        )  # fmt: skip
        write_cell(root / "cells", cell)
    study = SimpleNamespace(study="toy", family=family, evaluation=SimpleNamespace(held_out=0.3))
    plan = SimpleNamespace(study=study, data=str(cache.folder))
    return SimpleNamespace(root=root, cells=root / "cells", plan=lambda: plan)


def test_each_cell_is_judged_once_and_loss_stands_beside_quality(
    tmp_path: Path, cache: TokenCache, world_folder: Path
) -> None:
    folder, seen = grid(tmp_path, cache, world_folder), list[tuple[int, int]]()
    table = judge_cells(folder, SETTINGS, progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 2), (2, 2)]
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["size"], row["loss"]) for row in rows] == [("16", "0.125"), ("8", "0.25")]
    found = json.loads((tmp_path / "judged" / "toy.bars.base.n8.c1e9.s0.json").read_text())
    assert float(rows[1]["psnr_3"]) == found["at"]["3"]["psnr"]["dream"]["mean"]
    assert read_cells(table, quality="psnr_3").numbers["return_mean"].tolist() == [float(r["psnr_3"]) for r in rows]
    judged = {path: path.stat().st_mtime_ns for path in (tmp_path / "judged").glob("*.json")}
    judge_cells(folder, SETTINGS)
    assert judged == {path: path.stat().st_mtime_ns for path in (tmp_path / "judged").glob("*.json")}


def test_cells_that_were_judged_in_other_ways_are_not_put_together(
    tmp_path: Path, cache: TokenCache, world_folder: Path
) -> None:
    folder = grid(tmp_path, cache, world_folder)
    judge_cells(folder, SETTINGS, cells=["toy.bars.base.n8.c1e9.s0"])
    with pytest.raises(BadSettingError, match="2 kinds of settings"):
        judge_cells(folder, JudgeSettings(starts=5, horizons=(1, 3), resamples=10))


def test_grids_of_agents_and_cells_that_are_not_there_are_refused(
    tmp_path: Path, cache: TokenCache, world_folder: Path
) -> None:
    with pytest.raises(BadSettingError, match="worlds are of wm-token"):
        judge_cells(grid(tmp_path / "agents", cache, world_folder, family="bc-token"), SETTINGS)
    with pytest.raises(BadSettingError, match="no finished cells: nobody"):
        judge_cells(grid(tmp_path / "worlds", cache, world_folder), SETTINGS, cells=["nobody"])
