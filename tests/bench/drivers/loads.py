"""The loads: one lockstep stream, saturated lanes, and lanes paced at a rate. The same code drives every server."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from drivers.lanes import Answer, Lane
from drivers.stats import Measurement

__all__ = ["closed_loop", "paced"]

CpuMeter = Callable[[], float]
_NS_PER_MS = 1e6
# Steps of each lane that are not measured: first messages pay for HTTP/2 windows, lazy imports and caches.
_WARM_UP_STEPS = 20


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep this process's garbage collector out of the measurement."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def _close_all(lanes: Sequence[Lane]) -> None:
    await asyncio.gather(*(lane.close() for lane in lanes))


class _Reported:
    """Largest times that the server reported."""

    def __init__(self) -> None:
        self.compute_us = 0
        self.total_us = 0

    def add(self, answer: Answer) -> None:
        self.compute_us = max(self.compute_us, answer.compute_us)
        self.total_us = max(self.total_us, answer.total_us)


async def closed_loop(lanes: Sequence[Lane], seconds: float, *, cpu: CpuMeter | None = None) -> Measurement:
    """Drive each lane in lockstep as fast as it answers: one lane gives latency, many give throughput."""
    await asyncio.gather(*(lane.open() for lane in lanes))
    latencies: list[int] = []
    reported = _Reported()

    async def run(lane: Lane, first: int, steps: int | None, end_ns: int) -> int:
        seq = first
        while (steps is None and time.perf_counter_ns() < end_ns) or (steps is not None and seq < first + steps):
            start = time.perf_counter_ns()
            await lane.send(seq)
            answer = await lane.receive()
            latencies.append(time.perf_counter_ns() - start)
            if answer.seq != seq:
                raise AssertionError(f"step {seq} was answered as {answer.seq}")
            reported.add(answer)
            seq += 1
        return seq

    try:
        await asyncio.gather(*(run(lane, 1, _WARM_UP_STEPS, 0) for lane in lanes))
        latencies.clear()
        reported = _Reported()
        with _quiet():
            cpu_start = cpu() if cpu else 0.0
            start = time.perf_counter_ns()
            end = start + int(seconds * 1e9)
            await asyncio.gather(*(run(lane, _WARM_UP_STEPS + 1, None, end) for lane in lanes))
            elapsed = (time.perf_counter_ns() - start) / 1e9
            cpu_used = cpu() - cpu_start if cpu else None
    finally:
        await _close_all(lanes)
    return Measurement(
        latencies_ms=np.asarray(latencies) / _NS_PER_MS,
        seconds=elapsed,
        steps=len(latencies),
        max_compute_us=reported.compute_us,
        max_total_us=reported.total_us,
        server_cpu_s=cpu_used,
    )


class _PacedLane:
    """One lane whose steps are due at fixed times, whether or not the last one was answered (open loop)."""

    def __init__(self, lane: Lane, reported: _Reported) -> None:
        self.lane = lane
        self.sent_ns: dict[int, int] = {}
        self.latencies_ns: dict[int, int] = {}
        self.lags_ns: list[int] = []
        self.measured_from = 0
        self._reported = reported

    async def send(self, first_ns: int, period_ns: int, steps: int, warm_up: int) -> None:
        self.measured_from = warm_up + 1
        for seq in range(1, warm_up + steps + 1):
            due = first_ns + (seq - 1) * period_ns
            wait = due - time.perf_counter_ns()
            if wait > 0:
                await asyncio.sleep(wait / 1e9)
            now = time.perf_counter_ns()
            self.sent_ns[seq] = now
            if seq > warm_up:
                self.lags_ns.append(now - due)
            await self.lane.send(seq)

    async def receive(self, last: int) -> None:
        seq = 0
        while seq < last:  # it ends by itself: cancelling a read of grpc.aio cancels the stream
            answer = await self.lane.receive()
            now = time.perf_counter_ns()
            seq = answer.seq
            self.latencies_ns[answer.seq] = now - self.sent_ns[answer.seq]
            if answer.seq >= self.measured_from:
                self._reported.add(answer)


async def paced(
    lanes: Sequence[Lane],
    seconds: float,
    *,
    rate_hz: float = 20.0,
    deadline_s: float = 0.05,
    seed: int = 0,
    cpu: CpuMeter | None = None,
    when_warm: Callable[[], Awaitable[None]] | None = None,
) -> Measurement:
    """Drive each lane at `rate_hz`, phases spread at random over one period.

    Latency is from the actual send to the receipt; the send never waits for earlier answers, so a slow answer hides
    none of those behind it. The driver's own lateness is reported apart, as it is the same for every server.

    Args:
        lanes: Sessions.
        seconds: Measured time.
        rate_hz: Steps a second of each.
        deadline_s: Later answers, and none, are misses.
        seed: Of the phases: equal seeds give every server equal phases.
        cpu: Meter of the server's CPU time.
        when_warm: Awaited between opening and the first step.
    """
    await asyncio.gather(*(lane.open() for lane in lanes))
    if when_warm is not None:
        await when_warm()
    draw = random.Random(seed)
    period_ns = int(1e9 / rate_hz)
    steps, warm_up = max(1, round(seconds * rate_hz)), max(4, round(0.5 * rate_hz))
    reported = _Reported()
    runs = [_PacedLane(lane, reported) for lane in lanes]
    readers: list[asyncio.Task[None]] = []
    try:
        with _quiet():
            cpu_start = cpu() if cpu else 0.0
            start = time.perf_counter_ns() + period_ns
            readers = [asyncio.create_task(run.receive(warm_up + steps)) for run in runs]
            phases = [int(draw.random() * period_ns) for _ in runs]
            await asyncio.gather(
                *(run.send(start + phase, period_ns, steps, warm_up) for run, phase in zip(runs, phases, strict=True))
            )
            # An answer that is late by ten deadlines is as good as none.
            await asyncio.wait(readers, timeout=deadline_s * 10)
            cpu_used = (cpu() - cpu_start) if cpu else None
    finally:
        for reader in readers:
            reader.cancel()
        outcomes = await asyncio.gather(*readers, return_exceptions=True)
        await asyncio.gather(*(lane.close() for lane in lanes), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    latencies = [run.latencies_ns.get(seq) for run in runs for seq in range(warm_up + 1, warm_up + steps + 1)]
    answered = np.asarray([latency for latency in latencies if latency is not None]) / _NS_PER_MS
    unanswered = sum(latency is None for latency in latencies)
    return Measurement(
        latencies_ms=answered,
        seconds=steps / rate_hz,
        steps=len(answered),
        missed=unanswered + int((answered > deadline_s * 1e3).sum()),
        unanswered=unanswered,
        send_lag_ms=np.asarray([lag for run in runs for lag in run.lags_ns]) / _NS_PER_MS,
        max_compute_us=reported.compute_us,
        max_total_us=reported.total_us,
        # The meter ran over the warm-up as well.
        server_cpu_s=None if cpu_used is None else cpu_used * steps / (steps + warm_up),
    )
