"""``playserve data check``: what a folder of Open P2P recordings holds, and which of it is good to learn from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError
from playserve_client.commands.counting import show_count

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from playserve_client.p2p.check import DatasetReport
    from playserve_client.p2p.statistics import ActionTally

__all__ = ["configure"]

_BAR = 30
#: Rows of a histogram and of a list on the screen; the JSON has all.
_MOST_SHOWN = 24


def configure(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``check``; it sets `handler`."""
    check = actions.add_parser("check", help="inspect a folder of Open P2P recordings")
    check.add_argument("directory", type=Path, help="folder with recordings, in any depth")
    check.add_argument("--out", type=Path, help="folder that gets check.json and the rest (default DIRECTORY/check)")
    check.add_argument("--decode", action="store_true", help="decode every frame, not only the first and the last")
    check.add_argument("--workers", type=int, default=2, help="worker processes (default %(default)s)")
    check.add_argument("--contact-sheet", action="store_true", help="draw frames with their actions: contact-sheet.png")
    check.add_argument("--sheet-frames", type=int, default=48, help="frames on the sheet (default %(default)s)")
    check.add_argument("--filter", action="store_true", help="list the recordings that keep to the rules: kept.txt")
    check.add_argument("--max-held", type=float, default=0.6, help="a key is held in at most this share of frames")
    check.add_argument("--max-keys", type=int, default=6, help="at most so many keys are held at once")
    check.add_argument(
        "--min-activity", type=float, default=0.05, help="something is done in at least this share of frames"
    )
    check.set_defaults(handler=_check)


