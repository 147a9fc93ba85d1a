"""``playserve causality``: does a policy act upon what it sees, or upon what it did before?"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from playserve.errors import BadSettingError

if TYPE_CHECKING:
    from playserve_trainer.causality.clips import Subject

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Measure whether a policy acts upon what it sees, or upon what it did before."


class _Progress(Protocol):
    def __call__(self, done: int, total: int) -> None: ...


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each measure."""
    measures = parser.add_subparsers(dest="measures", required=True, metavar="MEASURE")
    toy = measures.add_parser(
        "toy", help="the toy environment behind the claim that depth helps (about 20 minutes on one core)",
        description="Run the toy environment: networks of 0 to 4 hidden layers, with and without bias, learn to brake.",
    )  # fmt: skip
    toy.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets toy.json, toy.png and toy.svg")
    toy.add_argument("--steps", type=float, default=3e6, help="steps of SGD, such as 3e6 (default)")
    toy.add_argument("--replicas", type=int, default=10, help="streams, at least 2 (default %(default)s)")
    toy.add_argument(
        "--lr", type=float, action="append", metavar="LR",
        help="learning rate; may be repeated (default: 1e-4, as published, and 1e-2)",
    )  # fmt: skip
    toy.add_argument("--seed", type=int, default=0, help="of the first replica (default %(default)s)")
    toy.add_argument("--dtype", default="float32", help="float32, as published, or float64 (default %(default)s)")
    toy.add_argument("--no-figure", action="store_true", help="only numbers; no matplotlib is needed")
    score = measures.add_parser(
        "score", help="Open P2P's causality score: how much answers change when frames are swapped",
        description="Open P2P's causality score of a p2p checkpoint.",
    )  # fmt: skip
    _configure_subject(score, "score.json")
    score.add_argument("--clips", type=int, default=32, metavar="N", help="most clips of a game (default %(default)s)")
    score.add_argument("--swaps", type=int, default=5, metavar="N", help="draws of the swap (default %(default)s)")
    intervene = measures.add_parser(
        "intervene", help="frames of one clip under the actions of another: which of the two does the answer follow?",
        description="Ask a p2p checkpoint about clips of Doom whose frames and past actions want different things.",
    )  # fmt: skip
    _configure_subject(intervene, "intervene.json")
    intervene.add_argument(
        "--pairs", type=int, default=64, metavar="N", help="most pairs of a scenario and goal (default %(default)s)"
    )
    grid = measures.add_parser(
        "grid", help="score and intervene of every finished p2p cell of a grid",
        description="Measure every finished cell of a p2p grid, into DIR/causality; the same command goes on.",
    )  # fmt: skip
    grid.add_argument("folder", type=Path, metavar="DIR", help="folder of the grid")
    grid.add_argument("--cell", action="append", default=[], metavar="CELL", help="only this cell (repeatable)")
    grid.add_argument(
        "--measure", action="append", choices=("score", "intervene"), help="only this one (default: both)"
    )
    grid.add_argument("--seed", type=int, default=0, help="of all that is drawn (default %(default)s)")
    grid.add_argument("--device", default="cpu", help="torch device (default %(default)s)")
    plot = measures.add_parser(
        "plot", help="scores or interventions of several checkpoints, against data, size or training step",
        description="Draw what was measured of several checkpoints.",
    )  # fmt: skip
    plot.add_argument("files", type=Path, nargs="+", metavar="FILE", help="what score or intervene wrote")
    plot.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets causality.json, .png and .svg")
    plot.add_argument(
        "--x", default="samples_seen", metavar="KEY",
        help="params, samples_seen, flops, or a label that was given (default %(default)s)",
    )  # fmt: skip
    plot.add_argument("--line", default="size", metavar="KEY", help="what tells lines apart (default %(default)s)")


