"""Training settings of a run, and what a size is: what the recipes of the families say, with a study's changes."""

from __future__ import annotations

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError
from playserve_trainer.grid.plan import Measure, Plan, Run, SizeFacts
from playserve_trainer.grid.study import Size, Study
from playserve_trainer.recipes.families import recipe_of
from playserve_trainer.train.config import TrainConfig

__all__ = ["measure_sizes", "run_config", "training_of"]

# Settings that the grid itself decides.
_OURS = ("seed", "schedule", "final_lr_fraction", "max_steps", "max_samples", "max_flops", "max_minutes", "held_out",
         "eval_samples", "eval_every_steps", "data", "out", "data_share", "family", "task", "model",
         "options")  # fmt: skip


def measure_sizes(study: Study, data: str) -> Measure:
    """Return a function that builds each size once and counts its parameters and FLOPs.

    Args:
        study: The study.
        data: Folder of the recordings; of some families one of them is looked at.
    """

    @functools.cache
    def measure(task: str, variant: str, size: Size) -> SizeFacts:
        from playserve_trainer.flops import count_flops

        recipe = recipe_of(study.family_of(variant))
        given = {**_given(study, task, variant, size, data), "data": data, "out": "", "max_steps": 1}
        config = TrainConfig.from_json(recipe.settings(given))
        policy = recipe.sketch(config)
        return SizeFacts(
            params=policy.num_params(),
            params_non_embedding=policy.num_params_without_embeddings(),
            flops_per_sample=count_flops(policy, config.sequence_length).training,
            batch_size=config.batch_size,
            sequence_length=config.sequence_length,
            lr=config.lr,
        )

    return measure


def run_config(plan: Plan, run: Run, out: Path, *, lr: float, threads: int = 0, device: str = "auto") -> TrainConfig:
    """Return the training settings of a run, whose limit is its end.

    Args:
        plan: The plan.
        run: One of its runs.
        out: Folder of the run.
        lr: Learning rate.
        threads: CPU threads; 0: one for each core.
        device: torch device, or "auto".
    """
    study = plan.study
    given = {
        "device": device, **_given(study, run.task, run.variant, run.size, plan.data), "data": plan.data,
        "out": str(out), "threads": threads, "seed": run.seed, "lr": lr, "batch_size": run.batch_size,
        "max_flops": run.flops,
    }  # fmt: skip
    # data_share is no flag of every recipe's settings, but a setting of every run.
    return TrainConfig.from_json({**recipe_of(study.family_of(run.variant)).settings(given), "data_share": run.unique})


def training_of(study: Study, name: str, ours: Collection[str]) -> dict[str, Any]:
    """Return the training settings of a variant.

    Raises:
        BadSettingError: One of them is among `ours`, which the grid decides.
    """
    training = {**study.training, **study.variants[name].training}
    if found := sorted(set(training) & set(ours)):
        raise BadSettingError(
            f"study {study.study}: [training] sets {', '.join(found)}, which the grid decides by itself"
        )
    return training


def _given(study: Study, task: str, name: str, size: Size, data: str) -> dict[str, Any]:
    """Return what would be given to ``playserve train`` for a size of a variant; "{data}" in texts is the folder."""
    variant, training = study.variants[name], training_of(study, name, _OURS)
    given = {
        recipe_of(study.family_of(name)).TASK_FLAG: task, **training, **variant.options, study.size.dial: size,
        **variant.model, "held_out": study.evaluation.held_out, "eval_every_steps": 0, "schedule": "constant",
    }  # fmt: skip
    return {name: _placed(value, data) for name, value in given.items()}


def _placed(value: Any, data: str) -> Any:
    if isinstance(value, list | tuple):
        return [_placed(item, data) for item in value]
    return value.replace("{data}", data) if isinstance(value, str) else value
