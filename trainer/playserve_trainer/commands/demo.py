"""``playserve demo``: from nothing to agents that play, with a table and a page of what came out."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import Any

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Train, publish, serve and play Freeway, Breakout and NetHack agents; write a page of the results."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/demo"), help="folder of everything; the same command goes on there "
        "(default %(default)s)")  # fmt: skip
    add("--fresh", action="store_true", help="throw away what an earlier demo left in --out")
    add("--quick", action="store_true", help="a minute instead of fourteen: every part runs, but nothing is learnt")
    add("--game", action="append", choices=["freeway", "breakout", "nethack"], help="only this game (repeatable)")


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0 if every goal is met, 1 if one is not, 130 if it was interrupted."""
    import rich  # noqa: F401 - brings the missing-extra hint before anything is done
    from rich.console import Console

    from playserve_trainer.demo.pipeline import run_demo
    from playserve_trainer.demo.plan import FULL_PLAN, QUICK_PLAN

    plan = QUICK_PLAN if args.quick else FULL_PLAN
    if args.game:
        plan = plan.only(args.game)
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(soft_wrap=True, highlight=False)
    try:
        return run_demo(plan, args.out, console, fresh=args.fresh)
    except KeyboardInterrupt:
        console.print("\ninterrupted; the same command goes on from here")
        return 130


def _interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt
