"""A study: everything that decides a grid of cells, read from one TOML file, at one of its tiers.

The file's top level holds what all tiers share; a table of ``[tiers]`` is laid over it. What follows from a study by
rule (sizes at a budget, batch, steps, learning rate) is in :mod:`.plan` and :mod:`.tuning`.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve_trainer.grid.tables import merged, parse

__all__ = ["STOP_RULES", "Batch", "Centre", "Evaluation", "Returns", "Size", "Sizes", "Stop", "Study", "Tuning",
           "Variant", "load_study", "packaged_studies"]  # fmt: skip

STOP_RULES = ("budget", "held-out")

#: A value of the size dial: a width, or the name of a size.
Size = int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The size dial and its values.

    Attributes:
        dial: The flag of ``playserve train`` that sets the size.
        values: The values, if they are listed.
        first: Else the smallest of a geometric grid,
        ratio: the ratio of two neighbours,
        count: and how many there are.
        multiple: Values of the grid are rounded to multiples of this; those that come twice are left out.
    """

    dial: str
    values: tuple[Size, ...] = ()
    first: int = 0
    ratio: float = 0.0
    count: int = 0
    multiple: int = 1

    def __post_init__(self) -> None:
        grid = self.first >= 1 and self.ratio > 1.0 and self.count >= 1 and self.multiple >= 1
        if bool(self.values) == bool(self.first or self.ratio or self.count) or not (self.values or grid):
            raise BadSettingError(
                f"size: give values, or first >= 1, ratio > 1 and count >= 1, not values {self.values}, first "
                f"{self.first}, ratio {self.ratio}, count {self.count}"
            )

    def listed(self) -> tuple[Size, ...]:
        """Return the values, the smallest first."""
        if self.values:
            return self.values
        grid = (self.multiple * max(1, round(self.first * self.ratio**i / self.multiple)) for i in range(self.count))
        return tuple(dict.fromkeys(grid))


