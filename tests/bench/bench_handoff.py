"""Budget 4 of issue 6: what it costs a game when its session is handed to another server.

``python tests/bench/bench_handoff.py --rounds 7 --out handoff.json``

For each family two servers are started. So many live sessions play on the first one, each at its rate; it is told to
drain, and all of them move to the second. Two pauses are reported: how long each session stood still (the server's
own word, in its log), and what its player saw: the age of the oldest action around the move, less the median of before.
Also the bytes that went, and the time from the signal to the last player's first answer on the second server. Rounds
of the families are interleaved; best and median of the rounds are reported.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from handoff_policies import RATES_HZ
from harness import BENCH_DIR, machine, report_console, run_async, wait_for_policy, write_json
from peers.process import ServerProcess, free_port
from rich.console import Console
from rich.table import Table

from playserve.settings import ActionSource, Pace
from playserve_client.aio import PolicyClient
from playserve_client.aio.session import Session

BUDGET_MS = 50.0
_BEFORE_S, _AFTER_S = 4.0, 1.0
_GIVEN = re.compile(r"lives at \S+ now: (\d+) bytes, it stood still for ([\d.]+) ms")


@dataclass(slots=True)
class Played:
    """What one player saw.

    Attributes:
        ages: Of each answer: when its step was sent, and the seconds until the answer came.
        moved_at: When the first answer came from the second server.
        lost: Steps without an answer.
    """

    ages: list[tuple[float, float]] = field(default_factory=list)
    moved_at: float | None = None
    lost: int = 0


async def play(session: Session, rate_hz: float, over: asyncio.Event, seen: Played) -> None:
    """Play one session at its rate until it is over, whatever the answers do."""
    frame = {s.name: np.zeros(s.shape, s.numpy_dtype) for s in session.spec.inputs}
    sent: dict[int, float] = {}
    began = time.monotonic() + np.random.default_rng(session.last_seq).uniform() / rate_hz

    async def read() -> None:
        while True:
            result = await session.recv(60.0)
            now = time.monotonic()
            seen.ages.append((sent[result.seq], now - sent.pop(result.seq)))
            for step in result.dropped:
                seen.lost += sent.pop(step.seq, None) is not None
            if seen.moved_at is None and session.address is not None:
                seen.moved_at = now

    reader = asyncio.create_task(read())
    number = 0
    try:
        while not over.is_set():
            await asyncio.sleep(max(0.0, began + number / rate_hz - time.monotonic()))
            number += 1
            now = time.monotonic()
            seq = await session.send_step(frame)
            sent[seq] = now
            if seq > 1:
                await session.executed(seq, None, ActionSource.UNKNOWN)
        while sent and not reader.done():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    finally:
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader


def contender(family: str, port: int, peer: int, args: argparse.Namespace) -> ServerProcess:
    """Return one server, not yet started."""
    path = os.pathsep.join(filter(None, [str(BENCH_DIR), os.environ.get("PYTHONPATH", "")]))
    command = [
        str(Path(sys.executable).with_name("playserve")), "serve", "--policy", f"{family}=handoff_policies:{family}",
        "--port", "{port}", "--peers", f"127.0.0.1:{peer}", "--slots", str(args.sessions), "--device", args.device,
        "--max-batch", str(args.sessions), "--drain-grace-s", "120", "--detach-window-s", "5",
        "--handoff-sessions", str(args.at_once),
    ]  # fmt: skip
    return ServerProcess(command, name=family, env={"PYTHONPATH": path}, ready_s=120.0, port=port)


async def measure(family: str, args: argparse.Namespace) -> dict[str, Any]:
    """Move all sessions of one family once."""
    rate_hz = RATES_HZ[family] if args.rate_hz is None else args.rate_hz
    ports = free_port(), free_port()
    with contender(family, *ports, args) as here, contender(family, *reversed(ports), args) as there:
        for server in (here, there):
            await wait_for_policy(server.address, family)
        async with contextlib.AsyncExitStack() as stack:
            over, seen, playing = asyncio.Event(), [], []
            for n in range(args.sessions):
                client = await stack.enter_async_context(PolicyClient(here.address, timeout_s=60.0))
                session = await stack.enter_async_context(client.play(family, pace=Pace.LIVE, seed=n, rate_hz=rate_hz))
                seen.append(Played())
                playing.append(asyncio.create_task(play(session, rate_hz, over, seen[-1])))
            async with asyncio.timeout(120):  # the first step of a large memory touches all of it
                while not all(played.ages for played in seen):  # noqa: ASYNC110 - they tell nobody
                    await asyncio.sleep(0.02)
            await asyncio.sleep(_BEFORE_S)
            signalled = time.monotonic()
            os.kill(here.pid, signal.SIGTERM)
            async with asyncio.timeout(120):
                while any(played.moved_at is None for played in seen):
                    await asyncio.sleep(0.02)
                    failed = next((t for t in playing if t.done()), None)
                    if failed is not None:
                        failed.result()
            await asyncio.sleep(_AFTER_S)
            over.set()
            await asyncio.gather(*playing)
        return figures(seen, signalled, here.log(tail=1 << 20))


def figures(seen: Sequence[Played], signalled: float, log: str) -> dict[str, Any]:
    """Return the numbers of one round."""
    given = [(int(size), float(ms)) for size, ms in _GIVEN.findall(log)]
    quiet = [age for played in seen for at, age in played.ages if signalled - _BEFORE_S + 1.0 < at < signalled - 0.5]
    if not quiet:
        raise RuntimeError("nobody had an answer before the drain: this machine is too busy to measure anything")
    usual = statistics.median(quiet)
    moves = [p.moved_at for p in seen if p.moved_at is not None]
    pauses = [max(age for at, age in p.ages if at >= signalled - 0.5) - usual for p in seen]
    still = [ms for _, ms in given]
    return {
        "sessions": len(given),
        "still_ms": {"p50": statistics.median(still), "max": max(still)},
        "player_ms": {"p50": 1e3 * statistics.median(pauses), "max": 1e3 * max(pauses)},
        "usual_ms": 1e3 * usual,
        "usual_worst_ms": 1e3 * max(quiet),
        "bytes": sum(size for size, _ in given),
        "total_s": max(moves) - signalled,
        "lost": sum(played.lost for played in seen),
    }


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return best and median of the rounds."""
    found: dict[str, Any] = {"sessions": rounds[0]["sessions"], "bytes": rounds[0]["bytes"]}
    for name, pick in (("best", min), ("median", statistics.median)):
        found[name] = {
            "still_p50_ms": pick([r["still_ms"]["p50"] for r in rounds]),
            "still_max_ms": pick([r["still_ms"]["max"] for r in rounds]),
            "player_p50_ms": pick([r["player_ms"]["p50"] for r in rounds]),
            "player_max_ms": pick([r["player_ms"]["max"] for r in rounds]),
            "total_s": pick([r["total_s"] for r in rounds]),
        }
    found["usual_ms"] = statistics.median([r["usual_ms"] for r in rounds])
    found["usual_worst_ms"] = statistics.median([r["usual_worst_ms"] for r in rounds])
    found["lost"] = sum(r["lost"] for r in rounds)
    found["status"] = "met" if found["median"]["still_max_ms"] <= BUDGET_MS else "missed"
    return found


