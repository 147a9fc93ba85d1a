"""Returns of finished cells, measured through the endpoint: the real server, the real evaluator, in rounds.

A round of episodes after another is played until the standard error of the mean is what the study asks for, or its cap
is reached. Rounds have seeds of their own, and what is played is kept: the same command goes on. No checkpoint is ever
chosen by its return. A study may ask for a second return of each cell, where nothing was learnt (`transfer`).
"""

from __future__ import annotations

import math
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError, DataLossError, ServerFault
from playserve.files import read_json, write_json
from playserve_trainer.grid.cell import Cell, read_cell
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.grid.study import Returns
from playserve_trainer.processes import run_command, serve
from playserve_trainer.store import CheckpointStore

__all__ = ["Scores", "measure_returns", "next_round"]

_TRANSFER = "transfer"

# Cells that one server holds at a time: it loads all that its store has.
_AT_A_TIME = 16


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a cell's episodes so far.

    Attributes:
        values: One an episode.
    """

    values: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Mean score."""
        return statistics.fmean(self.values)

    @property
    def se(self) -> float | None:
        """Standard error of the mean, None below two episodes."""
        if len(self.values) < 2:
            return None
        return statistics.stdev(self.values) / math.sqrt(len(self.values))


def next_round(scores: Scores, rules: Returns, task: str) -> int:
    """Return how many episodes the next round has; 0: enough are played.

    The first round is the study's. Then so many as would bring the standard error to the target if the spread stays as
    it is, but at most as many as there are already, since an early spread is a guess, and never beyond the cap.
    """
    played, se, target = len(scores.values), scores.se, rules.target(task)
    if played < rules.episodes:
        return rules.episodes - played
    if se is None or se <= target or played >= rules.cap:
        return 0
    wanted = math.ceil(played * (se / target) ** 2) if target else rules.cap
    return max(1, min(wanted - played, played, rules.cap - played))


def measure_returns(
    folder: GridFolder,
    *,
    cells: Sequence[str] = (),
    workers: int = 1,
    serve_flags: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> int:
    """Measure every finished cell that lacks a return that its study asks for; return how many were measured.

    Args:
        folder: The grid's.
        cells: Only these; empty: all.
        workers: Processes that run environments.
        serve_flags: More arguments of ``playserve serve``.
        say: Takes lines for people.

    Raises:
        BadSettingError: The study does not say how, or there is no such cell.
        ServerFault: The server or a rollout failed; what is measured is kept.
    """
    plan = folder.plan()
    if not plan.study.returns.command:
        raise BadSettingError(f"study {plan.study.study} has no returns.command: it does not say how to play")
    finished = [read_cell(path) for path in sorted(folder.cells.glob("*.json"))]
    if strange := sorted(set(cells) - {cell.cell for cell in finished}):
        raise BadSettingError(f"no finished cells: {', '.join(strange)}")
    kinds = [_Kind("", plan.study.returns, folder.returns)]
    if plan.study.transfer.command:
        kinds.append(_Kind(_TRANSFER, plan.study.transfer, folder.returns / _TRANSFER))
    todo = [cell for cell in finished if any(not kind.file(cell).exists() for kind in kinds)]
    todo = [cell for cell in todo if not cells or cell.cell in cells]
    say(f"{len(finished)} finished cells, {len(todo)} of them to be measured")
    for kind in kinds:
        kind.out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(todo), _AT_A_TIME):
        some = todo[start : start + _AT_A_TIME]
        with tempfile.TemporaryDirectory(dir=folder.returns, prefix=".served-") as scratch:
            store = _only(some, Path(scratch))
            with serve(
                ("serve", "--store", store, "--port", "0", *serve_flags), folder.returns / "serve.log"
            ) as server:
                for number, cell in enumerate(some, start + 1):
                    for kind in kinds:
                        if not kind.file(cell).exists():
                            result = _measure(folder, cell, kind, server, workers)
                            what = f"{cell.cell} {kind.name}".rstrip()
                            say(f"{number}/{len(todo)} {what}: {_shown(result)}")
    return len(todo)


@dataclass(frozen=True, slots=True)
class _Kind:
    """One of the returns of a cell: its name, its rules, and the folder of its results."""

    name: str
    rules: Returns
    out: Path

    def file(self, cell: Cell) -> Path:
        """Return where a cell's result goes."""
        return self.out / f"{cell.cell}.json"


def _shown(result: Mapping[str, Any]) -> str:
    se = result["return_se"]
    error = f" +- {se:.3f}" if se is not None else ""
    return f"{result['return_mean']:.3f}{error}, {result['return_n']} episodes"


def _only(cells: Sequence[Cell], scratch: Path) -> str:
    """Return a store that holds nothing but some cells, by their names."""
    store = scratch / "store"
    for cell in cells:
        source = CheckpointStore(cell.checkpoint["store"])
        directory = source.fetch(cell.checkpoint["name"], cell.checkpoint["version"], scratch / "fetched")
        CheckpointStore(store).publish(cell.cell, directory)
    shutil.rmtree(scratch / "fetched", ignore_errors=True)
    return str(store)


def _measure(folder: GridFolder, cell: Cell, kind: _Kind, server: str, workers: int) -> dict[str, Any]:
    """Play a cell's rounds, and write its return."""
    rules, rounds = kind.rules, folder.returns / "rounds" / kind.name / cell.cell
    scores, protocol, number = Scores(), [], 0
    while episodes := next_round(scores, rules, cell.task):
        out = rounds / f"{number:03d}"
        seed = rules.seed_start + len(scores.values)
        command = (
            "rollout", *(part.replace("{task}", cell.task) for part in rules.command), "--server", server, "--policy",
            cell.cell, "--episodes", f"{episodes}", "--argmax-episodes", "0", "--no-baselines", "--seed-start",
            f"{seed}", "--workers", f"{workers}", "--out", f"{out}",
        )  # fmt: skip
        found = _round(out / "results.json", rules.row, episodes)
        if found is None:
            if status := run_command(command):
                raise ServerFault(f"playing {cell.cell} ended with status {status}; the same command goes on")
            found = _round(out / "results.json", rules.row, episodes)
        if found is None:
            raise DataLossError(f"{out / 'results.json'} does not hold {episodes} episodes of the row {rules.row!r}")
        scores, protocol, number = Scores((*scores.values, *found[0])), found[1], number + 1
    result = {
        "cell": cell.cell, "return_mean": scores.mean, "return_se": scores.se, "return_n": len(scores.values),
        "return_scores": list(scores.values), "protocol": protocol, "seed_start": rules.seed_start,
        "target_se": rules.target(cell.task), "row": rules.row,
    }  # fmt: skip
    write_json(kind.file(cell), result)
    return result


def _round(path: Path, row: str, episodes: int) -> tuple[list[float], list[str]] | None:
    """Return the scores of a finished round, and the protocol; None if it is not there, or not whole.

    Raises:
        DataLossError: The evaluator's table has no such row.
    """
    report = read_json(path)
    if report is None or not report.get("complete"):
        return None
    rows = sorted({episode["row"] for episode in report["episodes"]})
    if row not in rows:
        raise DataLossError(f"{path} has rows {rows}, and none named {row!r}: change returns.row of the study")
    scores = [float(episode["score"]) for episode in report["episodes"] if episode["row"] == row]
    return (scores, list(report["protocol"])) if len(scores) == episodes else None
