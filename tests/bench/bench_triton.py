"""Budget 3 of issue 6: what our front adds over tritonclient, against the same Triton. One stream, lockstep.

``python tests/bench/bench_triton.py --rounds 7 --seconds 3 --out runs/bench/triton.json``

* "client": one-row batches sent by tritonclient's asyncio stream, as the front sends them, to Triton;
* "front": a player's `Play` stream to `playserve serve --engine triton`, which sends them to that Triton;
* "own": the same with our own engine, to see what Triton costs.

The policy is the Atari net of width 8 in all three. Each round measures every one, in an order that turns; differences
are taken within a round and judged by their median. "client" is also the probe of the machine: where its own p50 varies
by more than ``--jitter`` between rounds, the verdict is "inconclusive".

Client and front send Triton the same tensors and bytes, one row, to one model in one process. Both drivers make their
request once and renumber it; the front makes its own anew for every step, as it must. CPU time a step, of the driver
and of the front, is in the report too: it says what the code costs where a busy machine hides that. ``--against DIR``
adds the front of another source tree (``git archive REVISION proto client trainer services | tar -x -C DIR``).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from drivers.lanes import Answer, Lane, LaneError, PlayLane
from drivers.loads import closed_loop
from harness import channel, machine, report_console, run_async, wait_for_policy, write_json
from peers.process import ServerProcess
from peers.triton import TritonServer
from rich.table import Table
from tritonclient.grpc import InferInput
from tritonclient.utils import np_to_triton_dtype

from playserve_services.inference.runtime import Row
from playserve_services.triton.host import HostSettings
from playserve_services.triton.repository import export_batch
from playserve_services.triton.tensors import request_arrays
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.models.atari import AtariConfig, AtariPolicy
from playserve_trainer.store import CheckpointStore

_POLICY, _LIMIT_MS = "width8", 0.5
_SOURCES = ("proto", "client", "trainer", "services")


class BatchLane:
    """One-row batches by tritonclient's asyncio stream."""

    def __init__(self, address: str) -> None:
        self._client = triton.InferenceServerClient(address)
        frame = np.random.default_rng(0).integers(0, 256, (84, 84, 4), dtype=np.uint8)
        row = Row(64, True, {"frames": frame}, None, 1, 0, 1.0, False)  # a slot that the front does not have
        arrays = request_arrays([row], ["frames"], 1, executed_BH=[None], instructions=None)
        self._inputs = []
        for name, array in arrays.items():
            tensor = InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            self._inputs.append(tensor)
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._answers: Any = None

    async def _requests(self) -> AsyncIterator[dict[str, Any]]:
        while (number := await self._queue.get()) is not None:
            yield {
                "model_name": _POLICY, "inputs": self._inputs, "request_id": number,
                "parameters": {"version": "1", "log_prob": False},
            }  # fmt: skip

    async def open(self) -> None:
        """Start the stream."""
        self._answers = self._client.stream_infer(self._requests()).__aiter__()

    async def send(self, seq: int) -> None:
        """Send one batch."""
        self._queue.put_nowait(str(seq))

    async def receive(self) -> Answer:
        """Return the next answer."""
        result, error = await anext(self._answers)
        if error is not None:
            raise LaneError(str(error))
        result.as_numpy("actions")
        return Answer(int(result.get_response().id))

    async def close(self) -> None:
        """End the stream."""
        self._queue.put_nowait(None)
        async for _ in self._answers:
            pass
        await self._client.close()


def _publish(store: Path) -> None:
    policy = AtariPolicy(AtariConfig(game="breakout", num_actions=4, width=8))
    checkpoint.save(store.parent / "made", policy, Manifest.describe(policy, samples_seen=1))
    CheckpointStore(store).publish(_POLICY, store.parent / "made")


def _serve(store: Path, *more: str, sources: Path | None = None) -> ServerProcess:
    """Return a server that is not started yet; `sources`: of another tree than this one."""
    program = [sys.executable, "-c", "import sys; from playserve.cli import main; sys.exit(main())"]
    command = [*program, "serve", "--store", str(store), "--slots", "8", "--poll-s", "600", "--port", "{port}", *more]
    env = {} if sources is None else {"PYTHONPATH": ":".join(str(sources / root) for root in _SOURCES)}
    return ServerProcess(command, name="playserve", env=env, ready_s=180.0)


