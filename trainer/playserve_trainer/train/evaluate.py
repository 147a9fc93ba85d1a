"""Means over held-out data, always the same samples of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from playserve_trainer.data.batches import BatchSource
from playserve_trainer.data.prefetch import Prefetcher
from playserve_trainer.models.policy import Policy
from playserve_trainer.train.by_episode import Clusters, EpisodeLosses
from playserve_trainer.train.metrics import Means
from playserve_trainer.train.parallel import Forward, Group
from playserve_trainer.train.passes import Parts, count_labels, run_pass

__all__ = ["Evaluation", "Scores", "evaluate", "evaluation_batches"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over held-out data.

    Attributes:
        loss: What training makes small: nats a label, unless the policy has a loss of its own.
        accuracy: Share of labels that the likeliest action hits.
        labels: How many labels were asked for.
        scores: What else the family measures, by name.
        clusters: The loss by episode, where that was asked for.
    """

    loss: float
    accuracy: float
    labels: int
    scores: Mapping[str, float] = field(default_factory=dict)
    clusters: Clusters | None = None


class Scores(Protocol):
    """What a family measures beside loss and accuracy."""

    def add(self, logits: Sequence[Tensor], labels_BTH: Tensor) -> None:
        """Take in this process's rows of a batch: logits [B, T, A] a head, and labels."""

    def take(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the scores and begin anew; `total` sums a tensor over the processes."""


def evaluation_batches(source: BatchSource, samples: int) -> int:
    """Return how many batches an evaluation on about so many samples takes."""
    batch_samples = source.batch_size * source.sequence_length
    return max(1, math.ceil(min(samples, source.num_samples) / batch_samples))


def evaluate(
    forward: Forward,
    policy: Policy,
    source: BatchSource,
    *,
    batches: int,
    precision: str,
    prefetch: int,
    group: Group | None = None,
    scores: Scores | None = None,
    by_episode: EpisodeLosses | None = None,
) -> Evaluation | None:
    """Return the means over the first batches of a source; None if they hold no label. The policy is in eval mode.

    Args:
        forward: What computes the logits.
        policy: Whose loss it is.
        source: Held-out batches.
        batches: How many.
        precision: "fp32" or "bf16".
        prefetch: Batches made ahead.
        group: Processes that share the rows; where they cannot (too few rows), each does all.
        scores: What else to measure.
        by_episode: Adds up the loss of each episode; the source's batches say their episodes.
    """
    group = group or Group()
    if source.batch_size % group.size:
        group = Group()
    device, means = policy.device(), Means(policy.device())
    memory: Mapping[str, Tensor] = {}
    with torch.no_grad(), Prefetcher(Parts(source, group), depth=prefetch) as parts:
        for _ in range(batches):
            part = parts.next()
            counts, _ = count_labels([part], group, device)
            part = part.to(device)
            done = run_pass(forward, policy, part, memory, counts, precision)
            memory = done.output.state if source.carries_state else {}
            means.add(done.loss, done.hits, done.labels, counts.labels_H.sum())
            if scores is not None:
                scores.add(done.output.logits, part.labels_BTH)
            if by_episode is not None:
                by_episode.add(done.output.logits, part)
    values = means.take(group)
    # What could not be measured, such as the mean of nothing, is left out: it is no JSON.
    others = {name: v for name, v in (scores.take(group.sum) if scores else {}).items() if math.isfinite(v)}
    clusters = by_episode.take(group) if by_episode else None
    return None if values is None else Evaluation(values.loss, values.accuracy, values.labels, others, clusters)
