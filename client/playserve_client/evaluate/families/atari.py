"""Atari: stickiness, no-op starts, scripted experts, and films at the console's speed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError
from playserve_client.evaluate.families.base import Choice, Progress, Recordings
from playserve_client.evaluate.families.generic import GenericFamily, most_frequent_of, no_expert

if TYPE_CHECKING:
    from playserve.specs import PolicySpec
    from playserve_client.evaluate.journal import Journal
    from playserve_client.evaluate.plan import EnvChoice, Settings

__all__ = ["AtariFamily"]

_DEFAULT_STICKINESS = (0.0, 0.25)


class AtariFamily(GenericFamily):
    """See :class:`playserve_client.evaluate.families.base.Family`."""

    packages = ("ale-py", "opencv-python-headless", "gymnasium", "numpy")
    summary = "Atari, in the emulator that comes with ale-py"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add --game."""
        parser.add_argument("--game", required=True, help="such as breakout")

    def choose(self, args: argparse.Namespace, options: Mapping[str, Any], max_steps: int) -> Choice:
        """Return the game; BadSettingError for one that is not there."""
        from playserve_client.evaluate.plan import EnvChoice
        from playserve_client.evaluate.players import has_expert

        env = EnvChoice(family="atari", game=args.game, options=options, max_steps=max_steps)
        self._check_game(env)
        action, notes = most_frequent_of(args, env.game)
        expert = has_expert(env.family, env.game)
        return Choice(
            env=env,
            stickiness=tuple(args.stickiness or _DEFAULT_STICKINESS),
            most_frequent=action,
            expert=expert,
            notes=(*notes, *([] if expert else no_expert(args, env))),
        )

    def _check_game(self, env: EnvChoice) -> None:
        """Name a wrong game or option here, not in a worker."""
        from playserve_client.envs.atari import AtariEnv

        try:
            AtariEnv(env.game, **self.factory_options(env, None))
        except TypeError as error:
            raise BadSettingError(f"--env-option: {error}") from error

    def factory_options(self, env: EnvChoice, stickiness: float | None) -> dict[str, Any]:
        """Return the user's options, with stickiness and cap."""
        return {**env.options, "stickiness": stickiness or 0.0, "max_steps": env.max_steps}

    def protocol(self, settings: Settings) -> list[str]:
        """Return the field's protocol."""
        sticky = " and ".join(f"{value:g}" for value in settings.stickiness)
        return [f"frame skip 4, 1 to 30 no-ops at the start, stickiness {sticky}, minimal action set"]

    def check_policy(self, settings: Settings, spec: PolicySpec) -> list[str]:
        """Refuse a policy of another game."""
        trained = spec.environment.get("game", "")
        if trained and trained != settings.env.game:
            raise BadSettingError(f"policy {spec.name!r} was trained for {trained!r}; this is {settings.env.game!r}")
        return []

    def record(self, settings: Settings, journal: Journal, count: int, progress: Progress) -> Recordings:
        """Film the emulator's screen."""
        from playserve_client.evaluate.video import record_videos

        return record_videos(settings, journal, count, progress, render={}, step_s=_step_s)


def _step_s(env: Any) -> float:
    return float(getattr(env, "frame_skip", 4) / 60)
