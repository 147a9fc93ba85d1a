"""Budget 5 of issue 6: `playserve load` churn at a share of saturation, for an hour or as long as is said.

``python tests/bench/bench_churn.py --minutes 60 --out churn.json``

First the saturation of this machine is looked for: the most live sessions at once of which at most 1% of the frames
miss their deadline, generator and server together. Then sessions come and go at a share of that, while the server's
memory, threads, file descriptors and slots are read once an interval. Reported: a line through each (what grows is a
leak), errors, and the p99 of the action's age by interval.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from harness import (
    add_server_arguments,
    cpus_of,
    machine,
    report_console,
    run_async,
    server,
    wait_for_policy,
    write_json,
)
from peers.process import ServerProcess, free_port
from rich.console import Console

from playserve_client.load.plan import LoadShape
from playserve_client.load.player import PlayRules
from playserve_client.load.report import report_of
from playserve_client.load.run import LoadConfig, LoadRun, measure
from playserve_client.top.watch import Watcher

_MIB = 1 << 20
_RATE_HZ = 20.0
#: Gauges of the server that are read, and how much each may grow over the run, as a share of its level.
GAUGES = {"rss_bytes": 0.05, "threads": 0.0, "fds": 0.02}


def gauges_of(process: ServerProcess, watcher: Watcher, at_s: float) -> dict[str, float]:
    """Read the server's gauges. Descriptors of open connections are taken out: they follow the sessions."""
    status = watcher.snapshot().status
    proc = Path(f"/proc/{process.pid}")
    return {
        "at_s": at_s,
        "rss_bytes": process.rss_bytes(),
        "threads": len(list((proc / "task").iterdir())),
        "fds": len(list((proc / "fd").iterdir())) - status.sessions,
        "sessions": status.sessions,
        "slots_used": sum(p.slots_total - p.slots_free for p in status.policies),
    }


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the least-squares slope of (x, y) points; 0 of fewer than two."""
    if len(points) < 2:
        return 0.0
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def saturation(config: LoadConfig, most: int, console: Console) -> int:
    """Return the most sessions at once that hold: at most 1% of their frames miss, and none is refused."""
    low, high = 0, 0
    sessions = min(8, most)
    while not high or high - low > max(1, low // 8):
        shape = replace(config.shape, seconds=4.0, warmup_s=2.0, first=sessions, last=sessions)
        total = report_of(measure(replace(config, shape=shape)), {})["total"]
        held = total["misses"] <= 0.01 * total["frames"] and not total["refused"] and not total["errors"]
        console.print(f"{sessions:>6} sessions: {'hold' if held else 'too many'}, p99 {total['age_ms']['p99']:.1f} ms")
        if held:
            low = sessions
            if sessions == most:
                return most
        else:
            high = sessions
        sessions = min(most, 2 * low or 1) if not high else (low + high) // 2
        if high and sessions <= low:
            break
    return max(1, low)


def soak(config: LoadConfig, process: ServerProcess, watcher: Watcher, console: Console) -> tuple[LoadRun, list[Any]]:
    """Run the churn; return what was counted and the gauges, the last of them with the server idle."""
    samples: list[dict[str, float]] = []

    def watch(run: LoadRun) -> None:
        if run.elapsed_s() < (len(samples) + 1) * config.interval_s - 0.5:
            return
        samples.append(gauges_of(process, watcher, run.elapsed_s()))
        newest = samples[-1]
        console.print(
            f"{newest['at_s']:>8.0f} s {newest['rss_bytes'] / _MIB:>9.1f} MiB {newest['threads']:>5.0f} threads "
            f"{newest['fds']:>5.0f} fds {newest['slots_used']:>5.0f} slots"
        )

    run = measure(config, watch)
    until = time.monotonic() + 30
    while watcher.snapshot().status.sessions and time.monotonic() < until:
        time.sleep(0.1)
    return run, [*samples, gauges_of(process, watcher, run.elapsed_s())]


def judge(report: dict[str, Any], samples: Sequence[dict[str, float]], warm_up: float) -> list[dict[str, Any]]:
    """Return the verdicts: no leak, no error, p99 flat. What comes before `warm_up` (a share) is not looked at."""
    late = [s for s in samples[:-1] if s["at_s"] >= warm_up * report["seconds"]]
    hours = report["seconds"] / 3600
    verdicts = []
    for name, limit in GAUGES.items():
        level = median(s[name] for s in late) if late else 0.0
        growth = slope([(s["at_s"] / 3600, s[name]) for s in late]) * hours * (1 - warm_up)
        verdicts.append(
            {"text": f"{name} grows by at most {limit:.0%} of its level, by the line through it", "level": level,
             "growth": growth, "status": _status(bool(late) and growth <= limit * level + 0.5)}
        )  # fmt: skip
    left = samples[-1]["slots_used"] + samples[-1]["sessions"]
    verdicts.append({"text": "no slot is left in use", "left": left, "status": _status(left == 0)})
    total = report["total"]
    bad = sum(total["errors"].values()) + sum(total["refused"].values()) + total["unanswered"]
    verdicts.append(
        {"text": "no error, no refusal, no frame without an action", "bad": bad, "status": _status(bad == 0)}
    )
    ages = [i["age_ms"]["p99"] for i in report["intervals"] if i["age_ms"]["p99"] is not None]
    ages = ages[int(warm_up * len(ages)) :]
    third = max(1, len(ages) // 3)
    first, last = (median(part) if part else 0.0 for part in (ages[:third], ages[-third:]))
    verdicts.append(
        {"text": "p99 is flat: its last third at most 25% above its first", "first_ms": first, "last_ms": last,
         "status": _status(bool(ages) and last <= 1.25 * first)}
    )  # fmt: skip
    return verdicts


def _status(met: bool) -> str:
    return "met" if met else "missed"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_server_arguments(parser, policy="recurrent")
    parser.add_argument("--minutes", type=float, default=5.0, help="of churn (default: %(default)s; the budget: 60)")
    parser.add_argument("--rounds", type=int, default=20, help="intervals (default: %(default)s)")
    parser.add_argument("--share", type=float, default=0.7, help="of saturation (default: %(default)s)")
    parser.add_argument("--sessions", type=int, help="sessions at once, instead of a share of saturation")
    parser.add_argument(
        "--most", type=int, default=240, help="sessions at once not to go beyond (default: %(default)s)"
    )
    parser.add_argument("--lifetime", type=float, default=10.0, help="mean life of a session, s (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="of the generator (default: %(default)s)")
    parser.add_argument("--warm-up", type=float, default=0.2, help="share that is not judged (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON report")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a budget is missed")
    args = parser.parse_args(argv)
    console = report_console()
    report: dict[str, Any] = {"benchmark": "churn", "arguments": {k: str(v) for k, v in vars(args).items()}}
    admin_port = free_port()
    command = f"{args.server} --admin-port {admin_port}"
    with (
        machine(report),
        server(command, args.policy, cpus_of(args.pin)) as process,
        Watcher(f"127.0.0.1:{admin_port}", timeout_s=30.0) as watcher,
    ):
        run_async(wait_for_policy(process.address, args.policy))
        seconds = args.minutes * 60
        config = LoadConfig(
            address=process.address,
            shape=LoadShape(seconds=seconds, warmup_s=5.0, lifetime_s=args.lifetime),
            rules=PlayRules(policy=args.policy, rate_hz=_RATE_HZ, deadline_ns=int(1e9 / _RATE_HZ)),
            processes=args.processes,
            interval_s=seconds / args.rounds,
        )
        most = None if args.sessions else saturation(config, args.most, console)
        at_once = args.sessions or max(1, round(args.share * (most or 1)))
        console.print(f"{at_once} sessions at once of {args.lifetime:g} s each, {args.minutes:g} minutes")
        shape = replace(config.shape, first=at_once, last=at_once)
        run, samples = soak(replace(config, shape=shape), process, watcher, console)
    result = report_of(run, {"name": args.policy, "version": ""})
    verdicts = judge(result, samples, args.warm_up)
    report |= {"budgets": verdicts, "saturation": most, "sessions": at_once, "samples": samples, "load": result}
    total = result["total"]
    console.print(
        f"{total['opened']:,} sessions, {total['frames']:,} frames, age p50 {total['age_ms']['p50']} ms, "
        f"p99 {total['age_ms']['p99']} ms, misses {total['misses']:,}"
    )
    for verdict in verdicts:
        facts = ", ".join(f"{k} {v:,.1f}" for k, v in verdict.items() if isinstance(v, int | float))
        console.print(f"{verdict['text']}: {facts}: [bold]{verdict['status']}[/]")
    write_json(args.out, report)
    return int(args.strict and any(verdict["status"] == "missed" for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
