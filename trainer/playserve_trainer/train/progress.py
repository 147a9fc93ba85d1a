"""What people see while a run goes on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

__all__ = ["ProgressBar", "Reporter", "Silent", "Status"]

_LINE_EVERY_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far a run is.

    Attributes:
        step: Steps done.
        samples: Samples seen.
        fraction: Share of the run that is done.
        elapsed_s: Seconds of training.
        samples_per_s: Of the last few steps.
        loss: Of the last few steps, nats a label.
        accuracy: The same, 0 to 1.
        held_out_loss: Of the last evaluation, None before it.
        held_out_accuracy: The same.
    """

    step: int
    samples: int
    fraction: float
    elapsed_s: float
    samples_per_s: float
    loss: float
    accuracy: float
    held_out_loss: float | None
    held_out_accuracy: float | None

    def __str__(self) -> str:
        held_out = (
            f"  held-out {self.held_out_loss:.4f} / {self.held_out_accuracy:.1%}"
            if self.held_out_loss is not None and self.held_out_accuracy is not None
            else ""
        )
        return (
            f"step {self.step}  loss {self.loss:.4f} / {self.accuracy:.1%}{held_out}  "
            f"{self.samples_per_s:,.0f} frames/s  ETA {_clock(self.eta_s)}"
        )

    @property
    def eta_s(self) -> float | None:
        """Seconds until the nearest limit, or None before there is anything to go by."""
        if not self.fraction > 0:
            return None
        return max(0.0, self.elapsed_s * (1 / self.fraction - 1))


class Reporter(Protocol):
    """Takes the news of a run."""

    def update(self, status: Status) -> None:
        """Show how far the run is."""


class Silent:
    """Shows nothing."""

    def update(self, status: Status) -> None:
        """Do nothing."""


class ProgressBar:
    """A rich progress bar; where there is no terminal, a line every 15 s. A context manager.

    Args:
        title: What is trained.
        console: Where to; None: stderr.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._title = title
        self._console = console or Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
        )
        self._progress = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task: TaskID | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        self._task = self._progress.add_task(self._title, total=1.0, text="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def reading(self, done: int, total: int) -> None:
        """Show how many files of data were read."""
        if self._task is not None:
            self._progress.update(self._task, text=f"reading episodes {done}/{total}")

    def counting(self, done: int, total: int) -> None:
        """Show how many of some pieces of work are done."""
        if self._task is not None:
            self._progress.update(self._task, completed=done / max(1, total), text=f"{done}/{total}")

    def update(self, status: Status) -> None:
        """Show how far the run is."""
        if self._console.is_terminal and self._task is not None:
            self._progress.update(self._task, completed=min(1.0, status.fraction), text=str(status))
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S or status.fraction >= 1:
            self._last_line = time.monotonic()
            self._console.print(f"{self._title} {min(1.0, status.fraction):.0%}  {status}", soft_wrap=True)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
