"""``playserve demo``: from nothing to agents that play, with tables and a page of what came out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from playserve.errors import BadSettingError
from playserve_client.workers import sigterm_interrupts

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Train, publish, serve and play agents for Freeway, Breakout, NetHack and Doom; write a page of the results."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("what", nargs="?", choices=["games", "doom", "world"], default="games", help="games: Freeway, Breakout, "
        "NetHack, Doom (default); doom: a policy for keyboard, mouse and instructions; world: a world model that is "
        "played in")  # fmt: skip
    add("--out", type=Path, help="folder of everything; the same command goes on there (default runs/demo, or "
        "runs/demo-doom or runs/demo-world, or with --full runs/doom)")  # fmt: skip
    add("--fresh", action="store_true", help="throw away what an earlier demo left in --out")
    add("--quick", action="store_true", help="a minute instead of fourteen: every part runs, but nothing is learnt")
    add("--full", action="store_true", help="doom: the whole recipe of an hour, with every measurement after it")
    add("--checkpoint", type=Path, metavar="DIR", help="doom, world: use this checkpoint, and record and train "
        "nothing")  # fmt: skip
    add("--agent", type=Path, metavar="DIR", help="world: checkpoint of an agent that plays in it")
    add(
        "--game",
        action="append",
        choices=["freeway", "breakout", "nethack", "doom"],
        help="only this game (repeatable)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 if every goal is met, 1 if one is not, 130 if it was interrupted."""
    import rich  # noqa: F401 - brings the missing-extra hint before anything is done
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    try:
        with sigterm_interrupts():
            return {"games": _games, "doom": _doom, "world": _world}[args.what](args, console)
    except KeyboardInterrupt:
        console.print("\ninterrupted; the same command goes on from here")
        return 130


def _games(args: argparse.Namespace, console: Console) -> int:
    from playserve_trainer.demo.pipeline import run_demo
    from playserve_trainer.demo.plan import FULL_PLAN, QUICK_PLAN

    if args.full or args.checkpoint or args.agent:
        raise BadSettingError("--full, --checkpoint and --agent are for `playserve demo doom` and `demo world`")
    plan = QUICK_PLAN if args.quick else FULL_PLAN
    if args.game:
        plan = plan.only(args.game)
    return run_demo(plan, args.out or Path("runs/demo"), console, fresh=args.fresh)


def _doom(args: argparse.Namespace, console: Console) -> int:
    import av  # noqa: F401 - the missing-extra hint again
    import vizdoom  # noqa: F401

    from playserve_trainer.demo.doom.pipeline import run_doom
    from playserve_trainer.demo.doom.plan import DEMO_PLAN, FULL_PLAN, QUICK_PLAN

    if args.game or args.agent:
        raise BadSettingError("--game is for `playserve demo games`, --agent for `playserve demo world`")
    if args.full and args.quick:
        raise BadSettingError("--full and --quick: give one of them")
    plan = FULL_PLAN if args.full else QUICK_PLAN if args.quick else DEMO_PLAN
    out = args.out or Path("runs/doom" if args.full else "runs/demo-doom")
    return run_doom(plan, out, console, fresh=args.fresh, checkpoint=args.checkpoint)


def _world(args: argparse.Namespace, console: Console) -> int:
    import av  # noqa: F401 - the missing-extra hint again

    from playserve_trainer.demo.carried import carried_checkpoint
    from playserve_trainer.demo.world import WORLD, WorldPlan, run_world

    if args.game or args.full:
        raise BadSettingError("--game and --full are not for `playserve demo world`")
    checkpoint = args.checkpoint or carried_checkpoint(WORLD)
    if checkpoint is None:
        raise BadSettingError("this package carries no world: give --checkpoint DIR, a world's")
    plan = WorldPlan(name="quick", films=1, film_frames=30, episodes=2, episode_steps=50) if args.quick else WorldPlan()
    out = args.out or Path("runs/demo-world")
    return run_world(plan, out, console, checkpoint=checkpoint, agent=args.agent, fresh=args.fresh)
