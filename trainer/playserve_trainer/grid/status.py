"""What of a grid is done, running, failed (and why) and waiting; the time spent and left; the workers' overhead."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from playserve.errors import DataLossError
from playserve.files import read_json
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.grid.plan import Plan, Run
from playserve_trainer.grid.progress import Progress, read_progress

__all__ = ["STATES", "GridStatus", "Overhead", "RunStatus", "collect"]

STATES = ("done", "running", "failed", "waiting")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """Where a run is.

    Attributes:
        run: The run.
        state: One of STATES.
        reason: Why it failed, or what it waits for.
        done_cells: Names of its finished cells.
        progress: How far it is, None before its first step.
    """

    run: Run
    state: str
    reason: str
    done_cells: tuple[str, ...]
    progress: Progress | None

    @property
    def fraction(self) -> float:
        """Share of the run that is done."""
        if self.state == "done":
            return 1.0
        return self.progress.fraction if self.progress else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Where the workers' time went, seconds, all of them together.

    Attributes:
        busy_s: From the start of their processes, waiting for others not counted.
        training_s: In training loops, evaluations not counted.
        evaluating_s: On held-out sets.
        preparing_s: Reading data, building policies.
        publishing_s: Writing checkpoints and cells.
        waiting_s: For short runs of other workers.
    """

    busy_s: float = 0.0
    training_s: float = 0.0
    evaluating_s: float = 0.0
    preparing_s: float = 0.0
    publishing_s: float = 0.0
    waiting_s: float = 0.0

    @property
    def training_share(self) -> float | None:
        """Training over busy time, None before there is any; the budget is 0.95."""
        return self.training_s / self.busy_s if self.busy_s else None


@dataclass(frozen=True, slots=True, kw_only=True)
class GridStatus:
    """Where a grid is.

    Attributes:
        plan: Its plan.
        runs: Each run, in the plan's order.
        overhead: Of its workers.
    """

    plan: Plan
    runs: tuple[RunStatus, ...]
    overhead: Overhead

    def of(self, state: str) -> list[RunStatus]:
        """Return the runs in a state."""
        return [run for run in self.runs if run.state == state]

    @property
    def done_cells(self) -> int:
        """Finished cells."""
        return sum(len(run.done_cells) for run in self.runs)

    @property
    def spent_s(self) -> float:
        """Seconds of training so far, over all runs."""
        return sum(run.progress.elapsed_s for run in self.runs if run.progress)

    @property
    def fraction(self) -> float:
        """Share of the grid that is done, by predicted time, or by FLOPs where there is no prediction."""
        weights = _weights(self.runs)
        total = sum(weights)
        return sum(w * run.fraction for w, run in zip(weights, self.runs, strict=True)) / total if total else 1.0

    def left_s(self, workers: int) -> float | None:
        """Return the seconds that runs without a failure still take; None before there is anything to go by.

        Where something was trained, the predictions are corrected by what that took.
        """
        weights = _weights(self.runs)
        pairs = list(zip(weights, self.runs, strict=True))
        left = sum(w * (1 - run.fraction) for w, run in pairs if run.state != "failed")
        done = sum(w * run.progress.fraction for w, run in pairs if run.progress)
        predicted = all(run.run.prediction for run in self.runs)
        if done > 0 and self.spent_s > 0:
            rate = self.spent_s / done
        elif predicted:
            rate = 1.0
        else:
            return None
        return left * rate / max(1, workers)

    def to_json(self, workers: int = 1) -> dict[str, Any]:
        """Return a JSON value: every number that is printed."""
        return {
            "study": self.plan.study.study,
            "tier": self.plan.study.tier,
            "runs": {state: len(self.of(state)) for state in STATES},
            "cells": {"done": self.done_cells, "planned": len(self.plan.cells)},
            "fraction": self.fraction,
            "spent_s": self.spent_s,
            "left_s": self.left_s(workers),
            "overhead": {**dataclasses.asdict(self.overhead), "training_share": self.overhead.training_share},
            "each": [
                {
                    "run": item.run.name, "kind": item.run.kind, "state": item.state, "reason": item.reason,
                    "fraction": item.fraction, "done_cells": list(item.done_cells),
                    "progress": dataclasses.asdict(item.progress) if item.progress else None,
                }
                for item in self.runs
            ],
        }  # fmt: skip


def collect(folder: GridFolder, plan: Plan) -> GridStatus:
    """Return where a grid is, from its files."""
    return GridStatus(plan=plan, runs=tuple(_status(folder, run) for run in plan.runs), overhead=_overhead(folder))


def _status(folder: GridFolder, run: Run) -> RunStatus:
    missing = set(folder.open_cells(run))
    cells = tuple(cell.cell for i, cell in enumerate(run.cells) if i not in missing)
    progress = read_progress(folder.run(run.name))
    state, reason = "waiting", ""
    if folder.is_done(run):
        state = "done"
    elif folder.at_work(run.name):
        state = "running"
    elif (failure := read_json(folder.failure(run.name))) is not None:
        state, reason = "failed", str(failure.get("reason", ""))
    elif folder.is_blocked(run):
        broken = [name for name in run.tuned_by if folder.failure(name).exists()]
        reason = f"short runs failed: {', '.join(broken)}" if broken else "waits for its learning rate"
    elif progress is not None:
        reason = f"stopped at step {progress.step}; goes on with `playserve grid run`"
    return RunStatus(run=run, state=state, reason=reason, done_cells=cells, progress=progress)


def _weights(runs: Sequence[RunStatus]) -> list[float]:
    if all(item.run.prediction for item in runs):
        return [item.run.prediction.wall_s if item.run.prediction else 0.0 for item in runs]
    return [float(item.run.flops) for item in runs]


def _overhead(folder: GridFolder) -> Overhead:
    """Return the sum over all workers, past ones included."""
    total: dict[str, float] = {}
    for path in sorted(folder.workers.glob("*.json")) if folder.workers.is_dir() else []:
        with suppress(DataLossError):
            account = read_json(path) or {}
            for field in dataclasses.fields(Overhead):
                total[field.name] = total.get(field.name, 0.0) + float(account.get(field.name, 0.0))
    return Overhead(**total)
