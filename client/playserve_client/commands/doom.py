"""``playserve doom``: a Doom scenario in a window, for a person or for ``playserve play``, and its score."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Open a Doom scenario in a window, for playserve play or a person, and keep the score."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--scenario", required=True, help="such as defend_the_center")
    parser.add_argument("--goal", help="one of the scenario's goals (default: its first)")
    parser.add_argument("--episodes", type=int, default=10, help="episodes to watch (default %(default)s)")
    parser.add_argument("--seed-start", type=int, default=1_000_000, help="of the first episode (default %(default)s)")
    parser.add_argument("--screen", default="320x240", help="size of the window (default %(default)s)")
    parser.add_argument("--max-frames", type=int, default=1_050, help="cut episodes after so many (default 1050)")
    parser.add_argument(
        "--baselines", type=Path, metavar="RESULTS", help="results.json of playserve rollout doom --no-agent"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write every episode as JSON to this file")


def run(args: argparse.Namespace) -> int:
    """Open the window and watch; 130 after Ctrl-C."""
    import vizdoom  # noqa: F401 - brings the missing-extra hint before anything is done

    from playserve.errors import BadSettingError
    from playserve.files import write_json
    from playserve_client.doom.scenarios import scenario_of
    from playserve_client.doom.window import DoomWindow, baseline_scores, play_window

    if args.episodes < 1 or args.max_frames < 1:
        raise BadSettingError(f"episodes and max-frames are at least 1, not {args.episodes} and {args.max_frames}")
    goal = scenario_of(args.scenario).goal(args.goal)
    baselines = None if args.baselines is None else baseline_scores(args.baselines, args.scenario, goal.name)
    window = DoomWindow(args.scenario, goal=goal.name, screen=args.screen, max_frames=args.max_frames)
    try:
        print(f"the window is open: {args.scenario}, {goal.name}; episodes count from the first action on", flush=True)
        value = play_window(
            window, args.episodes, seed_start=args.seed_start, on_episode=_print_episode, baselines=baselines
        )
    finally:
        window.close()
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, value)
    print(f"mean score of {args.episodes}: {value['mean']:.2f}{_shown(value['interval'])}")
    if (part := value.get("normalised")) and part["value"] is not None:
        players = f"random {part['random']:.2f}, expert {part['expert']:.2f}"
        print(f"normalised ({players}): {part['value']:.2f}{_shown(part['interval'])}")
    return 0


def _shown(interval: Mapping[str, float] | None) -> str:
    return f" [{interval['low']:.2f}, {interval['high']:.2f}]" if interval else ""


def _print_episode(episode: Mapping[str, Any]) -> None:
    facts = episode["facts"]
    met = f", goal {'met' if facts['goal_met'] else 'not met'}" if "goal_met" in facts else ""
    print(f"seed {episode['seed']}: score {episode['score']:g} in {episode['steps']} frames{met}", flush=True)
