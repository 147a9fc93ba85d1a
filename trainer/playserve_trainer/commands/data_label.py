"""``playserve data label``: an inverse model says what was done in recordings, and writes copies with its labels."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError, NotFoundError, PlayserveError, StateError

if TYPE_CHECKING:
    from playserve_trainer.inverse import GroupAccuracy, Labeller, Tally

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Label recordings by an inverse model: copies with its actions instead of their own."

_REPORT_NAME = "labels.json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="recordings; actions that they have are not used")
    parser.add_argument(
        "--model", type=Path, required=True, metavar="CKPT", help="checkpoint of `playserve train p2p --inverse`"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the copies go, under their names")
    parser.add_argument(
        "--min-probability", type=float, default=0.0, metavar="P",
        help="leave an action unknown that the model believes in less than this (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--length", type=int, default=64, metavar="T", help="frames that the model sees at once (default %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="torch device (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Label, and compare with the actions that the recordings have; the same command goes on after a kill."""
    from playserve.files import write_json
    from playserve_client.p2p.recording import list_recordings
    from playserve_trainer.inverse import Labeller, Tally

    if not 0 <= args.min_probability <= 1:
        raise BadSettingError(f"--min-probability is 0 to 1, not {args.min_probability}")
    source, target = args.directory.resolve(), args.out.resolve()
    if source in (target, *target.parents) or target in source.parents:
        raise BadSettingError(f"--out {args.out} and {args.directory} lie in each other; choose a folder beside it")
    folders = list_recordings(source) if source.is_dir() else []
    if not folders:
        raise NotFoundError(f"{args.directory} holds no recording")
    labeller = Labeller(args.model, length=args.length, device=args.device)
    tally, failed = Tally(labeller.policy), list[str]()
    made = _label_all(labeller, tally, folders, (source, target), args.min_probability, failed)
    rows = tally.accuracies()
    report = {
        "model": {**labeller.about, "folder": str(args.model)}, "min_probability": args.min_probability,
        "recordings": len(folders) - len(failed), "made_now": made, "frames": tally.entries,
        "labelled": tally.labelled, "accuracy": [dataclasses.asdict(row) for row in rows], "failed": failed,
    }  # fmt: skip
    write_json(target / _REPORT_NAME, report)
    _print(rows, report)
    return 1 if failed else 0


def _label_all(
    labeller: Labeller,
    tally: Tally,
    folders: Sequence[Path],
    places: tuple[Path, Path],
    at_least: float,
    failed: list[str],
) -> int:
    """Label the recordings that are not; count all of them, and return how many were labelled now."""
    from playserve_client.commands.counting import show_count

    made = 0
    with show_count("labelling", "recordings", len(folders), by_steps=False) as counter:
        for folder in folders:
            target, before = places[1] / folder.relative_to(places[0]), tally.entries
            try:
                made += _label_one(labeller, tally, folder, target, at_least)
            except StateError:
                raise
            except PlayserveError as error:
                failed.append(str(error))
            counter.advance(tally.entries - before, 1)
    return made


def _label_one(labeller: Labeller, tally: Tally, folder: Path, target: Path, at_least: float) -> bool:
    """Write a labelled copy unless it is there, and count it; return whether it was written now."""
    import numpy as np

    from playserve_client.p2p.recording import Source, read_recording
    from playserve_client.p2p.relabel import relabel
    from playserve_trainer.inverse import LABELLED_BY, PROBABILITY, labelled_by

    about = {**labeller.about, "min_probability": at_least}
    new = not target.exists()
    if new:
        labels = labeller.label(folder)
        relabel(
            folder, target, labeller.actions(labels, at_least=at_least),
            change=f"actions are labels of a p2p inverse model, weights sha256 {about['weights_sha256']}",
            episode={LABELLED_BY: about}, columns={PROBABILITY: labels.probability_N},
        )  # fmt: skip
    elif labelled_by(target) != about:
        raise StateError(f"{target} was labelled by another model, or with other settings: choose another --out")
    written = read_recording(target)
    tokens = labeller.policy.vocabulary.encode_arrays([frame.action for frame in written.frames])
    tally.add(
        read_recording(folder), tokens, np.array([frame.source is not Source.UNKNOWN for frame in written.frames])
    )
    return new


def _print(rows: Sequence[GroupAccuracy], report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(
        f"{report['labelled']:,} of {report['frames']:,} frames in {report['recordings']} recordings are labelled, "
        f"{report['made_now']} recordings now",
        highlight=False,
    )
    if rows:
        table = Table("against known actions", "labels", "agree", "copying", "changed", "of these agree", box=None)
        for row in rows:
            changed = "-" if row.accuracy_changed is None else f"{row.accuracy_changed:.1%}"
            table.add_row(
                row.group, f"{row.labels:,}", f"{row.accuracy:.1%}", f"{row.copy:.1%}", f"{row.changed:,}", changed
            )
        console.print(table)
    for error in report["failed"]:
        console.print(f"left out: {error}", style="yellow", markup=False, soft_wrap=True)