def _cpu_s(pid: int) -> float:
    """Return the CPU time of a process's threads in seconds, to the nanosecond."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


async def _measure(lane: Lane, seconds: float, server: ServerProcess | None) -> dict[str, float]:
    """Measure a lane; `server` is the process whose CPU time is counted beside the driver's."""

    def cpu_s() -> float:
        return time.process_time() + (_cpu_s(server.pid) if server is not None else 0.0)

    found = (await closed_loop([lane], seconds, cpu=cpu_s)).summary()
    return {
        "p50_ms": found["p50_ms"], "p99_ms": found["p99_ms"], "steps_per_s": found["rate"],
        "cpu_us": found["server_cpu_us_per_step"],
    }  # type: ignore[dict-item] # fmt: skip


async def _played(server: ServerProcess, seconds: float) -> dict[str, float]:
    async with channel(server.address) as connection:
        return await _measure(PlayLane(connection, _POLICY), seconds, server)


async def _asked(server: TritonServer, seconds: float) -> dict[str, float]:
    return await _measure(BatchLane(server.address), seconds, None)


def _added(rounds: Sequence[Mapping[str, Mapping[str, float]]], name: str) -> list[float]:
    """Return what a front added in each round."""
    return [one[name]["p50_ms"] - one["client"]["p50_ms"] for one in rounds]


def main() -> int:
    """Measure; return 1 if the budget is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each side of a round")
    parser.add_argument("--jitter", type=float, default=1.5, help="allowed max/min of the client's own p50")
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="source tree whose front is measured beside this one"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench/triton.json"))
    args, console = parser.parse_args(), report_console()
    report: dict[str, Any] = {"benchmark": "triton", "limit_ms": _LIMIT_MS}
    rounds: list[dict[str, dict[str, float]]] = []
    with machine(report), tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        store = Path(folder) / "store"
        _publish(store)
        export_batch(HostSettings(policy=_POLICY, store=str(store), slots=64), Path(folder) / "models")
        there = stack.enter_context(TritonServer(Path(folder) / "models", ready_s=120.0))
        compute = ("--engine", "triton", "--triton-url", there.address)
        servers = {"front": _serve(store, *compute), "own": _serve(store)}
        if args.against is not None:  # with slots of its own
            servers["against"] = _serve(store, *compute, "--triton-front", "1", sources=args.against)
        for server in servers.values():
            stack.enter_context(server)
            run_async(wait_for_policy(server.address, _POLICY))
        sides: list[tuple[str, Any, Any]] = [("client", _asked, there)]
        sides += [(name, _played, server) for name, server in servers.items()]
        for number in range(args.rounds):
            turn = number % len(sides)
            rounds.append({name: run_async(run(at, args.seconds)) for name, run, at in sides[turn:] + sides[:turn]})
    added = _added(rounds, "front")
    probe = [one["client"]["p50_ms"] for one in rounds]
    steady = max(probe) / min(probe) <= args.jitter
    verdict = ("met" if statistics.median(added) <= _LIMIT_MS else "missed") if steady else "inconclusive"
    report |= {"rounds": rounds, "added_ms": added, "verdict": verdict}
    write_json(args.out, report)
    table = Table("", "p50 ms best", "p50 ms median", "p99 ms median", "steps/s median", "CPU us/step median")
    keys = ("p50_ms", "p99_ms", "steps_per_s", "cpu_us")
    for name, _, _ in sides:
        p50, *others = ([one[name][key] for one in rounds] for key in keys)
        shown = (min(p50), statistics.median(p50), *map(statistics.median, others))
        table.add_row(name, *(f"{value:.3f}" for value in shown))
    console.print(table)
    console.print(f"front over client: best {min(added):.3f} ms, median {statistics.median(added):.3f} ms, "
                  f"limit {_LIMIT_MS} ms: {verdict}; {args.out}", soft_wrap=True)  # fmt: skip
    if args.against is not None:
        before = _added(rounds, "against")
        report["against_added_ms"] = before
        write_json(args.out, report)
        console.print(f"the other tree's front: best {min(before):.3f} ms, median {statistics.median(before):.3f} ms")
    return 1 if verdict == "missed" else 0


if __name__ == "__main__":
    raise SystemExit(main())
