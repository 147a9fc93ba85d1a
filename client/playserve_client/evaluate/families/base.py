"""What a family of environments tells the evaluator: rows, options, facts of an episode, and how it is recorded."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from playserve.specs import PolicySpec
    from playserve_client.evaluate.journal import Journal, Result
    from playserve_client.evaluate.plan import EnvChoice, Settings
    from playserve_client.evaluate.players import Player

__all__ = [
    "AGENTS", "Choice", "Contender", "FactColumn", "Family", "PlayerSource", "Progress", "Recorded", "Recordings",
    "Role",
]  # fmt: skip

#: "agent": the served policy; "baseline": knows nothing of the observation; "expert": what is to be imitated.
Role = Literal["agent", "baseline", "expert"]
#: Kinds of player that the server answers for.
AGENTS = ("sample", "argmax")
#: Takes (steps just made, recordings just finished).
Progress = Callable[[int, int], None]
#: Makes a new player of (kind, action).
PlayerSource = Callable[[str, "int | None"], "Player"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """Somebody who plays without a server.

    Attributes:
        kind: Name for programs, such as "random".
        name: Name for people.
        role: What its row is beside the agent's.
        action: The action of a player that has but one.
    """

    kind: str
    name: str
    role: Role = "baseline"
    action: int | None = None


@dataclass(frozen=True, slots=True)
class FactColumn:
    """A column of the table: the mean of one number of ``info["episode_facts"]``."""

    fact: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a family makes of the command line.

    Attributes:
        env: The environment.
        stickiness: Stickiness values; empty where that has no meaning.
        argmax_episodes: Where the command line does not say; None: as many as of a baseline.
        most_frequent: The expert's most frequent action, or None.
        expert: Whether a scripted expert plays.
        knowledge: Content of the file that baselines draw from, or empty; it is kept in the run's folder.
        knowledge_source: Where that is from, for people.
        notes: Lines for the report.
        dial: Further arguments of the environment's factory that change no result and are in no file: where a served
            environment is, and the key for it. JSON values.
    """

    env: EnvChoice
    stickiness: tuple[float, ...] = ()
    argmax_episodes: int | None = None
    most_frequent: int | None = None
    expert: bool = False
    knowledge: bytes = b""
    knowledge_source: str = ""
    notes: tuple[str, ...] = ()
    dial: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A row that nobody plays: games that were recorded elsewhere.

    Attributes:
        key: Name for programs.
        name: Name for people.
        results: The games.
        notes: Lines for the report.
    """

    key: str
    name: str
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class Recordings:
    """What `--record` made.

    Attributes:
        videos: Films, as JSON values.
        files: Other recordings, as JSON values with at least path, row, number and score.
        notes: What could not be recorded.
    """

    videos: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Family(Protocol):
    """One family of environments. It holds no state: the evaluator asks, in the parent and in the workers.

    Attributes:
        max_steps: Cap of an episode where the command line gives none.
        packages: Distributions whose versions decide what an episode is.
        columns: Columns of the table beyond those that all families have.
        records_films: Whether ``--record`` makes films, which need pillow.
        seeds_are_games: Whether another seed is always another game. Where it is not, equal actions and rewards are
            an equal game, however many seeds it had.
        normalises: Whether scores are also told as parts of the way from the random player to the expert.
        summary: Help of the subcommand.
    """

    @property
    def max_steps(self) -> int: ...  # noqa: D102 - see the class
    @property
    def packages(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def columns(self) -> tuple[FactColumn, ...]: ...  # noqa: D102
    @property
    def records_films(self) -> bool: ...  # noqa: D102
    @property
    def seeds_are_games(self) -> bool: ...  # noqa: D102
    @property
    def normalises(self) -> bool: ...  # noqa: D102
    @property
    def summary(self) -> str: ...  # noqa: D102

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the family's own options to its subcommand."""

    def choose(self, args: argparse.Namespace, options: Mapping[str, Any], max_steps: int) -> Choice:
        """Return what is played; a typed error, here and not in a worker, for what cannot be."""

    def default_policy(self, env: EnvChoice) -> str:
        """Return the policy's name where the command line gives none; empty: it has to."""

    def title(self, env: EnvChoice) -> str:
        """Return the environment's name for people."""

    def factory_options(self, env: EnvChoice, stickiness: float | None) -> dict[str, Any]:
        """Return the keyword arguments of the environment's factory."""

    def contenders(self, settings: Settings) -> list[Contender]:
        """Return the players beside the agent, in the table's order."""

    def protocol(self, settings: Settings) -> list[str]:
        """Return the rules of the game in words, one fact a line."""

    def players(self, env: EnvChoice, num_actions: int, knowledge: Path | None) -> PlayerSource:
        """Return what makes players. Called in the worker; `knowledge` is the run's copy of that file."""

    def check_policy(self, settings: Settings, spec: PolicySpec) -> list[str]:
        """Raise BadSettingError where a policy was trained for something else; return notes of what is odd."""

    def recorded(self, knowledge: Path) -> list[Recorded]:
        """Return the rows that nobody plays."""

    def record(self, settings: Settings, journal: Journal, count: int, progress: Progress) -> Recordings:
        """Play `count` finished episodes again and keep what people can look at."""
