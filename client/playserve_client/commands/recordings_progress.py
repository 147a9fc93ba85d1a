"""How many bytes have gone over the network: a bar on a terminal, else a line now and then; on stderr, always."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["show_bytes"]

_LINE_S = 15.0


@contextmanager
def show_bytes(what: str, total: int, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many bytes more there are.

    Args:
        what: Such as "uploading".
        total: How many there will be.
        clock: Monotonic clock, seconds.
    """
    # The core install has no rich; lines do as well.
    if sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                   TimeRemainingColumn())  # fmt: skip
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.update(task, advance=count)
        return
    lines = _Lines(what, total, clock)
    try:
        yield lines.advance
    finally:
        lines.show()


class _Lines:
    def __init__(self, what: str, total: int, clock: Callable[[], float]) -> None:
        self._what, self._total, self._clock = what, total, clock
        self._done = 0
        self._started = self._shown = clock()

    def advance(self, count: int) -> None:
        self._done += count
        if self._clock() - self._shown >= _LINE_S:
            self.show()

    def show(self) -> None:
        self._shown = self._clock()
        elapsed_s = self._shown - self._started
        rate = f", {self._done / elapsed_s / 1e6:,.1f} MB/s" if elapsed_s > 1 else ""
        print(f"{self._what}: {self._done:,}/{self._total:,} bytes{rate}", file=sys.stderr, flush=True)
