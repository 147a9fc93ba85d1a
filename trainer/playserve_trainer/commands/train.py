"""``playserve train``: train a policy of any family on recorded episodes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playserve.errors import BadSettingError
from playserve.files import write_json
from playserve_trainer.commands.runs import (
    CONFIG_NAME,
    check_new,
    check_publish,
    print_summary,
    saved_settings,
    with_limits,
)
from playserve_trainer.recipes import Recipe
from playserve_trainer.recipes.families import RECIPES
from playserve_trainer.train.config import OPTIMIZERS, PARALLEL, PRECISIONS, SCHEDULES, TrainConfig

if TYPE_CHECKING:
    from playserve_trainer.train.loop import Trainer
    from playserve_trainer.train.parallel import Group

__all__ = ["SUMMARY", "configure", "run"]

SUMMARY = "Train a policy on recorded episodes."

# Scores that the summary on the screen has room for.
_SHOWN_SCORES = (
    "test_loss", "ce_key", "ce_button", "ce_dx", "ce_dy", "rce_key", "psnr", "ssim", "codes_used", "perplexity",
    "probe_error", "probe_error_pixels",
)  # fmt: skip

# Flags that are no settings of the run.
_NO_SETTINGS = ("command", "family", "processes", "publish", "resume", "run", "store")

_FLAGS: Mapping[str, tuple[type, str]] = {
    "seed": (int, "of the initial weights and the order of the data"),
    "batch_size": (int, "sequences in the batch of a step, over all processes and passes"),
    "accumulate": (int, "passes of a step; each takes its share of the batch"),
    "sequence_length": (int, "steps of a sequence"),
    "lr": (float, "highest learning rate"),
    "weight_decay": (float, "of matrices and kernels"),
    "beta1": (float, "decay of the first moment"),
    "beta2": (float, "decay of the second moment"),
    "clip_norm": (float, "largest norm of the gradient; 0: no clipping"),
    "warmup_steps": (int, "steps of linear warm-up"),
    "final_lr_fraction": (float, "what a cosine ends at, as a share of lr"),
    "ema_decay": (float, "what a moving average of the weights keeps at each step; 0: no average"),
    "max_steps": (int, "stop after so many steps"),
    "max_samples": (int, "stop after so many samples"),
    "max_flops": (float, "stop after so many training FLOPs, such as 1e14"),
    "threads": (int, "CPU threads; 0: one for each core"),
    "held_out": (float, "share of the episodes that is held out"),
    "eval_samples": (int, "held-out samples of one evaluation"),
    "eval_every_steps": (int, "steps between evaluations; 0: only at the end"),
    "log_every_steps": (int, "steps behind one line of metrics.jsonl"),
    "save_every_s": (float, "seconds between saves of the whole state; 0: not by time"),
    "save_every_steps": (int, "steps between saves of the whole state; 0: not by steps"),
    "prefetch": (int, "batches made ahead"),
    "memory_limit_mib": (
        int,
        "most memory of decoded frames, MiB: beyond it they go to a scratch file, or batches are refused",
    ),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each family. Flags left out take the recipe's value, or on --resume the run's own."""
    families = parser.add_subparsers(dest="family", required=True, metavar="FAMILY")
    defaults = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    for name, recipe in RECIPES.items():
        family = families.add_parser(name, help=recipe.SUMMARY, description=f"Train {name}: {recipe.SUMMARY}.")
        recipe.configure(family)
        family.add_argument("--data", default=argparse.SUPPRESS, help="folder of recorded episodes")
        family.add_argument("--out", required=True, help="folder of the run; checkpoint/ in it is the result")
        family.add_argument(
            "--minutes", dest="max_minutes", type=float, default=argparse.SUPPRESS, help="stop after so many minutes"
        )
        for flag, (kind, text) in _FLAGS.items():
            default = defaults[flag]
            shown = "" if default is None else f" (default {default}, unless the recipe has another)"
            family.add_argument(
                f"--{flag.replace('_', '-')}", type=kind, default=argparse.SUPPRESS, help=text + shown, metavar="N"
            )
        family.add_argument(
            "--init-from", default=argparse.SUPPRESS, metavar="DIR", help="checkpoint whose weights the run begins with"
        )
        family.add_argument(
            "--freeze", default=argparse.SUPPRESS, metavar="PREFIXES",
            help="parameters that are not trained: prefixes of their names, separated by commas",
        )  # fmt: skip
        family.add_argument(
            "--processes", type=int, default=1, metavar="N",
            help="processes of this machine, or its GPUs, that share each batch (default 1); torchrun spans machines",
        )  # fmt: skip
        family.add_argument(
            "--parallel", choices=PARALLEL, default=argparse.SUPPRESS, help="how processes share the policy"
        )
        family.add_argument("--optimizer", choices=OPTIMIZERS, default=argparse.SUPPRESS)
        family.add_argument("--schedule", choices=SCHEDULES, default=argparse.SUPPRESS)
        family.add_argument("--precision", choices=PRECISIONS, default=argparse.SUPPRESS)
        family.add_argument("--device", default=argparse.SUPPRESS, help='torch device, or "auto"')
        family.add_argument("--compile", action="store_true", default=argparse.SUPPRESS, help="use torch.compile")
        family.add_argument("--resume", action="store_true", help="go on with the run in OUT, with its own settings")
        family.add_argument("--publish", metavar="NAME", help="publish the checkpoint under this name; needs --store")
        family.add_argument(
            "--store", metavar="URL", help="store of checkpoints to publish to: a folder or an fsspec URL"
        )


