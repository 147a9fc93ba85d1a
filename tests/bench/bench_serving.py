"""Budgets 1 and 2: one stream, saturated sessions and sessions at 20 Hz, against a real Triton and a bare echo.

``python tests/bench/bench_serving.py --rounds 7 --seconds 3 --out serving.json``

Every round measures every scenario on every server, in an order that turns from round to round; ratios are taken
within a round, and judged by their median. The echo is also the probe of the machine: where its own figure varies by
more than ``--jitter`` between rounds, the scenario is "inconclusive".
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
from drivers.lanes import Lane, LaneError, PlayLane, TritonClientLane, TritonLane
from drivers.loads import closed_loop, paced
from drivers.stats import Measurement
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
)
from harness import write_json as write_report
from peers.process import ServerProcess
from peers.triton import TritonServer, TritonUnavailableError, write_sequence_policy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from playserve.v1 import policy_service_pb2 as pb

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load.

    Attributes:
        name: Short name.
        title: For people.
        sessions: Streams.
        live: Paced at 20 Hz instead of saturated.
        probe: Figure whose spread on the echo says whether the machine was steady.
        jitter: Factor that multiplies the allowed spread; tails vary more than medians.
    """

    name: str
    title: str
    sessions: int
    live: bool
    probe: str
    jitter: float = 1.0


SCENARIOS = (
    Scenario("single", "1 stream, lockstep", 1, False, "p50_ms"),
    Scenario("saturated", "16 sessions, saturated", 16, False, "rate"),
    Scenario("paced", "64 sessions at 20 Hz", 64, True, "p99_ms", jitter=2.0),
)


@dataclass(slots=True)
class Budget:
    """One line of the budgets.

    Attributes:
        scenario: Scenario that it is about.
        figure: Figure that is compared.
        against: Server in the denominator.
        limit: Bound of the ratio.
        at_most: Whether `limit` is the most or the least.
        text: For people.
        ratios: Ratio of each round.
        status: "met", "missed", "inconclusive" or "not run".
        note: Why.
    """

    scenario: str
    figure: str
    against: str
    limit: float
    at_most: bool
    text: str
    ratios: list[float] = field(default_factory=list)
    status: str = "not run"
    note: str = ""

    @property
    def median(self) -> float:
        """Median ratio; NaN when nothing ran."""
        return statistics.median(self.ratios) if self.ratios else math.nan

    @property
    def best(self) -> float:
        """Best ratio; NaN when nothing ran."""
        if not self.ratios:
            return math.nan
        return min(self.ratios) if self.at_most else max(self.ratios)

    def holds(self) -> bool:
        """Whether the median ratio is within the limit."""
        return self.median <= self.limit if self.at_most else self.median >= self.limit


def budgets() -> list[Budget]:
    """Return the ratio budgets of issue 2, lines 1 and 2."""
    return [
        Budget("single", "p50_ms", "triton", 0.5, True, "1. one stream: p50 at most 0.5x Triton's"),
        Budget("single", "p50_ms", "echo", 2.0, True, "1. one stream: p50 at most 2x the echo's"),
        Budget("saturated", "rate", "triton", 2.0, False, "2. 16 saturated: steps/s at least 2x Triton's"),
        Budget("saturated", "rate", "echo", 0.5, False, "2. 16 saturated: steps/s at least 0.5x the echo's"),
        Budget("paced", "p99_ms", "echo", 3.0, True, "2. 64 at 20 Hz: p99 at most 3x the echo's"),
    ]


_sequence_ids = iter(range(1, 1 << 40))


async def measure_play(
    process: ServerProcess, policy: str, scenario: Scenario, seconds: float, seed: int
) -> Measurement:
    """Measure one scenario on a server that speaks `Play`."""
    pace, rate = (pb.PACE_LIVE, 20.0) if scenario.live else (pb.PACE_LOCKSTEP, 0.0)
    async with channel(process.address) as connection:
        lanes = [PlayLane(connection, policy, pace, rate) for _ in range(scenario.sessions)]
        return await _measure(lanes, scenario, seconds, seed, process.cpu_s)


