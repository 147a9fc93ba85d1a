"""From a study to runs, by these rules.

* **Sizes at a budget C**: of the dial's values, the `window` neighbours whose mean log N is nearest to log N_c(C); N_c
  is the study's centre. They are chosen by the N of the first variant, so that variants are compared at equal sizes;
  a variant with a centre of its own has its own windows, so that its best size can be inside of them.
* **Runs**: one run for (task, variant, size, unique data, seed), at a constant learning rate, crosses every budget at
  which its size is chosen and its seed is below the budget's number of seeds. Each crossing is a cell.
* **Batch**: the study's, halved until the smallest budget of the size takes `batch.steps_at_least` steps, but not below
  `batch.smallest`.
* **Steps**: budget over FLOPs of a batch, rounded up.
* **Learning rate**: see :mod:`.tuning`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from playserve.errors import BadSettingError
from playserve_trainer.grid.cell import cell_name, run_name
from playserve_trainer.grid.study import Batch, Size, Study, Variant

__all__ = ["Measure", "Plan", "PlannedCell", "Prediction", "Run", "SizeFacts", "batch_rule", "make_plan", "window_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeFacts:
    """What a size is.

    Attributes:
        params: N.
        params_non_embedding: N without embedding tables.
        flops_per_sample: Training FLOPs of a sample, counted layer by layer.
        batch_size: Rows of a batch before the batch rule.
        sequence_length: Steps of a row.
        lr: Learning rate where none is tuned.
    """

    params: int
    params_non_embedding: int
    flops_per_sample: int
    batch_size: int
    sequence_length: int
    lr: float


#: Returns the facts of (task, name of a variant, size).
Measure = Callable[[str, str, Size], SizeFacts]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCell:
    """A cell to be made: its name, its budget in FLOPs, and whether it is kept from fits."""

    cell: str
    budget: int
    held_out: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a probe says of a run.

    Attributes:
        wall_s: Seconds of training.
        peak_mib: Most memory of its process.
        flops_per_s: Training FLOPs a second.
        unique_samples: Samples behind it.
        epochs: Times that it goes over them.
    """

    wall_s: float
    peak_mib: float
    flops_per_s: float
    unique_samples: int
    epochs: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
        name: Of its folder.
        kind: "train", or "tune" for a short run that tries a learning rate.
        task: What is learnt.
        variant: Name of the settings.
        size: Value of the size dial.
        unique: Share of the data.
        seed: Of weights and order.
        lr: Learning rate; None: that of the best of `tuned_by`.
        tuned_by: Names of the short runs.
        batch_size: Rows of a step.
        params: N.
        params_non_embedding: N without embedding tables.
        flops_per_sample: Training FLOPs of a sample.
        samples_per_step: Of a full batch.
        flops: Where it ends.
        cells: What it leaves, by rising budget; none for "tune".
        prediction: Of a probe, or None.
    """

    name: str
    kind: str
    task: str
    variant: str
    size: Size
    unique: float
    seed: int
    lr: float | None
    tuned_by: tuple[str, ...] = ()
    batch_size: int
    params: int
    params_non_embedding: int
    flops_per_sample: int
    samples_per_step: int
    flops: int
    cells: tuple[PlannedCell, ...] = ()
    prediction: Prediction | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps until it ends."""
        return math.ceil(self.flops / (self.flops_per_sample * self.samples_per_step))

    @property
    def samples(self) -> int:
        """D at its end."""
        return self.steps * self.samples_per_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A study's runs; a run's number in the list is its completion index.

    Attributes:
        study: The study at its tier.
        data: Folder of the recordings, absolute.
        runs: Short runs first, then by task, the longest first.
        machine: Where predictions were measured; "" without a probe.
        created_at: UTC, ISO 8601.
        format: Of the file.
    """

    study: Study
    data: str
    runs: tuple[Run, ...]
    machine: str = ""
    created_at: str = ""
    format: int = 1
    _by_name: dict[str, Run] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._by_name.update({run.name: run for run in self.runs})
        cells = [cell.cell for run in self.runs for cell in run.cells]
        for what, names in (("runs", [run.name for run in self.runs]), ("cells", cells)):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise BadSettingError(f"two {what} have the name {twice[0]}: rename a variant or a task")

    def run(self, name: str) -> Run:
        """Return a run by name."""
        return self._by_name[name]

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of all cells."""
        return tuple(cell.cell for run in self.runs for cell in run.cells)


def window_of(params: Sequence[int], centre: float, window: int) -> range:
    """Return which of some sizes, by rising N, are the window around a centre.

    Args:
        params: N of each size.
        centre: N_c.
        window: How many; 0, or more than there are: all.
    """
    if window == 0 or window >= len(params):
        return range(len(params))
    logs = [math.log(n) for n in params]
    off = [abs(sum(logs[i : i + window]) / window - math.log(centre)) for i in range(len(params) - window + 1)]
    start = off.index(min(off))
    return range(start, start + window)


def batch_rule(rule: Batch, facts: SizeFacts, budget: float) -> int:
    """Return the batch of a size whose smallest budget is `budget`."""
    rows = facts.batch_size
    while rows % 2 == 0 and rows // 2 >= rule.smallest:
        steps = budget / (facts.flops_per_sample * rows * facts.sequence_length)
        if steps >= rule.steps_at_least:
            break
        rows //= 2
    return rows


