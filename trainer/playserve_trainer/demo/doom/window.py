"""A visible Doom window, played by whoever sits at the desktop; prints each episode by the game's own counters.

    python -m playserve_trainer.demo.doom.window SCENARIO EPISODES [--goal GOAL] [--screen 320x240] [--seed-start N]

The game runs on its own clock, 40 tics a second, and takes keys and mouse from the window. Lines are JSON: {"ready"},
then, after a line on its stdin, {"begins": n, "instruction"}, {"episode": n, "seed", "score", "facts"}, ..., {"over"}.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from playserve_client.doom.facts import EpisodeCounter
from playserve_client.doom.game import PROBES, DoomGame
from playserve_client.doom.maps import EVALUATION_SEED
from playserve_client.doom.scenarios import scenario_of
from playserve_client.envs.doom import MAX_STEPS, instruction_for

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Show the window until all episodes are over."""
    parser = argparse.ArgumentParser(prog="python -m playserve_trainer.demo.doom.window")
    parser.add_argument("scenario")
    parser.add_argument("episodes", type=int)
    parser.add_argument("--goal")
    parser.add_argument("--screen", default="320x240")
    parser.add_argument("--seed-start", type=int, default=EVALUATION_SEED)
    args = parser.parse_args(arguments)
    scenario = scenario_of(args.scenario)
    goal = scenario.goal(args.goal)
    game = DoomGame(scenario, screen=args.screen, window=True)
    try:
        _say(ready=True)
        sys.stdin.readline()
        for number in range(args.episodes):
            seed = args.seed_start + number
            _say(begins=number, instruction=instruction_for(scenario, goal, seed, phrasing="held_out"))
            score, facts = _play(game, seed, args.goal)
            _say(episode=number, seed=seed, score=score, facts=facts)
        _say(over=True)
    finally:
        game.close()
    return 0


def _play(game: DoomGame, seed: int, goal: str | None) -> tuple[float, dict[str, Any]]:
    scenario = game.scenario
    game.start(seed)
    counter = EpisodeCounter(scenario, PROBES)
    score, probes, frames = 0.0, game.probes(), 0
    while not game.over and frames < MAX_STEPS:
        monster = bool(game.view().of_category("Monster"))
        action, reward = game.watch()
        before, probes = probes, game.probes()
        counter.count(action, before, probes, monster=monster)
        score += reward
        frames += 1
    return score, {**counter.facts(probes, scenario.goal(goal), scenario), "frames": frames}


def _say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
