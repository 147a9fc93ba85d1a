"""``playserve laws``: fit scaling laws to a table of cells, forecast bigger agents, and write the report."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError

if TYPE_CHECKING:
    from playserve_trainer.laws.fitting import FitOptions

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Fit scaling laws to trained cells, forecast bigger agents, write the report."

_DEFAULT_RESAMPLES = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands fit, forecast, report and meta."""
    commands = parser.add_subparsers(dest="laws_command", required=True, metavar="ACTION")
    fit = commands.add_parser("fit", help="every estimator with intervals, and the hold-out")
    forecast = commands.add_parser("forecast", help="best size, data and loss at a larger budget, with intervals")
    report = commands.add_parser("report", help="one HTML page, PNGs and a JSON of everything that they show")
    for sub in (fit, forecast, report):
        sub.add_argument("cells", nargs="+", help="a grid's folder, or a .csv, .parquet or .json table")
        _add_options(sub)
    for sub in (fit, forecast):
        sub.add_argument("--json", metavar="FILE", type=Path, help="also write everything as JSON")
    _configure_meta(commands.add_parser("meta", help="does loss stand for return? Correlations with intervals"))
    forecast.add_argument("--flops", type=float, action="append", required=True, help="budget to forecast (repeatable)")
    for sub in (fit, report):
        sub.add_argument("--flops", type=float, action="append", default=[], help="budget to forecast (repeatable)")
    report.add_argument("--out", type=Path, required=True, help="folder of the report")
    report.add_argument("--title", default="Scaling laws", help="of the page")
    report.add_argument("--cited", action="append", default=[], metavar="TEXT",
        help="a published baseline to name, labelled as cited (repeatable)")  # fmt: skip


def _configure_meta(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cells", nargs="+", help="a grid's folder, or a .csv, .parquet or .json table")
    parser.add_argument("--resamples", type=int, default=_DEFAULT_RESAMPLES, help="draws of an interval (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--processes", type=int, default=0, help="that compute (default: the number of cores)")
    parser.add_argument("--task", help="only this task of the table")
    parser.add_argument("--column", metavar="NAME", help="correlate this column of the tables, not the return")
    parser.add_argument(
        "--run-per-size", action="store_true",
        help="the table names no runs, and each size was trained once: its cells are drawn together",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write everything as JSON")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--window", default="2", metavar="W",
        help="sizes that a parabola sees: so many to each side of the best (default 2), 1.5x: those within 1.5 times "
        "the least loss, or all",
    )  # fmt: skip
    parser.add_argument("--near", type=_ratio, default=1.5, metavar="RATIO",
        help="parametric law: cells within so many times the least loss of a budget, or all (default 1.5)")  # fmt: skip
    parser.add_argument("--near-quadratic", type=_ratio, default=1.25, metavar="RATIO", help="the same for the "
        "quadratic (default 1.25)")  # fmt: skip
    parser.add_argument("--law", action="append", default=[], help="only this estimator (repeatable; default: all)")
    parser.add_argument("--resamples", type=int, default=_DEFAULT_RESAMPLES, help="draws of an interval (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--processes", type=int, default=0, help="that compute (default: the number of cores)")
    parser.add_argument("--starts", type=int, default=90, metavar="N",
        help="starts of the check of the parametric law, at most 4500 (default 90; 0: none)")  # fmt: skip
    parser.add_argument("--beyond", action="store_true", help="forecast more than 30 times beyond the cells")
    parser.add_argument("--expert", action="append", default=[], metavar="[TASK=]SCORE",
        help="score of the expert, where forecasts of returns end (repeatable)")  # fmt: skip
    parser.add_argument("--task", help="only this task of the table")


def run(args: argparse.Namespace) -> int:
    """Fit, and print or write; a refusal of one law is shown in its place."""
    from playserve_trainer.laws.fitting import fit_laws
    from playserve_trainer.laws.forecasting import check_distance
    from playserve_trainer.laws.reading import read_tables

    if args.laws_command == "meta":
        return _meta(args)
    table = read_tables(args.cells)
    if args.task:
        table = table.only("task", args.task)
    options = _options(args)
    for flops in options.flops:
        check_distance(table, flops, allowed=options.beyond)
    found = fit_laws(table, options)
    if args.laws_command == "report":
        from playserve_trainer.laws.report import write_report

        page = write_report(found, args.out, title=args.title, cited=args.cited)
        print(f"page: {page}   numbers: {args.out / 'report.json'}")
        return 0
    from rich.console import Console

    from playserve.files import write_json
    from playserve_trainer.laws.tables import print_fit, print_forecasts

    if args.json:
        write_json(args.json, found)
    console = Console()
    if args.laws_command == "forecast":
        print_forecasts(console, found)
    else:
        print_fit(console, found)
    return 0


def _meta(args: argparse.Namespace) -> int:
    from rich.console import Console

    from playserve.files import write_json
    from playserve_trainer.laws.meta import meta_analysis
    from playserve_trainer.laws.reading import read_tables
    from playserve_trainer.laws.tables import print_meta

    _check_counts(args, ("resamples", "processes", "seed"))
    table = read_tables(args.cells, quality=args.column)
    if args.task:
        table = table.only("task", args.task)
    found = meta_analysis(
        table, resamples=args.resamples, seed=args.seed, processes=args.processes or len(os.sched_getaffinity(0)),
        run_per_size=args.run_per_size,
    )  # fmt: skip
    found["quality"] = args.column or "return"
    if args.json:
        write_json(args.json, found)
    print_meta(Console(), found)
    return 0


def _check_counts(args: argparse.Namespace, names: Sequence[str]) -> None:
    for name in names:
        if getattr(args, name) < 0:
            raise BadSettingError(f"--{name} is at least 0, not {getattr(args, name)}")


def _options(args: argparse.Namespace) -> FitOptions:
    from playserve_trainer.laws.estimators import Settings
    from playserve_trainer.laws.fitting import FitOptions

    _check_counts(args, ("resamples", "starts", "processes", "seed"))
    bad = [value for value in args.flops if not (value > 0 and math.isfinite(value))]
    if bad:
        raise BadSettingError(f"--flops is a number above 0, not {bad[0]}")
    settings = Settings(window=_window(args.window), near=args.near, near_quadratic=args.near_quadratic,
                        laws=tuple(args.law))  # fmt: skip
    return FitOptions(
        settings=settings,
        resamples=args.resamples,
        seed=args.seed,
        processes=args.processes or len(os.sched_getaffinity(0)),
        starts=min(args.starts, 4500),
        flops=tuple(args.flops),
        beyond=args.beyond,
        expert=_experts(args.expert),
    )


def _window(text: str) -> Any:
    from playserve_trainer.laws.isoflop import Window

    try:
        if text == "all":
            return Window("all", 0)
        if text.endswith("x") and float(text[:-1]) > 1:
            return Window("ratio", float(text[:-1]))
        if int(text) >= 1:
            return Window("steps", float(int(text)))
    except ValueError:
        pass
    raise BadSettingError(
        f"--window is a whole number of sizes from 1, a ratio above 1 such as 1.5x, or all, not {text!r}"
    )


def _ratio(text: str) -> float:
    value = math.inf if text == "all" else float(text)
    if not value > 1:
        raise argparse.ArgumentTypeError(f"a ratio above 1, or all, not {text!r}")
    return value


def _experts(given: list[str]) -> dict[str, float]:
    found = {}
    for text in given:
        task, _, score = text.rpartition("=")
        try:
            found[task] = float(score)
        except ValueError as error:
            raise BadSettingError(f"--expert is TASK=SCORE or SCORE, not {text!r}") from error
    return found
