"""``playserve rl``: learn to play from nothing, by V-trace; actors take their actions from the inference service."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from playserve_client.commands.pairs import json_pairs
from playserve_trainer.commands.runs import (
    CONFIG_NAME,
    check_new,
    check_publish,
    print_summary,
    saved_settings,
    with_limits,
)
from playserve_trainer.rl.config import OPTIMIZERS, REWARDS, RLConfig
from playserve_trainer.rl.presets import with_presets

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Learn to play from nothing: actors act through the service, a V-trace learner teaches."

_FLAGS: Mapping[str, tuple[Any, str]] = {
    "seed": (int, "of weights, environments and sampling"),
    "num_envs": (int, "environments, one FOLLOW session each"),
    "actor_processes": (int, "processes that they are spread over"),
    "unroll": (int, "steps of an unroll"),
    "batch": (int, "new unrolls of an update"),
    "replay": (int, "older unrolls of an update"),
    "replay_size": (int, "unrolls kept for that"),
    "queue": (int, "unrolls that may wait for the learner"),
    "discount": (float, "of later rewards"),
    "reward_scale": (float, "what rewards are divided by, under tanh and raw"),
    "rho_clip": (float, "largest importance weight of the targets"),
    "c_clip": (float, "largest importance weight of the traces"),
    "entropy_cost": (float, "weight of the entropy"),
    "value_cost": (float, "weight of the values' loss"),
    "critic_hidden": (int, "units of the critic"),
    "lr": (float, "highest learning rate"),
    "lr_final_fraction": (float, "what it falls to by the end, as a share"),
    "warmup_updates": (int, "updates of linear warm-up"),
    "clip_norm": (float, "largest norm of the gradient; 0: no clipping"),
    "publish_every_s": (float, "seconds between two versions for the actors"),
    "keep_versions": (int, "versions that stay in the live store"),
    "save_every_s": (float, "seconds between saves of the whole state"),
    "log_every_updates": (int, "updates behind one line of curve.jsonl"),
    "silence_s": (float, "seconds without an unroll after which the run gives up"),
    "max_steps": (int, "stop after so many steps of the environments"),
    "max_flops": (float, "stop after so many training FLOPs, such as 1e14"),
    "threads": (int, "CPU threads of the learner; 0: one for each core"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    learn = actions.add_parser("learn", help="one run, from nothing to an agent")
    _configure_learn(learn)
    learn.set_defaults(act=_learn)
    grid = actions.add_parser("grid", help="a study: plan it, learn what is not done; the same command goes on")
    grid.add_argument("study", help="name of a packaged study (atari-rl, nethack-rl), or path of a TOML file")
    grid.add_argument("--tier", required=True, help="tier of the study: smoke, laptop, gpu, cluster")
    grid.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the grid")
    grid.add_argument("--store", metavar="URL", help="store that checkpoints are published to (default: DIR/store)")
    grid.add_argument("--minutes", type=float, metavar="M", help="save what there is after so many minutes, and end")
    grid.add_argument("--device", default="auto", help='torch device of the learner, or "auto"')
    grid.add_argument("--serve-device", default="cpu", help="torch device of the servers (default cpu)")
    grid.add_argument("--dry-run", action="store_true", help="print the plan, and write nothing")
    grid.set_defaults(act=_grid)
    curve = actions.add_parser("curve", help="draw the curves of runs, finished or not")
    curve.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folders of runs")
    curve.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    curve.add_argument("--goal", type=float, metavar="R", help="a return to draw a line at")
    curve.set_defaults(act=_curve)


def _configure_learn(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a run. Flags left out take the family's value, or on --resume the run's own."""
    given_only: dict[str, Any] = {"default": argparse.SUPPRESS}
    parser.add_argument("family", metavar="FAMILY", help="atari, nethack, or another model family with --env")
    parser.add_argument("--game", help="game of the family, such as breakout; NetHack: the character", **given_only)
    parser.add_argument("--env", help="environments as module:factory (default: the family's)", **given_only)
    parser.add_argument("--out", required=True, help="folder of the run; checkpoint/ in it is the result")
    parser.add_argument("--minutes", dest="max_minutes", type=float, help="stop after so many minutes", **given_only)
    parser.add_argument(
        "--model", action="append", metavar="KEY=JSON", help="setting of the model, such as width=16 (repeatable)",
        **given_only,
    )  # fmt: skip
    parser.add_argument(
        "--env-option", action="append", dest="env_options", metavar="KEY=JSON",
        help="setting of the environment, such as stickiness=0.25 (repeatable)", **given_only,
    )  # fmt: skip
    parser.add_argument("--reward", choices=REWARDS, help="what becomes of rewards", **given_only)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, **given_only)
    parser.add_argument(
        "--life-ends", action=argparse.BooleanOptionalAction, help="whether the loss of a life ends what an action is "
        "worth", **given_only,
    )  # fmt: skip
    defaults = {f.name: f.default for f in dataclasses.fields(RLConfig)}
    for flag, (kind, text) in _FLAGS.items():
        shown = f"{text} (default {defaults[flag]}, unless the family has another)"
        parser.add_argument(f"--{flag.replace('_', '-')}", type=kind, metavar="N", help=shown, **given_only)
    parser.add_argument("--device", help='torch device of the learner, or "auto"', **given_only)
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with its own settings")
    parser.add_argument("--server", default="", metavar="HOST:PORT", help="a server of yours (default: one is started)")
    parser.add_argument("--live-store", default="", metavar="DIR", help="with --server: folder of the store it watches")
    parser.add_argument("--name", default="learner", help="name of the policy while it learns (default learner)")
    parser.add_argument(
        "--serve-device", default="cpu", help="torch device of the server that is started (default cpu)"
    )
    parser.add_argument("--publish", metavar="NAME", help="publish the result under this name; needs --store")
    parser.add_argument("--store", metavar="URL", help="store to publish the result to")


