"""The engine of a front: batches go to Triton, one request a round, and nothing waits in a thread. Loop's thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from playserve_services.inference.engine import Batch, BatchResult, Engine
from playserve_services.inference.staging import Array
from playserve_services.triton.front import TritonRuntime
from playserve_services.triton.link import TritonLink

__all__ = ["TritonEngine"]

_log = logging.getLogger(__name__)


class TritonEngine(Engine):
    """See the module's docstring. One job at a time: batches, and functions between two of them.

    Rounds of a batch are sent at once, without waiting for each other: Triton's one instance computes them in order.

    Args:
        on_result: Called with each batch and its result.
        link: To Triton.
    """

    def __init__(self, on_result: Callable[[Batch, BatchResult], None], link: TritonLink) -> None:
        self._on_result = on_result
        self._link = link
        self._jobs: deque[Callable[[], Any]] = deque()
        self._busy = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="playserve-triton")

    def submit(self, batch: Batch) -> None:
        """See :class:`Engine`."""
        self._add(lambda: self._send(batch))

    def call(self, function: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        """See :class:`Engine`. The function runs in a thread: it may wait for Triton."""

        def job() -> None:
            future = asyncio.get_running_loop().run_in_executor(self._thread, function)
            future.add_done_callback(returned)

        def returned(future: asyncio.Future[Any]) -> None:
            error = future.exception()
            self._next()
            if error is not None and not isinstance(error, Exception):
                raise error
            done(None if error is not None else future.result(), error)

        self._add(job)

    def close(self) -> None:
        """See :class:`Engine`."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _add(self, job: Callable[[], Any]) -> None:
        if self._busy:
            self._jobs.append(job)
        else:
            self._busy = True
            job()

    def _next(self) -> None:
        self._busy = bool(self._jobs)
        if self._jobs:
            self._jobs.popleft()()

    def _send(self, batch: Batch) -> None:
        started, runtime = time.monotonic_ns(), batch.runtime
        assert isinstance(runtime, TritonRuntime)  # noqa: S101 - a front makes no other
        spec = runtime.spec
        left, answers = len(batch.rounds), []

        def returned(answer: Mapping[str, Array] | Exception) -> None:
            nonlocal left
            answers.append(answer)
            left -= 1
            if left:  # answers come in order: with the last one all are there
                return
            try:
                rounds = [runtime.answer(rows, _found(a)) for rows, a in zip(batch.rounds, answers, strict=True)]
            except Exception as error:  # noqa: BLE001 - logged, and handed to the core
                self._failed(batch, error, started)
                return
            result = BatchResult(rounds, None, started, time.monotonic_ns())
            self._next()
            self._on_result(batch, result)

        try:
            requests = [runtime.request(rows) for rows in batch.rounds]
        except Exception as error:  # noqa: BLE001 - logged, and handed to the core
            self._failed(batch, error, started)
            return
        for request in requests:
            self._link.send(spec.name, request, returned, version=spec.version, log_prob=batch.want_log_prob)

    def _failed(self, batch: Batch, error: Exception, started_ns: int) -> None:
        _log.error("a batch of policy %s failed: %s", batch.runtime.spec.name, error)
        self._next()
        self._on_result(batch, BatchResult(None, error, started_ns, time.monotonic_ns()))


def _found(answer: Mapping[str, Array] | Exception) -> Mapping[str, Array]:
    """Return an answer, or raise what came instead."""
    if isinstance(answer, Exception):
        raise answer
    return answer
