"""A visible Doom window, played by whoever sits at the desktop; prints each episode by the game's own counters.

    python -m playserve_trainer.demo.doom.window SCENARIO EPISODES [--goal GOAL] [--screen 320x240] [--seed-start N]

``playserve doom`` for a program: it waits to be told that the player is there, and says which instruction belongs to
each episode. Lines are JSON: {"ready"}, then, after a line on its stdin, {"begins": n, "instruction"}, {"episode": n,
"seed", "score", "facts"}, ..., {"over"}.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from playserve_client.doom.maps import EVALUATION_SEED
from playserve_client.doom.window import DoomWindow
from playserve_client.envs.doom import instruction_for

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
    window = DoomWindow(args.scenario, goal=args.goal, screen=args.screen)
    try:
        _say(ready=True)
        sys.stdin.readline()
        for number in range(args.episodes):
            seed = args.seed_start + number
            _say(begins=number, instruction=instruction_for(window.scenario, window.goal, seed, phrasing="held_out"))
            _say(episode=number, **window.play(seed))
        _say(over=True)
    finally:
        window.close()
    return 0


def _say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
