"""How far runs are, from worker to watcher by files: nobody holds a pipe that a kill would break."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playserve.errors import DataLossError
from playserve.files import read_json, write_json
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.grid.plan import Run
from playserve_trainer.train.progress import Reporter, Status

__all__ = ["FileReporter", "Progress", "read_progress"]

_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is.

    Attributes:
        fraction: Share of its FLOPs.
        step: Optimizer steps done.
        elapsed_s: Seconds of training.
        samples_per_s: Of the last few steps.
        loss: Of the last few steps.
        held_out_loss: Of the last evaluation, None before it.
    """

    fraction: float
    step: int
    elapsed_s: float
    samples_per_s: float
    loss: float
    held_out_loss: float | None


class FileReporter:
    """Writes a run's progress.json, once a second at most.

    Args:
        folder: The grid's.
        run: The run.
        beside: Is told too, or None.
    """

    def __init__(self, folder: GridFolder, run: Run, beside: Reporter | None = None) -> None:
        self._path = folder.run(run.name) / "progress.json"
        self._run, self._beside = run, beside
        self._last: float | None = None

    def update(self, status: Status) -> None:
        """Write how far the run is."""
        now = time.monotonic()
        if self._last is None or now - self._last >= _EVERY_S or status.fraction >= 1:
            self._last = now
            flops = status.samples * self._run.flops_per_sample
            write_json(
                self._path,
                {
                    "fraction": min(1.0, flops / self._run.flops), "step": status.step,
                    "elapsed_s": status.elapsed_s, "samples_per_s": status.samples_per_s, "loss": status.loss,
                    "held_out_loss": status.held_out_loss,
                },
            )  # fmt: skip
        if self._beside is not None:
            self._beside.update(status)


def read_progress(directory: Path) -> Progress | None:
    """Return how far the run in a folder is, or None before its first step."""
    value: dict[str, Any] | None = None
    with suppress(DataLossError):
        value = read_json(directory / "progress.json")
    return Progress(**value) if value else None
