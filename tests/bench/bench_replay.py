"""Budget of `playserve data replay`: more than 20,000 steps/s a core, replayed from (seed, keys).

Each round measures, in an order that turns, over the same expert games and in CPU time (a core's, whoever else runs):
``replay`` (replay_game, its chunks thrown away), ``replay-all`` (with blstats and inventory), ``dataset`` (written as
shards), ``env`` (NetHackEnv with the same actions), ``nle`` (nle's own NetHackChallenge with the same actions).

    python tests/bench/bench_replay.py --rounds 7 --out runs/bench/replay.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import machine, report_console, write_json
from rich.console import Console
from rich.progress import track
from rich.table import Table

from playserve_client.envs.nethack import NetHackEnv, SeedableChallenge
from playserve_client.nethack.games import GameRecord, carried_games, read_games
from playserve_client.nethack.keys import KEY_TO_ACTION
from playserve_client.nethack.replay import Replayer
from playserve_client.nethack.replay_dataset import replay_dataset

_GOAL = 20_000.0
_CHARACTER = "mon-hum-neu-mal"


def _replay(games: Sequence[GameRecord], **options: Any) -> int:
    replayer = Replayer(_CHARACTER, **options)
    steps = sum(len(chunk) for game in games for chunk in replayer.replay(game))
    replayer.close()
    return steps


def _dataset(games: Sequence[GameRecord]) -> int:
    with tempfile.TemporaryDirectory() as out:
        # The first games of the file: their seeds are of no matter here.
        return replay_dataset(carried_games(), Path(out), steps=sum(game.steps for game in games), workers=0).frames


def _env(games: Sequence[GameRecord]) -> int:
    env, steps = NetHackEnv(_CHARACTER), 0
    for game in games:
        env.reset(seed=game.seed)
        for action in KEY_TO_ACTION[game.keys].tolist():
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
        steps += env.steps
    env.close()
    return steps


def _nle(games: Sequence[GameRecord]) -> int:
    env, steps = SeedableChallenge(character=_CHARACTER, max_episode_steps=100_000), 0
    for game in games:
        env.seed(game.seed, game.seed, reseed=False)
        env.reset()
        for action in KEY_TO_ACTION[game.keys].tolist():
            ended = env.step(action)[2]
            steps += 1
            if ended:
                break
    env.close()
    return steps


ARMS: dict[str, Callable[[Sequence[GameRecord]], int]] = {
    "replay": _replay,
    "replay-all": lambda games: _replay(games, blstats=True, inventory=True),
    "dataset": _dataset,
    "env": _env,
    "nle": _nle,
}


def measure(games: Sequence[GameRecord], rounds: int) -> list[dict[str, float]]:
    """Return steps per CPU second by arm, for each round."""
    rows = []
    for number in track(range(rounds), "rounds"):
        names = list(ARMS)
        row = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.process_time()
            steps = ARMS[name](games)
            row[name] = steps / (time.process_time() - began)
        rows.append(row)
    return rows


def show(console: Console, rows: list[dict[str, float]], verdict: dict[str, Any]) -> None:
    """Print the table."""
    table = Table("arm", "best", "median", "worst", title="steps per CPU second", title_justify="left")
    for name in ARMS:
        values = [row[name] for row in rows]
        table.add_row(name, f"{max(values):,.0f}", f"{statistics.median(values):,.0f}", f"{min(values):,.0f}")
    console.print(table)
    console.print(f"env over nle's own, median of rounds: {verdict['env_over_nle']:.2f}")
    console.print(f"replay: [bold]{verdict['status']}[/] (more than {_GOAL:,.0f} steps/s a core, median of rounds)")


def main() -> int:
    """Measure and print; the exit status is 1 where the budget is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--games", type=int, default=2, help="the first games of the file (default %(default)s)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {"benchmark": "replay", "goal_steps_per_s": _GOAL}
    with machine(report):
        games = read_games(carried_games())[: args.games]
        rows = measure(games, args.rounds)
    best = {name: max(row[name] for row in rows) for name in ARMS}
    median = {name: statistics.median(row[name] for row in rows) for name in ARMS}
    verdict = {
        "status": "met" if median["replay"] > _GOAL else "missed",
        "env_over_nle": statistics.median(row["env"] / row["nle"] for row in rows),
    }
    report |= {"steps": sum(game.steps for game in games), "best": best, "median": median, "rounds": rows} | verdict
    show(report_console(), rows, verdict)
    write_json(args.out, report)
    return 0 if verdict["status"] == "met" else 1


if __name__ == "__main__":
    raise SystemExit(main())
