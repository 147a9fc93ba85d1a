"""The engine: one thread that runs batches, one after another, and hands each result back to the loop in one call.

It owns nothing but its queue. Which rows make a batch, and what becomes of the results, is decided on the event loop's
thread (core.py); so sessions need no locks.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from playserve_services.inference.runtime import Row, Rows, Runtime

__all__ = ["Batch", "BatchResult", "Engine", "InlineEngine", "ThreadEngine", "run_batch"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Batch:
    """Rows of one policy version.

    Attributes:
        runtime: The version.
        rounds: Rows that enter the memory one after another. Round 0 holds every slot that has most frames waiting;
            each round's rows are distinct slots. Usually there is one round.
        want_log_prob: Whether any row wants log-probabilities.
        tag: The caller's own, handed back.
    """

    runtime: Runtime
    rounds: Sequence[Sequence[Row]]
    want_log_prob: bool
    tag: Any


@dataclass(slots=True)
class BatchResult:
    """What a batch gave.

    Attributes:
        rounds: Results of each round, or None after a failure.
        error: What failed, or None.
        started_ns: Monotonic clock when the engine began.
        finished_ns: Monotonic clock when it ended.
    """

    rounds: list[Rows] | None
    error: Exception | None
    started_ns: int
    finished_ns: int


def run_batch(batch: Batch) -> BatchResult:
    """Run every round; an exception becomes the result's error."""
    started = time.monotonic_ns()
    try:
        rounds = [batch.runtime.run(rows, batch.want_log_prob) for rows in batch.rounds]
    except Exception as error:  # noqa: BLE001 - logged, and handed to the core
        _log.exception("a batch of policy %s failed", batch.runtime.spec.name)
        return BatchResult(None, error, started, time.monotonic_ns())
    return BatchResult(rounds, None, started, time.monotonic_ns())


class Engine:
    """What the core needs of an engine."""

    def submit(self, batch: Batch) -> None:
        """Run a batch; its result goes to the `on_result` of the constructor, on the loop's thread."""
        raise NotImplementedError

    def call(self, function: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        """Run `function` between two batches; `done(value, error)` is called on the loop's thread."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish what was submitted, and stop."""


class InlineEngine(Engine):
    """Runs at once, in the caller's thread; for tests that need no concurrency."""

    def __init__(self, on_result: Callable[[Batch, BatchResult], None]) -> None:
        self._on_result = on_result

    def submit(self, batch: Batch) -> None:
        """See :class:`Engine`."""
        self._on_result(batch, run_batch(batch))

    def call(self, function: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        """See :class:`Engine`."""
        try:
            value = function()
        except Exception as error:  # noqa: BLE001 - handed to the caller, as the thread would
            done(None, error)
        else:
            done(value, None)


class ThreadEngine(Engine):
    """Runs in a thread of its own.

    Args:
        on_result: Called with each batch and its result, through `post`.
        post: Runs a function on the loop's thread (`loop.call_soon_threadsafe`).
        on_death: Called through `post` if the thread ends by itself; nothing will be answered afterwards.
    """

    def __init__(
        self,
        on_result: Callable[[Batch, BatchResult], None],
        post: Callable[..., Any],
        on_death: Callable[[], None],
    ) -> None:
        self._on_result = on_result
        self._post = post
        self._on_death = on_death
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="playserve-engine", daemon=True)
        self._thread.start()

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, batch: Batch) -> None:
        """See :class:`Engine`."""
        self._inbox.put(lambda: self._post(self._on_result, batch, run_batch(batch)))

    def call(self, function: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        """See :class:`Engine`."""

        def job() -> None:
            try:
                value = function()
            except Exception as error:  # noqa: BLE001 - handed to the caller
                self._post(done, None, error)
            else:
                self._post(done, value, None)

        self._inbox.put(job)

    def close(self) -> None:
        """See :class:`Engine`."""
        self._inbox.put(None)
        self._thread.join(timeout=30)

    def _main(self) -> None:
        try:
            while (job := self._inbox.get()) is not None:
                job()
        except BaseException:
            _log.critical("the engine thread died", exc_info=True)
            self._post(self._on_death)
            raise
