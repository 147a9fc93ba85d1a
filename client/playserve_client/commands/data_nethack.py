"""``playserve data`` for NetHack: import of public data, and what a folder of shards holds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve_client.commands.counting import show_count

if TYPE_CHECKING:
    from rich.table import Table

    from playserve_client.nethack.nld import ImportReport

__all__ = ["configure", "has_shards", "show_stats"]

# Ways to die and keys shown on the screen; the JSON has all.
_MOST_SHOWN = 12


def configure(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add NetHack's actions; each sets `handler`."""
    kinds = actions.add_parser("import", help="turn public recordings into a dataset").add_subparsers(
        dest="kind", required=True, metavar="KIND"
    )
    nld = kinds.add_parser("nld", help="ttyrecs of NetHack: NLD-AA, NLD-NAO, or recorded by NLE")
    nld.add_argument("directory", type=Path, help="folder with xlogfiles and ttyrecs, in any depth")
    nld.add_argument("--out", type=Path, required=True, help="folder of the dataset")
    nld.add_argument(
        "--layout", choices=("auto", "nle", "altorg"), default="auto", help="altorg: NLD-NAO (default %(default)s)"
    )
    nld.add_argument("--source", help="what the games are from (default nld-aa, or nld-nao for altorg)")
    nld.add_argument("--games", type=int, help="take the first so many games")
    nld.add_argument("--steps", type=int, help="stop when so many frames are there; games are taken whole")
    nld.add_argument("--workers", type=int, default=2, help="worker processes (default %(default)s)")
    nld.set_defaults(handler=_import_nld)


def has_shards(directory: Path) -> bool:
    """Tell whether a folder is a dataset of NetHack games."""
    return any(directory.glob("shard-*"))


def _import_nld(args: argparse.Namespace) -> int:
    # Named here, not found out later: these bring the missing-extra hint if they are absent.
    import nle  # noqa: F401
    import rich  # noqa: F401

    from playserve_client.nethack.nld import import_nld

    by_steps = args.steps is not None
    with show_count("importing", "frames" if by_steps else "games", args.steps, by_steps=by_steps) as counter:
        report = import_nld(
            args.directory,
            args.out,
            layout=args.layout,
            source=args.source,
            games=args.games,
            steps=args.steps,
            workers=args.workers,
            progress=counter.advance,
            on_found=lambda games: None if by_steps else counter.set_total(games),
        )
    _print_import(report)
    if report.interrupted:
        return 130
    return 1 if report.damaged else 0


def _print_import(report: ImportReport) -> None:
    from rich.console import Console
    from rich.table import Table

    value = report.to_json()
    table = Table("games", "of them kept", "new frames", "masked", "skipped", "frames/s", title="imported")
    table.add_row(
        f"{report.imported + report.kept:,}",
        f"{report.kept:,}",
        f"{report.frames:,}",
        f"{report.masked:,}",
        f"{len(report.damaged)}",
        f"{value['frames_per_second'] or 0:,.0f}",
    )
    console = Console()
    console.print(table)
    for path, error in report.damaged:
        console.print(f"skipped {path}: {error}", soft_wrap=True, markup=False)
    if report.unfinished:
        console.print(f"{len(report.unfinished)} ttyrecs have no line in an xlogfile (such as {report.unfinished[0]})")
    if report.interrupted:
        console.print("interrupted; the same command goes on from here")
    console.print(f"the dataset and import.json are in {report.out}", soft_wrap=True)


def show_stats(directory: Path, json_path: Path | None) -> int:
    """Print what a dataset holds, and write the same as JSON; the exit status is 1 if a shard is damaged."""
    from rich.console import Console

    from playserve_client.nethack.shards import TtyDataset
    from playserve_client.nethack.stats import collect_dataset_stats

    console = Console()
    dataset = TtyDataset.open(directory)
    with _checking(dataset.nbytes) as on_bytes:
        dataset, _ = dataset.verify(on_bytes)
    stats = collect_dataset_stats(dataset)
    if json_path is not None:
        json_path.write_text(json.dumps(stats, indent=2) + "\n")
    console.print(_overview(stats))
    console.print(_distributions(stats))
    console.print(_tally("how games ended", stats["ends"], stats["games"]))
    if stats["keys"]:
        console.print(_tally("keys of the expert", stats["keys"], sum(stats["keys"].values())))
    for damaged in stats["damaged"]:
        console.print(f"damaged: {damaged['error']}", soft_wrap=True, markup=False)
    if stats["unfinished_shards"]:
        console.print(f"{stats['unfinished_shards']} shards are being written, or were left by a process that died")
    return 1 if stats["damaged"] else 0


@contextmanager
def _checking(total: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task("comparing checksums", total=total)
        yield lambda size: bar.update(task, advance=size)


def _overview(stats: Mapping[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title=f"{stats['directory']}", show_header=False)
    table.add_row("games", f"{stats['games']:,}")
    table.add_row("frames", f"{stats['frames']:,}")
    table.add_row("keys to learn", f"{stats['expert_frames'] - stats['keys_of_no_action']:,}")
    table.add_row("masked (not the expert's keys)", f"{stats['masked_frames']:,}")
    if stats["frames_without_keys"]:
        table.add_row("frames without keys: not for cloning", f"{stats['frames_without_keys']:,}")
    table.add_row("bytes a frame", f"{stats['bytes'] / max(1, stats['frames']):,.0f}")
    for name in ("sources", "characters"):
        table.add_row(name, ", ".join(f"{key} ({count:,})" for key, count in stats[name].items()))
    table.add_row("damaged shards", f"{len(stats['damaged'])}")
    return table


def _distributions(stats: Mapping[str, Any]) -> Table:
    from rich.table import Table

    table = Table("of each game", "mean", "median", "lowest", "deciles", "highest")
    for name in ("score", "steps", "turns", "depth", "experience_level"):
        value = stats[name]
        if value is not None:
            deciles = " ".join(f"{decile:,.0f}" for decile in value["deciles"])
            numbers = (value["mean"], value["median"], value["min"])
            table.add_row(
                name.replace("_", " "), *(f"{number:,.0f}" for number in numbers), deciles, f"{value['max']:,.0f}"
            )
    return table


def _tally(title: str, counts: Mapping[str, int], total: int) -> Table:
    from rich.table import Table

    table = Table(title=title, show_header=False)
    shown: Sequence[tuple[str, int]] = list(counts.items())[:_MOST_SHOWN]
    for name, count in shown:
        table.add_row(name, f"{count:,}", f"{count / max(1, total):.1%}")
    if len(counts) > len(shown):
        rest = sum(counts.values()) - sum(count for _, count in shown)
        table.add_row(f"{len(counts) - len(shown)} others", f"{rest:,}", f"{rest / max(1, total):.1%}")
    return table