def show(report: dict[str, Any], console: Console) -> None:
    """Print the table."""
    table = Table(title=f"Handing over {report['sessions']} live sessions; budget: a pause of {BUDGET_MS:g} ms")
    columns = ("family", "MiB", "stood still p50/max ms", "player p50/max ms", "usual/worst ms", "total s", "verdict")
    for column in columns:
        table.add_column(column, justify="left" if column == "family" else "right")
    for family, found in report["families"].items():
        best, median = found["best"], found["median"]
        table.add_row(
            family, f"{found['bytes'] / 2**20:.1f}",
            f"{median['still_p50_ms']:.1f} / {median['still_max_ms']:.1f} (best {best['still_max_ms']:.1f})",
            f"{median['player_p50_ms']:.0f} / {median['player_max_ms']:.0f} (best {best['player_max_ms']:.0f})",
            f"{found['usual_ms']:.0f} / {found['usual_worst_ms']:.0f}", f"{median['total_s']:.2f}", found["status"],
        )  # fmt: skip
    console.print(table)


def main() -> int:
    """Run the benchmark; 1 where the budget is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--families", default=",".join(RATES_HZ), help="by commas (default: %(default)s)")
    add("--sessions", type=int, default=32, help="that move at once (default %(default)s)")
    add("--at-once", type=int, default=4, help="the server's --handoff-sessions (default %(default)s)")
    add("--rate-hz", type=float, help="steps a second of each session (default: the family's)")
    add("--rounds", type=int, default=7)
    add("--device", default="cpu")
    add("--out", type=Path, help="write the report there, as JSON")
    args = parser.parse_args()
    names = args.families.split(",")
    unknown = sorted(set(names) - set(RATES_HZ))
    if unknown:
        parser.error(f"--families: {', '.join(unknown)}; there are {', '.join(RATES_HZ)}")
    console = report_console()
    report: dict[str, Any] = {"sessions": args.sessions, "at_once": args.at_once, "device": args.device}
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with machine(report):
        for number in range(args.rounds):
            for name in names:
                rounds[name].append(run_async(measure(name, args)))
                console.print(f"round {number + 1}, {name}: {rounds[name][-1]}")
    report["rounds"] = rounds
    report["families"] = {name: summary(found) for name, found in rounds.items()}
    show(report, console)
    write_json(args.out, report)
    return int(any(found["status"] == "missed" for found in report["families"].values()))


if __name__ == "__main__":
    sys.exit(main())