def make_plan(study: Study, measure: Measure, *, data: str = "", created_at: str = "") -> Plan:
    """Return the runs of a study; see the module's docstring.

    Raises:
        BadSettingError: A name is too long or comes twice, or a variant names a size that the dial does not have.
    """
    tune: dict[str, Run] = {}
    train: list[Run] = []
    for task in study.tasks:
        for name, variant in study.variants.items():
            chosen = _sizes_by_budget(study, measure, task, name)
            for size, budgets in _budgets_by_size(study, variant, chosen).items():
                _add_runs(study, measure(task, name, size), (task, name, size), budgets, tune, train)
    tasks = {task: number for number, task in enumerate(study.tasks)}
    short = sorted(tune.values(), key=lambda run: (tasks[run.task], -run.flops))
    return Plan(
        study=study,
        data=data,
        runs=(*short, *sorted(train, key=lambda run: (tasks[run.task], -run.flops))),
        created_at=created_at,
    )


def _sizes_by_budget(study: Study, measure: Measure, task: str, name: str) -> dict[float, tuple[Size, ...]]:
    """Return the sizes of a variant at each budget, hold-outs included: its own window's, or the first variant's."""
    base = name if study.variants[name].centre else next(iter(study.variants))
    centre = study.centre_of(name)
    params = {size: measure(task, base, size).params for size in study.size.listed()}
    order = sorted(params, key=lambda size: params[size])
    found = {}
    for budget in (*study.budgets, *study.hold_out):
        window = study.window
        if budget in study.hold_out:
            window = study.hold_out_window or study.window
        middle = centre.params(budget) if centre else 1.0
        found[budget] = tuple(order[i] for i in window_of([params[size] for size in order], middle, window))
    return found


def _budgets_by_size(
    study: Study, variant: Variant, chosen: Mapping[float, tuple[Size, ...]]
) -> dict[Size, list[tuple[float, int, bool]]]:
    """Return (budget, number of seeds, held out) of each size of a variant."""
    known = study.size.listed()
    if strange := [size for size in variant.sizes if size not in known]:
        raise BadSettingError(f"a variant has sizes {strange}, which are none of the dial's: {list(known)}")
    budgets = variant.budgets or study.budgets
    seeds = variant.seeds or study.seeds
    if len(seeds) not in (1, len(budgets)):
        raise BadSettingError(f"a variant has {len(seeds)} numbers of seeds for {len(budgets)} budgets")
    each = list(zip(budgets, seeds * len(budgets) if len(seeds) == 1 else seeds, strict=True))
    every = [(budget, count, False) for budget, count in sorted(each)]
    if variant.hold_out:
        every += [(budget, study.hold_out_seeds, True) for budget in study.hold_out]
    found: dict[Size, list[tuple[float, int, bool]]] = {}
    for item in every:
        for size in variant.sizes or chosen[item[0]]:
            found.setdefault(size, []).append(item)
    return found


def _add_runs(
    study: Study,
    facts: SizeFacts,
    identity: tuple[str, str, Size],
    budgets: Sequence[tuple[float, int, bool]],
    tune: dict[str, Run],
    train: list[Run],
) -> None:
    """Add the runs of one size of a variant and task, and the short ones that tune its learning rate."""
    task, name, size = identity
    variant = study.variants[name]
    rows = batch_rule(study.batch, facts, min(budget for budget, _, _ in budgets))
    common: dict[str, Any] = {
        "task": task, "variant": name, "size": size, "batch_size": rows, "params": facts.params,
        "params_non_embedding": facts.params_non_embedding, "flops_per_sample": facts.flops_per_sample,
        "samples_per_step": rows * facts.sequence_length,
    }  # fmt: skip
    tuned = not ("lr" in variant.training or "lr" in study.training) and len(study.tuning.candidates) > 1
    lr = None if tuned else study.tuning.candidates[0] if _one_candidate(study, variant) else facts.lr
    names: list[str] = []
    if tuned:
        largest = max((b for b, _, held_out in budgets if not held_out), default=budgets[-1][0])
        flops = round(study.tuning.budget or study.tuning.share * largest)
        for candidate in study.tuning.candidates:
            short = run_name(task, name, size, 1.0, study.tuning.seed, candidate)
            names.append(short)
            tune[short] = Run(
                name=short, kind="tune", unique=1.0, seed=study.tuning.seed, lr=candidate, flops=flops, **common
            )
    for unique in variant.unique or study.unique:
        for seed in range(max(count for _, count, _ in budgets)):
            cells = tuple(
                PlannedCell(
                    cell=cell_name(study.study, task, name, size, unique, budget, seed),
                    budget=round(budget),
                    held_out=held_out,
                )
                for budget, count, held_out in budgets
                if seed < count
            )
            train.append(
                Run(
                    name=run_name(task, name, size, unique, seed), kind="train", unique=unique, seed=seed, lr=lr,
                    tuned_by=tuple(names), flops=cells[-1].budget, cells=cells, **common,
                )
            )  # fmt: skip


def _one_candidate(study: Study, variant: Variant) -> bool:
    return len(study.tuning.candidates) == 1 and not ("lr" in variant.training or "lr" in study.training)
