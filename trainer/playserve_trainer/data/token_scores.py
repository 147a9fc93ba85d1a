"""What worlds and agents on tokens are measured by, beside the loss, and what guesses get.

Shape legend: N frames, B rows, T steps, K tokens of a frame, V codes, X numbers that are predicted of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from playserve_trainer.data.batches import IGNORED_LABEL
from playserve_trainer.models.policy import by_choices
from playserve_trainer.recipes import Baseline

__all__ = ["PartScores", "guesses"]


class PartScores:
    """Cross-entropy and accuracy of each part of what is predicted; see train.evaluate.Scores.

    ``ce_<part>`` are nats a label, ``accuracy_<part>`` is the share that the likeliest choice hits.

    Args:
        parts: Name of each tensor of logits, in order.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self._parts = tuple(parts)
        self._batches: list[Tensor] = []

    def add(self, logits: Sequence[Tensor], labels_BTH: Tensor) -> None:
        """Take in the logits of a forward pass, and labels."""
        sums = []
        for logits_MA, labels_M, _ in by_choices(logits, labels_BTH):
            nats = F.cross_entropy(logits_MA, labels_M, ignore_index=IGNORED_LABEL, reduction="sum")
            known_M = labels_M != IGNORED_LABEL
            hits = ((logits_MA.argmax(-1) == labels_M) & known_M).sum()
            sums.append(torch.stack([nats.double(), hits.double(), known_M.sum().double()]))
        self._batches.append(torch.stack(sums))

    def take(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the scores and begin anew."""
        if not self._batches:
            return {}
        sums = total(torch.stack(self._batches).sum(0)).tolist()
        self._batches = []
        found: dict[str, float] = {}
        for part, (nats, hits, labels) in zip(self._parts, sums, strict=True):
            if labels:
                found |= {f"ce_{part}": nats / labels, f"accuracy_{part}": hits / labels}
        return found


def guesses(
    learnt: tuple[NDArray[np.int64], NDArray[np.int64]],
    held_out: tuple[NDArray[np.int64], NDArray[np.int64]],
    choices: int,
) -> tuple[Baseline, ...]:
    """Return what two guesses get on held-out frames: by frequency at each place, and that nothing changes.

    "frequencies": each number as it was spread at its place, counts smoothed by adding one over the choices.
    "previous": with the share of numbers that stayed as they were, that of the frame before, else by frequency.

    Args:
        learnt: Numbers int64 [N, X] of frames to learn from, and of the frames before them.
        held_out: The same of held-out frames.
        choices: How many choices a number has at most.
    """
    now_NX, _ = held_out
    labels = int(now_NX.size)
    if not labels or not learnt[0].size:
        return ()
    belief_XV = np.stack([np.bincount(column, minlength=choices) + 1.0 / choices for column in learnt[0].T])
    belief_XV = belief_XV / belief_XV.sum(1, keepdims=True)
    places = np.arange(now_NX.shape[1])
    frequency_NX = belief_XV[places, now_NX]
    stays = float(np.clip((learnt[0] == learnt[1]).mean(), 1e-3, 1 - 1e-3))
    same_NX = now_NX == held_out[1]
    previous_NX = stays * same_NX + (1 - stays) * frequency_NX
    return (
        Baseline(
            name="frequencies", loss=float(-np.log(frequency_NX).mean()), labels=labels,
            accuracy=float((now_NX == belief_XV.argmax(1)).mean()),
        ),
        Baseline(
            name="previous", loss=float(-np.log(previous_NX).mean()), labels=labels, accuracy=float(same_NX.mean())
        ),
    )  # fmt: skip
