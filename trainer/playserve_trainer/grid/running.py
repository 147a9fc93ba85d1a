"""One run of a grid in this process: data, training, and for each cell its checkpoint, the store and JSON, in order.

The cell's JSON is written last. A kill before it repeats the evaluation of that cell, and nothing is published twice:
what is in the store already is recognised by the digest of its weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError, PlayserveError
from playserve.files import write_json
from playserve_trainer import checkpoint
from playserve_trainer.flops import CONVENTION
from playserve_trainer.grid.cell import Cell, write_cell
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.grid.milestones import (
    BEST_NAME,
    NotMeasurableError,
    Point,
    cross_budgets,
    evaluated,
    stop_when_it_rises,
)
from playserve_trainer.grid.plan import Plan, PlannedCell, Run
from playserve_trainer.grid.settings import run_config
from playserve_trainer.grid.tuning import ChosenRate, choose_rate
from playserve_trainer.recipes import Prepared
from playserve_trainer.recipes.families import recipe_of
from playserve_trainer.store import CheckpointStore
from playserve_trainer.train import finish
from playserve_trainer.train.by_episode import EpisodeLosses
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.errors import TrainingDivergedError
from playserve_trainer.train.loop import Trainer
from playserve_trainer.train.parallel import Group
from playserve_trainer.train.progress import Reporter
from playserve_trainer.train.start import begin_from
from playserve_trainer.train.state import STATE_NAME
from playserve_trainer.wording import utc_now

__all__ = ["DataCache", "Hands", "Times", "publish_once", "train_run"]


class DataCache:
    """The data that were read last, for runs on the same ones: reading is a large part of a short run's time."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._data: Any = None

    def read(self, config: TrainConfig) -> Any:
        """Return the data of a run."""
        recipe = recipe_of(config.family)
        model = {flag: config.model.get(flag) for flag in getattr(recipe, "READ_MODEL_FLAGS", ())}
        key = json.dumps([config.family, config.task, config.data, config.held_out, dict(config.options), model])
        if key != self._key:
            self._key, self._data = None, None  # let go of the old ones before the new ones come
            self._data = recipe.read(config)
            self._key = key
        return self._data


@dataclass(slots=True)
class Times:
    """Where a worker's time went, seconds.

    Attributes:
        preparing: Reading data, building policies, loading states.
        training: In the training loop, evaluations not counted.
        evaluating: On the held-out set.
        publishing: Writing checkpoints and cells.
    """

    preparing: float = 0.0
    training: float = 0.0
    evaluating: float = 0.0
    publishing: float = 0.0

    @contextlib.contextmanager
    def measure(self, what: str) -> Iterator[None]:
        """Add the time of the block."""
        began = time.monotonic()
        try:
            yield
        finally:
            setattr(self, what, getattr(self, what) + time.monotonic() - began)


@dataclass(slots=True, kw_only=True)
class Hands:
    """What a run is given to work with.

    Attributes:
        store: Folder or URL of the store that checkpoints go to.
        reporter: Is told how far the run is.
        should_stop: Asked between steps.
        threads: CPU threads; 0: one for each core.
        device: torch device, or "auto".
        data: The data that were read last.
        group: The processes of the run.
        times: Where the time goes.
    """

    store: str
    reporter: Reporter
    should_stop: Callable[[], bool] = lambda: False
    threads: int = 0
    device: str = "auto"
    data: DataCache = field(default_factory=DataCache)
    group: Group = field(default_factory=Group)
    times: Times = field(default_factory=Times)


def train_run(folder: GridFolder, plan: Plan, run: Run, hands: Hands) -> bool:
    """Train a run from where it is to its end; return False if it was stopped before.

    Raises:
        NotReadyError: Its learning rate is not tuned yet.
        PlayserveError: Whatever else keeps it from its end; what is finished stays.
    """
    rate = choose_rate(folder, run)
    open_cells = [run.cells[i] for i in folder.open_cells(run)]
    with hands.times.measure("preparing"):
        at_work = _AtWork.begin(folder, plan, run, rate, hands)
    try:
        if run.kind == "tune":
            return at_work.tune()
        if plan.study.stop.rule == "held-out":
            return at_work.until_it_rises(open_cells[0])
        return at_work.cross(open_cells)
    finally:
        hands.times.evaluating += at_work.trainer.evaluation_s
        hands.times.training += max(0.0, at_work.trainer.loop_s - at_work.trainer.evaluation_s)