def run(args: argparse.Namespace) -> int:
    """Run the chosen action; 128 plus the signal that stopped it, with what was learnt saved."""
    return int(args.act(args))


def _grid(args: argparse.Namespace) -> int:
    import sys

    from rich.console import Console

    from playserve_trainer.grid.folder import GridFolder
    from playserve_trainer.grid.show import print_plan
    from playserve_trainer.rl.grid import load_rl_study, plan_rl, run_rl_grid
    from playserve_trainer.rl.run import Service
    from playserve_trainer.train.stop import StopRequest

    plan, folder = plan_rl(load_rl_study(args.study, args.tier)), GridFolder(args.out)
    print_plan(Console(width=None if sys.stdout.isatty() else 200), plan, 1)
    if args.dry_run:
        return 0
    folder.write_plan(plan)
    with StopRequest() as stop:
        done = run_rl_grid(
            folder, plan, store=args.store or str((args.out / "store").absolute()),
            service=Service(flags=("--device", args.serve_device)), device=args.device, should_stop=stop,
            minutes=args.minutes, say=lambda text: print(text, flush=True),
        )  # fmt: skip
    failed = [run.name for run in plan.runs if folder.failure(run.name).exists()]
    if failed:
        print(f"failed: {', '.join(failed)}; see `playserve grid status {args.out}`", file=sys.stderr)
    if not done:
        print(f"stopped before its end; the same command goes on from {args.out}")
    return 1 if failed else 128 + stop.signum if stop.signum is not None else 0


def _curve(args: argparse.Namespace) -> int:
    from playserve_trainer.rl.plot import draw_runs

    print(draw_runs(args.folders, args.out, args.goal))
    return 0


def _learn(args: argparse.Namespace) -> int:
    """Learn; return 0, or 128 plus the signal that stopped it (then --resume goes on)."""
    from playserve.files import write_json
    from playserve.specs import check_policy_name
    from playserve_trainer.rl.run import RLRun, Service
    from playserve_trainer.train.stop import StopRequest

    check_publish(args.publish, args.store)
    check_policy_name(args.name)
    out, given = Path(args.out), _given(args)
    config = _resumed(out, given) if args.resume else _new(out, args.family, given)
    service = Service(server=args.server, store=args.live_store, name=args.name, flags=("--device", args.serve_device))
    with StopRequest() as stop:
        learning = RLRun(config, service, resume=args.resume, say=lambda text: print(text, flush=True))
        write_json(out / CONFIG_NAME, config.to_json())
        finished = learning.run(stop)
    summary = learning.finish(finished=finished, store=args.store or "", name=args.publish or "")
    _report(summary)
    return 0 if finished else 128 + (stop.signum or 0)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings on the command line."""
    fields = {f.name for f in dataclasses.fields(RLConfig)} - {"family", "out"}
    given = {name: value for name, value in vars(args).items() if name in fields}
    for name, flag in (("model", "--model"), ("env_options", "--env-option")):
        if name in given:
            given[name] = json_pairs(given[name], flag)
    return given


def _new(out: Path, family: str, given: Mapping[str, Any]) -> RLConfig:
    check_new(out)
    return with_presets(family, {**given, "out": str(out)})


def _resumed(out: Path, given: Mapping[str, Any]) -> RLConfig:
    """Return the settings of the run in `out`, with those given on the command line instead of its own."""
    before = RLConfig.from_json(saved_settings(out))
    wanted = with_limits(given, {"max_steps": 0, "max_flops": 0.0, "max_minutes": 0.0})
    for name in ("model", "env_options"):
        if name in wanted:
            wanted[name] = {**getattr(before, name), **wanted[name]}
    config = RLConfig.from_json({**before.to_json(), **wanted, "out": str(out)})
    config.check_resumes(before)
    return config


def _report(summary: Mapping[str, Any]) -> None:
    """Print the summary for people."""
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table(show_header=False, box=None)
    game = f" {summary['game']}" if summary["game"] else ""
    table.add_row("policy", f"{summary['family']}{game}, {summary['num_params']:,} parameters without the critic")
    table.add_row(
        "training",
        f"{summary['updates']:,} updates, {summary['frames']:,} frames, {summary['flops']:.3g} FLOPs, "
        f"{summary['elapsed_s']:.0f} s",
    )
    if summary["return_last"] is not None:
        table.add_row(
            "return", f"{summary['return_last']:.2f} over the last {summary['return_last_n']} of "
            f"{summary['episodes']:,} training episodes",
        )  # fmt: skip
    print_summary(console, table, summary, summary["config"]["out"])