async def measure_triton(
    triton: TritonServer, variant: tuple[str, str], scenario: Scenario, seconds: float, seed: int
) -> Measurement:
    """Measure one scenario on Triton, with (strategy, client) as in `VARIANTS`."""
    strategy, client = variant
    model = f"policy_{strategy}"
    if client == "stub":
        async with channel(triton.address) as connection:
            lanes: list[Lane] = [TritonLane(connection, model, next(_sequence_ids)) for _ in range(scenario.sessions)]
            return await _measure(lanes, scenario, seconds, seed, triton.process.cpu_s)
    from tritonclient.grpc.aio import InferenceServerClient

    async with InferenceServerClient(triton.address) as connection:
        lanes = [TritonClientLane(connection, model, next(_sequence_ids)) for _ in range(scenario.sessions)]
        return await _measure(lanes, scenario, seconds, seed, triton.process.cpu_s)


async def _measure(
    lanes: Sequence[Lane], scenario: Scenario, seconds: float, seed: int, cpu: Callable[[], float]
) -> Measurement:
    if scenario.live:
        return await paced(lanes, seconds, seed=seed, cpu=cpu)
    return await closed_loop(lanes, seconds, cpu=cpu)


#: (sequence strategy, client): what a Triton user can choose. `stub` is tritonclient's stub without its Python layer.
VARIANTS = (("oldest", "stub"), ("direct", "stub"), ("oldest", "tritonclient"), ("direct", "tritonclient"))


@contextmanager
def triton_server(strategies: Sequence[str], cpus: Sequence[int] | None) -> Iterator[TritonServer]:
    """Run Triton with the trivial policy under each strategy."""
    with tempfile.TemporaryDirectory(prefix="playserve-bench-models-") as folder:
        write_sequence_policy(Path(folder), strategies)
        with TritonServer(Path(folder), cpus=cpus) as running:
            yield running


def calibrate(
    scenarios: Sequence[Scenario], seconds: float, cpus: Sequence[int] | None, tick: Callable[[str], None]
) -> dict[str, Figures]:
    """Find the variant that is best for Triton in each scenario: two interleaved passes, the better one counts."""
    chosen: dict[str, Figures] = {}
    for scenario in scenarios:
        tried: dict[str, Any] = {}
        for _ in range(2):
            for variant in VARIANTS:
                label = "/".join(variant)
                tick(f"Triton {label}")
                if tried.get(label) == "crashed":
                    continue
                # A server of its own each time: Triton 2.51's `direct` batcher has been seen to die at 64 sequences.
                try:
                    with triton_server([variant[0]], cpus) as triton:
                        figures = run_async(measure_triton(triton, variant, scenario, seconds, 0)).summary()
                except (grpc.aio.AioRpcError, LaneError):
                    tried[label] = "crashed"
                    continue
                tried[label] = min(float(figures[scenario.probe] or 0), tried.get(label, math.inf), key=_cost(scenario))
        alive = {label: value for label, value in tried.items() if value != "crashed"}
        best = min(alive, key=lambda label: _cost(scenario)(alive[label]))
        chosen[scenario.name] = {"variant": best, "figure": scenario.probe, "tried": tried}
    return chosen


def _cost(scenario: Scenario) -> Callable[[float], float]:
    """Return a key under which better is smaller."""
    return (
        (lambda value: -value if value != math.inf else math.inf) if scenario.probe == "rate" else (lambda value: value)
    )


