"""The engine: one batch at a time, in its thread or, where that is shorter than the way there, on the loop's."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from playserve_services.inference.engine import Batch, BatchResult, ThreadEngine


class _Runtime:
    """Notes in which thread each batch ran, and waits where it is told to."""

    spec: Any = type("Spec", (), {"name": "probe"})()
    pool: Any = None

    def __init__(self) -> None:
        self.threads: list[tuple[Any, int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, rows: Sequence[Any], want_log_prob: bool) -> Any:
        assert self.gate.wait(10)
        self.threads.append((rows[0], threading.get_ident()))
        return rows

    def padded(self, rows: int) -> int:
        return rows

    def warm_up(self) -> None:
        pass


def _batch(runtime: _Runtime, tag: str, expected_s: float) -> Batch:
    return Batch(runtime, [[tag]], False, tag, expected_s)


class _Rig:
    def __init__(self, inline_s: float) -> None:
        loop = asyncio.get_running_loop()
        self.runtime, self.results = _Runtime(), []
        self.engine = ThreadEngine(self._take, loop.call_soon_threadsafe, lambda: None, inline_s=inline_s)

    def _take(self, batch: Batch, result: BatchResult) -> None:
        assert result.error is None
        self.results.append((batch.tag, threading.get_ident()))

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.results) < count:  # noqa: ASYNC110 - the results come from a thread
                await asyncio.sleep(0.001)


async def _scenario(inline_s: float, expected_s: float) -> tuple[bool, bool]:
    """Return whether the batch ran on the loop's thread, and whether its result came there."""
    rig, here = _Rig(inline_s), threading.get_ident()
    rig.engine.submit(_batch(rig.runtime, "a", expected_s))
    await rig.until(1)
    rig.engine.close()
    return rig.runtime.threads[0][1] == here, rig.results[0][1] == here


@pytest.mark.parametrize(
    ("inline_s", "expected_s", "inline"),
    [(0.001, 0.0005, True), (0.001, 0.002, False), (0.001, math.inf, False), (0.0, 0.0005, False)],
)
def test_a_batch_shorter_than_the_hand_off_runs_at_once(inline_s: float, expected_s: float, inline: bool) -> None:
    assert asyncio.run(_scenario(inline_s, expected_s)) == (inline, True)


def test_nothing_runs_beside_what_the_thread_is_doing() -> None:
    async def main() -> None:
        rig, here = _Rig(1.0), threading.get_ident()
        rig.runtime.gate.clear()
        rig.engine.submit(_batch(rig.runtime, "long", 2.0))
        rig.engine.submit(_batch(rig.runtime, "short", 0.0))
        assert rig.runtime.threads == []
        rig.runtime.gate.set()
        await rig.until(2)
        rig.engine.submit(_batch(rig.runtime, "alone", 0.0))
        await rig.until(3)
        rig.engine.close()
        assert [tag for tag, _ in rig.results] == ["long", "short", "alone"]
        assert [thread == here for _, thread in rig.runtime.threads] == [False, False, True]

    asyncio.run(main())


def test_a_call_between_batches_keeps_its_place() -> None:
    async def main() -> None:
        rig, order = _Rig(1.0), []
        rig.runtime.gate.clear()
        rig.engine.call(lambda: rig.runtime.gate.wait(10), lambda value, error: order.append((value, error)))
        rig.engine.submit(_batch(rig.runtime, "after", 0.0))
        rig.runtime.gate.set()
        await rig.until(1)
        rig.engine.close()
        assert order == [(True, None)]
        assert rig.runtime.threads[0][1] != threading.get_ident()

    asyncio.run(main())


def test_a_failed_call_tells_its_caller_and_the_engine_goes_on() -> None:
    async def main() -> None:
        rig, errors = _Rig(0.0), []
        rig.engine.call(lambda: 1 // 0, lambda value, error: errors.append(error))
        rig.engine.submit(_batch(rig.runtime, "next", math.inf))
        await rig.until(1)
        rig.engine.close()
        assert isinstance(errors[0], ZeroDivisionError)

    asyncio.run(main())
