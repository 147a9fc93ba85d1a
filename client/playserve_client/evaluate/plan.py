"""What is played, decided before anything is: rows of the table, and for each its episodes with their seeds.

A row is one player under one setting ("agent (sampled)" at stickiness 0.25). Episode i of every row has the same
environment seed and the same sampling seed, whoever plays it, in whatever shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from playserve.errors import BadSettingError
from playserve.settings import check_instruction
from playserve_client.evaluate.families import Contender, Family, Role, family_of

__all__ = ["DEFAULT_SEED_START", "MAX_STEPS", "Assignment", "EnvChoice", "Row", "Settings", "Shard"]

#: Far from the seeds of recordings (10,000 and up), so that no game that was learnt from is evaluated.
DEFAULT_SEED_START = 1_000_000
MAX_STEPS = 27_000
# Keeps the sampling seeds apart from everything else that is seeded with the episode's seed.
_SAMPLING_STREAM = 0x73616D70


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Part `index` (from 0) of `count` parts of every row's episodes."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise BadSettingError(f"shard {self.index}/{self.count} is not i/n with i from 0 to n - 1")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that "i/n" names."""
        index, _, count = text.partition("/")
        if not (index.isdigit() and count.isdigit()):
            raise BadSettingError(f"shard {text!r} is not i/n, such as 0/4")
        return cls(index=int(index), count=int(count))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvChoice:
    """Which environment is played.

    Attributes:
        family: A family of `playserve_client.envs.registry`, or ``module:factory``.
        game: Game of the family; may be empty for a user's own factory.
        options: Passed on to the factory.
        max_steps: Steps after which an episode is truncated.
    """

    family: str
    game: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    max_steps: int = MAX_STEPS

    @property
    def rules(self) -> Family:
        """Return what the evaluator knows of this family."""
        return family_of(self.family)

    def factory_options(self, stickiness: float | None) -> dict[str, Any]:
        """Return the keyword arguments of the factory."""
        return self.rules.factory_options(self, stickiness)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One episode to be played.

    Attributes:
        row: Key of its row.
        number: Number of the episode, from 0.
        env_seed: Seed of the environment.
        sampling_seed: Seed of the player's draws.
    """

    row: str
    number: int
    env_seed: int
    sampling_seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the table.

    Attributes:
        kind: Who plays: "sample", "argmax", or a contender of the family.
        name: The name for people.
        role: The served policy, a player that knows nothing, or the expert.
        stickiness: Of the emulator; None where that has no meaning.
        episodes: Episodes of the row, all shards together.
        action: The action of a player that has but one.
    """

    kind: str
    name: str
    role: Role
    stickiness: float | None
    episodes: int
    action: int | None = None

    @property
    def key(self) -> str:
        """Return the name for programs and paths, such as "sample-s0.25"."""
        return self.kind if self.stickiness is None else f"{self.kind}-s{self.stickiness:g}"

    @property
    def is_agent(self) -> bool:
        """Return whether the served policy plays it."""
        return self.role == "agent"

    def assignments(self, seed_start: int, shard: Shard) -> list[Assignment]:
        """Return the episodes of one shard."""
        return [
            Assignment(
                row=self.key,
                number=number,
                env_seed=seed_start + number,
                sampling_seed=sampling_seed(seed_start + number),
            )
            for number in range(shard.index, self.episodes, shard.count)
        ]