def judge(lines: list[Budget], rounds: list[dict[str, dict[str, Figures]]], jitter: float) -> list[Budget]:
    """Fill in ratios and statuses.

    Args:
        lines: The ratio budgets.
        rounds: ``rounds[i][scenario][server]``.
        jitter: Allowed max / min of the probe.
    """
    spreads = {s.name: probe_spread(s, rounds) for s in SCENARIOS}
    limits = {s.name: jitter * s.jitter for s in SCENARIOS}
    for line in lines:
        pairs = [(r[line.scenario].get("playserve"), r[line.scenario].get(line.against)) for r in rounds]
        line.ratios = [ours[line.figure] / peer[line.figure] for ours, peer in pairs if ours and peer]
        if line.ratios:
            line.status = "met" if line.holds() else "missed"
            _doubt(line, spreads[line.scenario], limits[line.scenario])
    deadlines = Budget("paced", "missed", "echo", 0, True, "2. 64 at 20 Hz: deadlines missed beyond the echo's")
    pairs = [(r["paced"].get("playserve"), r["paced"].get("echo")) for r in rounds]
    counted = [(ours["missed"], echo["missed"]) for ours, echo in pairs if ours and echo]
    if counted:
        ours_missed, echo_missed = (sum(column) for column in zip(*counted, strict=True))
        deadlines.ratios = [float(ours - echo) for ours, echo in counted]
        deadlines.status = "met" if ours_missed <= echo_missed else "missed"
        deadlines.note = f"missed in all: playserve {ours_missed}, echo {echo_missed}"
        if deadlines.status == "missed":
            _doubt(deadlines, spreads["paced"], limits["paced"])
    return [*lines, deadlines]


def _doubt(line: Budget, spread: float, limit: float) -> None:
    """Mark a verdict that the probe does not support."""
    if spread > limit:
        line.note = f"would be {line.status}; the echo varied {spread:.2f}x between rounds, more than {limit:g}x"
        line.status = "inconclusive"


def probe_spread(scenario: Scenario, rounds: list[dict[str, dict[str, Figures]]]) -> float:
    """Return max / min of the echo's figure over the rounds."""
    values = [r[scenario.name]["echo"][scenario.probe] for r in rounds]
    return max(values) / min(values)


def summarize(rounds: list[dict[str, dict[str, Figures]]]) -> dict[str, dict[str, Figures]]:
    """Return best and median of each figure by scenario and server."""
    table: dict[str, dict[str, Figures]] = {}
    for scenario in SCENARIOS:
        for name in rounds[0][scenario.name]:
            rows = [r[scenario.name][name] for r in rounds]
            cpu = [row["server_cpu_us_per_step"] for row in rows]
            table.setdefault(scenario.name, {})[name] = {
                "p50_ms": {
                    "best": min(r["p50_ms"] for r in rows),
                    "median": statistics.median(r["p50_ms"] for r in rows),
                },
                "p99_ms": {
                    "best": min(r["p99_ms"] for r in rows),
                    "median": statistics.median(r["p99_ms"] for r in rows),
                },
                "rate": {"best": max(r["rate"] for r in rows), "median": statistics.median(r["rate"] for r in rows)},
                "missed": sum(r["missed"] for r in rows),
                "server_cpu_us_per_step": {"best": min(cpu), "median": statistics.median(cpu)},
            }
    return table


def show(console: Console, report: Figures, lines: list[Budget]) -> None:
    """Print the tables."""
    table = Table(title="best / median over rounds", title_justify="left")
    for column in ("scenario", "server", "p50 ms", "p99 ms", "steps/s", "missed", "server CPU us/step"):
        table.add_column(column, justify="left" if column in ("scenario", "server") else "right")
    for scenario in SCENARIOS:
        for name, f in report["summary"][scenario.name].items():
            shown = f"triton {report['triton'][scenario.name]['variant']}" if name == "triton" else name
            table.add_row(
                scenario.title, shown, *(f"{f[k]['best']:.3f} / {f[k]['median']:.3f}" for k in ("p50_ms", "p99_ms")),
                f"{f['rate']['best']:,.0f} / {f['rate']['median']:,.0f}", str(f["missed"]) if scenario.live else "",
                f"{f['server_cpu_us_per_step']['best']:.0f} / {f['server_cpu_us_per_step']['median']:.0f}",
            )  # fmt: skip
        table.add_section()
    console.print(table)
    verdicts = Table(title="budgets (ratios within a round)", title_justify="left")
    for column in ("budget", "limit", "best", "median", "verdict", "note"):
        verdicts.add_column(column, justify="right" if column in ("limit", "best", "median") else "left")
    colours = {"met": "green", "missed": "red", "inconclusive": "yellow"}
    for line in lines:
        verdicts.add_row(
            line.text, f"{'<=' if line.at_most else '>='} {line.limit:g}", f"{line.best:.2f}", f"{line.median:.2f}",
            f"[{colours.get(line.status, 'white')}]{line.status}[/]", line.note,
        )  # fmt: skip
    console.print(verdicts)
    spreads = ", ".join(f"{name} {value:.2f}x" for name, value in report["probe_spread"].items())
    console.print(f"probe (echo) max/min over rounds: {spreads}; stolen CPU {report['machine']['stolen_share']:.1%}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_server_arguments(parser, policy="trivial")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time of each server, scenario and round")
    parser.add_argument("--jitter", type=float, default=1.5, help="allowed max/min of the echo's figure (2x this: p99)")
    parser.add_argument("--no-triton", dest="triton", action="store_false", help="leave Triton out")
    parser.add_argument(
        "--triton-variant", metavar="STRATEGY/CLIENT", help="skip the search for Triton's best, e.g. oldest/stub"
    )
    parser.add_argument("--out", type=Path, help="JSON report")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a budget is missed")
    return parser.parse_args(argv)


