"""Reads tables of cells: a grid's folder, CSV, Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from playserve.errors import BadSettingError, DataLossError, NotFoundError, NotImplementedHereError
from playserve_trainer.laws.refusals import TooFewCellsError
from playserve_trainer.laws.table import ALIASES, CellTable, Clusters, joined

__all__ = ["read_cells", "read_tables"]


def read_cells(source: str | Path, *, quality: str | None = None) -> CellTable:
    """Return the table in a grid's folder (cells/*.json, returns/**/*.json), a .csv, .parquet or .json file.

    Args:
        source: Of the table.
        quality: Column of a file that takes the place of the return; None: the return is the return.

    Raises:
        NotFoundError: It is not there.
        DataLossError: A file is damaged.
        BadSettingError: It is of no kind that can be read, or holds what is no cell.
        TooFewCellsError: It holds no cell.
        NotImplementedHereError: Parquet is read by pyarrow, which is not installed.
    """
    path = Path(source)
    if path.is_dir():
        if quality is not None:
            raise BadSettingError(f"{path} is a grid: a column {quality!r} in the return's place wants a table's file")
        return _read_grid(path)
    if not path.exists():
        raise NotFoundError(f"{path} is not there; wanted: a grid's folder, or a .csv, .parquet or .json table")
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".json": _read_json}
    if path.suffix not in readers:
        raise BadSettingError(f"{path}: a table is a grid's folder or one of {', '.join(readers)}, not {path.suffix!r}")
    columns = readers[path.suffix](path)
    return CellTable.from_columns(columns if quality is None else _with_quality(columns, quality), source=str(path))


def read_tables(sources: Sequence[str | Path], *, quality: str | None = None) -> CellTable:
    """Return one table of several sources; arguments as of :func:`read_cells`.

    Raises:
        PlayserveError: As :func:`read_cells`.
        BadSettingError: They count FLOPs in different ways.
    """
    tables = [read_cells(source, quality=quality) for source in sources]
    conventions = sorted({table.convention for table in tables})
    if len(conventions) > 1:
        raise BadSettingError(f"the tables count FLOPs in different ways: {'; '.join(conventions)}")
    return joined(tables)


def _with_quality(columns: Mapping[str, Sequence[object]], quality: str) -> Mapping[str, Sequence[object]]:
    """Return the columns with one of them in the return's place."""
    if quality not in columns:
        raise BadSettingError(f"there is no column {quality!r}; there are {', '.join(columns)}")
    returns = {"return_mean", "return_se", "return_n"}
    kept = {
        name: values for name, values in columns.items()
        if (small := name.strip().lower()) not in returns and ALIASES.get(small) not in returns
    }  # fmt: skip
    return {**kept, "return_mean": columns[quality]}


def _read_csv(path: Path) -> Mapping[str, Sequence[object]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    if not rows:
        raise TooFewCellsError(f"{path} is empty")
    header, *body = rows
    body = [row for row in body if any(row)]
    for number, row in enumerate(body, 2):
        if len(row) != len(header):
            raise BadSettingError(f"{path}, line {number}: {len(row)} values, the header has {len(header)}")
    return {name: [row[at] for row in body] for at, name in enumerate(header)}


def _read_parquet(path: Path) -> Mapping[str, Sequence[object]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise NotImplementedHereError("Parquet needs pyarrow: pip install 'playserve[laws]'") from error
    try:
        columns: dict[str, Sequence[object]] = pyarrow.parquet.read_table(path).to_pydict()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataLossError(f"{path}: not a Parquet file ({error})") from error
    return columns


def _read_json(path: Path) -> Mapping[str, Sequence[object]]:
    value = _load(path)
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise BadSettingError(f"{path}: a JSON table is a list of objects, one a cell")
    return _columns(value)


def _read_grid(folder: Path) -> CellTable:
    paths = sorted((folder / "cells").glob("*.json"))
    if not paths:
        raise TooFewCellsError(f"{folder} has no finished cell in {folder / 'cells'}")
    rows = [_load(path) for path in paths]
    for row, path in zip(rows, paths, strict=True):
        row.update(_return_of(folder / "returns" / path.name, "return_"))
        row.update(_return_of(folder / "returns" / "transfer" / path.name, "transfer_"))
    conventions = sorted({str(row.get("flops_convention", "not stated")) for row in rows})
    if len(conventions) > 1:
        raise BadSettingError(f"{folder} mixes ways to count FLOPs: {'; '.join(conventions)}")
    return CellTable.from_columns(
        _columns(rows), clusters=[_clusters(row) for row in rows], convention=conventions[0], source=str(folder)
    )


def _return_of(path: Path, prefix: str) -> dict[str, Any]:
    """Return the numbers of a cell's measured return, under names with this prefix; none if it was not measured."""
    if not path.exists():
        return {}
    found = _load(path)
    return {f"{prefix}{name}": found[f"return_{name}"] for name in ("mean", "se", "n") if f"return_{name}" in found}


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataLossError(f"{path}: not JSON ({error})") from error


def _columns(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Sequence[object]]:
    names = dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, dict | list))
    return {name: [row.get(name) for row in rows] for name in names}


def _clusters(row: Mapping[str, Any]) -> Clusters | None:
    found = row.get("clusters")
    if not found:
        return None
    ids = tuple(str(i) for i in found["ids"])
    return Clusters(ids, np.array(found["loss_sum"], np.float64), np.array(found["labels"], np.float64))
