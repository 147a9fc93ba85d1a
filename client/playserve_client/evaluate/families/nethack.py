"""NetHack: NetHackChallenge's rules, baselines that draw keys, AutoAscend's recorded games, ttyrecs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError
from playserve_client.evaluate.families.base import (
    Choice,
    Contender,
    FactColumn,
    PlayerSource,
    Progress,
    Recorded,
    Recordings,
)
from playserve_client.evaluate.families.generic import GenericFamily

if TYPE_CHECKING:
    from playserve.specs import PolicySpec
    from playserve_client.evaluate.journal import Journal
    from playserve_client.evaluate.plan import EnvChoice, Settings
    from playserve_client.nethack.expert_statistics import ExpertStatistics

__all__ = ["NetHackFamily"]

_CHARACTER = "mon-hum-neu-mal"
_NO_PROGRESS = 10_000


class NetHackFamily(GenericFamily):
    """See :class:`playserve_client.evaluate.families.base.Family`."""

    max_steps = 100_000
    packages = ("nle", "gymnasium", "numpy")
    columns = (FactColumn("turns", "turns"), FactColumn("depth", "depth"), FactColumn("experience_level", "level"))
    records_films = False
    seeds_are_games = True
    summary = "NetHack, in the NetHack Learning Environment"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add --character and --no-progress."""
        parser.add_argument(
            "--character", default=_CHARACTER, help=f"role-race-alignment-gender (default {_CHARACTER}; @: any)"
        )
        parser.add_argument(
            "--no-progress",
            type=int,
            default=_NO_PROGRESS,
            metavar="STEPS",
            help=f"cut episodes after so many steps in which no turn passed (default {_NO_PROGRESS})",
        )

    def choose(self, args: argparse.Namespace, options: Mapping[str, Any], max_steps: int) -> Choice:
        """Return the game, and the statistics that its baselines draw from."""
        from playserve_client.evaluate.plan import EnvChoice

        if args.stickiness:
            raise BadSettingError(f"--stickiness {args.stickiness} has no meaning in NetHack")
        env = EnvChoice(
            family="nethack",
            game=args.character,
            options={"no_progress_timeout": args.no_progress, **options},
            max_steps=max_steps,
        )
        self._check(env)
        if args.no_baselines:
            return Choice(env=env, argmax_episodes=0)
        statistics, notes = _statistics(args.data, env.game)
        if statistics is None:
            return Choice(env=env, argmax_episodes=0, most_frequent=args.most_frequent, notes=tuple(notes))
        frequent = int(statistics.counts.argmax()) if args.most_frequent is None else args.most_frequent
        return Choice(
            env=env,
            argmax_episodes=0,
            most_frequent=frequent,
            knowledge=statistics.to_bytes(),
            knowledge_source=statistics.source,
            notes=tuple(notes),
        )

    def _check(self, env: EnvChoice) -> None:
        """Name a wrong character or option here, not in a worker."""
        from playserve_client.envs.registry import make_env

        try:
            made: Any = make_env("nethack", env.game, **self.factory_options(env, None))
        except TypeError as error:
            raise BadSettingError(f"--env-option: {error}") from error
        made.close()

    def default_policy(self, env: EnvChoice) -> str:
        """Return the family's name: a character is none for a policy."""
        return "nethack"

    def title(self, env: EnvChoice) -> str:
        """Return the game and its character."""
        return f"nethack {env.game}"

    def factory_options(self, env: EnvChoice, stickiness: float | None) -> dict[str, Any]:
        """Return the user's options and the cap."""
        return {**env.options, "max_steps": env.max_steps}

    def contenders(self, settings: Settings) -> list[Contender]:
        """Return the players that look at nothing."""
        found = [Contender(kind="random", name="uniform")]
        if settings.most_frequent is not None:
            found.append(Contender(kind="constant", name="most frequent key", action=settings.most_frequent))
        if settings.knowledge:
            found.append(Contender(kind="frequencies", name="expert frequencies"))
            found.append(Contender(kind="bigram", name="previous-key bigram"))
        return [*found, Contender(kind="walk", name="random walk")]

    def protocol(self, settings: Settings) -> list[str]:
        """Return the rules."""
        from playserve_client.nethack.keys import ACTION_NAMES

        env = settings.env
        lines = [
            f"NetHackChallenge with {len(ACTION_NAMES)} keys, no menu or message skipped, character {env.game}",
            "the game's random numbers (core and display) seeded with the episode's seed, moon phase fixed",
            f"cut after {env.options['no_progress_timeout']:,} steps in which no turn passed",
            "random walk: 8 directions and 15% space",
        ]
        if (action := settings.most_frequent) is not None:
            name = ACTION_NAMES[action] if 0 <= action < len(ACTION_NAMES) else f"{action}"
            lines.append(f"most frequent key: {name.rpartition('.')[2].lower()}")
        if settings.knowledge:
            lines.append(f"expert keys: {settings.knowledge['source']}")
        return lines

    def players(self, env: EnvChoice, num_actions: int, knowledge: Path | None) -> PlayerSource:
        """Return what makes players that draw keys."""
        from playserve_client.evaluate.families.nethack_players import NetHackPlayers

        return NetHackPlayers(knowledge)

    def check_policy(self, settings: Settings, spec: PolicySpec) -> list[str]:
        """Refuse a policy of another family; note where it learnt from another character."""
        family = spec.environment.get("family", "")
        if family and family != "nethack":
            raise BadSettingError(f"policy {spec.name!r} was trained for {family!r}; this is NetHack")
        trained = spec.environment.get("character", "")
        if trained and trained != settings.env.game:
            return [f"policy {spec.name!r} learnt from games of {trained}; these are of {settings.env.game}"]
        return []

    def recorded(self, knowledge: Path) -> list[Recorded]:
        """Return the expert's own games."""
        from playserve_client.evaluate.journal import Result
        from playserve_client.nethack.expert_statistics import ExpertStatistics

        statistics = ExpertStatistics.from_bytes(knowledge.read_bytes(), str(knowledge))
        results = tuple(
            Result(
                row="expert-recorded",
                number=number,
                env_seed=int(game.name) if game.name.isdecimal() else -1,
                sampling_seed=-1,
                score=game.score,
                steps=game.steps,
                terminated=game.end != "stopped",
                truncated=game.end == "stopped",
                digest=game.name,
                facts=_known(
                    turns=game.turns, depth=game.depth, experience_level=game.experience_level, end=game.end or None
                ),
            )
            for number, game in enumerate(statistics.games)
        )
        if not results:
            return []
        note = f"{statistics.expert} (recorded) was not played here, nor on these seeds: {statistics.source}"
        return [
            Recorded(
                key="expert-recorded", name=f"{statistics.expert} (recorded)", results=results, notes=(note,)
            )
        ]  # fmt: skip

    def record(self, settings: Settings, journal: Journal, count: int, progress: Progress) -> Recordings:
        """Write ttyrecs, laid out as the NetHack Learning Dataset is."""
        from playserve_client.evaluate.ttyrec import record_ttyrecs

        return record_ttyrecs(settings, journal, count, progress)


def _known(**facts: Any) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


def _statistics(data: Path | None, character: str) -> tuple[ExpertStatistics | None, list[str]]:
    """Return the statistics of --data, or of the carried games where they are of this character; and notes."""
    from playserve_client.nethack.expert_statistics import ExpertStatistics, carried_statistics, read_statistics

    if data is not None:
        statistics = read_statistics(data)
    else:
        path = carried_statistics()
        statistics = ExpertStatistics.from_bytes(path.read_bytes(), str(path))
    if statistics.character in ("", character):
        return statistics, []
    if data is not None:
        return statistics, [f"the games in {data} are of {statistics.character}, not of {character}"]
    return None, [
        f"no rows that know the expert's keys: the carried games are of {statistics.character}; give --data DIR"
    ]