def sampling_seed(env_seed: int) -> int:
    """Return the seed of the draws in the episode of `env_seed`; below 2**53, so that any JSON reader keeps it."""
    return int(np.random.SeedSequence([_SAMPLING_STREAM, env_seed]).generate_state(1, np.uint64)[0] >> np.uint64(11))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that decides what the results are. Two runs may be put together only where it is equal.

    Attributes:
        env: The environment.
        policy: Name of the policy at the server; empty: only baselines.
        seed_start: Environment seed of episode 0.
        episodes: Episodes of the sampled agent at each stickiness.
        argmax_episodes: Episodes of the agent without sampling; 0: none.
        baseline_episodes: Episodes of each baseline; 0: none.
        stickiness: Stickiness values; empty where that has no meaning.
        most_frequent: The most frequent action, or None where it is unknown.
        expert: Whether there is a scripted expert.
        knowledge: Source and digest of the file that baselines draw from; empty where they need none.
        instruction: Told to the agent in every episode; None: what the environment says, if it does.
        mouse_decode: How the agent's mouse motion is decoded; None: as the policy does by itself.
        shard: The part to play.
    """

    env: EnvChoice
    policy: str
    episodes: int
    argmax_episodes: int
    baseline_episodes: int
    seed_start: int = DEFAULT_SEED_START
    stickiness: tuple[float, ...] = ()
    most_frequent: int | None = None
    expert: bool = False
    knowledge: Mapping[str, str] = field(default_factory=dict)
    instruction: str | None = None
    mouse_decode: str | None = None
    shard: Shard = field(default_factory=Shard)

    def __post_init__(self) -> None:
        low = min(self.episodes - 1, self.argmax_episodes, self.baseline_episodes, self.seed_start)
        if low < 0 or self.env.max_steps < 1:
            raise BadSettingError(
                f"episodes and max_steps are at least 1, the others at least 0, not episodes {self.episodes}, "
                f"max_steps {self.env.max_steps}, argmax_episodes {self.argmax_episodes}, baseline_episodes "
                f"{self.baseline_episodes}, seed_start {self.seed_start}"
            )
        check_instruction(self.instruction or "")
        if len(set(self.stickiness)) != len(self.stickiness):
            raise BadSettingError(f"stickiness {self.stickiness} names a value twice")

    def rows(self) -> list[Row]:
        """Return the rows in the order of the table."""
        wanted: list[tuple[Contender, int]] = []
        if self.policy:
            agent: Role = "agent"
            wanted.append((Contender(kind="sample", name="agent (sampled)", role=agent), self.episodes))
            wanted.append((Contender(kind="argmax", name="agent (argmax)", role=agent), self.argmax_episodes))
        wanted += [(player, self.baseline_episodes) for player in self.env.rules.contenders(self)]
        return [
            Row(
                kind=player.kind,
                name=player.name,
                role=player.role,
                stickiness=stickiness,
                episodes=episodes,
                action=player.action,
            )
            for stickiness in (self.stickiness or (None,))
            for player, episodes in wanted
            if episodes
        ]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value; equal values mean that results can be put together."""
        value = asdict(self)
        value["stickiness"] = list(self.stickiness)
        value["env"]["options"] = dict(self.env.options)
        value["knowledge"] = dict(self.knowledge)
        if not self.knowledge:
            del value["knowledge"]  # as in folders that were begun before there was any
        for name in ("instruction", "mouse_decode"):
            if value[name] is None:
                del value[name]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Settings:
        """Return the settings of a JSON value."""
        try:
            env, shard = EnvChoice(**value["env"]), Shard(**value["shard"])
            return cls(**{**value, "env": env, "shard": shard, "stickiness": tuple(value["stickiness"])})
        except (TypeError, KeyError) as error:
            raise BadSettingError(f"settings are incomplete or have unknown keys: {error}") from error

    def protocol(self) -> list[str]:
        """Return what was measured, in words, one fact a line."""
        return [
            "sampled: temperature 1; argmax: the most probable action",
            *self.env.rules.protocol(self),
            *([] if self.instruction is None else [f"instruction of every episode: {self.instruction!r}"]),
            *([] if self.mouse_decode is None else [f"mouse motion is decoded as {self.mouse_decode}"]),
            f"full episodes, unclipped score, cut after {self.env.max_steps:,} steps",
            f"episode i has environment seed {self.seed_start} + i; every assigned episode is played to its end",
        ]
