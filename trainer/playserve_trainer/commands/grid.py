"""``playserve grid``: plan a study's grid of training runs, run it, look at it, and measure its returns."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from playserve.errors import BadSettingError
from playserve_client.workers import sigterm_interrupts
from playserve_trainer.wording import utc_now

if TYPE_CHECKING:
    from playserve_trainer.grid.plan import Plan
    from playserve_trainer.grid.study import Study

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Plan and run a study's grid of training runs, and measure what came out."

#: What Kubernetes calls the number of a pod of an Indexed Job.
_INDEX_VARIABLE = "JOB_COMPLETION_INDEX"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    data = actions.add_parser("data", help="make the recordings that a study learns from")
    _add_study(data)
    data.add_argument("--dry-run", action="store_true", help="only print the commands")
    data.set_defaults(act=_data)

    plan = actions.add_parser("plan", help="turn a study into runs, with predicted time and memory")
    _add_study(plan)
    plan.add_argument("--dry-run", action="store_true", help="print the table, and write nothing")
    plan.add_argument("--no-probe", action="store_true", help="do not try a few steps of each size to predict its time")
    _add_workers(plan)
    plan.set_defaults(act=_plan)

    run_ = actions.add_parser("run", help="train every run that is not done; the same command goes on after a kill")
    run_.add_argument("folder", type=Path, metavar="DIR", help="folder of the plan")
    run_.add_argument("--store", metavar="URL", help="store that checkpoints are published to (default: DIR/store)")
    run_.add_argument("--retry-failed", action="store_true", help="try failed runs again, from where they were saved")
    run_.add_argument(
        "--index", type=int, metavar="I",
        help=f"train run I of the plan only, in this process (default: {_INDEX_VARIABLE}, as in an Indexed Job)",
    )  # fmt: skip
    run_.add_argument("--minutes", type=float, metavar="M", help="save what there is after so many minutes, and end")
    run_.add_argument("--threads", type=int, default=0, help="with --index: CPU threads; 0: one for each core")
    run_.add_argument(
        "--processes", type=int, default=1, metavar="K",
        help="processes of this machine, or its GPUs, that share each run, one run at a time (default 1); torchrun "
        "spans machines: torchrun ... -m playserve_trainer.grid run DIR --index I",
    )  # fmt: skip
    run_.add_argument("--device", default="auto", help='torch device, or "auto"')
    _add_workers(run_, "; 1 with --processes")
    run_.set_defaults(act=_run, workers=None)

    status = actions.add_parser("status", help="what is done, running, failed and why, and waiting")
    status.add_argument("folder", type=Path, metavar="DIR", help="folder of the plan")
    status.add_argument("--json", action="store_true", help="for programs")
    _add_workers(status)
    status.set_defaults(act=_status)

    returns = actions.add_parser("returns", help="serve finished cells, play them, and write their returns")
    returns.add_argument("folder", type=Path, metavar="DIR", help="folder of the plan")
    returns.add_argument("--cell", action="append", default=[], help="only this cell (repeatable)")
    returns.add_argument("--device", default="cpu", help="torch device of the server (default cpu)")
    _add_workers(returns)
    returns.set_defaults(act=_returns)


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", help="name of a packaged study, such as atari-isoflop, or path of a TOML file")
    parser.add_argument("--tier", required=True, help="tier of the study: smoke, laptop, gpu, cluster")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the grid")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the recordings (default: data in --out)")


def _add_workers(parser: argparse.ArgumentParser, but: str = "") -> None:
    parser.add_argument(
        "--workers", type=int, default=_cores(), metavar="N",
        help=f"processes at a time, of one thread each if there are several (default: the number of cores{but})",
    )  # fmt: skip


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(args: argparse.Namespace) -> int:
    """Run the chosen action; 128 plus the signal that stopped it, with what is finished kept."""
    import rich  # noqa: F401 - brings the missing-extra hint before anything is done

    return int(args.act(args))


def _study(args: argparse.Namespace) -> tuple[Study, Path]:
    from playserve_trainer.grid.study import load_study

    return load_study(args.study, args.tier), (args.data or args.out / "data").absolute()


def _data(args: argparse.Namespace) -> int:
    from playserve_trainer.grid.stages import going_on
    from playserve_trainer.processes import run_command, shown

    study, folder = _study(args)
    for text in study.data:
        tasks = study.tasks if "{task}" in text else study.tasks[:1]
        for task in tasks:
            command = [part.format(task=task, data=folder) for part in shlex.split(text)]
            now = going_on(command)
            print(f"$ {shown(now or command)}{'' if now else '  # is done'}", flush=True)
            if now and not args.dry_run and (status := run_command(now)):
                return status
    if not study.data:
        raise BadSettingError(f"study {study.study} does not say how its data are made")
    return 0


def _plan(args: argparse.Namespace) -> int:
    from rich.console import Console

    from playserve_trainer.grid.folder import GridFolder
    from playserve_trainer.grid.plan import make_plan
    from playserve_trainer.grid.settings import measure_sizes
    from playserve_trainer.grid.show import print_plan

    _check_workers(args.workers)
    study, data = _study(args)
    at = utc_now()
    plan = make_plan(study, measure_sizes(study, str(data)), data=str(data), created_at=at)
    if not args.no_probe:
        plan = _probed(plan, args)
    if not args.dry_run:
        GridFolder(args.out).write_plan(plan)
    console = Console(width=None if sys.stdout.isatty() else 200)
    print_plan(console, plan, args.workers)
    if not args.dry_run:
        console.print(
            f"the plan is in {args.out / 'plan.json'}; train it with\n  playserve grid run {args.out} --workers "
            f"{args.workers}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    return 0


def _probed(plan: Plan, args: argparse.Namespace) -> Plan:
    import tempfile

    from playserve_trainer.grid.probe import probe

    def tell(name: str) -> None:
        print(f"measured {name}", file=sys.stderr)

    threads = 1 if args.workers > 1 else 0
    if not args.dry_run:
        return probe(plan, args.out, threads=threads, on_size=tell)
    with tempfile.TemporaryDirectory() as scratch:
        return probe(plan, Path(scratch), threads=threads, on_size=tell)


def _run(args: argparse.Namespace) -> int:
    from playserve_trainer.grid.folder import GridFolder

    if args.processes > 1:
        # Read when torch is imported: without it every process warns that it looks for unused parameters, as it should.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    folder, store = GridFolder(args.folder), args.store or str((args.folder / "store").absolute())
    index = args.index if args.index is not None else _index_from_environment()
    if index is not None:
        from playserve_trainer.grid.indexed import train_index

        return train_index(
            folder, index, store=store, device=args.device, threads=args.threads, count=args.processes
        )  # fmt: skip
    from playserve_trainer.grid.execute import run_grid

    workers = args.workers if args.workers is not None else _cores() if args.processes == 1 else 1
    return run_grid(
        folder, workers=workers, store=store, retry_failed=args.retry_failed, device=args.device,
        minutes=args.minutes, processes=args.processes,
    )  # fmt: skip


def _index_from_environment() -> int | None:
    text = os.environ.get(_INDEX_VARIABLE)
    if text is None:
        return None
    if not text.isdigit():
        raise BadSettingError(f"{_INDEX_VARIABLE} is a number from 0 on, not {text!r}")
    return int(text)


def _status(args: argparse.Namespace) -> int:
    from rich.console import Console

    from playserve_trainer.grid.folder import GridFolder
    from playserve_trainer.grid.show import print_status
    from playserve_trainer.grid.status import collect

    _check_workers(args.workers)
    folder = GridFolder(args.folder)
    status = collect(folder, folder.plan())
    if args.json:
        print(json.dumps(status.to_json(args.workers), indent=2))
    else:
        print_status(Console(width=None if sys.stdout.isatty() else 200), status, args.workers)
    return 0


def _returns(args: argparse.Namespace) -> int:
    from playserve_trainer.grid.folder import GridFolder
    from playserve_trainer.grid.returns import measure_returns

    _check_workers(args.workers)
    try:
        with sigterm_interrupts():
            measure_returns(
                GridFolder(args.folder), cells=args.cell, workers=args.workers, serve_flags=("--device", args.device)
            )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _check_workers(count: int) -> None:
    if count < 1:
        raise BadSettingError(f"--workers is at least 1, not {count}")