@dataclass(slots=True, kw_only=True)
class _AtWork:
    """A run that is being trained."""

    folder: GridFolder
    plan: Plan
    run: Run
    rate: ChosenRate
    hands: Hands
    config: TrainConfig
    trainer: Trainer
    prepared: Prepared
    held_out: tuple[int, int]  # its samples, and how many batches of them are taken

    @classmethod
    def begin(cls, folder: GridFolder, plan: Plan, run: Run, rate: ChosenRate, hands: Hands) -> _AtWork:
        """Read the data and make the trainer, with its saved state if there is one."""
        out = folder.run(run.name)
        out.mkdir(parents=True, exist_ok=True)
        config = run_config(plan, run, out, lr=rate.lr, threads=hands.threads, device=hands.device)
        with hands.group.main_first():
            prepared = recipe_of(config.family).prepare(config, data=hands.data.read(config))
            if config.init_from and not (out / STATE_NAME).exists():
                begin_from(prepared.policy, config.init_from)
        if prepared.held_out_as is None:
            raise BadSettingError("a grid wants held-out data: evaluation.held_out is above 0")
        cut = plan.study.evaluation
        held_out = prepared.held_out_as(cut.batch_size, cut.sequence_length, cut.seed)
        batch_samples = held_out.source.batch_size * held_out.source.sequence_length
        # Whole batches, so that no sample comes twice.
        batches = max(1, min(cut.samples, held_out.source.num_samples) // batch_samples)
        config = dataclasses.replace(config, eval_samples=min(batches * batch_samples, held_out.source.num_samples))
        trainer = Trainer(
            config,
            prepared.policy,
            prepared.source,
            held_out.source,
            data_digest=prepared.report.digest,
            reporter=hands.reporter,
            should_stop=hands.should_stop,
            group=hands.group,
            scores=prepared.scores,
            by_episode=EpisodeLosses(held_out.episodes, prepared.head_weights),
        )
        if (out / STATE_NAME).exists():
            trainer.resume()
        if hands.group.is_main:
            write_json(out / "config.json", config.to_json())
        return cls(
            folder=folder, plan=plan, run=run, rate=rate, hands=hands, config=config, trainer=trainer,
            prepared=prepared, held_out=(held_out.source.num_samples, batches),
        )  # fmt: skip

    def tune(self) -> bool:
        """Train a short run to its end, and write how good its learning rate is."""
        point: Point | None = None
        diverged = ""
        try:
            if not self.trainer.run():
                return False
            point = evaluated(self.trainer)
        except (TrainingDivergedError, NotMeasurableError) as error:
            diverged = str(error)
        if self.hands.group.is_main:
            path = self.folder.tuning(self.run.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(
                path,
                {
                    "run": self.run.name, "task": self.run.task, "variant": self.run.variant, "size": self.run.size,
                    "lr": self.run.lr, "loss": point.loss if point else None,
                    "loss_se": point.loss_se if point else None, "accuracy": point.accuracy if point else None,
                    "diverged": diverged, "flops": self.trainer.flops, "samples": self.trainer.samples,
                    "wall_s": round(self.trainer.elapsed_s, 3), "batch_size": self.run.batch_size,
                    "held_out_digest": self._held_out_digest(point) if point else None,
                    "code_version": finish.code_version(), "created_at": utc_now(),
                },
            )  # fmt: skip
        return True

    def cross(self, cells: list[PlannedCell]) -> bool:
        """Train to the budget of each cell, and leave the cell there."""
        points = cross_budgets(self.trainer, self.config, [cell.budget for cell in cells], self.run)
        for cell, point in zip(cells, points, strict=False):
            if point is None:
                return False
            with self.hands.times.measure("publishing"):
                finish.write_checkpoint(
                    self.trainer, self.folder.run(self.run.name) / finish.CHECKPOINT_NAME, self._origin(cell)
                )
                self._leave(cell, point, finish.CHECKPOINT_NAME, "budget")
        return True

    def until_it_rises(self, cell: PlannedCell) -> bool:
        """Train until the held-out loss rises, and leave the best checkpoint as the cell."""
        unique = self.prepared.source.num_samples
        found = stop_when_it_rises(self.trainer, self.config, self.plan.study.stop, unique, lambda: self._origin(cell))
        if found is None:
            return False
        with self.hands.times.measure("publishing"):
            self._leave(cell, found[0], BEST_NAME, found[1])
        return True

    def _origin(self, cell: PlannedCell) -> dict[str, Any]:
        """Return what a checkpoint's manifest says of its cell, beside what the policy and the run know."""
        unique = self.prepared.source.num_samples
        return {
            "study": self.plan.study.study, "cell": cell.cell, "run": self.run.name, "variant": self.run.variant,
            "budget": cell.budget, "unique_samples": unique, "epochs": self.trainer.samples / unique,
            "lr": self.rate.lr, "batch_size": self.run.batch_size,
        }  # fmt: skip

    def _held_out_digest(self, point: Point) -> str:
        """Return the digest of what a point was evaluated on: episodes, samples of them, and choices of each label."""
        cut, choices = dataclasses.asdict(self.plan.study.evaluation), list(self.trainer.policy.heads())
        what = [point.clusters["ids"], point.clusters["labels"], *self.held_out, cut, choices]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def _leave(self, cell: PlannedCell, point: Point, name: str, stop: str) -> None:
        """Publish a checkpoint and write the cell's file; the main process does."""
        if not self.hands.group.is_main:
            return
        run, study, unique = self.run, self.plan.study, self.prepared.source.num_samples
        directory = self.folder.run(run.name) / name
        version = publish_once(self.hands.store, cell.cell, directory)
        predicted = round(cell.budget / run.prediction.flops_per_s, 1) if run.prediction else None
        tokens = point.samples * self.trainer.policy.tokens_per_sample()
        write_cell(
            self.folder.cells,
            Cell(
                cell=cell.cell, run=run.name, study=study.study, tier=study.tier, family=self.config.family,
                task=run.task, variant=run.variant, size=run.size, unique=run.unique, budget=cell.budget, seed=run.seed,
                held_out=cell.held_out, flops=point.flops, flops_convention=CONVENTION,
                flops_6nd=6 * run.params * tokens, params=run.params, tokens_seen=tokens,
                params_non_embedding=run.params_non_embedding, samples=point.samples, unique_samples=unique,
                epochs=point.samples / unique, loss=point.loss, loss_se=point.loss_se, accuracy=point.accuracy,
                labels=point.labels, wall_s=point.wall_s, lr=self.rate.lr, lr_at_edge=self.rate.at_edge,
                batch_size=run.batch_size, schedule=self.config.schedule, data_digest=self.trainer.data_digest,
                held_out_digest=self._held_out_digest(point), code_version=finish.code_version(), created_at=utc_now(),
                checkpoint={"store": self.hands.store, "name": cell.cell, "version": version},
                clusters=point.clusters, stop=stop,
                flops_run=self.trainer.flops if study.stop.rule == "held-out" else None, predicted_wall_s=predicted,
                device=str(self.trainer.device), precision=self.trainer.precision, threads=self.trainer.threads,
                scores=point.scores,
            ),
        )  # fmt: skip


def publish_once(url: str, name: str, directory: Path) -> str:
    """Publish a checkpoint unless its weights are the newest version of the name already; return the version."""
    store, mine = CheckpointStore(url), checkpoint.read_manifest(directory)
    with contextlib.suppress(PlayserveError):
        latest = store.latest(name)
        there = store.manifest(name, latest)
        if (there.weights_sha256, there.samples_seen) == (mine.weights_sha256, mine.samples_seen):
            return latest
    return store.publish(name, directory)
