"""A cell: its identity, its name, and the flat JSON object that it leaves once its checkpoint is published.

The file is written last and atomically: where it is missing, the cell was not trained. It is what the laws read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError, DataLossError
from playserve.files import write_json
from playserve.specs import check_policy_name
from playserve_trainer.grid.study import Size
from playserve_trainer.grid.tables import parse, to_json

__all__ = ["Cell", "cell_name", "number", "read_cell", "run_name", "slug", "write_cell"]

#: Prefix of what a family measures beside loss and accuracy, as keys of the JSON object.
_SCORE = "score_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is known of a finished cell.

    Attributes:
        cell: Its name; also that of its policy in the store.
        run: The run that crossed it.
        study: With family, task, variant, size, unique, budget and seed the identity.
        tier: Of the study.
        family: Model family.
        task: What was learnt.
        variant: Name of the settings.
        size: Value of the size dial.
        unique: Share of the data that was learnt from.
        budget: FLOPs that it was made for.
        seed: Of the run.
        held_out: Whether it is kept from every fit, to judge a forecast.
        flops: C, FLOPs of the training, counted layer by layer.
        flops_convention: How.
        flops_6nd: 6ND.
        params: N.
        params_non_embedding: N without embedding tables.
        samples: D, repeats counted.
        tokens_seen: D in tokens, as 6ND counts it; None in cells of before there was a difference: `samples`.
        unique_samples: Samples behind D.
        epochs: D over unique samples.
        loss: Held-out loss of a labelled step; None where nothing is held out (learning from play).
        loss_se: Its standard error, clustered by episode; None with fewer than two episodes.
        accuracy: Held-out share of labels that the likeliest action hits, or None.
        labels: Labelled held-out steps.
        wall_s: Seconds of training up to here, evaluations between included.
        lr: Learning rate.
        lr_at_edge: Whether it is the lowest or highest of the candidates that it was chosen from; None: not tuned.
        batch_size: Rows of a step.
        schedule: Of the learning rate.
        data_digest: Of what was learnt from.
        held_out_digest: Which episodes, which samples, how many choices a label has: only two cells with the same one
            can be compared in pairs.
        code_version: Of the code.
        created_at: UTC, ISO 8601.
        checkpoint: {"store", "name", "version"}.
        clusters: {"ids", "loss_sum", "labels"}, the held-out loss by episode.
        stop: "budget" or "held-out loss rose".
        flops_run: FLOPs of the whole run when the best checkpoint was chosen; None under the rule "budget".
        predicted_wall_s: What the plan said of `wall_s`; None without a probe.
        device: Torch device.
        precision: "fp32" or "bf16".
        threads: CPU threads.
        scores: What else the family measures.
    """

    cell: str
    run: str
    study: str
    tier: str
    family: str
    task: str
    variant: str
    size: Size
    unique: float
    budget: int
    seed: int
    held_out: bool
    flops: int
    flops_convention: str
    flops_6nd: int
    params: int
    params_non_embedding: int
    samples: int
    unique_samples: int
    epochs: float
    loss: float | None
    loss_se: float | None
    accuracy: float | None
    labels: int
    wall_s: float
    lr: float
    lr_at_edge: bool | None
    batch_size: int
    schedule: str
    data_digest: str
    held_out_digest: str
    code_version: str
    created_at: str
    checkpoint: Mapping[str, str]
    clusters: Mapping[str, Any]
    stop: str
    flops_run: int | None = None
    predicted_wall_s: float | None = None
    tokens_seen: int | None = None
    device: str = ""
    precision: str = ""
    threads: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_policy_name(self.cell)
        lengths = {len(self.clusters.get(key, ())) for key in ("ids", "loss_sum", "labels")}
        if len(lengths) != 1:
            raise BadSettingError(f"cell {self.cell}: clusters are ids, loss_sum and labels of one length")

    def to_json(self) -> dict[str, Any]:
        """Return a flat JSON object; scores are keys with the prefix "score_"."""
        value = to_json(self)
        scores = value.pop("scores")
        return {**value, **{f"{_SCORE}{name}": score for name, score in scores.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "cell") -> Cell:
        """Return the cell of a JSON object.

        Raises:
            BadSettingError: A key is unknown, missing or of another type.
        """
        if not isinstance(value, Mapping):
            raise BadSettingError(f"{where} is a JSON object, not {type(value).__name__}")
        scores = {key.removeprefix(_SCORE): item for key, item in value.items() if key.startswith(_SCORE)}
        plain = {key: item for key, item in value.items() if not key.startswith(_SCORE)}
        return parse(cls, {**plain, "scores": scores}, where)


def write_cell(folder: Path, cell: Cell) -> Path:
    """Write a cell's file into a folder, atomically; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{cell.cell}.json"
    write_json(path, cell.to_json())
    return path


def read_cell(path: Path) -> Cell:
    """Return the cell of a file.

    Raises:
        DataLossError: It is no cell's file.
    """
    try:
        return Cell.from_json(json.loads(path.read_text()), str(path))
    except (ValueError, BadSettingError) as error:
        raise DataLossError(f"{path} is no cell: {error}") from error


def slug(text: str) -> str:
    """Return a text as a part of a name: lower case, other characters than letters, digits and _ as "-"."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower().replace("@", "any")).strip("-") or "x"


def number(value: float) -> str:
    """Return a number as a part of a name: 3e12, 0.25, 12."""
    text = f"{value:.12g}"
    if value >= 1000:
        mantissa, _, exponent = f"{value:.11e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("+", "")


def run_name(task: str, variant: str, size: Size, unique: float, seed: int, lr: float | None = None) -> str:
    """Return the name of a run; with a learning rate, of a short one that tries it."""
    parts = [slug(task), slug(variant), f"n{slug(str(size))}"]
    if unique != 1.0:
        parts.append(f"u{number(unique)}")
    parts.append(f"s{seed}" if lr is None else f"lr{number(lr)}")
    return ".".join(parts)


def cell_name(study: str, task: str, variant: str, size: Size, unique: float, budget: float, seed: int) -> str:
    """Return the name of a cell, which is valid for a policy and a file.

    Raises:
        BadSettingError: It would be too long.
    """
    head, _, tail = run_name(task, variant, size, unique, seed).rpartition(".")
    return check_policy_name(f"{slug(study)}.{head}.c{number(budget)}.{tail}")
