"""What can be guessed without looking at the screen: baselines of the loss, fitted on the training games.

Shape legend: A actions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from playserve_client.nethack.stats import KeyStatistics
from playserve_trainer.recipes import Baseline

__all__ = ["key_baselines"]


def key_baselines(training: KeyStatistics, held_out: KeyStatistics) -> tuple[Baseline, ...]:
    """Return loss and accuracy, on the held-out games, of three guesses fitted on the training games.

    "most_frequent": always the commonest key; to have a loss at all, it believes in that key as much as it was common,
    and in all others equally. "frequencies": every key as common as it was. "bigram": the same, given the key before;
    where none came before, as "frequencies". Counts are smoothed by adding one (to the bigram: `frequencies`).
    """
    num_actions = len(training.counts)
    frequency_A = (training.counts + 1.0) / (training.counts + 1.0).sum()
    best = int(training.counts.argmax())
    single_A = np.full(num_actions, (1.0 - frequency_A[best]) / (num_actions - 1))
    single_A[best] = frequency_A[best]
    bigram_AA = training.bigram + frequency_A
    bigram_AA = bigram_AA / bigram_AA.sum(1, keepdims=True)
    # Keys without a key before them stand in `counts` only.
    alone_A = held_out.counts - held_out.bigram.sum(0)
    return (
        _score("most_frequent", held_out.counts[None], single_A[None]),
        _score("frequencies", held_out.counts[None], frequency_A[None]),
        _score(
            "bigram", np.concatenate([held_out.bigram, alone_A[None]]), np.concatenate([bigram_AA, frequency_A[None]])
        ),
    )


def _score(name: str, counts: NDArray[np.int64], belief: NDArray[np.float64]) -> Baseline:
    """Score guesses [contexts, A] on counts [contexts, A]."""
    labels = int(counts.sum())
    hits = counts[np.arange(len(counts)), belief.argmax(1)].sum()
    return Baseline(
        name=name,
        loss=float(-(counts * np.log(belief)).sum() / max(1, labels)),
        accuracy=float(hits / max(1, labels)),
        labels=labels,
    )
