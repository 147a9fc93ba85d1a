"""The engine: one thread that runs batches, one after another, and hands each result back to the loop in one call.

It owns nothing but its queue. Which rows make a batch, and what becomes of the results, is decided on the event loop's
thread (core.py); so sessions need no locks.
"""

from __future__ import annotations

import logging
import math
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
        expected_s: How long it will take; infinity while nobody knows.
    """

    runtime: Runtime
    rounds: Sequence[Sequence[Row]]
    want_log_prob: bool
    tag: Any
    expected_s: float = math.inf


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
    """Runs in a thread of its own, but for batches that are shorter than the way to that thread and back.

    A hand-off to a thread and back costs 0.15 ms under one interpreter lock, six times what a trivial policy takes.
    Such a batch runs at once on the loop's thread, if the engine's thread has nothing to do: one batch at a time still.

    Args:
        on_result: Called with each batch and its result, on the loop's thread; from within `submit` for short batches.
        post: Runs a function on the loop's thread (`loop.call_soon_threadsafe`).
        on_death: Called through `post` if the thread ends by itself; nothing will be answered afterwards.
        inline_s: Batches that are expected to take no longer than this run on the loop's thread; 0: none.
    """

    def __init__(
        self,
        on_result: Callable[[Batch, BatchResult], None],
        post: Callable[..., Any],
        on_death: Callable[[], None],
        *,
        inline_s: float = 0.0,
    ) -> None:
        self._on_result = on_result
        self._post = post
        self._on_death = on_death
        self._inline_s = inline_s
        self._in_thread = 0  # jobs that the thread has, or that are on their way back; loop's thread only
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._main, name="playserve-engine", daemon=True)
        self._thread.start()

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, batch: Batch) -> None:
        """See :class:`Engine`."""
        if self._in_thread == 0 and batch.expected_s <= self._inline_s and self._inline_s > 0:
            self._on_result(batch, run_batch(batch))
            return
        self._in_thread += 1
        self._inbox.put(lambda: self._post(self._returned, self._on_result, batch, run_batch(batch)))

    def call(self, function: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        """See :class:`Engine`."""

        def job() -> None:
            try:
                value = function()
            except Exception as error:  # noqa: BLE001 - handed to the caller
                self._post(self._returned, done, None, error)
            else:
                self._post(self._returned, done, value, None)

        self._in_thread += 1
        self._inbox.put(job)

    def _returned(self, take: Callable[..., None], *results: Any) -> None:
        self._in_thread -= 1
        take(*results)

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
