"""Both measures of every finished p2p cell of a grid, labelled by what tells cells apart, ready for the plot.

A cell is asked about the recordings that its study holds out, whatever share of the others it learnt from: all cells of
a grid get the same clips, pairs and draws. What is measured is kept; the same command goes on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError
from playserve.files import write_json
from playserve_trainer.causality.clips import Subject, open_subject
from playserve_trainer.causality.intervene import InterveneSettings, intervene
from playserve_trainer.causality.score import ScoreSettings, score
from playserve_trainer.grid.cell import Cell, read_cell
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.store import CheckpointStore

__all__ = ["LABELS", "MEASURES", "measure_cells"]

#: Of a cell, noted with each measurement; any of them can be an axis of the plot, or tell its lines apart.
LABELS = (
    "cell", "variant", "size", "seed", "unique", "unique_samples", "samples", "epochs", "budget", "flops", "params",
    "loss",
)  # fmt: skip

MEASURES: Mapping[str, Callable[[Subject, int], dict[str, Any]]] = {
    "score": lambda subject, seed: score(subject, ScoreSettings(seed=seed)),
    "intervene": lambda subject, seed: intervene(subject, InterveneSettings(seed=seed)),
}


def measure_cells(
    folder: GridFolder,
    *,
    cells: Sequence[str] = (),
    measures: Sequence[str] = tuple(MEASURES),
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Measure what is not measured yet; return the files ``<grid>/causality/<measure>/<cell>.json`` of all.

    Args:
        folder: The grid's.
        cells: Only these; empty: all finished ones.
        measures: Which of :data:`MEASURES`.
        seed: Of all that is drawn.
        device: Where the policies compute.
        progress: Called with (measurements done, measurements).

    Raises:
        BadSettingError: The study is not of p2p, or there is no such cell or measure.
    """
    plan = folder.plan()
    if plan.study.family != "p2p":
        raise BadSettingError(f"study {plan.study.study} is of {plan.study.family}; causality is measured for p2p only")
    if strange := sorted(set(measures) - set(MEASURES)):
        raise BadSettingError(f"no measures: {', '.join(strange)}; there are {', '.join(MEASURES)}")
    finished = [read_cell(path) for path in sorted(folder.cells.glob("*.json"))]
    if strange := sorted(set(cells) - {cell.cell for cell in finished}):
        raise BadSettingError(f"no finished cells: {', '.join(strange)}")
    chosen = [cell for cell in finished if not cells or cell.cell in cells]
    jobs = [(cell, measure, _file(folder, cell, measure)) for cell in chosen for measure in measures]
    for number, (cell, measure, file) in enumerate(jobs, 1):
        if not file.exists():
            value = _measure(cell, measure, Path(plan.data), plan.study.evaluation.held_out, seed, device)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, value)
        if progress is not None:
            progress(number, len(jobs))
    return [file for _, _, file in jobs]


def _file(folder: GridFolder, cell: Cell, measure: str) -> Path:
    return folder.root / "causality" / measure / f"{cell.cell}.json"


def _measure(cell: Cell, measure: str, data: Path, held_out: float, seed: int, device: str) -> dict[str, Any]:
    """Return a measurement of a cell's published checkpoint."""
    store = CheckpointStore(cell.checkpoint["store"])
    with tempfile.TemporaryDirectory() as fetched:
        directory = store.fetch(cell.checkpoint["name"], cell.checkpoint["version"], fetched)
        subject = open_subject(directory, data, held_out=held_out, device=device)
        value = MEASURES[measure](subject, seed)
    return {**value, "labels": {name: getattr(cell, name) for name in LABELS}}
