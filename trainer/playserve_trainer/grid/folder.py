"""A grid's folder: where things lie in it, who is at work on a run, and what is done.

::

    plan.json                   the plan
    probes.json                 speeds measured by `grid plan`
    tuning/<run>.json           result of a short run
    cells/<cell>.json           result of a cell, written last
    returns/<cell>.json         return of a cell, measured later
    returns/transfer/<cell>.json    the same where nothing was learnt, if the study asks for it
    runs/<run>/                 training state, log.txt, progress.json, timing.json, and failed.json after a crash
    runs/<run>/.lock            held (flock) by the process that trains the run, and let go by its death
    workers/<n>.json, <n>.log   what worker n does and has spent
    grid.json                   the last account of the whole grid
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from playserve.errors import NotFoundError, StateError
from playserve.files import read_json, write_json
from playserve_trainer.grid.plan import Plan, Run
from playserve_trainer.grid.tables import parse, to_json

__all__ = ["GridFolder"]


@dataclass(frozen=True, slots=True)
class GridFolder:
    """See the module's docstring.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def cells(self) -> Path:
        """Folder of finished cells."""
        return self.root / "cells"

    @property
    def returns(self) -> Path:
        """Folder of measured returns."""
        return self.root / "returns"

    @property
    def workers(self) -> Path:
        """Folder of the workers' accounts and logs."""
        return self.root / "workers"

    @property
    def account(self) -> Path:
        """File of the last account of the grid."""
        return self.root / "grid.json"

    def run(self, name: str) -> Path:
        """Return the folder of a run."""
        return self.root / "runs" / name

    def tuning(self, name: str) -> Path:
        """Return the file of a short run's result."""
        return self.root / "tuning" / f"{name}.json"

    def failure(self, name: str) -> Path:
        """Return the file that says why a run failed."""
        return self.run(name) / "failed.json"

    def plan(self) -> Plan:
        """Return the plan.

        Raises:
            NotFoundError: There is none.
            DataLossError: It is damaged.
        """
        value = read_json(self.root / "plan.json")
        if value is None:
            raise NotFoundError(
                f"{self.root} holds no plan.json: make it with `playserve grid plan STUDY --out {self.root}`"
            )
        return parse(Plan, value, str(self.root / "plan.json"))

    def write_plan(self, plan: Plan) -> None:
        """Write the plan; one that is there already may grow or be centred anew: what was trained stays what it is.

        The cells of a run that the new plan leaves out stay where they are, and in the laws.

        Raises:
            StateError: A run that was begun differs in the new plan, or it has other data or another held-out set.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with suppress(NotFoundError):
            self._check_grows(self.plan(), plan)
        write_json(self.root / "plan.json", to_json(plan))

    def _check_grows(self, before: Plan, after: Plan) -> None:
        names = {run.name: run for run in after.runs}
        for run in before.runs:
            if not self.run(run.name).exists():
                continue
            same = _identity(names.get(run.name, run)) == _identity(run)
            if not same or before.study.evaluation != after.study.evaluation or before.data != after.data:
                raise StateError(
                    f"{self.root} holds the run {run.name} of another plan (its settings, its data or its held-out set "
                    "differ): choose another --out"
                )

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Yield whether the run is ours for the length of the block: nobody else is at work on it.

        The kernel lets go of the lock when the process dies, however that comes.
        """
        folder = self.run(name)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True

    def at_work(self, name: str) -> bool:
        """Return whether a process is at work on a run."""
        path = self.run(name) / ".lock"
        if not path.exists():
            return False
        with path.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def open_cells(self, run: Run) -> list[int]:
        """Return which of a run's cells are not finished, as indices."""
        return [i for i, cell in enumerate(run.cells) if not (self.cells / f"{cell.cell}.json").exists()]

    def is_done(self, run: Run) -> bool:
        """Return whether a run has left everything that it is to leave."""
        if run.kind == "tune":
            return self.tuning(run.name).exists()
        return not self.open_cells(run)

    def is_blocked(self, run: Run) -> bool:
        """Return whether a run waits for short runs that tune its learning rate."""
        return run.lr is None and any(not self.tuning(name).exists() for name in run.tuned_by)

    def forget_failure(self, name: str) -> None:
        """Let a failed run be tried again, from its last saved state."""
        self.failure(name).unlink(missing_ok=True)


def _identity(run: Run) -> tuple[object, ...]:
    return (run.task, run.variant, run.size, run.unique, run.seed, run.lr, run.tuned_by, run.batch_size, run.params,
            run.flops_per_sample)  # fmt: skip
