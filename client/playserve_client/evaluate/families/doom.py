"""Doom: scenarios and goals, instructions that were never trained on, scripted experts, the rubric's counts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError
from playserve_client.evaluate.families.base import Choice, Contender, FactColumn, PlayerSource, Progress, Recordings
from playserve_client.evaluate.families.generic import GenericFamily

if TYPE_CHECKING:
    from playserve.specs import PolicySpec
    from playserve_client.evaluate.journal import Journal
    from playserve_client.evaluate.plan import EnvChoice, Settings

__all__ = ["DoomFamily"]

_FRAME_S = 0.05


class DoomFamily(GenericFamily):
    """See :class:`playserve_client.evaluate.families.base.Family`."""

    max_steps = 1_050
    packages = ("vizdoom", "gymnasium", "numpy", "pillow")
    columns = (
        FactColumn("goal_met", "goal met"),
        FactColumn("kills", "kills"),
        FactColumn("idle_per_100s", "idle s"),
        FactColumn("wall_per_100s", "wall s"),
        FactColumn("jitter_per_100s", "jitter"),
        FactColumn("shots_at_nothing_per_100s", "air shots"),
        FactColumn("misses_per_100s", "misses"),
    )
    normalises = True
    seeds_are_games = True
    summary = "Doom, in ViZDoom, without a display"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add --scenario, --goal, --text, --phrasing and --size."""
        parser.add_argument("--scenario", required=True, help="such as health_gathering")
        parser.add_argument("--goal", help="what the instruction asks for (default: the scenario's first goal)")
        parser.add_argument(
            "--text",
            choices=["right", "none", "wrong"],
            default="right",
            help="instruct the agent to do it, not at all, or to do another goal of the map (default %(default)s)",
        )
        parser.add_argument(
            "--phrasing",
            choices=["held_out", "training"],
            default="held_out",
            help="words that were never trained on, or those that were (default %(default)s)",
        )
        parser.add_argument("--size", type=int, default=96, help="side of the frames, pixels (default %(default)s)")

    def choose(self, args: argparse.Namespace, options: Mapping[str, Any], max_steps: int) -> Choice:
        """Return scenario and goal; BadSettingError for those that are not there."""
        from playserve_client.evaluate.plan import EnvChoice

        for name, value in (("--stickiness", args.stickiness), ("--most-frequent", args.most_frequent)):
            if value is not None:
                raise BadSettingError(f"{name} {value} has no meaning in Doom")
        from playserve_client.doom.scenarios import scenario_of

        goal = scenario_of(args.scenario).goal(args.goal).name
        chosen = {"goal": goal, "text": args.text, "phrasing": args.phrasing, "frame_size": args.size}
        env = EnvChoice(family="doom", game=args.scenario, options={**chosen, **options}, max_steps=max_steps)
        self._check(env)
        return Choice(env=env, argmax_episodes=0, expert=True)

    def _check(self, env: EnvChoice) -> None:
        """Name a wrong option here, not in a worker."""
        from playserve_client.envs.registry import make_env

        try:
            made: Any = make_env("doom", env.game, **self.factory_options(env, None))
        except TypeError as error:
            raise BadSettingError(f"--env-option: {error}") from error
        made.close()

    def default_policy(self, env: EnvChoice) -> str:
        """Return the family's name: one policy plays every scenario."""
        return "doom"

    def title(self, env: EnvChoice) -> str:
        """Return scenario, goal, and what the agent is told where that is not the goal."""
        text = {"right": "", "none": ", no instruction", "wrong": ", wrong instruction"}[env.options["text"]]
        return f"doom {env.game}: {env.options['goal']}{text}"

    def factory_options(self, env: EnvChoice, stickiness: float | None) -> dict[str, Any]:
        """Return the user's options, the cap, and what the expert has to see."""
        from playserve_client.doom.experts import needs_of
        from playserve_client.doom.scenarios import scenario_of

        needs = needs_of(scenario_of(env.game), env.options.get("goal"))
        return {"record_labels": needs.depth or needs.walls, **env.options, "max_steps": env.max_steps}

    def contenders(self, settings: Settings) -> list[Contender]:
        """Return a random player, one that does nothing, and the expert."""
        return [
            Contender(kind="random", name="random"),
            Contender(kind="idle", name="idle"),
            Contender(kind="expert", name="expert", role="expert"),
        ]

    def protocol(self, settings: Settings) -> list[str]:
        """Return the rules."""
        from playserve_client.doom.scenarios import DEGREES_PER_PIXEL, scenario_of

        options = settings.env.options
        scenario = scenario_of(settings.env.game)
        goal = scenario.goal(options["goal"])
        own = goal is scenario.goals[0] and not scenario.made
        lines = [
            f"2 tics a step, {options['frame_size']} x {options['frame_size']} RGB, mouse dx turns "
            f"{DEGREES_PER_PIXEL} degrees a pixel, over after {scenario.timeout_tics:,} tics",
            "score: the scenario's own reward" if own else f"score: 1 where the goal {goal.name} was met, else 0",
            f"instruction: {options['text']}, {options['phrasing'].replace('_', ' ')} phrasings drawn by the seed",
            "random: each key and the button by a fair coin, a turn of 6 degrees left, right or none, held for 2 steps",
            "idle, wall: seconds in 100 s; jitter, air shots (nobody in sight), misses: how often in 100 s",
        ]
        if scenario.asks:
            bounds = [f"at least {goal.at_least:g}"] if goal.at_least is not None else []
            bounds += [f"at most {goal.at_most:g}"] if goal.at_most is not None else []
            lines.append(f"goal met: {goal.fact} {' and '.join(bounds)}, by the game's counters")
        return lines

    def players(self, env: EnvChoice, num_actions: int, knowledge: Path | None) -> PlayerSource:
        """Return what makes players with keyboard and mouse."""
        from playserve_client.evaluate.families.doom_players import make_doom_player

        return lambda kind, _action: make_doom_player(kind, env.game, env.options.get("goal"))

    def check_policy(self, settings: Settings, spec: PolicySpec) -> list[str]:
        """Note where a policy takes no instruction though the map asks for one."""
        from playserve_client.doom.scenarios import scenario_of

        if scenario_of(settings.env.game).asks and not spec.takes_instruction:
            return [f"policy {spec.name!r} takes no instruction: it cannot know which goal is asked for"]
        return []

    def record(self, settings: Settings, journal: Journal, count: int, progress: Progress) -> Recordings:
        """Film the game's screen."""
        from playserve_client.evaluate.video import record_videos

        return record_videos(
            settings, journal, count, progress, render={"render_mode": "rgb_array"}, step_s=lambda _: _FRAME_S
        )
