"""How far a recording or an import is: a bar on a terminal, else a line now and then; on stderr, always."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["Counter", "show_count"]

_LINE_S = 15.0


class Counter(Protocol):
    """Shows how far the work is."""

    def advance(self, steps: int, episodes: int) -> None:
        """Count steps that were just written and episodes that just ended."""

    def set_total(self, total: int) -> None:
        """Say how many there will be, once that is known."""


@contextmanager
def show_count(
    what: str, unit: str, total: int | None, *, by_steps: bool, clock: Callable[[], float] = time.monotonic
) -> Iterator[Counter]:
    """Show the work until the block ends.

    Args:
        what: "recording pong".
        unit: What is counted: "episodes", "games", "steps".
        total: How many of them; None: not known yet.
        by_steps: Whether it is the steps that are counted, else the episodes.
        clock: Monotonic clock, seconds.
    """
    if not sys.stderr.isatty():
        lines = _Lines(what, unit, total, by_steps, clock)
        try:
            yield lines
        finally:
            lines.show()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, rate="")

        class _Bar:
            def __init__(self) -> None:
                self._steps = 0

            def advance(self, steps: int, episodes: int) -> None:
                self._steps += steps
                elapsed = bar.tasks[0].elapsed or 0.0
                rate = f"{self._steps / elapsed:,.0f} frames/s" if elapsed > 1 else ""
                bar.update(task, advance=steps if by_steps else episodes, rate=rate)

            def set_total(self, total: int) -> None:
                bar.update(task, total=total)

        yield _Bar()


class _Lines:
    def __init__(self, what: str, unit: str, total: int | None, by_steps: bool, clock: Callable[[], float]) -> None:
        self._what, self._unit, self._total, self._by_steps, self._clock = what, unit, total, by_steps, clock
        self._steps = self._done = 0
        self._started = self._shown = clock()
        self.show()

    def advance(self, steps: int, episodes: int) -> None:
        self._steps += steps
        self._done += steps if self._by_steps else episodes
        if self._clock() - self._shown >= _LINE_S:
            self.show()

    def set_total(self, total: int) -> None:
        self._total = total

    def show(self) -> None:
        self._shown = self._clock()
        elapsed_s = self._shown - self._started
        of = "" if self._total is None else f"/{self._total:,}"
        rate = f", {self._steps / elapsed_s:,.0f} frames/s" if elapsed_s > 1 else ""
        left = ""
        if self._total is not None and 0 < self._done < self._total and rate:
            left = f", {elapsed_s * (self._total - self._done) / self._done:,.0f} s left"
        print(f"{self._what}: {self._done:,}{of} {self._unit}{rate}{left}", file=sys.stderr, flush=True)
