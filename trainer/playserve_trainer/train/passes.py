"""One pass of a policy over a part of a batch, and the parts themselves.

Shape legend: B rows, T steps, H heads, A actions, M = B * T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from playserve_trainer.data.batches import IGNORED_LABEL, Batch, BatchSource, PartSource
from playserve_trainer.models.policy import ForwardOutput, LabelCounts, Policy
from playserve_trainer.train.compute import autocast
from playserve_trainer.train.parallel import Forward, Group, split

__all__ = ["Parts", "Pass", "count_labels", "run_pass"]


class Parts:
    """The parts of a source's batches that one process learns from; a BatchSource of parts.

    Part `index * passes + p` is the p-th pass over this process's rows of batch `index`.

    Args:
        source: Whole batches.
        group: The processes.
        passes: Passes of a step.
    """

    def __init__(self, source: BatchSource, group: Group, passes: int = 1) -> None:
        start, stop = group.rows(source.batch_size)
        self.spans = [(start + first, start + last) for first, last in split(stop - start, passes)]
        self.batch_size = stop - start
        self.sequence_length = source.sequence_length
        self.carries_state = source.carries_state
        self.num_samples = source.num_samples
        self._source = source

    def batch(self, index: int) -> Batch:
        """Return a part; see the class."""
        step, part = divmod(index, len(self.spans))
        start, stop = self.spans[part]
        if stop - start == self._source.batch_size:
            return self._source.batch(step)
        if isinstance(self._source, PartSource):
            return self._source.part(step, start, stop)
        return self._source.batch(step).rows(start, stop)


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass gives; everything stays on the device.

    Attributes:
        loss: The part's share of the batch's loss.
        hits: int64, labels that the likeliest action hits.
        labels: int64, labels.
        output: Of the forward pass.
    """

    loss: Tensor
    hits: Tensor
    labels: Tensor
    output: ForwardOutput


def run_pass(
    forward: Forward,
    policy: Policy,
    batch: Batch,
    memory: Mapping[str, Tensor],
    counts: LabelCounts,
    precision: str,
) -> Pass:
    """Return the loss, hits and labels of a batch that is on its device.

    Args:
        forward: What computes the logits: the policy, compiled or spread over processes perhaps.
        policy: Whose loss it is.
        batch: The part.
        memory: Before the part's first step; empty: none.
        counts: Of the whole batch.
        precision: "fp32" or "bf16".
    """
    with autocast(batch.labels_BTH.device, precision):
        output = forward(batch.inputs, batch.executed_BTH, batch.first_BT, memory or None)
    loss = policy.loss(output.logits, batch.labels_BTH, counts)
    hits, labels = policy.count_hits(output.logits, batch.labels_BTH)
    return Pass(loss, hits, labels, output)


def count_labels(parts: Sequence[Batch], group: Group, device: torch.device) -> tuple[LabelCounts, int]:
    """Return the label counts of the whole batch of a step, and its samples, from this process's parts of it."""
    per_head = torch.stack([(part.labels_BTH != IGNORED_LABEL).sum((0, 1)) for part in parts]).sum(0)
    positions = sum(part.first_BT.numel() for part in parts)
    samples = sum(part.samples for part in parts)
    if group.size > 1:
        counted = torch.cat([per_head.cpu(), torch.tensor([positions, samples])])
        *_, positions, samples = group.sum(counted).tolist()
        per_head = counted[:-2]
    return LabelCounts(per_head.to(device), positions), samples
