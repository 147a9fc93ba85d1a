"""``playserve data record doom``: scripted experts play ViZDoom's scenarios into recordings of Open P2P's format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve_client.commands.counting import show_count

if TYPE_CHECKING:
    from playserve_client.doom.record import DoomJob, DoomReport
    from playserve_client.doom.recorder import DoomSettings

__all__ = ["configure"]

# Where the output is a file or a pipe nobody can widen the window.
_PLAIN_WIDTH = 140


def configure(families: Any) -> None:
    """Add ``doom`` to the families that are recorded."""
    doom = families.add_parser("doom", help="Doom, in ViZDoom, as recordings in Open P2P's format")
    doom.add_argument(
        "--scenario",
        action="append",
        metavar="NAME[:GOAL]",
        help="a scenario, with all its goals or one of them, such as health_gathering:avoid (repeatable; default all)",
    )
    length = doom.add_mutually_exclusive_group(required=True)
    length.add_argument("--frames", type=int, help="record at least so many frames of each scenario and goal")
    length.add_argument("--recordings", type=int, help="record exactly so many recordings of each scenario and goal")
    doom.add_argument("--out", type=Path, required=True, help="folder; recordings go to OUT/SCENARIO/GOAL/")
    doom.add_argument("--workers", type=int, default=2, help="worker processes (default %(default)s)")
    doom.add_argument("--size", type=int, default=96, help="side of the frames, pixels (default %(default)s)")
    doom.add_argument("--full-video", action="store_true", help="write the game's own screen to video.mp4, too")
    doom.add_argument(
        "--epsilon", type=float, default=0.1, help="share of frames with a random action (default %(default)s)"
    )
    doom.add_argument(
        "--noise-length", type=int, default=8, help="most frames that one of them is held (default %(default)s)"
    )
    doom.add_argument(
        "--min-frames",
        type=int,
        default=200,
        help="whole episodes go into a recording until it has so many frames; 0: one (default %(default)s)",
    )
    doom.add_argument(
        "--max-steps", type=int, default=1_050, help="cut episodes after so many frames (default %(default)s)"
    )
    doom.add_argument("--seed-start", type=int, default=10_000, help="seed of the first episode (default %(default)s)")
    doom.add_argument("--encoding", choices=["yuv", "rgb"], default="yuv", help="of the video (default %(default)s)")
    doom.add_argument("--crf", type=int, default=12, help="quality of the video, 0 to 51 (default %(default)s)")
    doom.add_argument("--preset", default="veryfast", help="speed of the video's encoder (default %(default)s)")
    doom.set_defaults(handler=_record)


def _record(args: argparse.Namespace) -> int:
    # Named here, not found out later: these bring the missing-extra hint if they are absent.
    import av  # noqa: F401
    import gymnasium  # noqa: F401
    import PIL  # noqa: F401
    import rich  # noqa: F401
    import vizdoom  # noqa: F401

    from playserve_client.doom.record import DoomJob, record_doom

    job = DoomJob(
        goals=_goals(args), out=args.out, frames=args.frames, recordings=args.recordings, workers=args.workers
    )
    by_frames = job.frames is not None
    unit, each = ("frames", job.frames) if by_frames else ("recordings", job.recordings)
    with show_count("recording doom", unit, (each or 0) * len(job.goals), by_steps=by_frames) as counter:
        report = record_doom(job, counter.advance)
    _print_report(job, report)
    return 130 if report.interrupted else 0


def _goals(args: argparse.Namespace) -> list[DoomSettings]:
    from playserve_client.doom.recorder import DoomSettings
    from playserve_client.doom.scenarios import SCENARIOS, scenario_of

    settings = {
        name: getattr(args, name)
        for name in (
            "size", "full_video", "epsilon", "noise_length", "min_frames", "max_steps", "seed_start", "encoding", "crf",
            "preset",
        )
    }  # fmt: skip
    found = []
    for word in args.scenario or list(SCENARIOS):
        name, _, goal = word.partition(":")
        scenario = scenario_of(name)
        goals = [scenario.goal(goal)] if goal else list(scenario.goals)
        found += [DoomSettings(scenario=name, goal=one.name, **settings) for one in goals]
    return found


def _print_report(job: DoomJob, report: DoomReport) -> None:
    from rich.console import Console
    from rich.table import Table

    value = report.to_json(job)
    table = Table(
        "scenario", "goal", "recordings", "of them kept", "episodes", "frames", "perturbed", "mean score", "goal met",
        title="recorded",
    )  # fmt: skip
    for goal in value["goals"]:
        frames, mean, met = goal["frames"], goal["score_mean"], goal["goal_met"]
        table.add_row(
            goal["scenario"],
            goal["goal"],
            f"{goal['recordings']}",
            f"{goal['kept']}",
            f"{goal['episodes']}",
            f"{frames:,}",
            f"{goal['perturbed_frames'] / frames:.0%}" if frames else "-",
            "-" if mean is None else f"{mean:.1f}",
            "-" if met is None else f"{met:.0%}",
        )
    console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
    console.print(table)
    rate = value["frames_per_second"] or 0
    console.print(f"{report.new_frames:,} frames in {report.seconds:,.0f} s, {rate:,.0f} frames/s")
    for path in report.damaged:
        console.print(f"damaged, recorded again: {path}", soft_wrap=True)
    if report.interrupted:
        console.print("interrupted; the same command goes on from here")
    console.print(f"recordings and summary.json are in {job.out}", soft_wrap=True)
