"""Progress for people: a bar on a terminal, a line now and then elsewhere. On stderr: stdout is for the table."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

__all__ = ["ProgressView", "show_progress"]

_LINE_S = 15.0


class ProgressView(Protocol):
    """Shows how far a run is."""

    def phase(self, name: str) -> None:
        """Say what is played now."""

    def advance(self, steps: int, episodes: int) -> None:
        """Count steps that were just made and episodes that just ended."""

    def note(self, text: str) -> None:
        """Show a line."""


@contextmanager
def show_progress(total: int, done: int) -> Iterator[ProgressView]:
    """Show `total` episodes, of which `done` are finished already."""
    if not sys.stderr.isatty():
        yield _Lines(total, done)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("episodes"),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=total, completed=done, rate="")

        class _Bar:
            def __init__(self) -> None:
                self._steps, self._since, self._shown = 0, time.monotonic(), 0.0

            def phase(self, name: str) -> None:
                self._steps, self._since = 0, time.monotonic()
                bar.update(task, description=name)

            def advance(self, steps: int, episodes: int) -> None:
                self._steps += steps
                now = time.monotonic()
                if episodes or now - self._shown > 0.2:
                    rate = f"{self._steps / max(now - self._since, 1e-9):,.0f} env steps/s"
                    bar.update(task, advance=episodes, rate=rate)
                    self._shown = now

            def note(self, text: str) -> None:
                bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

        yield _Bar()


class _Lines:
    def __init__(self, total: int, done: int) -> None:
        self._total, self._done, self._begun_with = total, done, done
        self._name = ""
        self._started = self._since = self._shown = time.monotonic()
        self._steps = 0

    def phase(self, name: str) -> None:
        self._name, self._steps, self._since = name, 0, time.monotonic()
        self._line()

    def advance(self, steps: int, episodes: int) -> None:
        self._steps += steps
        self._done += episodes
        if time.monotonic() - self._shown > _LINE_S:
            self._line()

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201 - this is what it is for

    def _line(self) -> None:
        now = time.monotonic()
        self._shown = now
        rate = self._steps / (now - self._since) if now - self._since > 1 else None
        new = self._done - self._begun_with
        left_s = (self._total - self._done) * (now - self._started) / new if new else None
        self.note(
            f"{self._name}: {self._done}/{self._total} episodes"
            + (f", {rate:,.0f} env steps/s" if rate is not None else "")
            + (f", {left_s:,.0f} s left" if left_s is not None else "")
        )
