"""A user's own Gymnasium environment: nothing is known but that it has discrete actions."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError
from playserve_client.evaluate.families.base import Choice, Contender, FactColumn, PlayerSource, Progress, Recorded
from playserve_client.evaluate.families.base import Recordings as _Recordings

if TYPE_CHECKING:
    from playserve.specs import PolicySpec
    from playserve_client.evaluate.journal import Journal
    from playserve_client.evaluate.plan import EnvChoice, Settings

__all__ = ["GenericFamily", "most_frequent_of"]


class GenericFamily:
    """See :class:`playserve_client.evaluate.families.base.Family`; other families change what they must."""

    max_steps: int = 27_000
    packages: tuple[str, ...] = ("gymnasium",)
    columns: tuple[FactColumn, ...] = ()
    records_films: bool = True
    seeds_are_games: bool = False
    normalises: bool = False
    summary: str = "your own environment"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add nothing: --env and --env-game stand at ``rollout`` itself."""

    def choose(self, args: argparse.Namespace, options: Mapping[str, Any], max_steps: int) -> Choice:
        """Return the environment of --env."""
        from playserve_client.evaluate.plan import EnvChoice

        if args.stickiness:
            raise BadSettingError(f"--stickiness {args.stickiness} has no meaning for --env; pass it by --env-option")
        env = EnvChoice(family=args.env, game=args.env_game, options=options, max_steps=max_steps)
        action, notes = most_frequent_of(args, env.game)
        return Choice(env=env, most_frequent=action, notes=(*notes, *no_expert(args, env)))

    def default_policy(self, env: EnvChoice) -> str:
        """Return the game."""
        return env.game

    def title(self, env: EnvChoice) -> str:
        """Return the game, or the factory's name."""
        return env.game or env.family

    def factory_options(self, env: EnvChoice, stickiness: float | None) -> dict[str, Any]:
        """Return what the user passes."""
        return dict(env.options)

    def contenders(self, settings: Settings) -> list[Contender]:
        """Return the random player and, where it is known, the most frequent action."""
        found = [Contender(kind="random", name="random")]
        if (action := settings.most_frequent) is not None:
            found.append(Contender(kind="constant", name=f"most frequent action ({action})", action=action))
        if settings.expert:
            found.append(Contender(kind="expert", name="expert", role="expert"))
        return found

    def protocol(self, settings: Settings) -> list[str]:
        """Return nothing: the rules are the user's."""
        return []

    def players(self, env: EnvChoice, num_actions: int, knowledge: Path | None) -> PlayerSource:
        """Return what makes the random player and the constant one."""
        from playserve_client.evaluate.players import make_player

        return lambda kind, action: make_player(kind, game=env.game, num_actions=num_actions, action=action)

    def check_policy(self, settings: Settings, spec: PolicySpec) -> list[str]:
        """Accept every policy: inputs and actions are checked elsewhere."""
        return []

    def recorded(self, knowledge: Path) -> list[Recorded]:
        """Return no row."""
        return []

    def record(self, settings: Settings, journal: Journal, count: int, progress: Progress) -> _Recordings:
        """Film, with what the environment renders."""
        from playserve_client.evaluate.video import record_videos

        return record_videos(settings, journal, count, progress, render={"render_mode": "rgb_array"}, step_s=_step_s)


def _step_s(env: Any) -> float:
    return 1 / float((getattr(env, "metadata", None) or {}).get("render_fps") or 15)


def most_frequent_of(args: argparse.Namespace, game: str) -> tuple[int | None, list[str]]:
    """Return the most frequent action that the command line gives or that --data holds, and notes."""
    from playserve_client.evaluate.players import most_frequent_action

    if args.no_baselines:
        return None, []
    if args.most_frequent is not None:
        return args.most_frequent, []
    if args.data is not None:
        action, share = most_frequent_action(args.data, game)
        return action, [f"action {action} is the most frequent in {args.data}: {share:.1%} of the steps"]
    return None, ["no most-frequent-action row: it is unknown; give --most-frequent ACTION or --data DIR"]


def no_expert(args: argparse.Namespace, env: EnvChoice) -> list[str]:
    """Return the note that there is no expert row."""
    return [] if args.no_baselines else [f"no expert row: there is no scripted expert for {env.game or env.family}"]