def measure_rounds(
    args: argparse.Namespace,
    chosen: dict[str, Figures],
    cpus: Sequence[int] | None,
    tick: Callable[[str], None],
) -> list[dict[str, dict[str, Figures]]]:
    """Run every round and return ``rounds[i][scenario][server]``."""
    rounds = []
    with ExitStack() as stack:
        echo = stack.enter_context(echo_server(cpus))
        ours = stack.enter_context(server(args.server, args.policy, cpus))
        run_async(wait_for_policy(ours.address, args.policy))
        measures: dict[str, Callable[[Scenario, int], Any]] = {
            "echo": lambda scenario, seed: measure_play(echo, "echo", scenario, args.seconds, seed),
            "playserve": lambda scenario, seed: measure_play(ours, args.policy, scenario, args.seconds, seed),
        }
        if chosen:
            variants = {name: tuple(figures["variant"].split("/")) for name, figures in chosen.items()}
            triton = stack.enter_context(triton_server(sorted({v[0] for v in variants.values()}), cpus))
            measures["triton"] = lambda scenario, seed: measure_triton(
                triton, variants[scenario.name], scenario, args.seconds, seed
            )
        for number in range(args.rounds):
            names = list(measures)
            turned = names[number % len(names) :] + names[: number % len(names)]
            results: dict[str, dict[str, Figures]] = {}
            for scenario in SCENARIOS:
                row = {}
                for name in turned:
                    tick(f"round {number + 1}: {scenario.name}, {name}")
                    row[name] = run_async(measures[name](scenario, number)).summary()
                results[scenario.name] = {name: row[name] for name in names}
            rounds.append(results)
    return rounds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    args = parse(argv)
    console = report_console()
    cpus = cpus_of(args.pin)
    report: Figures = {"benchmark": "serving", "arguments": {k: str(v) for k, v in vars(args).items()}}
    columns = (TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    searching = args.triton and not args.triton_variant
    total = args.rounds * len(SCENARIOS) * (3 if args.triton else 2) + searching * 2 * len(VARIANTS) * len(SCENARIOS)
    with machine(report), Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=total)

        def tick(text: str) -> None:
            progress.update(task, description=text, advance=1)

        chosen: dict[str, Figures] = {}
        if args.triton_variant:
            chosen = {s.name: {"variant": args.triton_variant} for s in SCENARIOS}
        elif searching:
            try:
                chosen = calibrate(SCENARIOS, min(1.0, args.seconds), cpus, tick)
            except TritonUnavailableError as error:
                console.print(f"[yellow]no Triton: {error}[/]")
        rounds = measure_rounds(args, chosen, cpus, tick)
    lines = judge(budgets(), rounds, args.jitter)
    report |= {
        "triton": chosen,
        "probe_spread": {s.name: probe_spread(s, rounds) for s in SCENARIOS},
        "summary": summarize(rounds),
        "budgets": [asdict(line) | {"median": line.median, "best": line.best} for line in lines],
        "rounds": rounds,
    }
    show(console, report, lines)
    write_report(args.out, report)
    return int(args.strict and any(line.status == "missed" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
