"""What the demo does, decided before it does anything: its games, and how much time each gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["FULL_PLAN", "QUICK_PLAN", "DemoPlan", "GamePlan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GamePlan:
    """One game.

    Attributes:
        game: Its name in folders and at the server, in snake case.
        family: "atari"; "nethack", which has one game; or "doom", which is played by a checkpoint that is carried.
        goal: Mean score of the sampled agent, in Atari at stickiness 0, that says "it plays"; None: nothing is judged.
        goal_note: What the goal is to be compared with, for people.
        beats_baselines: Whether the 95% interval of (agent - best baseline) must lie above 0, too.
        steps: Steps of expert games to learn from.
        record_flags: More flags of the command that makes them.
        minutes: Minutes of training.
        train_flags: More flags of the training.
        episodes: Episodes of the sampled agent at each stickiness.
        argmax_episodes: Episodes of the agent without sampling at each stickiness.
        baseline_episodes: Episodes of each baseline at each stickiness.
        recorded_games: Games of the agent that are filmed, or in NetHack recorded; the best is shown.
        play_flags: More flags of the rollout.
        carried: Name of a checkpoint that the package carries: nothing is recorded or trained; "": it is made here.
        scenario: What of the game is played, in Doom.
        scenario_goal: What the instruction asks for there.
    """

    game: str
    family: str = "atari"
    goal: float | None
    goal_note: str = ""
    beats_baselines: bool = False
    steps: int
    record_flags: tuple[str, ...] = ()
    minutes: float
    train_flags: tuple[str, ...] = ()
    episodes: int
    argmax_episodes: int
    baseline_episodes: int
    recorded_games: int = 1
    play_flags: tuple[str, ...] = ()
    carried: str = ""
    scenario: str = ""
    scenario_goal: str = ""

    @property
    def title(self) -> str:
        """Return the name for people."""
        return "NetHack" if self.family == "nethack" else self.game.replace("_", " ").capitalize()

    @property
    def agent_row(self) -> str:
        """Return the row of the score table that the goal is about."""
        return "sample-s0" if self.family == "atari" else "sample"


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

    def without(self, games: Sequence[str]) -> DemoPlan:
        """Return the plan without these games."""
        return dataclasses.replace(self, games=tuple(game for game in self.games if game.game not in games))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        games = [
            {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(game).items()}
            for game in self.games
        ]
        return {"name": self.name, "workers": self.workers, "games": games}


# Without sticky actions: the usual 0.25 beside it takes a minute and more of a demo's quarter of an hour.
_AS_TRAINED = ("--stickiness", "0")

# Sized for two cores and fourteen minutes. Training stops by the clock, so that a slower machine learns less instead of
# taking longer; the other stages are sized by their number of steps.
FULL_PLAN = DemoPlan(
    name="full",
    games=(
        GamePlan(
            game="freeway",
            goal=26.0,
            goal_note="always up scores 21.8, random 0",
            steps=30_000,
            minutes=0.7,
            train_flags=("--eval-every-steps", "100"),
            episodes=5,  # its scores differ little from game to game
            argmax_episodes=1,
            baseline_episodes=2,
            play_flags=_AS_TRAINED,
        ),
        GamePlan(
            game="breakout",
            goal=10.0,
            goal_note="random scores 0.2",
            # The first 500 steps of many games: an agent that is to score tens must know how games begin.
            steps=80_000,
            record_flags=("--max-steps", "500", "--epsilon", "0.05"),
            minutes=3.8,
            train_flags=("--eval-every-steps", "200"),
            episodes=32,
            argmax_episodes=2,
            baseline_episodes=2,
            # Two players never end a game by themselves: "always NOOP", and an argmax that will not serve.
            play_flags=(*_AS_TRAINED, "--max-steps", "3000"),
        ),
        GamePlan(
            game="nethack",
            family="nethack",
            goal=100.0,
            goal_note="keys drawn as the expert draws them score 32, its bigrams 24",
            beats_baselines=True,
            steps=1_200_000,
            minutes=2.7,
            train_flags=("--eval-every-steps", "1500"),
            episodes=48,
            argmax_episodes=0,
            baseline_episodes=16,
            recorded_games=8,
            # A twentieth of the usual cap: most of so young an agent's score is made there, and 48 games take minutes.
            play_flags=("--max-steps", "5000", "--envs", "48"),
        ),
        GamePlan(
            game="doom",
            family="doom",
            goal=15.0,  # 0.7 of the way; the checkpoint's other limits are judged by `playserve demo doom --full`
            goal_note="random scores 0.7, the expert 21",
            beats_baselines=True,
            steps=0,
            minutes=0.0,
            episodes=16,
            argmax_episodes=0,
            baseline_episodes=8,
            carried="doom",
            scenario="defend_the_center",
            scenario_goal="defend_center",
        ),
    ),
)


def _quick(game: str) -> GamePlan:
    return GamePlan(
        game=game,
        goal=None,
        steps=300,
        record_flags=("--max-steps", "150"),
        minutes=0.03,
        train_flags=("--width", "4", "--batch-size", "32", "--eval-every-steps", "5", "--eval-samples", "64"),
        episodes=2,
        argmax_episodes=1,
        baseline_episodes=2,
        play_flags=("--max-steps", "150", "--envs", "2"),
    )


# Shows that every part works, in a minute; far too short to learn anything.
QUICK_PLAN = DemoPlan(
    name="quick",
    games=(
        _quick("freeway"),
        _quick("breakout"),
        GamePlan(
            game="nethack",
            family="nethack",
            goal=None,
            steps=42_000,  # two games: one to learn from, one held out
            minutes=0.03,
            train_flags=("--width", "16", "--batch-size", "4", "--eval-every-steps", "5", "--eval-samples", "64"),
            episodes=2,
            argmax_episodes=0,
            baseline_episodes=2,
            play_flags=("--max-steps", "150", "--envs", "2"),
        ),
        GamePlan(
            game="doom",
            family="doom",
            goal=None,
            steps=0,
            minutes=0.0,
            episodes=2,
            argmax_episodes=0,
            baseline_episodes=2,
            play_flags=("--max-steps", "60", "--envs", "2"),
            carried="doom",
            scenario="basic",
            scenario_goal="shoot_monster",
        ),
    ),
)