def _configure_subject(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a p2p checkpoint")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="recordings in Open P2P's format")
    parser.add_argument(
        "--held-out", type=float, default=0.1, metavar="SHARE",
        help="what training held out; those recordings are asked about; 0: all (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--game", action="append", default=[], help="only this game, such as doom or doom/basic; may be repeated"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where what is read is kept (default: beside DATA)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default %(default)s)")
    parser.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE",
        help="noted with the result, for plots: unique_samples=1e6, say; may be repeated",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="torch device (default %(default)s)")
    parser.add_argument(
        "--json", type=Path, default=Path(name), metavar="FILE", help="where all numbers go (default %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and print; every number is also in a file."""
    return {"toy": _toy, "score": _score, "intervene": _intervene, "grid": _grid, "plot": _plot}[args.measures](args)


def _toy(args: argparse.Namespace) -> int:
    from playserve.files import write_json
    from playserve_trainer.causality.toy import ToySettings, run_toy
    from playserve_trainer.causality.toy_verdict import judge

    if not args.no_figure:
        import matplotlib  # noqa: F401 - said before the work, not after it

    settings = ToySettings(
        steps=int(args.steps), replicas=args.replicas, seed=args.seed, lrs=tuple(args.lr or (1e-4, 1e-2)),
        dtype=args.dtype,
    )  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    with _bar("toy") as progress:
        curves = run_toy(settings, progress)
    verdict = judge(curves)
    value = {"measure": "causality toy", "settings": settings.to_json(), "verdict": verdict}
    write_json(args.out / "toy.json", {**value, "curves": [curve.to_json() for curve in curves]})
    for sentence in verdict["sentences"]:
        print(sentence)
    if not args.no_figure:
        from playserve_trainer.causality.toy_figure import draw_toy

        draw_toy(curves, args.out)
    print(f"all numbers: {args.out / 'toy.json'}")
    return 0


def _score(args: argparse.Namespace) -> int:
    from playserve_trainer.causality.score import ScoreSettings, score

    settings = ScoreSettings(clips_per_game=args.clips, swaps=args.swaps, seed=args.seed)
    with _bar("score") as progress:
        value = score(_subject(args, progress), settings, progress)
    _write(args, value)
    _print_score(value)
    print(f"all numbers: {args.json}")
    return 0


def _intervene(args: argparse.Namespace) -> int:
    from playserve_trainer.causality.intervene import InterveneSettings, intervene

    settings = InterveneSettings(pairs=args.pairs, seed=args.seed)
    with _bar("intervene") as progress:
        value = intervene(_subject(args, progress), settings, progress)
    _write(args, value)
    _print_intervene(value)
    print(f"all numbers: {args.json}")
    return 0


def _grid(args: argparse.Namespace) -> int:
    from playserve_trainer.causality.cells import MEASURES, measure_cells
    from playserve_trainer.grid.folder import GridFolder

    chosen = tuple(args.measure or MEASURES)
    with _bar("causality of cells") as progress:
        measure_cells(
            GridFolder(args.folder), cells=args.cell, measures=chosen, seed=args.seed, device=args.device,
            progress=progress,
        )  # fmt: skip
    for measure in chosen:
        files = args.folder / "causality" / measure
        print(
            f"{measure}: {files}; draw it with `playserve causality plot {files}/*.json --x unique_samples --out DIR`"
        )
    return 0


def _subject(args: argparse.Namespace, progress: _Progress) -> Subject:
    from playserve_trainer.causality.clips import open_subject

    for text in args.label:
        _label(text)  # a bad one is said before the work
    return open_subject(
        args.checkpoint,
        args.data,
        held_out=args.held_out,
        games=args.game,
        cache=args.cache,
        device=args.device,
        progress=progress,
    )


def _write(args: argparse.Namespace, value: dict[str, Any]) -> None:
    from playserve.files import write_json

    value["labels"] = dict(map(_label, args.label))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.json, value)


