"""``playserve data replay``: recorded NetHack games, kept as seeds and keys, become a dataset again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from playserve_client.commands.counting import show_count

if TYPE_CHECKING:
    from playserve_client.nethack.replay_dataset import ReplayReport

__all__ = ["configure"]


def configure(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the action; it sets `handler`."""
    replay = actions.add_parser(
        "replay",
        help="NetHack: play games that are kept as seeds and keys again, into a dataset",
        description="Plays recorded NetHack games again from their seeds and keys, checks that score, steps and turns "
        "are the recorded ones, and writes the screens as a dataset. Goes on where it was stopped.",
    )
    replay.add_argument("file", type=Path, nargs="?", help="Parquet file of games (default: the one in the package)")
    replay.add_argument("--out", type=Path, required=True, help="folder of the dataset")
    replay.add_argument("--games", type=int, help="take the first so many games")
    replay.add_argument("--steps", type=int, help="take the first games that have so many steps together")
    replay.add_argument("--workers", type=int, default=2, help="worker processes (default %(default)s)")
    replay.add_argument(
        "--ttyrec", action="store_true", help="write ttyrec files too, to OUT/nle_data, as NLD-AA has them"
    )
    replay.add_argument("--blstats", action="store_true", help="keep the bottom lines as numbers too")
    replay.add_argument("--inventory", action="store_true", help="keep the glyphs of the inventory too")
    replay.set_defaults(handler=_replay)


def _replay(args: argparse.Namespace) -> int:
    # Named here, not found out later: these bring the missing-extra hint if they are absent.
    import nle  # noqa: F401
    import pyarrow  # noqa: F401
    import rich  # noqa: F401

    from playserve_client.nethack.games import carried_games
    from playserve_client.nethack.replay_dataset import ReplaySettings, replay_dataset

    with show_count("replaying", "steps", None, by_steps=True) as counter:
        report = replay_dataset(
            args.file or carried_games(),
            args.out,
            games=args.games,
            steps=args.steps,
            settings=ReplaySettings(blstats=args.blstats, inventory=args.inventory, ttyrec=args.ttyrec),
            workers=args.workers,
            progress=counter.advance,
            on_found=lambda _games, steps: counter.set_total(steps),
        )
    _print_report(report)
    if report.interrupted:
        return 130
    return 1 if report.mismatched else 0


def _print_report(report: ReplayReport) -> None:
    from rich.console import Console
    from rich.table import Table

    value = report.to_json()
    table = Table("games", "of them kept", "new steps", "left out", "steps/s", title="replayed")
    table.add_row(
        f"{report.replayed + report.kept:,}",
        f"{report.kept:,}",
        f"{report.frames:,}",
        f"{len(report.mismatched)}",
        f"{value['frames_per_second'] or 0:,.0f}",
    )
    console = Console()
    console.print(table)
    for _, error in report.mismatched:
        console.print(f"left out: {error}", soft_wrap=True, markup=False)
    if report.dated:
        console.print(f"{len(report.dated)} games came out only with another time of birth, which was looked for")
    if report.interrupted:
        console.print("interrupted; the same command goes on from here")
    console.print(f"the dataset and replay.json are in {report.out}", soft_wrap=True)
