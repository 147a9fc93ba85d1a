"""A study by reinforcement learning, on the grid's own plan, folder and cells; `grid returns` and `laws` read them.

A cell has no held-out loss: what is learnt from is made by the agent itself. Each run crosses its budgets at a constant
learning rate, and begins its service and actors anew after each.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from playserve.errors import BadSettingError
from playserve.files import write_json
from playserve_trainer.flops import CONVENTION
from playserve_trainer.grid.cell import Cell, write_cell
from playserve_trainer.grid.failures import write_failure
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.grid.plan import Measure, Plan, PlannedCell, Run, SizeFacts, make_plan
from playserve_trainer.grid.running import publish_once
from playserve_trainer.grid.settings import training_of
from playserve_trainer.grid.study import Size, Study, load_study
from playserve_trainer.rl.config import RLConfig
from playserve_trainer.rl.critic import ActorCritic
from playserve_trainer.rl.families import begin
from playserve_trainer.rl.presets import with_presets
from playserve_trainer.rl.run import RLRun, Service
from playserve_trainer.train.finish import CHECKPOINT_NAME, code_version
from playserve_trainer.train.state import STATE_NAME
from playserve_trainer.wording import utc_now

__all__ = ["load_rl_study", "plan_rl", "run_rl_grid"]

# Settings that the grid itself decides.
_OURS = ("family", "game", "out", "seed", "lr_final_fraction", "max_steps", "max_flops", "max_minutes", "model")


def load_rl_study(name: str, tier: str) -> Study:
    """Return a study of this package, or of a TOML file, at a tier; raises as `load_study`."""
    return load_study(name, tier, "playserve_trainer.rl")


def plan_rl(study: Study) -> Plan:
    """Return the runs of a study.

    Raises:
        BadSettingError: It has settings that mean nothing here.
    """
    if study.tuning.candidates or study.stop.rule != "budget" or study.unique != (1.0,):
        raise BadSettingError(f"study {study.study}: what is tuned, stopped or shared by held-out data has none here")
    return make_plan(study, _measure(study), created_at=utc_now())


def run_rl_grid(
    folder: GridFolder,
    plan: Plan,
    *,
    store: str,
    service: Service | None = None,
    device: str = "auto",
    should_stop: Callable[[], bool] = lambda: False,
    minutes: float | None = None,
    say: Callable[[str], None] = print,
) -> bool:
    """Learn every run that is not done, one after another; return False if that was stopped before the end.

    Runs that fail say why in their folder, and are left out until that file is removed. Of several processes on one
    folder each takes runs that nobody is at work on.

    Args:
        folder: The grid's.
        plan: Its plan.
        store: Folder or URL that the cells' checkpoints go to.
        service: Where actions come from; None: each run starts its own.
        device: torch device of the learner.
        should_stop: Asked between updates.
        minutes: Save what there is after so long, and end.
        say: Takes lines for people.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes

    def stop() -> bool:
        return should_stop() or (deadline is not None and time.monotonic() > deadline)

    for run in plan.runs:
        with folder.claim(run.name) as ours:
            if not ours or folder.is_done(run) or folder.failure(run.name).exists():
                continue
            try:
                for index in folder.open_cells(run):
                    if not _cross(folder, plan, run, run.cells[index], store, service, device, stop, say):
                        return False
            except Exception as error:  # noqa: BLE001 - the others go on; status says what became of this one
                traceback.print_exc()
                write_failure(folder, run.name, f"{type(error).__name__}: {error}")
                say(f"{run.name} failed: {error}")
    return True


def _cross(
    folder: GridFolder,
    plan: Plan,
    run: Run,
    cell: PlannedCell,
    store: str,
    service: Service | None,
    device: str,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> bool:
    """Learn up to the budget of a cell and leave the cell; return False if it was stopped before."""
    out = folder.run(run.name)
    config = _config(
        plan.study, run.task, run.variant, run.size,
        {"out": str(out), "seed": run.seed, "max_flops": float(cell.budget), "device": device},
    )  # fmt: skip
    say(f"{cell.cell}: to {cell.budget:.3g} FLOPs")
    learning = RLRun(config, service, resume=(out / STATE_NAME).exists(), say=say)
    write_json(out / "config.json", config.to_json())
    finished = learning.run(stop)
    summary = learning.finish(finished=finished)
    if not finished:
        return False
    _leave(folder, plan, run, cell, learning, summary, store)
    return True


def _leave(
    folder: GridFolder, plan: Plan, run: Run, cell: PlannedCell, learning: RLRun, summary: Mapping[str, Any], store: str
) -> None:
    """Publish the checkpoint and write the cell's file."""
    directory, learner, study = folder.run(run.name) / CHECKPOINT_NAME, learning.learner, plan.study
    version = publish_once(store, cell.cell, directory)
    config = learning.config
    write_cell(
        folder.cells,
        Cell(
            cell=cell.cell, run=run.name, study=study.study, tier=study.tier, family=study.family, task=run.task,
            variant=run.variant, size=run.size, unique=1.0, budget=cell.budget, seed=run.seed, held_out=cell.held_out,
            flops=learner.flops, flops_convention=f"{CONVENTION}; of the learner, critic and replay included",
            flops_6nd=6 * run.params * learner.steps, params=run.params,
            params_non_embedding=run.params_non_embedding, samples=learner.steps, unique_samples=learner.steps,
            epochs=1.0, loss=None, loss_se=None, accuracy=None, labels=0, wall_s=round(learning.elapsed_s, 3),
            lr=config.lr, lr_at_edge=None, batch_size=config.batch, schedule="constant", data_digest="",
            held_out_digest="", code_version=code_version(), created_at=utc_now(),
            checkpoint={"store": store, "name": cell.cell, "version": version}, clusters={}, stop="budget",
            device=str(learner.device), precision="fp32", threads=config.threads,
            scores={
                name: float(summary[name])
                for name in ("frames", "flops_acting", "episodes", "return_last", "return_last_n")
                if summary[name] is not None
            },
        ),
    )  # fmt: skip


def _measure(study: Study) -> Measure:
    """Return a function that says what a size is; FLOPs are those of a step that is new, its replays included."""
    looked: dict[str, Mapping[str, Any]] = {}  # what a game's environment decides, by task

    def measure(task: str, variant: str, size: Size) -> SizeFacts:
        config = _config(study, task, variant, size, {"out": "", "max_flops": 1.0})
        start = begin(dataclasses.replace(config, model={**looked.get(task, {}), **config.model}))
        looked.setdefault(task, start.model)
        policy = start.policy
        _, per_step = ActorCritic(policy, config.critic_hidden).flops()
        rows, length = config.batch + config.replay, config.unroll + 1
        embeddings = sum(m.weight.numel() for m in policy.modules() if isinstance(m, nn.Embedding))
        return SizeFacts(
            params=policy.num_params(),
            params_non_embedding=policy.num_params() - embeddings,
            flops_per_sample=round(per_step * rows * length / (config.batch * config.unroll)),
            batch_size=config.batch,
            sequence_length=config.unroll,
            lr=config.lr,
        )

    return measure


def _config(study: Study, task: str, name: str, size: Size, rest: Mapping[str, Any]) -> RLConfig:
    variant, training = study.variants[name], training_of(study, name, _OURS)
    options = {**training.pop("env_options", {}), **variant.options}
    given = {
        **training, "game": task, "model": {study.size.dial: size, **variant.model}, "env_options": options,
        "lr_final_fraction": 1.0, **rest,
    }  # fmt: skip
    return with_presets(study.family, given)
