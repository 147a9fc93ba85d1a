"""Budget 3: a rollout of 64 environments beside 16 live sessions at 20 Hz.

``python tests/bench/bench_isolation.py --rounds 7 --seconds 5 --out isolation.json``

Each round measures the live sessions four times, in an order that turns: ``echo`` (on the bare echo, the probe of the
machine), ``alone`` (on our server, nothing else), ``beside`` (with a saturating rollout on our server) and ``control``
(with the same rollout, but on an echo process: what the rollout's client and plain transport take from a small machine
without touching our server). The budget is p99(beside) - p99(alone) <= the largest dispatch of that run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivers.lanes import PlayLane
from drivers.loads import paced
from drivers.rollout import rollout_command
from harness import (
    add_server_arguments,
    channel,
    cpus_of,
    echo_server,
    machine,
    report_console,
    run_async,
    server,
    wait_for_policy,
    write_json,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from playserve.v1 import policy_service_pb2 as pb

Figures = dict[str, Any]
ARMS = ("echo", "alone", "beside", "control")


@asynccontextmanager
async def rollout_beside(address: str, policy: str, envs: int) -> AsyncIterator[Figures]:
    """Saturate a rollout in a process of its own; the yielded dict is filled when it ends."""
    process = await asyncio.create_subprocess_exec(
        *rollout_command(address, policy, envs), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    stats: Figures = {}
    await asyncio.sleep(1.0)
    try:
        yield stats
    finally:
        died = process.returncode is not None
        if not died:
            process.send_signal(signal.SIGTERM)
        out, err = await process.communicate()
        if died or process.returncode:
            raise RuntimeError(f"the rollout ended with {process.returncode}: {err.decode()[-2000:]}")
        stats |= json.loads(out)


async def measure_live(address: str, policy: str, sessions: int, seconds: float, seed: int) -> Figures:
    """Measure live sessions at 20 Hz."""
    async with channel(address) as connection:
        lanes = [PlayLane(connection, policy, pb.PACE_LIVE, 20.0) for _ in range(sessions)]
        return (await paced(lanes, seconds, seed=seed)).summary()


@dataclass(frozen=True, slots=True)
class Bench:
    """The running servers and the size of the load."""

    ours: str
    echo: str
    policy: str
    live: int
    envs: int
    seconds: float

    async def measure(self, arm: str, seed: int) -> Figures:
        """Measure one arm of one round."""
        on_echo = arm == "echo"
        target, policy = (self.echo, "echo") if on_echo else (self.ours, self.policy)
        if arm in ("echo", "alone"):
            return {"live": await measure_live(target, policy, self.live, self.seconds, seed)}
        beside, name = (self.ours, self.policy) if arm == "beside" else (self.echo, "echo")
        async with rollout_beside(beside, name, self.envs) as stats:
            live = await measure_live(target, policy, self.live, self.seconds, seed)
        return {"live": live, "rollout": {**stats, "rows_per_s": stats["rows"] / stats["seconds"]}}


def judge(rounds: list[dict[str, Figures]], jitter: float) -> Figures:
    """Return the verdict over all rounds."""
    raises, controls, dispatches = [], [], []
    for row in rounds:
        alone = row["alone"]["live"]["p99_ms"]
        raises.append(row["beside"]["live"]["p99_ms"] - alone)
        controls.append(row["control"]["live"]["p99_ms"] - alone)
        longest = max(row["beside"]["live"]["max_compute_us"], row["beside"]["rollout"]["max_compute_us"])
        dispatches.append(longest / 1e3)
    probe = [row["echo"]["live"]["p99_ms"] for row in rounds]
    spread = max(probe) / min(probe)
    excess = [raised - dispatch for raised, dispatch in zip(raises, dispatches, strict=True)]
    status = "met" if statistics.median(excess) <= 0 else "missed"
    note = f"{sum(e <= 0 for e in excess)} of {len(excess)} rounds within"
    if spread > jitter:
        note += f"; would be {status}; the echo's p99 varied {spread:.2f}x between rounds, more than {jitter:g}x"
        status = "inconclusive"
    return {
        "text": "3. 64 environments beside 16 live sessions: p99 raised by at most one maximum dispatch",
        "status": status,
        "note": note,
        "raise_ms": raises,
        "control_raise_ms": controls,
        "max_dispatch_ms": dispatches,
        "probe_spread": spread,
        "median_raise_ms": statistics.median(raises),
        "median_control_raise_ms": statistics.median(controls),
        "median_max_dispatch_ms": statistics.median(dispatches),
    }


def show(console: Console, rounds: list[dict[str, Figures]], verdict: Figures) -> None:
    """Print the tables."""
    table = Table(title="live sessions at 20 Hz, best / median over rounds", title_justify="left")
    for column in ("arm", "p50 ms", "p99 ms", "missed", "dropped or unanswered", "rollout rows/s"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm in ARMS:
        live = [row[arm]["live"] for row in rounds]
        rates = [row[arm]["rollout"]["rows_per_s"] for row in rounds if "rollout" in row[arm]]
        cells = [
            f"{min(f[k] for f in live):.3f} / {statistics.median(f[k] for f in live):.3f}" for k in ("p50_ms", "p99_ms")
        ]
        counts = [str(sum(f[k] for f in live)) for k in ("missed", "unanswered")]
        table.add_row(arm, *cells, *counts, f"{max(rates):,.0f} / {statistics.median(rates):,.0f}" if rates else "")
    console.print(table)
    console.print(verdict["text"])
    console.print(
        f"  raise {verdict['median_raise_ms']:.2f} ms, largest dispatch {verdict['median_max_dispatch_ms']:.2f} ms, "
        f"control (rollout on another server) {verdict['median_control_raise_ms']:.2f} ms (medians)"
    )
    console.print(f"  [bold]{verdict['status']}[/] ({verdict['note']})")


def measure_rounds(args: argparse.Namespace, tick: Callable[[str], None]) -> list[dict[str, Figures]]:
    """Run every round and return ``rounds[i][arm]``."""
    cpus = cpus_of(args.pin)
    rounds = []
    with echo_server(cpus) as echo, server(args.server, args.policy, cpus) as ours:
        run_async(wait_for_policy(ours.address, args.policy))
        bench = Bench(ours.address, echo.address, args.policy, args.live, args.envs, args.seconds)
        for number in range(args.rounds):
            turned = ARMS[number % len(ARMS) :] + ARMS[: number % len(ARMS)]
            row = {}
            for arm in turned:
                tick(f"round {number + 1}: {arm}")
                row[arm] = run_async(bench.measure(arm, number))
            rounds.append({arm: row[arm] for arm in ARMS})
    return rounds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_server_arguments(parser, policy="costly")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time of each arm and round")
    parser.add_argument("--live", type=int, default=16, help="live sessions")
    parser.add_argument("--envs", type=int, default=64, help="environments of the rollout")
    parser.add_argument("--jitter", type=float, default=3.0, help="allowed max/min of the echo's p99 between rounds")
    parser.add_argument("--out", type=Path, help="JSON report")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when the budget is missed")
    args = parser.parse_args(argv)
    console = report_console()
    report: Figures = {"benchmark": "isolation", "arguments": {k: str(v) for k, v in vars(args).items()}}
    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with machine(report), Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=args.rounds * len(ARMS))
        rounds = measure_rounds(args, lambda text: progress.update(task, description=text, advance=1))
    verdict = judge(rounds, args.jitter)
    report |= {"budgets": [verdict], "rounds": rounds}
    show(console, rounds, verdict)
    write_json(args.out, report)
    return int(args.strict and verdict["status"] == "missed")


if __name__ == "__main__":
    sys.exit(main())
