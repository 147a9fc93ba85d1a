"""Held-out losses by episode: they add up to the loss, and their error is clustered."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from playserve.errors import BadSettingError
from playserve_trainer.data.batches import IGNORED_LABEL, Batch
from playserve_trainer.train.by_episode import Clusters, EpisodeLosses


def _batch(labels_BTH: torch.Tensor, episodes_BT: torch.Tensor | None) -> Batch:
    first = torch.zeros(labels_BTH.shape[:2], dtype=torch.bool)
    return Batch({}, labels_BTH, first, labels_BTH, first.numel(), episodes_BT)


def test_losses_are_summed_by_episode() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[[0], [1], [IGNORED_LABEL]], [[4], [2], [3]]])
    episodes = torch.tensor([[0, 0, 0], [2, 2, 0]])
    losses = EpisodeLosses(("a", "b", "c"))
    losses.add([logits], _batch(labels, episodes))
    losses.add([logits], _batch(labels, episodes))
    clusters = losses.take()
    assert clusters is not None
    nats = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
    assert clusters.ids == ("a", "c")  # of b nothing was asked
    assert clusters.labels == (6, 4)
    assert clusters.loss_sum == pytest.approx([2 * float(nats[[0, 1, 5]].sum()), 2 * float(nats[[3, 4]].sum())])
    assert clusters.loss == pytest.approx(float(nats.sum()) / 5)
    assert losses.take() is None


def test_heads_have_weights() -> None:
    logits = [torch.zeros(1, 1, 4), torch.zeros(1, 1, 2)]
    losses = EpisodeLosses(("a",), (0.5, 2.0))
    losses.add(logits, _batch(torch.zeros(1, 1, 2, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)))
    clusters = losses.take()
    assert clusters is not None
    assert clusters.loss_sum == pytest.approx([0.5 * math.log(4) + 2 * math.log(2)])
    assert clusters.loss_se is None  # one episode says nothing of the spread of episodes
    with pytest.raises(BadSettingError, match="2 head weights for 1 heads"):
        losses.add(logits[:1], _batch(torch.zeros(1, 1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)))
    with pytest.raises(BadSettingError, match="say the episode"):
        losses.add(logits, _batch(torch.zeros(1, 1, 2, dtype=torch.int64), None))


def test_the_error_is_that_of_a_mean_over_episodes() -> None:
    # With episodes of one length the ratio is a plain mean of their means.
    clusters = Clusters(("a", "b", "c", "d"), (10.0, 20.0, 30.0, 60.0), (10, 10, 10, 10))
    means = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert clusters.loss == 3.0
    assert clusters.loss_se == pytest.approx(float(means.std()) / 2)
