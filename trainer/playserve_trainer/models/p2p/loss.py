"""Open P2P's loss: cross-entropy in units of guessing, and a small pull of the logits' scale towards one.

Cross-entropy of a group of heads (keys, buttons, dx, dy) is one mean over its labels, over the logarithm of its
choices; the z-loss is the square of the log-partition, whose mean counts ignored positions as zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from playserve_trainer.models.policy import IGNORED_LABEL, LabelCounts

__all__ = ["LossParts", "p2p_loss"]


@dataclass(frozen=True, slots=True)
class LossParts:
    """What the loss is made of.

    Attributes:
        total: Scalar, with gradient.
        cross_entropy: Nats a label by group, in order.
        z: Mean square log-partition, summed over the groups, without its weight.
    """

    total: Tensor
    cross_entropy: tuple[Tensor, ...]
    z: Tensor


def p2p_loss(
    logits: Sequence[Tensor],
    labels_BTH: Tensor,
    counts: LabelCounts,
    groups: Sequence[tuple[str, int, int]],
    z_weight: float,
) -> LossParts:
    """Return the loss of some rows of a batch; the losses of all its rows add up.

    Args:
        logits: One tensor [B, T, A] a head.
        labels_BTH: int64, IGNORED_LABEL where there is none to learn.
        counts: Of the whole batch.
        groups: (name, choices, heads) in the order of the heads.
        z_weight: Of the z-loss.
    """
    total = torch.zeros((), device=labels_BTH.device)
    z = torch.zeros((), device=labels_BTH.device)
    entropies, first = [], 0
    for _, choices, heads in groups:
        which = range(first, first + heads)
        first += heads
        summed = torch.zeros((), device=labels_BTH.device)
        for head in which:
            logits_MA, labels_M = logits[head].flatten(0, 1).float(), labels_BTH[..., head].flatten()
            summed = summed + F.cross_entropy(logits_MA, labels_M, ignore_index=IGNORED_LABEL, reduction="sum")
            partition_M = logits_MA.logsumexp(-1)
            z = z + (partition_M.square() * (labels_M != IGNORED_LABEL)).sum() / (counts.positions * heads)
        # A batch without a label gives no gradient, not 0 / 0.
        entropies.append(summed / counts.labels_H[which.start : which.stop].sum().clamp(min=1))
        total = total + entropies[-1] / math.log(choices)
    return LossParts(total + z_weight * z, tuple(entropies), z)
