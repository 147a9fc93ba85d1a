"""What the demo does, decided before it does anything: its games, its time budgets, and the command of each stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["FULL_PLAN", "QUICK_PLAN", "DemoPlan", "GamePlan", "Step", "playing", "recording", "serving", "training"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GamePlan:
    """One game.

    Attributes:
        game: Game in snake case.
        goal: Mean score of the sampled agent at stickiness 0 that says "it plays"; None: nothing is judged.
        goal_note: What the goal is to be compared with, for people.
        steps: Steps to record.
        record_flags: More flags of the recording.
        minutes: Minutes of training.
        train_flags: More flags of the training.
        episodes: Episodes of the sampled agent at each stickiness.
        argmax_episodes: Episodes of the agent without sampling at each stickiness.
        baseline_episodes: Episodes of each baseline at each stickiness.
        play_flags: More flags of the rollout.
    """

    game: str
    goal: float | None
    goal_note: str = ""
    steps: int
    record_flags: tuple[str, ...] = ()
    minutes: float
    train_flags: tuple[str, ...] = ()
    episodes: int
    argmax_episodes: int
    baseline_episodes: int
    play_flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """The whole demo.

    Attributes:
        name: "full" or "quick".
        games: In the order in which they are shown.
        workers: Processes that record or play.
    """

    name: str
    games: tuple[GamePlan, ...]
    workers: int = 2

    def only(self, games: Sequence[str]) -> DemoPlan:
        """Return the plan with these games only."""
        return dataclasses.replace(self, games=tuple(game for game in self.games if game.game in games))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        games = [
            {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(game).items()}
            for game in self.games
        ]
        return {"name": self.name, "workers": self.workers, "games": games}


# Sized for two cores and eight minutes. Training stops by the clock, so that a slower machine learns less instead of
# taking longer; the other stages are sized by their number of steps.
FULL_PLAN = DemoPlan(
    name="full",
    games=(
        GamePlan(
            game="freeway",
            goal=26.0,
            goal_note="always up scores 21.8, random 0",
            steps=40_000,
            minutes=1.0,
            train_flags=("--eval-every-steps", "100"),
            episodes=8,  # its scores differ little from game to game
            argmax_episodes=2,
            baseline_episodes=3,
        ),
        GamePlan(
            game="breakout",
            goal=10.0,
            goal_note="random scores 0.2",
            # The first 500 steps of many games: an agent that is to score tens must know how games begin.
            steps=80_000,
            record_flags=("--max-steps", "500", "--epsilon", "0.05"),
            minutes=3.2,
            train_flags=("--eval-every-steps", "200"),
            episodes=40,
            argmax_episodes=2,
            baseline_episodes=2,
            # Two players never end a game by themselves: "always NOOP", and an argmax that will not serve.
            play_flags=("--max-steps", "5000"),
        ),
    ),
)

_QUICK_TRAINING = ("--width", "4", "--batch-size", "32", "--eval-every-steps", "5", "--eval-samples", "64")

# Shows that every part works, in a minute; far too short to learn anything.
QUICK_PLAN = DemoPlan(
    name="quick",
    games=tuple(
        GamePlan(
            game=game,
            goal=None,
            steps=300,
            record_flags=("--max-steps", "150"),
            minutes=0.03,
            train_flags=_QUICK_TRAINING,
            episodes=2,
            argmax_episodes=1,
            baseline_episodes=2,
            play_flags=("--max-steps", "150", "--envs", "2"),
        )
        for game in ("freeway", "breakout")
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command of the demo.

    Attributes:
        name: Name for programs, such as "train-breakout".
        title: Name for people.
        command: Arguments of ``playserve``.
        out: Folder that it writes.
        expected_s: Seconds that it may take on two cores, where that is known beforehand.
    """

    name: str
    title: str
    command: tuple[str, ...]
    out: Path
    expected_s: float | None = None


def recording(plan: DemoPlan, game: GamePlan, out: Path) -> Step:
    """Return the step that records `game` under the demo's folder `out`."""
    command = ("data", "record", "atari", "--game", game.game, "--steps", f"{game.steps}", *game.record_flags,
               "--workers", f"{plan.workers}", "--out", f"{out / 'data'}")  # fmt: skip
    return Step(
        name=f"record-{game.game}",
        title=f"Record {game.steps:,} steps of the {game.game} expert",
        command=command,
        out=out / "data" / "atari" / game.game,
    )


def training(game: GamePlan, out: Path) -> Step:
    """Return the step that trains and publishes the agent of `game`."""
    folder = out / "train" / game.game
    command = ("train", "atari", "--game", game.game, "--data", f"{out / 'data'}", "--minutes", f"{game.minutes:g}",
               *game.train_flags, "--out", f"{folder}",
               "--publish", game.game, "--store", f"{out / 'store'}")  # fmt: skip
    return Step(
        name=f"train-{game.game}",
        title=f"Train and publish the {game.game} agent",
        command=command,
        out=folder,
        expected_s=game.minutes * 60,
    )


def serving(out: Path) -> tuple[str, ...]:
    """Return the arguments of ``playserve`` that serve the demo's store on any free port."""
    return ("serve", "--store", f"{out / 'store'}", "--port", "0")


def playing(plan: DemoPlan, game: GamePlan, out: Path, server: str) -> Step:
    """Return the step that plays `game` through the policy server at `server`."""
    folder = out / "rollout" / game.game
    command = ("rollout", "atari", "--game", game.game, "--server", server, "--episodes", f"{game.episodes}",
               "--argmax-episodes", f"{game.argmax_episodes}", "--baseline-episodes", f"{game.baseline_episodes}",
               "--data", f"{out / 'data'}", *game.play_flags, "--workers", f"{plan.workers}", "--record", "1",
               "--out", f"{folder}")  # fmt: skip
    return Step(
        name=f"play-{game.game}",
        title=f"Play {game.game} through the endpoint, beside its baselines and the expert",
        command=command,
        out=folder,
    )