def run(args: argparse.Namespace) -> int:
    """Train; return 0, or 128 plus the signal that stopped it (then --resume goes on)."""
    check_publish(args.publish, args.store)
    if args.processes > 1:
        # Read when torch is imported: without it every process warns that it looks for unused parameters, as it should.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    recipe = RECIPES[args.family]
    given = {name: value for name, value in vars(args).items() if name not in _NO_SETTINGS}
    if "max_flops" in given:
        given["max_flops"] = int(given["max_flops"])
    out = Path(args.out)
    config = _resumed_config(recipe, out, given) if args.resume else _new_config(recipe, out, given)
    return _train(recipe, config, args)


def _new_config(recipe: Recipe, out: Path, given: Mapping[str, Any]) -> TrainConfig:
    if "data" not in given:
        raise BadSettingError("where are the recordings? give --data, the folder that `playserve data` wrote to")
    check_new(out)
    return TrainConfig.from_json(recipe.settings(given))


def _resumed_config(recipe: Recipe, out: Path, given: Mapping[str, Any]) -> TrainConfig:
    """Return the settings of the run in `out`, with those given on the command line instead of its own."""
    before = TrainConfig.from_json(saved_settings(out))
    # The recipe translates flags to settings; of what it adds by itself the run has its own.
    translated = recipe.settings({recipe.TASK_FLAG: before.task, **given})
    wanted = {name: translated[name] for name in ("task", *given) if name in translated}
    if model := {flag: given[flag] for flag in recipe.MODEL_FLAGS if flag in given}:
        wanted["model"] = {**before.model, **model}
    if options := {flag: translated["options"][flag] for flag in _option_flags(recipe) if flag in given}:
        wanted["options"] = {**before.options, **options}
    wanted = with_limits(wanted, dict.fromkeys(("max_steps", "max_samples", "max_flops", "max_minutes")))
    config = TrainConfig.from_json({**before.to_json(), **wanted})
    config.check_resumes(before)
    return config


def _option_flags(recipe: Recipe) -> tuple[str, ...]:
    return getattr(recipe, "OPTION_FLAGS", ())


def _train(recipe: Recipe, config: TrainConfig, args: argparse.Namespace) -> int:
    from playserve_trainer.train.local import local_processes
    from playserve_trainer.train.parallel import processes

    with local_processes(args.processes, Path(config.out)), processes() as group:
        return _train_in(group, recipe, config, args)


