"""``playserve data``: record or import expert episodes, and look at what there is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError
from playserve_client.commands import data_doom, data_nethack, data_p2p, data_replay
from playserve_client.commands.counting import show_count

if TYPE_CHECKING:
    from rich.table import Table

    from playserve_client.record import Job, Report

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Record or import expert episodes, and inspect them."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add ``record atari``, ``stats``, NetHack's actions and Open P2P's."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    record = actions.add_parser("record", help="record episodes of a scripted expert")
    families = record.add_subparsers(dest="family", required=True, metavar="FAMILY")
    atari = families.add_parser("atari", help="Atari, in the emulator that comes with ale-py")
    atari.add_argument("--game", required=True, help="a game that has an expert: breakout, freeway or pong")
    length = atari.add_mutually_exclusive_group(required=True)
    length.add_argument("--steps", type=int, help="record at least so many steps; the last episodes are played out")
    length.add_argument("--episodes", type=int, help="record exactly so many episodes")
    atari.add_argument("--out", type=Path, required=True, help="folder; episodes go to OUT/atari/GAME/")
    atari.add_argument("--seed-start", type=int, default=10_000, help="seed of the first episode (default %(default)s)")
    atari.add_argument("--workers", type=int, default=2, help="worker processes (default %(default)s)")
    atari.add_argument(
        "--epsilon", type=float, default=0.03, help="share of executed actions that are random (default %(default)s)"
    )
    atari.add_argument(
        "--noise-length",
        type=int,
        default=8,
        help="most steps for which one random action is held (default %(default)s)",
    )
    atari.add_argument(
        "--stickiness", type=float, default=0.0, help="chance that a frame repeats the last action (default 0)"
    )
    atari.add_argument(
        "--max-steps", type=int, default=27_000, help="cut episodes after so many steps (default %(default)s)"
    )
    atari.add_argument(
        "--serve-delay",
        type=int,
        default=16,
        help="most random steps before a serve in Breakout, so that serves are learnt (default %(default)s)",
    )
    data_doom.configure(families)
    stats = actions.add_parser("stats", help="count, check and describe the episodes in a folder")
    stats.add_argument("directory", type=Path)
    stats.add_argument("--json", type=Path, help="write the same as JSON to this file")
    data_nethack.configure(actions)
    data_replay.configure(actions)
    data_p2p.configure(actions)
    # Actions of the floors above, which this one does not know by name.
    for entry in sorted(entry_points(group="playserve.data_commands"), key=lambda e: e.name):
        command = entry.load()
        action = actions.add_parser(entry.name, help=command.SUMMARY, description=command.SUMMARY)
        command.configure(action)
        action.set_defaults(handler=command.run)


def run(args: argparse.Namespace) -> int:
    """Run the chosen action."""
    if "handler" in args:
        return int(args.handler(args))
    if args.action == "stats":
        return _stats(args)
    return _record_atari(args)


def _record_atari(args: argparse.Namespace) -> int:
    # Named here, not found out later: these bring the missing-extra hint if they are absent.
    import rich  # noqa: F401

    from playserve_client.experts import make_expert
    from playserve_client.record import Job, record_episodes
    from playserve_client.record_atari import AtariSettings

    settings: dict[str, Any] = {
        "game": args.game,
        "epsilon": args.epsilon,
        "noise_length": args.noise_length,
        "stickiness": args.stickiness,
        "max_steps": args.max_steps,
        "serve_delay": args.serve_delay,
    }
    AtariSettings(**settings)
    expert = make_expert(args.game)
    job = Job(
        recorder="playserve_client.record_atari:AtariRecorder",
        settings=settings,
        env="atari",
        game=args.game,
        out=args.out,
        seed_start=args.seed_start,
        episodes=args.episodes,
        steps=args.steps,
        workers=args.workers,
        matching={
            "epsilon": args.epsilon,
            "stickiness": args.stickiness,
            "extra.max_steps": args.max_steps,
            "extra.noise_length": args.noise_length,
            "extra.serve_delay": args.serve_delay,
            "expert": expert.name,
            "expert_version": expert.version,
        },
    )
    by_steps = job.steps is not None
    unit, total = ("steps", job.steps) if by_steps else ("episodes", job.episodes)
    with show_count(f"recording {job.game}", unit, total, by_steps=by_steps) as counter:
        report = record_episodes(job, counter.advance)
    _print_report(job, report)
    return 130 if report.interrupted else 0


def _print_report(job: Job, report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    value = report.to_json(job)
    table = Table("game", "episodes", "of them kept", "frames", "mean score", "damaged", "frames/s", title="recorded")
    mean = value["score_mean"]
    table.add_row(
        job.game,
        f"{value['episodes']}",
        f"{value['kept']}",
        f"{value['frames']:,}",
        "-" if mean is None else f"{mean:.1f}",
        f"{len(report.damaged)}",
        f"{value['frames_per_second'] or 0:,.0f}",
    )
    console = Console()
    console.print(table)
    for path in report.damaged:
        console.print(f"damaged, recorded again: {path}", soft_wrap=True)
    if report.interrupted:
        console.print("interrupted; the same command goes on from here")
    console.print(f"episodes and summary.json are in {job.path(0).parent}", soft_wrap=True)


def _stats(args: argparse.Namespace) -> int:
    from rich.console import Console

    from playserve_client.recording_stats import collect_stats

    if not args.directory.is_dir():
        raise BadSettingError(f"there is no folder {args.directory}")
    if data_nethack.has_shards(args.directory):
        return data_nethack.show_stats(args.directory, args.json)
    with _file_progress() as on_file:
        games, damaged = collect_stats(args.directory, on_file)
    described = [game.to_json() for game in games]
    if args.json is not None:
        args.json.write_text(
            json.dumps({"games": described, "damaged": [str(path) for path in damaged]}, indent=2) + "\n"
        )
    console = Console()
    for game in described:
        console.print(_stats_table(game))
    if not games:
        console.print(f"no whole episode under {args.directory}", soft_wrap=True)
    for path in damaged:
        console.print(f"damaged: {path}", soft_wrap=True)
    return 1 if damaged else 0


def _stats_table(game: Mapping[str, Any]) -> Table:
    from rich.table import Table

    frames = game["frames"]
    quartiles = ", ".join(f"{score:g}" for score in game["score_quartiles"])
    table = Table(title=f"{game['env']} {game['game']}", show_header=False)
    table.add_row("episodes", f"{game['episodes']} ({game['truncated']} cut)")
    table.add_row("frames", f"{frames:,}")
    table.add_row("mean score", f"{game['score_mean']:.1f}")
    table.add_row("lowest, quartiles, highest", f"{game['score_min']:g}; {quartiles}; {game['score_max']:g}")
    for name, count in game["labels"].items():
        executed = game["executed"][name]
        table.add_row(f"label {name}", f"{count:,} ({count / frames:.2%}), executed {executed:,}")
    table.add_row("executed is not the label", f"{game['differing']:,} ({game['differing'] / frames:.2%})")
    return table


@contextmanager
def _file_progress() -> Iterator[Callable[[int], None]]:
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task("reading episodes", total=None)
        yield lambda files: bar.update(task, total=files, advance=1)
