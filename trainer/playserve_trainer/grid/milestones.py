"""How far a run trains before it is looked at: to each budget, or from look to look until the held-out loss rises."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playserve.errors import PlayserveError, StateError
from playserve.files import read_json, write_json
from playserve_trainer.grid.plan import Run
from playserve_trainer.grid.study import Stop
from playserve_trainer.train import finish
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.loop import Trainer

__all__ = ["BEST_NAME", "NotMeasurableError", "Point", "cross_budgets", "evaluated", "stop_when_it_rises"]

BEST_NAME = "best"
_HISTORY_NAME = "held_out.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A run at one of its steps.

    Attributes:
        step: Optimizer steps.
        samples: D.
        flops: C.
        wall_s: Seconds of training.
        loss: Held out.
        loss_se: Its standard error, or None.
        accuracy: Held out.
        labels: Labelled held-out steps.
        clusters: The loss by episode.
        scores: What else the family measures.
    """

    step: int
    samples: int
    flops: int
    wall_s: float
    loss: float
    loss_se: float | None
    accuracy: float
    labels: int
    clusters: Mapping[str, Any]
    scores: Mapping[str, float]


class NotMeasurableError(PlayserveError):
    """The held-out loss is not a finite number, or there is none."""


def evaluated(trainer: Trainer) -> Point:
    """Return where a run is, after :meth:`Trainer.run` or :meth:`Trainer.resume`; all of its processes must call it.

    Raises:
        NotMeasurableError: The held-out set has no label, or its loss is not finite.
    """
    if trainer.last_evaluation is None:  # the run was resumed where it is
        trainer.last_evaluation = trainer.evaluate()
    evaluation = trainer.last_evaluation
    clusters = evaluation.clusters if evaluation else None
    if evaluation is None or clusters is None:
        raise NotMeasurableError("the held-out set has no label")
    if not math.isfinite(clusters.loss):
        raise NotMeasurableError(f"the held-out loss of step {trainer.step} is {clusters.loss}")
    return Point(
        step=trainer.step,
        samples=trainer.samples,
        flops=trainer.flops,
        wall_s=round(trainer.elapsed_s, 3),
        loss=clusters.loss,
        loss_se=clusters.loss_se,
        accuracy=evaluation.accuracy,
        labels=sum(clusters.labels),
        clusters={"ids": list(clusters.ids), "loss_sum": list(clusters.loss_sum), "labels": list(clusters.labels)},
        scores=dict(evaluation.scores),
    )


def cross_budgets(trainer: Trainer, config: TrainConfig, budgets: list[int], run: Run) -> Iterator[Point | None]:
    """Train from budget to budget; yield where the run is at each, and None if it was stopped.

    A constant learning rate makes the run that goes on identical to one that ends at the budget.

    Raises:
        StateError: The saved run is beyond the first budget already.
    """
    batch_flops = run.flops_per_sample * run.samples_per_step
    for budget in budgets:
        if trainer.flops >= budget + batch_flops:
            raise StateError(
                f"the saved state of run {run.name} is at {trainer.flops:.4g} FLOPs, beyond the budget {budget:.4g} "
                "whose cell is missing: remove the run's folder to train it again"
            )
        trainer.go_on_with(dataclasses.replace(config, max_flops=budget))
        if not trainer.run():
            yield None
            return
        yield evaluated(trainer)


def stop_when_it_rises(
    trainer: Trainer, config: TrainConfig, stop: Stop, unique_samples: int, origin: Callable[[], Mapping[str, Any]]
) -> tuple[Point, str] | None:
    """Train until the held-out loss has not fallen for a while, or to the budget; the best checkpoint is in best/.

    What was evaluated is in held_out.json beside it, so that a kill repeats at most one stretch. The best of many
    evaluations on one set is a little better than it would be on another: so are the best of all runs compared here.

    Args:
        trainer: Of the run.
        config: Its settings; their limit is the budget.
        stop: The rule.
        unique_samples: Samples of an epoch.
        origin: Returns what the best checkpoint's manifest is to say.

    Returns:
        The best point and why the run stopped; None if it was stopped from outside.
    """
    out, main = Path(config.out), trainer.group.is_main
    per_step = config.batch_size * config.sequence_length
    every = max(stop.at_least_steps, round(stop.every_epochs * unique_samples / per_step), 1)
    history = read_json(out / _HISTORY_NAME) or {"evaluations": [], "best": None}
    history["evaluations"] = [item for item in history["evaluations"] if item["step"] <= trainer.step]
    while True:
        if trainer.step and all(item["step"] != trainer.step for item in history["evaluations"]):
            point = evaluated(trainer)
            if history["best"] is None or point.loss < history["best"]["loss"]:
                finish.write_checkpoint(trainer, out / BEST_NAME, {**origin(), "step": point.step})
                history["best"] = dataclasses.asdict(point)
            history["evaluations"].append({"step": point.step, "samples": point.samples, "loss": point.loss})
            if main:
                write_json(out / _HISTORY_NAME, history)
        best = history["best"]
        since = [item for item in history["evaluations"] if best is not None and item["step"] > best["step"]]
        if len(since) >= stop.patience:
            return Point(**best), "held-out loss rose"
        if config.max_flops is not None and trainer.flops >= config.max_flops:
            return Point(**best), "budget"
        trainer.go_on_with(dataclasses.replace(config, max_steps=(trainer.step // every + 1) * every))
        if not trainer.run():
            return None
