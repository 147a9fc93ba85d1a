"""Numbers of a run: running means on the device, and the lines of metrics.jsonl."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor

from playserve.files import write_text
from playserve_trainer.train.parallel import Group

__all__ = ["METRICS_NAME", "MeanValues", "Means", "MetricsLog", "NoLog"]

METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class MeanValues:
    """Means over some batches.

    Attributes:
        loss: Nats a label.
        accuracy: Share of labels that the likeliest action hits.
        labels: How many labels there were.
    """

    loss: float
    accuracy: float
    labels: int


class Means:
    """Sums over batches; nothing waits for the device until :meth:`take`."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, loss: Tensor, hits: Tensor, labels: Tensor, weight: Tensor) -> None:
        """Add a part of a batch: its share of the loss, its hits and labels, and the labels of the whole batch."""
        self._sums += torch.stack([loss.detach().double() * weight, hits.double(), labels.double()])

    def take(self, group: Group | None = None) -> MeanValues | None:
        """Return the means over all processes and begin anew; None if there was no label."""
        loss, hits, labels = (group or Group()).sum(self._sums).tolist()
        self._sums.zero_()
        return MeanValues(loss / labels, hits / labels, int(labels)) if labels else None


class MetricsLog:
    """Appends lines to a run's metrics.jsonl; a context manager.

    Args:
        path: The file.
        resume_at: Lines of later steps are cut off, because the run does those steps again; None: begin anew.
    """

    def __init__(self, path: Path, resume_at: int | None = None) -> None:
        kept = _lines_until(path, resume_at) if resume_at is not None and path.exists() else []
        write_text(path, "".join(kept))
        self._file: IO[str] = path.open("a")

    def write(self, **values: Any) -> None:
        """Append one line; it is in the file when this returns."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Make what was written outlast a power cut."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class NoLog(MetricsLog):
    """Writes nothing: the log of every process but the main one."""

    def __init__(self) -> None:
        pass

    def write(self, **values: Any) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def _lines_until(path: Path, step: int) -> list[str]:
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            break  # a kill cut this line; what is behind it cannot be trusted
    return kept
