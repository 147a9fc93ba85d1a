"""Budget of rollouts: env steps/s of `playserve rollout nethack` through the endpoint against the policy in process.

Both arms play the same 32 environments in the same worker processes, in turns. "endpoint" is the evaluator's own
driver and stream to a `playserve serve` process; "in process" is a bare loop: take the rows that are ready, step the
policy on them, hand the actions back. It has no server, no wire, no seeds by episode and no log; it is also the probe
of the machine: where it jitters, nothing is concluded.

    python tests/bench/bench_rollout.py --out runs/bench/rollout.json
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import BENCH_DIR, machine, report_console, server, write_json
from rich.progress import track
from rich.table import Table

from playserve_client.client import PolicyClient
from playserve_client.evaluate.driver import Callbacks, Driver, Tags
from playserve_client.evaluate.families import family_of
from playserve_client.evaluate.plan import EnvChoice, Settings
from playserve_client.evaluate.pool import WorkerPool
from playserve_trainer.models.policy import Memory, Policy

_GOAL = 0.8
_JITTER = (
    0.3  # relative spread (interquartile range over median) of the in-process arm beyond which nothing is concluded
)
_WARM_S = 2.5  # the evaluator tries two sizes of message, a second each, before it knows the better one
_ENDLESS = 1000  # episodes: more than any window begins


class _TimeUpError(Exception):
    """Ends an arm in the middle of its episodes."""


class _Clock:
    """Counts the steps of a window that begins some time after the first step."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first: float | None = None
        self._steps = 0
        self._began = self._ended = self._cpu_began = self._cpu_ended = 0.0

    def count(self, steps: int, _episodes: int = 0) -> None:
        """Count steps; raise once the window is over."""
        now = time.perf_counter()
        if self._first is None:
            self._first = now
        if now - self._first < _WARM_S:
            self._began, self._cpu_began = now, time.process_time()
            return
        self._steps += steps
        self._ended, self._cpu_ended = now, time.process_time()
        if now - self._began > self._seconds:
            raise _TimeUpError

    def result(self) -> tuple[float, float]:
        """Return steps/s, and this process's CPU time a step in microseconds."""
        return self._steps / (self._ended - self._began), 1e6 * (self._cpu_ended - self._cpu_began) / self._steps


def _settings(args: argparse.Namespace) -> Settings:
    env = EnvChoice(
        family="nethack", game="mon-hum-neu-mal", options={"no_progress_timeout": 10_000}, max_steps=100_000
    )  # fmt: skip
    return Settings(env=env, policy="nethack", episodes=_ENDLESS, argmax_episodes=0, baseline_episodes=0)


def _through_endpoint(
    settings: Settings, pool: WorkerPool, tags: Tags, address: str, seconds: float, seed: int
) -> tuple[float, float]:
    rows = {row.key: row for row in settings.rows()}
    clock = _Clock(seconds)
    callbacks = Callbacks(finished=lambda _finished: None, progress=clock.count)
    with PolicyClient(address) as client:
        driver = Driver(
            pool, rows, callbacks, tags, open_rollout=lambda envs: client.rollout("nethack", envs, seed=seed)
        )  # fmt: skip
        with contextlib.suppress(_TimeUpError):
            driver.play(rows["sample"].assignments(seed * 1000, settings.shard))
    return clock.result()


def _in_process(
    pool: WorkerPool, tags: Tags, policy: Policy, seconds: float, seed: int, least: int
) -> tuple[float, float]:
    """Play with the policy in this process; wait until `least` rows are ready before each step of it."""
    slots = pool.rows + 1
    pools = {name: torch.zeros(slots, *t.shape, dtype=t.dtype) for name, t in policy.state_layout().items()}
    names = [spec.name for spec in policy.spec().inputs]
    clock, tag_of, fresh = _Clock(seconds), np.zeros(pool.rows, np.int64), np.ones(pool.rows, bool)
    executed = np.full(pool.rows, -1, np.int64)
    seeds = iter(range(seed * 1000, sys.maxsize))

    def begin(rows: list[int]) -> None:
        tasks = []
        for row in rows:
            tag_of[row], fresh[row], executed[row] = tags.next(), True, -1
            task = {"row": row, "tag": int(tag_of[row]), "player": "sample", "action": None, "stickiness": None}
            tasks.append({**task, "env_seed": next(seeds), "sampling_seed": 0, "path": ""})
        pool.assign(tasks)

    while len(pool.usable_rows()) < pool.rows:
        pool.poll(0.1)
    begin(list(range(pool.rows)))
    waiting: list[int] = []
    with torch.inference_mode():
        while True:
            events = pool.poll(0.5)
            if events.finished:
                begin([item["row"] for item in events.finished if item["tag"] == tag_of[item["row"]]])
            waiting += [row for row, tag in events.ready if tag == tag_of[row]]
            try:
                clock.count(events.steps)
            except _TimeUpError:
                return clock.result()
            if len(waiting) < least:
                continue
            rows, waiting = np.array(waiting), []
            inputs = {name: torch.from_numpy(pool.read(name, rows)) for name in names}  # type: ignore[arg-type]
            memory = Memory(pools, torch.from_numpy(rows + 1), torch.from_numpy(fresh[rows]))
            actions = (
                policy.step(inputs, torch.from_numpy(executed[rows, None]), memory, _draw).actions_BH[:, 0].numpy()
            )
            fresh[rows], executed[rows] = False, actions
            pool.act(rows, tag_of[rows], actions)