def _label(text: str) -> tuple[str, float | str]:
    """Return the key and the value, a number where it is one, of KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise BadSettingError(f"label {text!r}, wanted KEY=VALUE")
    try:
        return key, float(value)
    except ValueError:
        return key, value


def _plot(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from playserve.files import write_json
    from playserve_trainer.causality.plot import draw_points, read_points

    measure, points = read_points(args.files, args.x, args.line)
    args.out.mkdir(parents=True, exist_ok=True)
    value = {"measure": measure, "x": args.x, "line": args.line, "points": [asdict(point) for point in points]}
    write_json(args.out / "causality.json", value)
    table = Table(args.line, args.x, measure, "95%", box=None)
    for point in points:
        shown = f"{point.x:g}", f"{point.y:.5f}", _interval({"low": point.low, "high": point.high}, 1.0, 5)
        table.add_row(point.line, *shown)
    Console().print(table)
    draw_points(measure, points, args.x, args.line, args.out)
    print(f"all numbers: {args.out / 'causality.json'}")
    return 0


@contextmanager
def _bar(what: str) -> Iterator[_Progress]:
    """Show a bar on a terminal, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield progress


def _print_score(value: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    settings, table = (
        value["settings"],
        Table("game", "clips", "score x1000", "95%, clips", "95%, recordings", box=None),
    )
    rows = {"all": {"score": value["score"], "intervals": value["intervals"]}, **value["by_game"]}
    for name, row in rows.items():
        by_clip, by_recording = row["intervals"]["by_clip"], row["intervals"]["by_recording"]
        shown = [f"{1e3 * row['score']:.2f}", _interval(by_clip, 1e3, 2), _interval(by_recording, 1e3, 2)]
        table.add_row(name, str(by_clip["n"]), *shown)
    console = Console()
    console.print(table)
    swap_std = value["swap_std"]
    shorter = "" if settings["as_in_the_paper"] else " (the policy looks back less than the paper's: not comparable)"
    console.print(
        f"T = {settings['clip_frames']} frames, C = {settings['chunks']} chunks{shorter}; "
        f"{settings['swaps']} swaps, their standard deviation x1000 "
        f"{'unknown' if swap_std is None else f'{1e3 * swap_std:.3f}'}; {value['kl_nats']:.4f} nats an action",
        highlight=False,
    )  # fmt: skip
    _print_left_out(console, {**dict.fromkeys(value["games_without_clips"], "no clip"), **value["left_out"]})


def _print_intervene(value: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("task", no_wrap=True)
    for head in ("frames", "history", "frames-history", "own", "nats moved by\nhistory/frames"):
        table.add_column(head)
    rows = {"all": value["all"], "* left out": value["memoryless_experts"], **value["by_task"]}
    if not any(row["expert_remembers"] for row in value["by_task"].values()):
        del rows["* left out"]
    for name, row in rows.items():
        if row is not None:
            frames, history, own = (
                f"{row[column]['mean']:.0%}" for column in ("towards_frames", "towards_history", "own_history")
            )
            more = f"{row['frames_minus_history']['mean']:+.0%}"
            interval = _interval(row["frames_minus_history"], 100, 0)
            nats = f"{row['kl_history_nats']['mean']:.2f}/{row['kl_frames_nats']['mean']:.2f}"
            shown = f"{name}{' *' if row.get('expert_remembers') else ''}"
            table.add_row(shown, frames, history, f"{more} {interval}", own, nats)
    console = Console()
    console.print(table)
    console.print(
        f"{value['all']['pairs']} mixed clips: frames of one recording, past actions of another. How often the answer "
        "is what the frames ask for (right), and what the history goes with; own: right, with the frames' own history. "
        "* its expert remembers what the clip need not show.",
        highlight=False,
    )
    if value["note"]:
        console.print(value["note"], highlight=False)
    _print_left_out(console, {**value["tasks_without_pairs"], **value["left_out"]})


def _print_left_out(console: Any, why: Mapping[str, str]) -> None:
    if why:
        console.print(f"{len(why)} left out:", style="yellow")
        for name, reason in why.items():
            console.print(f"  {name}: {reason}", markup=False, soft_wrap=True)


def _interval(summary: Mapping[str, Any], scale: float, digits: int) -> str:
    if summary["low"] is None:
        return ""
    return f"[{scale * summary['low']:.{digits}f}, {scale * summary['high']:.{digits}f}]"
