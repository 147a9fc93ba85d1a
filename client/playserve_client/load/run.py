"""Runs a load: worker processes play its sessions, this one adds up what they count, and never plays itself.

What a person watches is drawn here, so that drawing it makes nobody's frames late.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from playserve.errors import ServerFault
from playserve.settings import Pace
from playserve.specs import Codec
from playserve_client.aio import PolicyClient
from playserve_client.channels import TlsConfig
from playserve_client.load.frames import FramePool, random_frames, recorded_frames
from playserve_client.load.plan import LoadShape, SessionPlan, sessions
from playserve_client.load.player import Player, PlayRules
from playserve_client.load.tally import Ledger, Tally, merged
from playserve_client.workers import send, worker_life, worker_processes

__all__ = ["LoadConfig", "LoadRun", "drive", "measure"]

#: Between the word to begin and the warm-up.
_LEAD_S = 0.2
_TICK_S = 0.25
_TELL_S = 1.0
#: How long workers may take to close their sessions after an interrupt.
_STOP_S = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """Everything that a worker needs to know; JSON on its way.

    Attributes:
        address: "host:port".
        shape: When sessions come and go.
        rules: How they play.
        frames: File of recorded frames; None: noise.
        tls: As :data:`playserve_client.channels.Tls`, without gRPC's own credentials.
        api_key: Key or token for servers that want one; in no report.
        allow_insecure_key: Send it over plain text to other machines, too.
        codec: Packing of frames, where server and policy take it.
        processes: Workers.
        connections: Connections that the sessions of a worker share; 0: each has its own, as players have.
        interval_s: Length of an interval of the report.
        timeout_s: Longest wait for a session to open.
    """

    address: str
    shape: LoadShape
    rules: PlayRules
    frames: Path | None = None
    tls: bool | TlsConfig = False
    api_key: str | None = field(default=None, repr=False)
    allow_insecure_key: bool = False
    codec: Codec = Codec.RAW
    processes: int = 1
    connections: int = 0
    interval_s: float = 5.0
    timeout_s: float = 10.0

    @property
    def intervals(self) -> int:
        """Return how many intervals the measured time has."""
        return max(1, math.ceil(self.shape.seconds / self.interval_s - 1e-9))

    def client(self) -> PolicyClient:
        """Return a client that is not connected yet."""
        return PolicyClient(
            self.address,
            api_key=self.api_key,
            allow_insecure_key=self.allow_insecure_key,
            tls=self.tls,
            timeout_s=self.timeout_s,
            codecs=() if self.codec is Codec.RAW else (self.codec,),
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value, which :meth:`from_json` reads: without the key, which is for workers only."""
        value: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        del value["api_key"]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LoadConfig:
        """Return the config of a JSON value."""
        tls, frames = value["tls"], value["frames"]
        if isinstance(tls, dict):
            name = tls.pop("server_name")
            tls = TlsConfig(server_name=name, **{k: None if v is None else Path(v) for k, v in tls.items()})
        fixed = {
            "shape": LoadShape(**value["shape"]),
            "rules": PlayRules(**{**value["rules"], "pace": Pace(value["rules"]["pace"])}),
            "frames": None if frames is None else Path(frames),
            "tls": tls,
            "codec": Codec(value["codec"]),
        }
        return cls(**{**value, **fixed})


async def make_pool(config: LoadConfig) -> FramePool:
    """Return the frames to send, by the spec that the server gives."""
    async with config.client() as client:
        spec = (await client.get_policy(config.rules.policy, config.rules.version)).spec
    if config.frames is not None:
        return recorded_frames(config.frames, spec)
    return random_frames(spec, config.shape.seed)