@dataclass(frozen=True, slots=True, kw_only=True)
class Centre:
    """Where the sizes of a budget are centred: N_c(C) = n0 * (C / c0) ** exponent parameters."""

    n0: float
    c0: float
    exponent: float

    def __post_init__(self) -> None:
        if not (self.n0 > 0 and self.c0 > 0 and math.isfinite(self.exponent)):
            raise BadSettingError(f"centre: n0 and c0 are above 0, not {self.n0}, {self.c0}")

    def params(self, budget: float) -> float:
        """Return N_c of a budget."""
        return float(self.n0 * (budget / self.c0) ** self.exponent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """When a run is over.

    Attributes:
        rule: "budget": at its last budget, and each budget that it crosses is a cell; "held-out": when the held-out
            loss has not fallen for `patience` evaluations, or at the budget; the best checkpoint is the cell.
        patience: Evaluations without a better one.
        every_epochs: Epochs of the run's unique data between two evaluations.
        at_least_steps: Steps between two evaluations at least, where the data are few.
    """

    rule: str = "budget"
    patience: int = 3
    every_epochs: float = 0.5
    at_least_steps: int = 1

    def __post_init__(self) -> None:
        if self.rule not in STOP_RULES:
            raise BadSettingError(f"stop.rule is one of {', '.join(STOP_RULES)}, not {self.rule!r}")
        if self.patience < 1 or not self.every_epochs > 0 or self.at_least_steps < 1:
            raise BadSettingError("stop: patience and at_least_steps are at least 1, every_epochs above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How the learning rate of each size is chosen: a short run of each candidate, the lowest held-out loss wins.

    Attributes:
        candidates: Learning rates; empty: none is tuned.
        budget: FLOPs of each short run; 0: by `share`.
        share: Of the largest budget that the size is in (hold-outs not counted).
        seed: Of the short runs.
    """

    candidates: tuple[float, ...] = ()
    budget: float = 0.0
    share: float = 0.0
    seed: int = 1000

    def __post_init__(self) -> None:
        if self.candidates and bool(self.budget) == bool(self.share):
            raise BadSettingError(f"tuning: give budget or share, not {self.budget} and {self.share}")
        if any(not lr > 0 for lr in self.candidates) or len(set(self.candidates)) != len(self.candidates):
            raise BadSettingError(f"tuning.candidates are different and above 0, not {list(self.candidates)}")
        if not 0 <= self.share <= 1 or self.budget < 0:
            raise BadSettingError(f"tuning: share is 0 to 1 and budget at least 0, not {self.share}, {self.budget}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The batch of a size: the family's, or [training]'s, halved until a run takes enough steps.

    Attributes:
        steps_at_least: Steps that the smallest budget of a size takes at least; 0: the batch is never halved.
        smallest: It is not halved below this.
    """

    steps_at_least: int = 0
    smallest: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The held-out set, the same in every cell of a task.

    Attributes:
        samples: Samples at most; the same ones each time.
        batch_size: Rows of its batches, whatever the run's.
        sequence_length: Steps of its rows, whatever the run's.
        held_out: Share of the episodes that is held out.
        seed: Of the choice of the samples.
    """

    samples: int = 8192
    batch_size: int = 128
    sequence_length: int = 1
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.samples, self.batch_size, self.sequence_length) < 1 or not 0 < self.held_out < 1:
            raise BadSettingError("evaluation: samples, batch_size and sequence_length are at least 1, held_out 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Returns:
    """How the return of a cell is measured through the endpoint.

    Attributes:
        command: Arguments of ``playserve rollout``; "{task}" stands for the task.
        row: The row of its table that counts, such as "sample-s0".
        episodes: Of the first round.
        target_se: Standard error that is enough, by task; "*" stands for all others.
        cap: Episodes at most.
        seed_start: Environment seed of the first episode.
    """

    command: tuple[str, ...] = ()
    row: str = "sample"
    episodes: int = 20
    target_se: Mapping[str, float] = field(default_factory=dict)
    cap: int = 100
    seed_start: int = 2_000_000

    def __post_init__(self) -> None:
        if self.episodes < 2 or self.cap < self.episodes:
            raise BadSettingError(f"returns: 2 <= episodes <= cap, not {self.episodes}, {self.cap}")

    def target(self, task: str) -> float:
        """Return the standard error that is enough for a task; 0: the cap decides."""
        return self.target_se.get(task, self.target_se.get("*", 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A named set of settings; what is empty is the study's.

    Attributes:
        title: For people.
        family: Model family, if it is another one than the study's; its size dial is the same flag.
        model: Flags of the model.
        options: Flags of the family's options.
        training: Training settings; with `lr` nothing is tuned. "{data}" in a text stands for the study's folder of
            data, beside which its commands may have left checkpoints to begin from.
        sizes: Values of the dial at every budget, instead of a window.
        centre: Where its own windows lie; without one they are those of the study.
        budgets: Those of the study's that it has.
        seeds: Number of seeds at each of its budgets.
        unique: Shares of the data.
        hold_out: Whether it has the hold-out budgets, too.
    """

    title: str = ""
    family: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[Size, ...] = ()
    centre: Centre | None = None
    budgets: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    unique: tuple[float, ...] = ()
    hold_out: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One study at one tier.

    Attributes:
        study: Its name.
        tier: The tier.
        title: For people.
        family: Model family.
        tasks: What of the family's world is learnt; each is a grid of its own.
        size: The size dial.
        budgets: Training FLOPs, counted layer by layer, in rising order.
        hold_out: Further budgets that no fit sees: forecasts are judged by them.
        window: Sizes at a budget; 0: all.
        hold_out_window: Sizes at a hold-out budget; 0: as `window`.
        centre: Where the window lies; needed where there is one.
        seeds: Number of seeds at each budget, one number for all or one for each.
        hold_out_seeds: Number of seeds at hold-out budgets.
        unique: Shares of the data to learn from.
        variants: By name; the first one's sizes decide the windows of all that have no centre of their own.
        training: Training settings of all runs.
        batch: The batch rule.
        tuning: Of the learning rate.
        stop: The stop rule.
        evaluation: The held-out set.
        returns: How returns are measured.
        transfer: How they are measured where nothing was learnt, such as a scenario that the data lack; without a
            command they are not.
        data: ``playserve`` commands that make the data and whatever else its variants begin from, in order; "{task}"
            and "{data}" stand for the task and the folder.
    """

    study: str
    tier: str
    family: str
    tasks: tuple[str, ...]
    size: Sizes
    budgets: tuple[float, ...]
    title: str = ""
    hold_out: tuple[float, ...] = ()
    window: int = 0
    hold_out_window: int = 0
    centre: Centre | None = None
    seeds: tuple[int, ...] = (1,)
    hold_out_seeds: int = 1
    unique: tuple[float, ...] = (1.0,)
    variants: Mapping[str, Variant] = field(default_factory=lambda: {"base": Variant()})
    training: Mapping[str, Any] = field(default_factory=dict)
    batch: Batch = field(default_factory=Batch)
    tuning: Tuning = field(default_factory=Tuning)
    stop: Stop = field(default_factory=Stop)
    evaluation: Evaluation = field(default_factory=Evaluation)
    returns: Returns = field(default_factory=Returns)
    transfer: Returns = field(default_factory=Returns)
    data: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"study {self.study}, tier {self.tier}"
        every = (*self.budgets, *self.hold_out)
        if not self.budgets or not self.tasks or not self.variants:
            raise BadSettingError(f"{where}: budgets, tasks and variants are not empty")
        if list(every) != sorted(set(every)) or every[0] < 1:
            raise BadSettingError(f"{where}: budgets rise, and those held out are above all others, not {list(every)}")
        if len(self.seeds) not in (1, len(self.budgets)) or min(*self.seeds, self.hold_out_seeds, 1) < 1:
            raise BadSettingError(f"{where}: seeds is one number, or one for each of {len(self.budgets)} budgets")
        if (self.window or self.hold_out_window) and self.centre is None:
            raise BadSettingError(f"{where}: a window of sizes wants a centre")
        if min(self.window, self.hold_out_window) < 0:
            raise BadSettingError(f"{where}: a window is at least 1, or 0 for all sizes")
        for share in (*self.unique, *(u for variant in self.variants.values() for u in variant.unique)):
            if not 0 < share <= 1:
                raise BadSettingError(f"{where}: unique are shares above 0 and at most 1, not {share}")
        if self.stop.rule == "held-out" and len(every) > 1:
            raise BadSettingError(f"{where}: under the held-out rule there is one budget, the most that a run may take")
        for name, variant in self.variants.items():
            if strange := sorted(set(variant.budgets) - set(self.budgets)):
                raise BadSettingError(f"{where}: variant {name} has budgets {strange}, which are none of the study's")
            if variant.centre and variant.sizes:
                raise BadSettingError(f"{where}: variant {name} has sizes, and a centre of windows: give one of them")

    def family_of(self, variant: str) -> str:
        """Return the model family of a variant."""
        return self.variants[variant].family or self.family

    def centre_of(self, variant: str) -> Centre | None:
        """Return where the windows of a variant lie: its own centre, or the study's."""
        return self.variants[variant].centre or self.centre


def packaged_studies(package: str = "playserve_trainer.grid") -> dict[str, str]:
    """Return the text of each study that comes with a package, by name."""
    folder = files(package) / "studies"
    found = {item.name.removesuffix(".toml"): item for item in folder.iterdir() if item.name.endswith(".toml")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


def load_study(name: str, tier: str, package: str = "playserve_trainer.grid") -> Study:
    """Return a study at a tier.

    Args:
        name: Of a packaged study, or the path of a TOML file.
        tier: One of the file's.
        package: Whose packaged studies are meant.

    Raises:
        NotFoundError: There is neither.
        DataLossError: The file is no TOML.
        BadSettingError: A key or value is wrong, or there is no such tier.
    """
    packaged = packaged_studies(package)
    if name in packaged:
        text = packaged[name]
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise NotFoundError(f"{name!r} is neither a file nor a packaged study: {', '.join(packaged)}")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataLossError(f"{name} is no TOML: {error}") from error
    tiers = table.pop("tiers", {})
    if tier not in tiers:
        raise BadSettingError(f"{name} has no tier {tier!r}; it has {', '.join(tiers)}")
    return parse(Study, merged(table, {**tiers[tier], "tier": tier}), f"{name} [{tier}]")