def _train_in(group: Group, recipe: Recipe, config: TrainConfig, args: argparse.Namespace) -> int:
    """Train as one process of a group; the main one alone writes and prints."""
    from playserve_trainer.train import finish
    from playserve_trainer.train.loop import Trainer
    from playserve_trainer.train.progress import ProgressBar, Silent
    from playserve_trainer.train.start import begin_from
    from playserve_trainer.train.stop import StopRequest

    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        bar = stack.enter_context(ProgressBar(f"{config.family} {config.task}")) if group.is_main else None
        with group.main_first():
            prepared = recipe.prepare(config, bar.reading if bar else None)
            if config.init_from and not args.resume:
                begin_from(prepared.policy, config.init_from)
        trainer = Trainer(
            config,
            prepared.policy,
            prepared.source,
            prepared.held_out,
            data_digest=prepared.report.digest,
            reporter=bar or Silent(),
            should_stop=stop,
            group=group,
            scores=prepared.scores,
        )
        if args.resume:
            trainer.resume()
        if group.is_main:
            write_json(out / CONFIG_NAME, config.to_json())
        finished = trainer.run()
    manifest, published = None, None
    if finished:
        manifest = finish.write_checkpoint(trainer, out / finish.CHECKPOINT_NAME)
    if not group.is_main:
        return 0 if finished else 128 + (stop.signum or 0)
    if finished and args.publish:
        published = finish.publish(args.store, args.publish, out / finish.CHECKPOINT_NAME)
    _report(trainer, finish.write_summary(trainer, prepared.report, manifest, published, prepared.baselines))
    return 0 if finished else 128 + (stop.signum or 0)


def _report(trainer: Trainer, summary: Mapping[str, Any]) -> None:
    """Print the summary for people; damaged files come last, where they are seen."""
    from rich.console import Console
    from rich.table import Table

    console, data, held_out = Console(), summary["data"], summary["held_out"]
    table = Table(show_header=False, box=None)
    table.add_row("policy", f"{summary['family']} {summary['task']}, {summary['num_params']:,} parameters")
    table.add_row(
        "data", f"{data['episodes']} episodes, {data['samples']:,} samples, {data['held_out_samples']:,} held out"
    )
    table.add_row(
        "training",
        f"{summary['steps']:,} steps, {summary['samples_seen']:,} samples ({summary['epochs']:.2f} epochs), "
        f"{summary['flops']:.3g} FLOPs (6ND {summary['flops_6nd']:.3g}), {summary['elapsed_s']:.0f} s",
    )
    if summary["samples_per_s"]:
        table.add_row(
            "speed",
            f"{summary['samples_per_s']:,.0f} frames/s in {summary['precision']} on {summary['threads']} threads"
            + (f", {summary['data_wait_fraction']:.1%} waiting" if summary["data_wait_fraction"] is not None else ""),
        )
    if held_out:
        table.add_row(
            "held out", f"loss {held_out['loss']:.4f}, accuracy {held_out['accuracy']:.2%}{_scores(held_out)}"
        )
    for baseline in summary["baselines"]:
        name = baseline["name"].replace("_", " ")
        scores = _scores(baseline["scores"])
        table.add_row(f"  {name}", f"loss {baseline['loss']:.4f}, accuracy {baseline['accuracy']:.2%}{scores}")
    print_summary(console, table, summary, trainer.out)
    if data["damaged"]:
        console.print(f"{len(data['damaged'])} damaged files were left out:", style="yellow")
        for item in data["damaged"]:
            console.print(f"  {item['error']}", markup=False, soft_wrap=True)


def _scores(values: Mapping[str, float]) -> str:
    """Return the scores that are for people, if there are any; summary.json has all."""
    return "".join(f", {name.replace('_', ' ')} {values[name]:.4f}" for name in _SHOWN_SCORES if name in values)