async def drive(
    config: LoadConfig,
    pool: FramePool,
    begin_ns: int,
    tell: Callable[[dict[str, Any]], None],
    *,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Play every `share[1]`-th session from `share[0]` on; returns when the last one has ended.

    Args:
        config: The load.
        pool: What sessions see.
        begin_ns: When the measurement begins, monotonic.
        tell: Takes what has changed in the ledger, now and then and at the end.
        share: (i, n) of this worker.
    """
    ledger = Ledger(begin_ns, int(config.interval_s * 1e9), config.intervals)
    open_now = 0

    def opened(change: int) -> None:
        nonlocal open_now
        open_now += change

    async def tick() -> None:
        before_ns = told_ns = time.monotonic_ns()
        while True:
            await asyncio.sleep(_TICK_S)
            now_ns = time.monotonic_ns()
            ledger.played(before_ns, now_ns, open_now)
            before_ns = now_ns
            if now_ns - told_ns > _TELL_S * 1e9:
                told_ns = now_ns
                tell(ledger.take_changed())

    async with AsyncExitStack() as stack:
        shared = [await stack.enter_async_context(config.client()) for _ in range(config.connections)]

        async def play(plan: SessionPlan) -> None:
            async with AsyncExitStack() as own:
                client = shared[plan.number % len(shared)] if shared else await own.enter_async_context(config.client())
                await Player(client, plan, config.rules, pool, ledger, begin_ns, opened).run()

        ticker = asyncio.create_task(tick())
        try:
            async with asyncio.TaskGroup() as group:
                for plan in sessions(config.shape):
                    if plan.number % share[1] == share[0]:
                        await asyncio.sleep(max(0.0, begin_ns / 1e9 + plan.start_s - time.monotonic()))
                        group.create_task(play(plan))
        finally:
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
            tell(ledger.take_changed())


# ---- workers


def work(connection: Connection, config: str) -> None:
    """Live in a worker: say that it is ready, be told when to begin, play, and tell what was counted."""
    with worker_life(connection) as jobs:
        load = LoadConfig.from_json(json.loads(config))
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            pool = runner.run(make_pool(load))
            send(connection, {"ready": True})
            for job in jobs:
                # What is loaded stays: a collection that walks all of it would make frames late.
                gc.collect()
                gc.freeze()
                runner.run(_drive_until_told(connection, load, pool, job))
                send(connection, {"done": True})


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    with suppress(ImportError):
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
        return factory
    return None


async def _drive_until_told(connection: Connection, load: LoadConfig, pool: FramePool, job: Mapping[str, Any]) -> None:
    def tell(changed: dict[str, Any]) -> None:
        send(connection, {"intervals": changed})

    playing = asyncio.create_task(drive(load, pool, job["begin_ns"], tell, share=(job["index"], load.processes)))
    loop = asyncio.get_running_loop()
    with suppress(NotImplementedError):  # Windows: there an interrupt ends sessions without a word
        loop.add_reader(connection.fileno(), playing.cancel)
    try:
        await asyncio.wait({playing})
    finally:
        with suppress(NotImplementedError):
            loop.remove_reader(connection.fileno())
    if not playing.cancelled():
        playing.result()


class LoadRun:
    """What is known of a run so far.

    Args:
        config: The load.
    """

    def __init__(self, config: LoadConfig) -> None:
        self.config = config
        self.interrupted = False
        self.begin_ns: int | None = None
        self.ended_ns: int | None = None
        self._by_worker: dict[tuple[int, int], Tally] = {}

    def take(self, worker: int, intervals: Mapping[str, Any]) -> None:
        """Take the intervals that changed in a worker."""
        for index, tally in intervals.items():
            self._by_worker[worker, int(index)] = Tally.from_json(tally)

    def intervals(self) -> dict[int, Tally]:
        """Return the tally of each interval, over all workers, in order."""
        indices = sorted({index for _, index in self._by_worker})
        return {i: merged(tally for (_, j), tally in self._by_worker.items() if i == j) for i in indices}

    def elapsed_s(self) -> float:
        """Return how long has been measured; less than 0 while it warms up."""
        if self.begin_ns is None:
            return -self.config.shape.warmup_s
        now_ns = time.monotonic_ns() if self.ended_ns is None else self.ended_ns
        return min(self.config.shape.seconds, (now_ns - self.begin_ns) / 1e9)


def measure(config: LoadConfig, watch: Callable[[LoadRun], None] = lambda run: None) -> LoadRun:
    """Run a load; return what was counted. Ctrl-C ends it early: its sessions are closed, and what there is counts.

    Args:
        config: The load.
        watch: Called now and then with what is known so far.

    Raises:
        ServerFault: A worker failed.
    """
    run = LoadRun(config)
    told = config.to_json() | {"api_key": config.api_key}
    with worker_processes(work, told, config.processes, name="playserve-load", patience_s=1.0) as workers:
        for worker in workers:
            _receive(worker)
        run.begin_ns = time.monotonic_ns() + int((_LEAD_S + config.shape.warmup_s) * 1e9)
        for index, worker in enumerate(workers):
            send(worker, {"begin_ns": run.begin_ns, "index": index})
        left = list(workers)
        try:
            _collect(run, workers, left, watch)
        except KeyboardInterrupt:
            run.interrupted, run.ended_ns = True, time.monotonic_ns()
            _stop(left)
            _collect(run, workers, left, watch, patience_s=_STOP_S)
        else:
            _stop(workers)
    return run


def _collect(
    run: LoadRun,
    workers: Sequence[Connection],
    left: list[Connection],
    watch: Callable[[LoadRun], None],
    patience_s: float = math.inf,
) -> None:
    """Take what workers tell until none is left, or for so long."""
    until = time.monotonic() + patience_s
    while left and time.monotonic() < until:
        for ready in wait(left, timeout=_TICK_S):
            assert isinstance(ready, Connection)  # noqa: S101 - only connections were waited for
            message = _receive(ready)
            if "done" in message:
                left.remove(ready)
            else:
                run.take(workers.index(ready), message["intervals"])
        watch(run)


def _receive(worker: Connection) -> dict[str, Any]:
    try:
        message: dict[str, Any] = json.loads(worker.recv_bytes())
    except (EOFError, ConnectionError):
        raise ServerFault("a process that played sessions died") from None
    if "error" in message:
        raise ServerFault(f"a process that played sessions failed: {message['error']}")
    return message


def _stop(workers: Sequence[Connection]) -> None:
    for worker in workers:
        with suppress(ConnectionError):
            send(worker, {})