def _draw(logits_BA: torch.Tensor, _head: int) -> torch.Tensor:
    return torch.multinomial(torch.softmax(logits_BA, -1), 1)[:, 0]


def _measure(args: argparse.Namespace, console: Any) -> dict[str, Any]:
    module, _, name = args.policy.partition(":")
    sys.path.insert(0, str(BENCH_DIR))
    policy: Policy = getattr(importlib.import_module(module), name)()
    torch.set_num_threads(args.threads)
    settings, tags = _settings(args), Tags()
    command = args.server.replace("{policy}", args.policy)
    arms: dict[str, Callable[[int], tuple[float, float]]] = {}
    rates: dict[str, list[float]] = {}
    cpu_us: dict[str, list[float]] = {}
    pool = WorkerPool(settings.env, stickiness=None, rows=args.envs, workers=args.workers)
    with server(command, "nethack") as served, pool:
        arms["endpoint"] = lambda n: _through_endpoint(settings, pool, tags, served.address, args.seconds, n)
        for share in args.least:
            least = max(1, round(share * args.envs))
            arms[f"in process, {least} rows at least"] = lambda n, least=least: _in_process(
                pool, tags, policy, args.seconds, n, least
            )
        for number in track(range(args.rounds), "rounds", console=console, transient=True):
            names = list(arms)
            for arm in names[number % len(names) :] + names[: number % len(names)]:
                rate, cpu = arms[arm](number + 1)
                rates.setdefault(arm, []).append(rate)
                cpu_us.setdefault(arm, []).append(cpu)
    inside = max((arm for arm in arms if arm != "endpoint"), key=lambda arm: statistics.median(rates[arm]))
    ratios = [a / b for a, b in zip(rates["endpoint"], rates[inside], strict=True)]
    quartiles = statistics.quantiles(rates[inside], n=4) if args.rounds > 1 else [0.0, 0.0, 0.0]
    jitter = (quartiles[2] - quartiles[0]) / statistics.median(rates[inside])
    median = statistics.median(ratios)
    return {
        "num_params": policy.num_params(),
        "env_steps_per_s": {
            arm: {"best": max(values), "median": statistics.median(values), "rounds": values}
            for arm, values in rates.items()
        },
        "parent_cpu_us_per_step": {arm: statistics.median(values) for arm, values in cpu_us.items()},
        "in_process_arm": inside,
        "ratio": {"best": max(rates["endpoint"]) / max(rates[inside]), "median": median, "rounds": ratios},
        "in_process_jitter": jitter,
        "verdict": "inconclusive" if jitter > _JITTER else "met" if median >= _GOAL else "missed",
    }


def main() -> int:
    """Measure; return 1 if the budget is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/rollout.json"))
    parser.add_argument("--policy", default="bench_policies:nethack", help="MODULE:FACTORY (default %(default)s)")
    parser.add_argument("--envs", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of the policy, in both arms")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one arm of a round (default %(default)s)")
    parser.add_argument(
        "--least", type=float, nargs="+", default=[0.5, 1.0], metavar="SHARE",
        help="of the rows that the bare loop waits for; the best one counts (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--server", help="command of the server", default=f"{Path(sys.executable).with_name('playserve')} serve "
        "--policy nethack={policy} --port {port} --threads THREADS"
    )  # fmt: skip
    args = parser.parse_args()
    args.server = args.server.replace("THREADS", str(args.threads))
    console = report_console()
    report: dict[str, Any] = {
        "benchmark": "rollout", "goal_ratio": _GOAL, "family": family_of("nethack").title(_settings(args).env),
        "envs": args.envs, "workers": args.workers, "threads": args.threads, "policy": args.policy,
    }  # fmt: skip
    with machine(report):
        report.update(_measure(args, console))
    write_json(args.out, report)
    table = Table("arm", "env steps/s, best", "median", "parent CPU us/step")
    for arm, rate in report["env_steps_per_s"].items():
        cpu_us = report["parent_cpu_us_per_step"][arm]
        table.add_row(arm, f"{rate['best']:,.0f}", f"{rate['median']:,.0f}", f"{cpu_us:.0f}")
    console.print(table)
    ratio = report["ratio"]
    console.print(
        f"{report['num_params']:,} parameters, {args.envs} environments; ratio to {report['in_process_arm']}: median "
        f"{ratio['median']:.2f}, of the best {ratio['best']:.2f}; goal {_GOAL}: {report['verdict']}; {args.out}",
        soft_wrap=True,
    )
    return 1 if report["verdict"] == "missed" else 0


if __name__ == "__main__":
    raise SystemExit(main())
