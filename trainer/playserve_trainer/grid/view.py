"""The one live view of a whole grid: a bar with the time left, and a row for each run at work; elsewhere lines."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from playserve_trainer.grid.status import GridStatus, RunStatus
from playserve_trainer.wording import clock

__all__ = ["GridView", "one_line"]

_LINE_EVERY_S = 15.0
_SHOWN_FAILURES = 5


def one_line(status: GridStatus, workers: int) -> str:
    """Return where a grid is, in one line."""
    left = status.left_s(workers)
    parts = [
        f"grid {status.plan.study.study} {status.fraction:.0%}",
        f"{status.done_cells}/{len(status.plan.cells)} cells",
        f"{len(status.of('done'))}/{len(status.runs)} runs",
        f"{len(status.of('running'))} running",
        f"{len(status.of('failed'))} failed",
        f"ETA {clock(left) if left is not None else '-'}",
    ]
    parts += [_about(item) for item in status.of("running")]
    return "  ".join(parts)


def _about(item: RunStatus) -> str:
    progress = item.progress
    if progress is None:
        return f"[{item.run.name} starts]"
    return f"[{item.run.name} {item.fraction:.0%} loss {progress.loss:.4f} {progress.samples_per_s:,.0f} frames/s]"


class GridView:
    """Shows a grid's status; a context manager.

    Args:
        workers: Among whom the time left is shared.
        console: Where to; None: stderr.
    """

    def __init__(self, workers: int, console: Console | None = None) -> None:
        self._workers = workers
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._last_line: float | None = None

    def __enter__(self) -> GridView:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def update(self, status: GridStatus) -> None:
        """Show where the grid is."""
        if self._console.is_terminal:
            self._live.update(self._drawn(status), refresh=True)
        elif self._last_line is None or time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.say(one_line(status, self._workers))

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _drawn(self, status: GridStatus) -> RenderableType:
        left = status.left_s(self._workers)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"grid {status.plan.study.study} {status.plan.study.tier}", style="bold"),
            ProgressBar(total=1.0, completed=status.fraction, width=40),
            f"{status.fraction:.1%}",
            f"{status.done_cells}/{len(status.plan.cells)} cells",
            f"{len(status.of('failed'))} failed",
            f"ETA {clock(left) if left is not None else '-'}",
        )
        rows = Table(box=None, padding=(0, 2))
        for title in ("run", "", "next budget", "loss", "held out", "frames/s"):
            rows.add_column(title, justify="left" if title in ("run", "") else "right")
        for item in status.of("running"):
            rows.add_row(*_row(item))
        failures = [
            Text(f"failed: {item.run.name}: {item.reason}", style="red", no_wrap=True, overflow="ellipsis")
            for item in status.of("failed")[-_SHOWN_FAILURES:]
        ]
        return Group(head, rows, *failures)


def _row(item: RunStatus) -> tuple[RenderableType, ...]:
    progress, run = item.progress, item.run
    open_budgets = [cell.budget for cell in run.cells if cell.cell not in item.done_cells] or [run.flops]
    bar = ProgressBar(total=1.0, completed=item.fraction, width=16)
    if progress is None:
        return run.name, bar, f"{open_budgets[0]:.3g}", "-", "-", "starts"
    held_out = f"{progress.held_out_loss:.4f}" if progress.held_out_loss is not None else "-"
    return run.name, bar, f"{open_budgets[0]:.3g}", f"{progress.loss:.4f}", held_out, f"{progress.samples_per_s:,.0f}"