def _check(args: argparse.Namespace) -> int:
    # Named here, not found out later: these bring the missing-extra hint if they are absent.
    import av  # noqa: F401
    import rich  # noqa: F401

    from playserve_client.p2p.check import check_dataset
    from playserve_client.p2p.quality import QualityRules

    if not args.directory.is_dir():
        raise BadSettingError(f"there is no folder {args.directory}")
    rules = QualityRules(max_held=args.max_held, max_keys=args.max_keys, min_activity=args.min_activity)
    with show_count("checking", "recordings", None, by_steps=False) as counter:
        report = check_dataset(
            args.directory,
            workers=args.workers,
            decode=args.decode,
            on_found=counter.set_total,
            progress=counter.advance,
        )
    out = args.out or args.directory / "check"
    out.mkdir(parents=True, exist_ok=True)
    value = report.to_json()
    if args.filter:
        kept, left = report.judged(rules)
        value["filter"] = {"rules": rules.to_json(), "kept": kept, "left_out": left}
        (out / "kept.txt").write_text("".join(f"{path}\n" for path in kept), encoding="utf-8")
    if args.contact_sheet:
        value["contact_sheet"] = _draw(report, out / "contact-sheet.png", args.sheet_frames)
    (out / "check.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    _print(report, value, out)
    return 1 if value["usable"] < value["recordings"] else 0


def _draw(report: DatasetReport, path: Path, count: int) -> dict[str, Any]:
    from playserve_client.p2p.contact_sheet import draw_sheet, sample_cells

    cells = list(sample_cells([report.root / item.path for item in report.recordings if item.usable], count))
    if cells:
        draw_sheet(cells).save(path)
    return {"path": str(path) if cells else None, "frames": len(cells)}


def _print(report: DatasetReport, value: Mapping[str, Any], out: Path) -> None:
    from rich.console import Console

    console = Console()
    console.print(_games_table(value))
    total = report.total()
    if total.known:
        console.print(_actions_table(total))
        for table in (_keys_table(total), _motion_table("mouse dx", total, 0), _motion_table("mouse dy", total, 1)):
            console.print(table)
    _print_problems(report, value, console)
    if "filter" in value:
        _print_filter(value["filter"], console)
    if "contact_sheet" in value:
        sheet = value["contact_sheet"]
        console.print(
            f"contact sheet of {sheet['frames']} frames: {sheet['path'] or 'nothing to draw'}", soft_wrap=True
        )
    console.print(f"all of this is in {out / 'check.json'}", soft_wrap=True)


def _games_table(value: Mapping[str, Any]) -> Table:
    from rich.table import Column, Table

    heads = ("recs", "hours", "frames", "user", "system", "unknown", "active", "text")
    numbers = [Column(head, justify="right", no_wrap=True) for head in heads]
    # Without rules between them, so that the columns fit into 80 characters.
    table = Table(Column("game", overflow="fold"), *numbers, box=None, pad_edge=False)
    for name, tally in [*value["games"].items(), ("all", {**value["total"], "recordings": value["usable"]})]:
        frames = max(tally["frames"], 1)
        table.add_row(
            name,
            f"{tally['recordings']:,}",
            f"{tally['hours']:.2f}",
            f"{tally['frames']:,}",
            *(f"{tally[kind] / frames:.0%}" for kind in ("user", "system", "unknown")),
            f"{tally['activity']:.0%}",
            f"{tally['instructed'] / frames:.0%}",
        )
    table.title = f"{value['recordings']:,} recordings, {value['usable']:,} usable, {len(value['games'])} games"
    return table


def _actions_table(total: ActionTally) -> Table:
    from rich.table import Table

    table = Table(title="what is done", show_header=False)
    table.add_row(
        "idle", f"{total.idle:,} frames ({total.idle / total.known:.1%}), longest {total.longest_idle_s:.1f} s"
    )
    at_once = sorted(total.keys_at_once.items(), key=lambda item: int(item[0]))
    table.add_row("keys at once", ", ".join(f"{count}: {n / total.known:.1%}" for count, n in at_once))
    names = {"0": "left", "1": "middle", "2": "right"}
    buttons = [f"{names.get(b, b)} {n / total.known:.1%}" for b, n in sorted(total.buttons.items())]
    table.add_row("buttons held", ", ".join(buttons) or "none")
    table.add_row("outside the vocabulary", _counts(total.dropped, total.known))
    table.add_row("names unheard of", _counts(total.unknown_names, total.known))
    stored = ", ".join(f"{name} of {count:,}" for name, count in total.encoders.most_common()) or "none"
    table.add_row("instructions", f"{total.instructions:,}; stored embeddings: {stored}")
    return table


def _counts(counts: Mapping[str, int], frames: int) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {count / frames:.2%}" for name, count in ordered[:_MOST_SHOWN])
    return (shown + ", ..." if len(ordered) > _MOST_SHOWN else shown) or "none"


def _keys_table(total: ActionTally) -> Table:
    from rich.table import Table

    table = Table("key", "held", "", "presses", "mean hold s", "longest s", title="keys held")
    for key, _ in total.keys.most_common(_MOST_SHOWN):
        table.add_row(
            key,
            f"{total.held_share(key):.1%}",
            _bar(total.held_share(key)),
            f"{total.presses[key]:,}",
            f"{total.mean_held_s(key):.2f}",
            f"{total.longest_held_s[key]:.1f}",
        )
    return table


def _motion_table(title: str, total: ActionTally, axis: int) -> Table:
    from rich.table import Table

    from playserve.p2p.vocabulary import OPEN_P2P

    counts = (total.dx, total.dy)[axis]
    table = Table("bin", "centre px", "frames", "", title=title)
    for index, centre in enumerate(OPEN_P2P.centres()[axis]):
        share = counts[str(index)] / total.known
        table.add_row(str(index), str(centre), f"{share:.2%}", _bar(share))
    return table


def _bar(share: float) -> str:
    return "█" * round(_BAR * share)


def _print_problems(report: DatasetReport, value: Mapping[str, Any], console: Console) -> None:
    from rich.table import Table

    if not value["problems"]:
        console.print("nothing is wrong with any of them")
        return
    table = Table("problem", "recordings", "times", "", title="problems")
    for name, found in value["problems"].items():
        use = "cannot be used" if found["breaks"] else "usable"
        table.add_row(name, f"{found['recordings']:,}", f"{found['times']:,}", use)
    console.print(table)
    details = [(item.path, detail) for item in report.recordings for detail in item.details]
    for path, detail in details[:_MOST_SHOWN]:
        console.print(f"{path}: {detail}", soft_wrap=True, markup=False)
    if len(details) > _MOST_SHOWN:
        console.print(f"... and {len(details) - _MOST_SHOWN:,} more")


def _print_filter(value: Mapping[str, Any], console: Console) -> None:
    left = value["left_out"]
    console.print(f"filter: {len(value['kept']):,} kept (kept.txt), {len(left):,} left out")
    for path, reasons in list(left.items())[:_MOST_SHOWN]:
        console.print(f"  {path}: {'; '.join(reasons)}", soft_wrap=True, markup=False)
    if len(left) > _MOST_SHOWN:
        console.print(f"  ... and {len(left) - _MOST_SHOWN:,} more")
