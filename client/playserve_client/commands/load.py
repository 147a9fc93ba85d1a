"""`playserve load`: plays many sessions at a server at their own rate, and says how old their actions were."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError
from playserve.files import write_json
from playserve.settings import Pace
from playserve.specs import Codec
from playserve_client.client import PolicyClient
from playserve_client.commands.dialing import add_dial_arguments, dial_options
from playserve_client.results import PolicyInfo

if TYPE_CHECKING:
    from playserve_client.load.run import LoadConfig, LoadRun

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Play many sessions at a server at their own rate, whatever it does, and measure the age of their actions."

_LINE_S = 5.0
_DEFAULT_RATE_HZ = 20.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("address", metavar="ADDRESS", help="host:port of the policy server, or several by commas")
    add("--policy", required=True, metavar="NAME", help="policy at the server")
    add("--version", default="", help="its version or alias (default: the newest)")
    add("--pace", default="live", choices=["live", "lockstep"], help="default live")
    add("--rate-hz", type=float, help="frames a second of each session (default: the policy's rate, else 20; lockstep: "
        "as fast as answers come)")  # fmt: skip
    add("--deadline-ms", type=float, help="older actions are misses (default: one frame period)")
    add("--budget-ms", type=float, default=0.0, help="told to the server: later answers are not wanted (default: none)")
    add("--seconds", type=float, default=30.0, help="measured time (default 30)")
    add(
        "--warmup",
        type=float,
        default=3.0,
        metavar="SECONDS",
        help="time before, to open the first sessions (default 3)",
    )
    add("--sessions", type=float, help="sessions at once, in the mean (default 8)")
    add("--session-rate", type=float, metavar="PER_SECOND", help="or: sessions that come each second; needs --lifetime")
    add("--ramp", metavar="FROM:TO:SECONDS", help="or: sessions at once, growing or falling")
    add(
        "--lifetime",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="mean life of a session (default: to the end)",
    )
    add("--lifetimes", default="exponential", choices=["exponential", "fixed"], help="default exponential")
    add("--arrivals", default="poisson", choices=["poisson", "even"], help="how sessions come (default poisson)")
    add("--seed", type=int, default=0, help="of the whole plan: equal seeds, equal load (default 0)")
    add(
        "--frames",
        type=Path,
        metavar="FILE",
        help="recorded observations, .npy, .npz or .mp4 (default: noise by the spec)",
    )
    add("--codec", default="raw", choices=["raw", "lz4", "jpeg"], help="packing of frames (default raw)")
    add("--instruction", default="", metavar="TEXT", help="for policies that take one")
    add(
        "--processes",
        type=int,
        default=1,
        help="processes that play (default 1); the report says where they are too few",
    )
    add("--connections", type=int, default=0, metavar="N", help="share N connections in each process (default: each "
        "session has its own)")  # fmt: skip
    add("--interval", type=float, default=5.0, metavar="SECONDS", help="of the rows in the report (default 5)")
    add("--out", type=Path, metavar="FILE", help="write the report there, as JSON")
    add("--fail-on", action="append", default=[], metavar="GOAL", help="exit with 1 where this holds: 'p99>50ms', "
        "'misses>1%%', 'errors>0', ... (repeatable)")  # fmt: skip
    add("--timeout", type=float, default=10.0, metavar="SECONDS", help="longest wait for an open (default 10)")
    add_dial_arguments(add)


def run(args: argparse.Namespace) -> int:
    """Run the load; 1 where a goal is missed, 130 after Ctrl-C."""
    from playserve_client.load.goals import parse_goal
    from playserve_client.load.report import report_of, screen_of
    from playserve_client.load.run import measure
    from playserve_client.workers import sigterm_interrupts

    goals = [parse_goal(text) for text in args.fail_on]
    with PolicyClient(args.address, timeout_s=args.timeout, **dial_options(args)) as client:
        info = client.get_policy(args.policy, args.version)
    config = _config(args, info)
    policy = {"name": info.spec.name, "version": info.spec.version, "rate_hz": info.spec.rate_hz,
              "slots_total": info.slots_total}  # fmt: skip
    with sigterm_interrupts(), _watching(lambda load: screen_of(report_of(load, policy))) as watch:
        result = measure(config, watch)
    report = report_of(result, policy, goals)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, report)
    print("\n".join(screen_of(report)))
    if result.interrupted:
        return 130
    return int(any(goal["failed"] for goal in report["goals"]))


def _config(args: argparse.Namespace, info: PolicyInfo) -> LoadConfig:
    from playserve_client.load.player import PlayRules
    from playserve_client.load.run import LoadConfig

    if args.processes < 1 or args.connections < 0 or not args.interval > 0:
        raise BadSettingError("wanted 1 or more processes, 0 or more connections and intervals of more than 0 s")
    pace = Pace[args.pace.upper()]
    rate_hz = args.rate_hz
    if rate_hz is None:
        rate_hz = 0.0 if pace is Pace.LOCKSTEP else info.spec.rate_hz or _DEFAULT_RATE_HZ
    if rate_hz < 0 or (pace is Pace.LIVE and rate_hz == 0):
        raise BadSettingError(f"a rate of {rate_hz:g} Hz, wanted more than 0; 0 is for --pace lockstep")
    deadline_ms = args.deadline_ms if args.deadline_ms is not None else (1e3 / rate_hz if rate_hz else None)
    rules = PlayRules(
        policy=args.policy,
        version=args.version,
        pace=pace,
        rate_hz=rate_hz,
        deadline_ns=None if deadline_ms is None else int(deadline_ms * 1e6),
        budget_us=int(args.budget_ms * 1e3),
        instruction=args.instruction,
    )
    return LoadConfig(
        address=args.address,
        shape=_shape(args),
        rules=rules,
        frames=args.frames,
        codec=Codec[args.codec.upper()],
        processes=args.processes,
        connections=args.connections,
        interval_s=args.interval,
        timeout_s=args.timeout,
        **dial_options(args),
    )


def _shape(args: argparse.Namespace) -> Any:
    from playserve_client.load.plan import LoadShape, parse_ramp

    if sum(given is not None for given in (args.sessions, args.session_rate, args.ramp)) > 1:
        raise BadSettingError("--sessions, --session-rate and --ramp say the same thing; give one of them")
    first = last = 8.0 if args.sessions is None else args.sessions
    ramp_s = 0.0
    if args.ramp is not None:
        first, last, ramp_s = parse_ramp(args.ramp)
    elif args.session_rate is not None:
        if math.isinf(args.lifetime):
            raise BadSettingError("--session-rate needs --lifetime: sessions that never go would become ever more")
        first = last = args.session_rate * args.lifetime
    return LoadShape(
        seconds=args.seconds,
        warmup_s=args.warmup,
        first=first,
        last=last,
        ramp_s=ramp_s,
        lifetime_s=args.lifetime,
        exponential=args.lifetimes == "exponential",
        poisson=args.arrivals == "poisson",
        seed=args.seed,
    )


@contextmanager
def _watching(lines_of: Callable[[LoadRun], list[str]]) -> Iterator[Callable[[LoadRun], None]]:
    """Show the run on stderr until the block ends: one screen on a terminal, else a line now and then."""
    shown = -math.inf

    def due(every_s: float) -> bool:
        nonlocal shown
        if time.monotonic() - shown < every_s:
            return False
        shown = time.monotonic()
        return True

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:

            def draw(load: LoadRun) -> None:
                if due(0.5):
                    live.update(Text("\n".join([_clock(load), *lines_of(load)])), refresh=True)

            yield draw
        return

    def tell(load: LoadRun) -> None:
        if due(_LINE_S):
            _, sessions, frames, errors, *_ = lines_of(load)
            facts = "; ".join(" ".join(line.split()) for line in (sessions, frames, errors))
            print(f"{_clock(load)}: {facts}", file=sys.stderr, flush=True)

    yield tell


def _clock(load: LoadRun) -> str:
    elapsed_s, seconds = load.elapsed_s(), load.config.shape.seconds
    return f"{elapsed_s:.0f} of {seconds:g} s" if elapsed_s >= 0 else f"warming up, {-elapsed_s:.0f} s left"
