import json

import numpy as np
import pytest

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve_trainer.laws.reading import read_cells, read_tables
from playserve_trainer.laws.refusals import TooFewCellsError

CELL = {"cell": "c1", "run": "r1", "task": "t", "flops": 6e9, "params": 1000, "samples": 1_000_000, "loss": 2.0,
        "flops_convention": "exact", "checkpoint": {"name": "c1"},
        "clusters": {"ids": [1, 2], "loss_sum": [2.0, 2.0], "labels": [1, 1]}}  # fmt: skip


def grid(tmp_path, *cells, returns=None):
    (tmp_path / "cells").mkdir()
    for cell in cells:
        (tmp_path / "cells" / f"{cell['cell']}.json").write_text(json.dumps(cell))
    if returns:
        (tmp_path / "returns").mkdir()
        (tmp_path / "returns" / f"{returns['cell']}.json").write_text(json.dumps(returns))
    return tmp_path


def test_a_grid_brings_losses_episodes_and_returns(tmp_path):
    returns = {"cell": "c1", "return_mean": 5.0, "return_se": 0.5, "return_n": 100, "return_scores": [5.0]}
    table = read_cells(grid(tmp_path, CELL, {**CELL, "cell": "c2", "loss": 1.0}, returns=returns))
    assert table.loss.tolist() == [2.0, 1.0]
    assert table.convention == "exact"
    assert table.numbers["return_mean"][0] == 5.0
    assert table.episode_losses() is not None


def test_a_grid_brings_returns_where_nothing_was_learnt(tmp_path):
    folder = grid(tmp_path, CELL, returns={"cell": "c1", "return_mean": 5.0, "return_se": 0.5, "return_n": 100})
    (folder / "returns" / "transfer").mkdir()
    away = {"cell": "c1", "return_mean": 1.0, "return_se": None, "return_n": 1}
    (folder / "returns" / "transfer" / "c1.json").write_text(json.dumps(away))
    numbers = read_cells(folder).numbers
    assert (numbers["return_mean"][0], numbers["transfer_mean"][0], numbers["transfer_n"][0]) == (5.0, 1.0, 1.0)
    assert np.isnan(numbers["transfer_se"][0])


def test_an_unfinished_grid_and_mixed_conventions_are_refused(tmp_path):
    with pytest.raises(TooFewCellsError, match="no finished cell"):
        read_cells(tmp_path)
    mixed = grid(tmp_path, CELL, {**CELL, "cell": "c2", "flops_convention": "other"})
    with pytest.raises(BadSettingError, match="mixes ways to count FLOPs"):
        read_cells(mixed)


def test_csv_parquet_and_json_hold_the_same_table(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    columns = {"C": [6e9, 12e9], "N": [1e3, 1e3], "D": [1e6, 2e6], "loss": [2.0, 1.5]}
    (tmp_path / "t.csv").write_text("C,N,D,loss\n6e9,1e3,1e6,2.0\n\n12e9,1e3,2e6,1.5\n")
    (tmp_path / "t.json").write_text(json.dumps([{k: v[i] for k, v in columns.items()} for i in range(2)]))
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    digests = {read_cells(tmp_path / f"t.{kind}").digest() for kind in ("csv", "json", "parquet")}
    assert len(digests) == 1
    assert len(read_tables([tmp_path / "t.csv", tmp_path / "t.json"])) == 4


def test_bad_files_are_named(tmp_path):
    with pytest.raises(NotFoundError, match="is not there"):
        read_cells(tmp_path / "nothing.csv")
    (tmp_path / "t.csv").write_text("C,N\n1\n")
    with pytest.raises(BadSettingError, match="line 2: 1 values, the header has 2"):
        read_cells(tmp_path / "t.csv")
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(DataLossError, match="not JSON"):
        read_cells(tmp_path / "t.json")
    (tmp_path / "t.txt").write_text("")
    with pytest.raises(BadSettingError, match=r"one of \.csv"):
        read_cells(tmp_path / "t.txt")
    (tmp_path / "t.parquet").write_text("no parquet")
    with pytest.raises(DataLossError, match="not a Parquet file"):
        read_cells(tmp_path / "t.parquet")
