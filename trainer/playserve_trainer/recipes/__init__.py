"""Recipes: what a family adds to the one training loop (flags, good settings, policy and batches).

A recipe is a module with the members of :class:`Recipe`; it imports torch only inside its functions, because the
command line looks at every recipe's flags.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from playserve_trainer.train.config import TrainConfig

if TYPE_CHECKING:
    from playserve_trainer.data.batches import BatchSource
    from playserve_trainer.data.episodes import DataReport
    from playserve_trainer.models.policy import Policy
    from playserve_trainer.train.evaluate import Scores

__all__ = ["Baseline", "Prepared", "Recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A guess that needs no net, scored on the held-out data.

    Attributes:
        name: Of the guess.
        loss: Nats a label.
        accuracy: Share of labels that the likeliest action hits.
        labels: How many labels there were.
        scores: What else the family measures, by name.
    """

    name: str
    loss: float
    accuracy: float
    labels: int
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a recipe makes of its settings.

    Attributes:
        policy: Freshly initialised under the run's seed.
        source: Batches to learn from.
        held_out: Batches to evaluate on; None if nothing is held out.
        report: What was read.
        baselines: What the held-out loss is to be compared with.
        scores: What an evaluation measures beside loss and accuracy, or None.
    """

    policy: Policy
    source: BatchSource
    held_out: BatchSource | None
    report: DataReport
    baselines: tuple[Baseline, ...] = ()
    scores: Scores | None = None


class Recipe(Protocol):
    """What a recipe's module holds; OPTION_FLAGS, flags that become entries of the setting `options`, may be absent."""

    SUMMARY: str
    #: The flag that becomes the setting `task`.
    TASK_FLAG: str
    #: The flags that become entries of the setting `model`, under their own names.
    MODEL_FLAGS: tuple[str, ...]

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the family's own flags, without defaults (argparse.SUPPRESS)."""

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return training settings: the family's good ones, overridden by those given on the command line."""

    def prepare(self, config: TrainConfig, progress: Callable[[int, int], None] | None = None) -> Prepared:
        """Read the data and make the policy."""
