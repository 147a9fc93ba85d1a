"""The packaged study's smallest tier, as a newcomer would run it: data, plan, run, status, returns."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from playserve_trainer.commands import grid
from playserve_trainer.grid.cell import read_cell


def _command(*argv: object) -> int:
    parser = argparse.ArgumentParser()
    grid.configure(parser)
    return grid.run(parser.parse_args([str(arg) for arg in argv]))


@pytest.mark.timeout(300)
def test_the_smoke_tier_runs_from_nothing_to_returns(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ale_py")
    out = tmp_path / "grid"
    study = ("atari-isoflop", "--tier", "smoke", "--out", out)
    assert _command("data", *study) == 0
    assert _command("plan", *study, "--workers", 2) == 0
    assert _command("run", out, "--workers", 2) == 0
    assert _command("status", out, "--workers", 2) == 0
    printed = capfd.readouterr().out
    assert "4 of 4 cells" in printed
    assert "budget: 95%" in printed
    cells = {path.stem: read_cell(path) for path in (out / "cells").glob("*.json")}
    assert {(cell.size, cell.budget) for cell in cells.values()} == {(s, b) for s in (2, 4) for b in (3 * 10**8, 10**9)}
    assert all(cell.predicted_wall_s is not None for cell in cells.values())
    one = next(iter(cells))
    assert _command("returns", out, "--cell", one, "--workers", 1) == 0
    result = json.loads((out / "returns" / f"{one}.json").read_text())
    assert (result["cell"], result["return_n"], len(result["return_scores"])) == (one, 2, 2)
    assert result["return_mean"] == sum(result["return_scores"]) / 2
    assert result["seed_start"] == 2_000_000
    assert any("sampled" in line for line in result["protocol"])
    assert _command("returns", out, "--cell", one, "--workers", 1) == 0  # there is nothing left to do
    assert "0 of them to be measured" in capfd.readouterr().out
