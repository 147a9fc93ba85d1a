"""Budget 4: resident memory stays flat over 10,000 sessions and 1,000,000 steps.

``python tests/bench/bench_soak.py --out soak.json``

The work is done in equal parts; each opens and closes sessions (a few steps each, some at once) and then answers rows
of a rollout of 64 environments whose episodes change. Memory (/proc, children included) is sampled after each part,
with the server idle. The level after the warm-up parts is the reference for all later ones.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drivers.lanes import PlayLane
from drivers.rollout import RolloutDriver, RolloutStats
from harness import (
    add_server_arguments,
    channel,
    cpus_of,
    machine,
    report_console,
    run_async,
    server,
    wait_for_policy,
    write_json,
)
from peers.process import ServerProcess
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_MIB = 1 << 20


async def churn(address: str, policy: str, sessions: int, *, at_once: int, steps: int) -> int:
    """Open and close `sessions` sessions, `at_once` at a time, with `steps` steps each; return the steps answered."""
    remaining = iter(range(sessions))

    async def worker() -> int:
        answered = 0
        async with channel(address) as connection:
            for _ in remaining:
                lane = PlayLane(connection, policy)
                await lane.open()
                for seq in range(1, steps + 1):
                    await lane.send(seq)
                    await lane.receive()
                    answered += 1
                await lane.close()
        return answered

    return sum(await asyncio.gather(*(worker() for _ in range(at_once))))


async def rows(address: str, policy: str, count: int) -> RolloutStats:
    """Answer `count` rows of a rollout of 64 environments with episodes of 200 steps."""
    async with channel(address) as connection:
        return await RolloutDriver(connection, policy, 64, episode_steps=200).run(count)


def soak(process: ServerProcess, args: argparse.Namespace, tick: Callable[[int, str], None]) -> dict[str, Any]:
    """Run all parts; return the samples and the totals."""
    samples = [{"part": 0, "sessions": 0, "steps": 0, "rss_bytes": process.rss_bytes()}]
    sessions = steps = 0
    rollouts = RolloutStats()
    start = time.monotonic()
    for part in range(1, args.parts + 1):
        count = args.sessions * part // args.parts - args.sessions * (part - 1) // args.parts
        steps += run_async(churn(process.address, args.policy, count, at_once=args.at_once, steps=args.session_steps))
        sessions += count
        wanted = args.steps * part // args.parts - steps
        stats = run_async(rows(process.address, args.policy, wanted))
        steps += stats.rows
        rollouts.rows += stats.rows
        rollouts.messages += stats.messages
        rollouts.seconds += stats.seconds
        time.sleep(args.settle)
        rss = process.rss_bytes()
        samples.append({"part": part, "sessions": sessions, "steps": steps, "rss_bytes": rss})
        tick(part, f"{sessions:,} sessions, {steps:,} steps, {rss / _MIB:.1f} MiB")
    return {
        "samples": samples,
        "sessions": sessions,
        "steps": steps,
        "seconds": time.monotonic() - start,
        "rollout": asdict(rollouts),
    }


def judge(samples: list[dict[str, int]], warm_up: int, limit: float) -> dict[str, Any]:
    """Return the verdict: no later sample more than `limit` above the level after `warm_up` parts.

    Memory that was given back to the system is shown, but is not held against the server.
    """
    level = samples[warm_up]["rss_bytes"]
    later = [sample["rss_bytes"] for sample in samples[warm_up + 1 :]]
    worst = max(later, default=level)
    return {
        "text": f"4. resident memory at most {limit:.0%} above its level after warm-up",
        "status": "met" if later and worst / level - 1 <= limit else "missed",
        "level_mib": level / _MIB,
        "final_mib": samples[-1]["rss_bytes"] / _MIB,
        "final_change": samples[-1]["rss_bytes"] / level - 1,
        "worst_change": worst / level - 1,
        "warm_up_parts": warm_up,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_server_arguments(parser, policy="recurrent")
    parser.add_argument("--sessions", type=int, default=10_000, help="sessions to open and close")
    parser.add_argument("--steps", type=int, default=1_000_000, help="steps in all, rollout rows included")
    parser.add_argument("--parts", "--rounds", type=int, default=20, dest="parts", help="memory is read after each")
    parser.add_argument("--warm-up", type=int, default=2, help="parts before the reference level is taken")
    parser.add_argument("--at-once", type=int, default=16, help="sessions open at the same time")
    parser.add_argument("--session-steps", type=int, default=3, help="steps of each session")
    parser.add_argument("--settle", type=float, default=0.5, help="seconds of rest before memory is read")
    parser.add_argument("--limit", type=float, default=0.05)
    parser.add_argument("--out", type=Path, help="JSON report")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when the budget is missed")
    args = parser.parse_args(argv)
    console = report_console()
    report: dict[str, Any] = {"benchmark": "soak", "arguments": {k: str(v) for k, v in vars(args).items()}}
    columns = (TextColumn("{task.description:44}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with (
        machine(report),
        Progress(*columns, console=console, transient=True) as progress,
        server(args.server, args.policy, cpus_of(args.pin)) as process,
    ):
        run_async(wait_for_policy(process.address, args.policy))
        task = progress.add_task("starting", total=args.parts)
        result = soak(process, args, lambda part, text: progress.update(task, completed=part, description=text))
    verdict = judge(result["samples"], args.warm_up, args.limit)
    report |= {"budgets": [verdict], **result}
    for sample in result["samples"]:
        console.print(
            f"{sample['sessions']:>9,} sessions {sample['steps']:>11,} steps {sample['rss_bytes'] / _MIB:>9.1f} MiB"
        )
    rollout = result["rollout"]
    console.print(
        f"{result['seconds']:.0f} s; rollout {rollout['rows'] / rollout['seconds']:,.0f} rows/s\n{verdict['text']}: "
        f"level {verdict['level_mib']:.1f} MiB, final {verdict['final_change']:+.1%}, worst "
        f"{verdict['worst_change']:+.1%}: [bold]{verdict['status']}[/]"
    )
    write_json(args.out, report)
    return int(args.strict and verdict["status"] == "missed")


if __name__ == "__main__":
    sys.exit(main())
