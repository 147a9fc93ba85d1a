"""Held-out losses by episode: what a law resamples, and what two policies are compared by in pairs.

Shape legend: B rows, T steps, H heads of an action, A choices of a head, E episodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from playserve.errors import BadSettingError
from playserve_trainer.data.batches import IGNORED_LABEL, Batch
from playserve_trainer.models.policy import by_choices
from playserve_trainer.train.parallel import Group

__all__ = ["Clusters", "EpisodeLosses"]


@dataclass(frozen=True, slots=True)
class Clusters:
    """What an evaluation cost, episode by episode.

    Attributes:
        ids: Name of each episode that had a label.
        loss_sum: Loss of its labelled steps, added up.
        labels: Its labelled steps.
    """

    ids: tuple[str, ...]
    loss_sum: tuple[float, ...]
    labels: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Mean loss of a labelled step, over all episodes."""
        return sum(self.loss_sum) / sum(self.labels)

    @property
    def loss_se(self) -> float | None:
        """Standard error of :attr:`loss`, clustered by episode; None where fewer than two episodes had labels.

        The loss is a ratio of two sums over episodes; this is its linearised variance with the small-sample factor
        G / (G - 1), because the steps of one episode are alike.
        """
        count, mean = len(self.ids), self.loss
        if count < 2:
            return None
        residuals = sum((s - mean * n) ** 2 for s, n in zip(self.loss_sum, self.labels, strict=True))
        return math.sqrt(residuals * count / (count - 1)) / sum(self.labels)


class EpisodeLosses:
    """Adds up what each episode's labelled steps cost; nothing waits for the device until :meth:`take`.

    Args:
        names: Name of each episode, by the number that batches give it.
        head_weights: What a nat of each head counts, [H]; empty: 1 each. A step costs the weighted sum of its heads.
    """

    def __init__(self, names: Sequence[str], head_weights: Sequence[float] = ()) -> None:
        self._names, self._weights = tuple(names), tuple(head_weights)
        self._sums_2E: Tensor | None = None

    def add(self, logits: Sequence[Tensor], batch: Batch) -> None:
        """Take in the logits of a forward pass for a batch that says its episodes.

        Raises:
            BadSettingError: It does not, or it has another number of heads than there are weights.
        """
        if batch.episodes_BT is None:
            raise BadSettingError("losses by episode want batches that say the episode of each step")
        labels_BTH, device = batch.labels_BTH, batch.labels_BTH.device
        weights = self._weights or (1.0,) * labels_BTH.shape[-1]
        if len(weights) != labels_BTH.shape[-1]:
            raise BadSettingError(f"{len(weights)} head weights for {labels_BTH.shape[-1]} heads")
        weight_H = torch.tensor(weights, dtype=torch.float64, device=device)
        cost_M = torch.zeros(labels_BTH[..., 0].numel(), dtype=torch.float64, device=device)
        for logits_MA, labels_M, heads in by_choices(logits, labels_BTH):
            nats_M = F.cross_entropy(logits_MA, labels_M, ignore_index=IGNORED_LABEL, reduction="none")
            cost_M += nats_M.double().view(len(cost_M), -1) @ weight_H[heads]
        known_M = (labels_BTH != IGNORED_LABEL).any(-1).flatten()
        if self._sums_2E is None:
            self._sums_2E = torch.zeros(2, len(self._names), dtype=torch.float64, device=device)
        episodes_M = batch.episodes_BT.flatten()
        self._sums_2E[0].index_add_(0, episodes_M, cost_M * known_M)
        self._sums_2E[1].index_add_(0, episodes_M, known_M.double())

    def take(self, group: Group | None = None) -> Clusters | None:
        """Return the sums over all processes and begin anew; None if there was no label."""
        if self._sums_2E is None:
            return None
        costs, labels = (group or Group()).sum(self._sums_2E).tolist()
        self._sums_2E = None
        found = [
            (name, cost, int(count)) for name, cost, count in zip(self._names, costs, labels, strict=True) if count
        ]
        return Clusters(*zip(*found, strict=True)) if found else None
