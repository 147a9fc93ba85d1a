"""When a run stops: at a limit of its settings, or because somebody asks."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from playserve_trainer.train.config import TrainConfig

__all__ = ["StopRequest", "fraction_done"]


def fraction_done(config: TrainConfig, *, steps: int, samples: int, flops: int, elapsed_s: float) -> float:
    """Return how much of the run is done, by the limit that is nearest: 1 or more means stop."""
    elapsed_min = elapsed_s / 60
    pairs = (
        (steps, config.max_steps),
        (samples, config.max_samples),
        (flops, config.max_flops),
        (elapsed_min, config.max_minutes),
    )
    return max(done / limit for done, limit in pairs if limit is not None)


class StopRequest:
    """Turns SIGINT and SIGTERM into a flag that the loop looks at between two steps; a second signal is not held back.

    A context manager of the main thread.

    Attributes:
        signum: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def __call__(self) -> bool:
        """Return whether the run should stop."""
        return self.signum is not None

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
