"""Every finished world of a grid, judged, and a table of loss beside quality, for `playserve laws meta`.

All cells of a task are judged from the same starts with the same draws. What is judged is kept; the same command goes
on. No cell is ever chosen by what is measured here.
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError, DataLossError
from playserve.files import read_json, write_json, write_text
from playserve_trainer.checkpoint import read_manifest
from playserve_trainer.data.tokens.cache import cache_folder
from playserve_trainer.grid.cell import Cell, read_cell
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.store import CheckpointStore
from playserve_trainer.worlds.judging import JudgeSettings, judge
from playserve_trainer.worlds.subject import open_subject

__all__ = ["QUALITIES", "TABLE_NAME", "judge_cells"]

TABLE_NAME = "quality.csv"
#: What of a judged world stands in the table, of the world itself, at each horizon: ``<quality>_<steps>``.
QUALITIES = ("psnr", "ssim", "tokens", "probe_error", "probe_error_all", "frechet")

_FOLDER = "judged"
_LABELS = (
    "cell", "run", "study", "family", "task", "variant", "size", "seed", "budget", "flops", "params",
    "params_non_embedding", "samples", "loss", "loss_se", "held_out",
)  # fmt: skip


def judge_cells(
    folder: GridFolder,
    settings: JudgeSettings,
    *,
    cells: Sequence[str] = (),
    inverse: Path | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Judge what is not judged yet, into ``<grid>/judged/<cell>.json``; return the table of all that is.

    Args:
        folder: The grid's.
        settings: How worlds are judged.
        cells: Only these; empty: all finished ones.
        inverse: See :func:`.judging.judge`.
        device: Where the worlds compute.
        progress: Called with (cells done, cells).

    Raises:
        BadSettingError: The study is not of worlds, there is no such cell, or cells were judged with other settings.
        NotFoundError: A cell's token cache is not there.
    """
    plan = folder.plan()
    if plan.study.family != "wm-token":
        raise BadSettingError(f"study {plan.study.study} is of {plan.study.family}; worlds are of wm-token")
    finished = [read_cell(path) for path in sorted(folder.cells.glob("*.json"))]
    if strange := sorted(set(cells) - {cell.cell for cell in finished}):
        raise BadSettingError(f"no finished cells: {', '.join(strange)}")
    chosen = [cell for cell in finished if not cells or cell.cell in cells]
    out = folder.root / _FOLDER
    out.mkdir(exist_ok=True)
    for number, cell in enumerate(chosen, 1):
        file = out / f"{cell.cell}.json"
        if not file.exists():
            found = _judged(cell, Path(plan.data), plan.study.evaluation.held_out, settings, inverse, device)
            write_json(file, found)
        if progress is not None:
            progress(number, len(chosen))
    judged = [(cell, read_json(out / f"{cell.cell}.json")) for cell in finished]
    rows = [_row(cell, found) for cell, found in judged if found is not None]
    _check_alike([found for _, found in judged if found is not None], out)
    write_text(out / TABLE_NAME, _as_csv(rows))
    return out / TABLE_NAME


def _judged(
    cell: Cell, data: Path, held_out: float, settings: JudgeSettings, inverse: Path | None, device: str
) -> dict[str, Any]:
    store = CheckpointStore(cell.checkpoint["store"])
    with tempfile.TemporaryDirectory() as fetched:
        directory = store.fetch(cell.checkpoint["name"], cell.checkpoint["version"], fetched)
        tokens = read_manifest(directory).spec.get("environment", {}).get("tokens", "")
        cache = cache_folder(data, cell.task, tokens)
        subject = open_subject(directory, cache, held_out=held_out, device=device)
        return {"cell": cell.cell, **judge(subject, settings, inverse=inverse)}


def _check_alike(judged: Sequence[Mapping[str, Any]], out: Path) -> None:
    kinds = {repr((found["settings"], found["features"]["name"])) for found in judged}
    if len(kinds) > 1:
        raise BadSettingError(f"{out} holds worlds that were judged with {len(kinds)} kinds of settings: remove some")


def _row(cell: Cell, found: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(cell, name) for name in _LABELS}
    try:
        for horizon, part in found["at"].items():
            for quality in QUALITIES:
                value = None if part is None or part[quality] is None else part[quality]["dream"]
                row[f"{quality}_{horizon}"] = None if value is None else value["mean"]
    except (KeyError, TypeError) as error:
        raise DataLossError(f"what was judged of {cell.cell} is damaged: {error!r}; remove it") from error
    return row


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    for row in rows:
        writer.writerow({name: int(value) if isinstance(value, bool) else value for name, value in row.items()})
    return text.getvalue()
