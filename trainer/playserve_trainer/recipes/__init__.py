"""Recipes: what a family adds to the one training loop (flags, good settings, policy and batches).

A recipe is a module with the members of :class:`Recipe`; it imports torch only inside its functions, because the
command line looks at every recipe's flags.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from playserve_trainer.train.config import TrainConfig

if TYPE_CHECKING:
    from playserve_trainer.data.batches import BatchSource
    from playserve_trainer.data.episodes import DataReport
    from playserve_trainer.models.policy import Policy
    from playserve_trainer.train.evaluate import Scores

__all__ = ["Baseline", "HeldOut", "HeldOutMaker", "Prepared", "Recipe", "held_out_maker", "take_flags"]


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
class HeldOut:
    """Held-out batches that say their episodes.

    Attributes:
        source: The batches.
        episodes: Name of each episode, by the number that batches give it.
    """

    source: BatchSource
    episodes: tuple[str, ...]


#: Makes held-out batches of (batch size, sequence length, seed of the order), whatever those of the run are: runs that
#: differ in them are evaluated on the same samples so.
HeldOutMaker = Callable[[int, int, int], HeldOut]


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
        held_out_as: Makes held-out batches cut in another way; None if nothing is held out.
        head_weights: What a nat of each head counts in a step's held-out loss; empty: 1 each.
    """

    policy: Policy
    source: BatchSource
    held_out: BatchSource | None
    report: DataReport
    baselines: tuple[Baseline, ...] = ()
    scores: Scores | None = None
    held_out_as: HeldOutMaker | None = None
    head_weights: tuple[float, ...] = ()


class Recipe(Protocol):
    """What a recipe's module holds.

    OPTION_FLAGS, flags that become entries of the setting `options`, and READ_MODEL_FLAGS, model flags that `read` goes
    by, may be absent.
    """

    SUMMARY: str
    #: The flag that becomes the setting `task`.
    TASK_FLAG: str
    #: The flags that become entries of the setting `model`, under their own names.
    MODEL_FLAGS: tuple[str, ...]

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the family's own flags, without defaults (argparse.SUPPRESS)."""

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return training settings: the family's good ones, overridden by those given on the command line."""

    def read(self, config: TrainConfig, progress: Callable[[int, int], None] | None = None) -> Any:
        """Read the data: what :meth:`prepare` takes for runs on the same data, task and held-out share."""

    def prepare(
        self, config: TrainConfig, progress: Callable[[int, int], None] | None = None, *, data: Any = None
    ) -> Prepared:
        """Make the policy and its batches; read the data, unless :meth:`read` has."""

    def sketch(self, config: TrainConfig) -> Policy:
        """Return a policy of the run's shapes, its weights of no use, from as little of the data as that takes."""


def take_flags(given: dict[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """Return those of some flags that are given, in the order of `flags`; they are gone from `given` afterwards."""
    return {flag: given.pop(flag) for flag in flags if flag in given}


def held_out_maker(
    config: TrainConfig, episodes: tuple[str, ...], source: Callable[[TrainConfig], BatchSource]
) -> HeldOutMaker:
    """Return what makes held-out batches cut in another way.

    Args:
        config: The run's settings.
        episodes: Name of each episode, by the number that batches give it.
        source: Makes held-out batches, which say their episodes, of the settings in another cut.
    """

    def make(batch_size: int, sequence_length: int, seed: int) -> HeldOut:
        cut = dataclasses.replace(
            config, batch_size=batch_size, sequence_length=sequence_length, seed=seed, accumulate=1
        )
        return HeldOut(source=source(cut), episodes=episodes)

    return make
