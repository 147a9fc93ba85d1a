"""Where a step's time goes: CPU time, system time and context switches of each server thread, per step.

``python tests/bench/profile_serving.py --sessions 1`` prints our server beside the bare echo. It reads /proc only, so
it needs no profiler and slows nothing down. The loop thread is the first, the engine thread the second of ours; the
threads named event_engine and the one before them are gRPC's own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drivers.lanes import PlayLane
from drivers.loads import closed_loop
from harness import (
    add_server_arguments,
    channel,
    echo_server,
    machine,
    report_console,
    run_async,
    server,
    wait_for_policy,
    write_json,
)
from peers.process import ServerProcess
from rich.table import Table


@dataclass(slots=True)
class _Usage:
    cpu_us: float
    sys_us: float
    switches: int


def threads(pid: int) -> dict[tuple[int, str], _Usage]:
    """Return the usage of each thread of a process by (id, name)."""
    found = {}
    tick_us = 1e6 / os.sysconf("SC_CLK_TCK")
    for task in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name)):
        name, _, fields = (task / "stat").read_text().partition("(")[2].rpartition(")")
        status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        found[int(task.name), name] = _Usage(
            cpu_us=int((task / "schedstat").read_text().split()[0]) / 1e3,
            sys_us=int(fields.split()[12]) * tick_us,
            switches=int(status["voluntary_ctxt_switches"]) + int(status["nonvoluntary_ctxt_switches"]),
        )
    return found


async def profile(process: ServerProcess, policy: str, sessions: int, seconds: float) -> dict[str, Any]:
    """Saturate `sessions` streams and return the rate and each thread's usage per step."""
    await wait_for_policy(process.address, policy)
    async with channel(process.address) as connection:
        before = threads(process.pid)
        result = await closed_loop([PlayLane(connection, policy) for _ in range(sessions)], seconds)
        after = threads(process.pid)
    nothing = _Usage(0.0, 0.0, 0)
    rows = []
    for key, usage in after.items():
        old = before.get(key, nothing)
        rows.append(
            {
                "thread": key[1],
                "cpu_us": (usage.cpu_us - old.cpu_us) / result.steps,
                "sys_us": (usage.sys_us - old.sys_us) / result.steps,
                "switches": (usage.switches - old.switches) / result.steps,
            }
        )
    return {**result.summary(), "threads": [row for row in rows if row["cpu_us"] >= 1]}


def main(argv: Sequence[str] | None = None) -> int:
    """Profile both servers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_server_arguments(parser, policy="trivial")
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--out", type=Path, help="JSON report")
    args = parser.parse_args(argv)
    report: dict[str, Any] = {"arguments": {k: str(v) for k, v in vars(args).items()}}
    console = report_console()
    with machine(report):
        for name, running, policy in (
            ("echo", echo_server(), "echo"),
            ("playserve", server(args.server, args.policy), "echo" if args.server == "echo" else args.policy),
        ):
            with running as process:
                report[name] = run_async(profile(process, policy, args.sessions, args.seconds))
            figures = report[name]
            total = sum(row["cpu_us"] for row in figures["threads"])
            table = Table(
                title=f"{name}: {args.sessions} sessions, {figures['rate']:,.0f} steps/s, p50 {figures['p50_ms']:.3f} "
                f"ms, {total:.0f} us of CPU a step",
                title_justify="left",
            )
            for column in ("thread", "CPU us/step", "of it system", "switches/step"):
                table.add_column(column, justify="left" if column == "thread" else "right")
            for row in figures["threads"]:
                table.add_row(row["thread"], f"{row['cpu_us']:.0f}", f"{row['sys_us']:.0f}", f"{row['switches']:.2f}")
            console.print(table)
    write_json(args.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
