"""How well keyboard and mouse are predicted: perplexity as Open P2P reports it, cross-entropies, and what guesses get.

Groups of heads are keys, buttons, dx and dy. Every number is over the labels that are learnt:

* ``ce_<group>``: mean cross-entropy, nats a label; ``perplexity_<group>``: its exponential.
* ``test_loss``: Open P2P's "test loss", the mean over batches of the exponential of the keys' mean cross-entropy of the
  batch. It depends on how the data are cut into batches; ``perplexity_key`` does not.
* ``rce_<group>``: how much of the cross-entropy of guessing by frequency is gone, percent, cut at -1.
* ``ce_<group>_changed``: cross-entropy of steps at which the group's action is not the one before. A policy that only
  repeats itself is good in all the rest, and bad here.

Shape legend: B rows, T steps, H heads, A choices of a head, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from playserve_trainer.data.p2p import Recordings
from playserve_trainer.data.p2p_clips import Clips
from playserve_trainer.models.policy import IGNORED_LABEL, UNKNOWN_ACTION
from playserve_trainer.recipes import Baseline

__all__ = ["ActionScores", "Group", "Guesses", "guess_baselines"]

#: (name, choices of each head, heads), in the order of the heads.
Group = tuple[str, int, int]

_EM_ROUNDS = 50


class ActionScores:
    """The scores of an evaluation; see the module's docstring and :class:`playserve_trainer.train.evaluate.Scores`.

    Args:
        groups: Of the heads.
        by_frequency: Cross-entropy of guessing by frequency, by group; without it there is no RCE.
    """

    def __init__(self, groups: Sequence[Group], by_frequency: Mapping[str, float] | None = None) -> None:
        self._groups = tuple(groups)
        self._by_frequency = dict(by_frequency or {})
        self._batches: list[Tensor] = []

    def add(self, logits: Sequence[Tensor], labels_BTH: Tensor) -> None:
        """Take in logits [B, T, A] of each head, and labels."""
        nats = [
            F.cross_entropy(
                head.flatten(0, 1).float(), labels_BTH[..., h].flatten(), ignore_index=IGNORED_LABEL, reduction="none"
            ).view(labels_BTH.shape[:2])
            for h, head in enumerate(logits)
        ]
        self.add_nats(torch.stack(nats, dim=-1), labels_BTH)

    def add_nats(self, nats_BTH: Tensor, labels_BTH: Tensor) -> None:
        """Take in what each label cost; what ignored labels cost does not count."""
        known_BTH = labels_BTH != IGNORED_LABEL
        nats_BTH = nats_BTH.double().where(known_BTH, nats_BTH.new_zeros(()).double())
        moved_BTH = torch.zeros_like(known_BTH)
        moved_BTH[:, 1:] = (labels_BTH[:, 1:] != labels_BTH[:, :-1]) & known_BTH[:, 1:] & known_BTH[:, :-1]
        sums, first = [], 0
        for _, _, heads in self._groups:
            its = slice(first, first + heads)
            changed_BT1 = moved_BTH[..., its].any(-1, keepdim=True)
            counted = (known_BTH[..., its], known_BTH[..., its] & changed_BT1)
            sums.append([s for which in counted for s in ((nats_BTH[..., its] * which).sum(), which.sum().double())])
            first += heads
        self._batches.append(torch.stack([torch.stack(row) for row in sums]))

    def take(self, total: Callable[[Tensor], Tensor] = lambda values: values) -> dict[str, float]:
        """Return the scores and begin anew; `total` sums a tensor over the processes."""
        if not self._batches:
            return {}
        # [batches, G, (nats, labels, nats where changed, labels where changed)]
        by_batch = total(torch.stack(self._batches)).cpu().numpy()
        self._batches = []
        scores: dict[str, float] = {}
        for g, (name, _, _) in enumerate(self._groups):
            nats, labels, nats_changed, labels_changed = by_batch[:, g].sum(0).tolist()
            scores[f"ce_{name}"] = nats / labels if labels else math.nan
            scores[f"perplexity_{name}"] = math.exp(scores[f"ce_{name}"])
            scores[f"ce_{name}_changed"] = nats_changed / labels_changed if labels_changed else math.nan
            if self._by_frequency.get(name):
                rce = 100.0 * (1.0 - scores[f"ce_{name}"] / self._by_frequency[name])
                scores[f"rce_{name}"] = max(-1.0, rce)
        keys = by_batch[by_batch[:, 0, 1] > 0, 0]
        scores["test_loss"] = float(np.mean(np.exp(keys[:, 0] / keys[:, 1]))) if len(keys) else math.nan
        return scores


@dataclass(frozen=True, slots=True)
class Guesses:
    """What the actions to learn from say without any frame.

    Attributes:
        frequency: How common each choice of a head is, float64 [A] a head; counts are smoothed by adding one.
        stays: How much a head believes in its last choice, the rest going by frequency, [H]; fitted.
    """

    frequency: tuple[NDArray[np.float64], ...]
    stays: tuple[float, ...]

    @classmethod
    def fit(cls, recordings: Recordings, chosen: NDArray[np.int64], groups: Sequence[Group]) -> Guesses:
        """Return the guesses that fit the learnt actions of some recordings best."""
        choices = [n for _, n, heads in groups for _ in range(heads)]
        counts = [np.zeros(n, np.int64) for n in choices]
        same = [np.zeros(n, np.int64) for n in choices]
        followed, starts_R = 0, recordings.starts_R
        for recording in chosen:
            first = int(starts_R[recording])
            span = slice(first, first + int(recordings.lengths_R[recording]))
            tokens, learnt = np.asarray(recordings.tokens_NH[span]), np.asarray(recordings.learnt_N[span])
            followed += int(learnt[1:].sum())
            for head, n in enumerate(choices):
                counts[head] += np.bincount(tokens[learnt, head], minlength=n)
                now, before = tokens[1:, head], tokens[:-1, head]
                same[head] += np.bincount(now[learnt[1:] & (now == before)], minlength=n)
        frequency = tuple((count + 1.0) / (count + 1.0).sum() for count in counts)
        return cls(frequency, tuple(_stay(s, followed, f) for s, f in zip(same, frequency, strict=True)))

    def nats(self, targets: NDArray[np.int64], before: NDArray[np.int64], *, copy: bool) -> NDArray[np.float64]:
        """Return what each action [B, T, H] costs, by frequency or, with `copy`, also by the action before."""
        out = np.empty(targets.shape)
        for head, (frequency, stay) in enumerate(zip(self.frequency, self.stays, strict=True)):
            belief = frequency[targets[..., head]]
            if copy:
                had = before[..., head] != UNKNOWN_ACTION
                copied = stay * (targets[..., head] == before[..., head]) + (1.0 - stay) * belief
                belief = np.where(had, copied, belief)
            out[..., head] = -np.log(belief)
        return out

    def likeliest(self, before: NDArray[np.int64], *, copy: bool) -> NDArray[np.int64]:
        """Return the likeliest action, int64 [B, T, H]."""
        out = np.empty_like(before)
        for head, (frequency, stay) in enumerate(zip(self.frequency, self.stays, strict=True)):
            last, best = before[..., head], int(frequency.argmax())
            wins = stay + (1.0 - stay) * frequency[last] >= (1.0 - stay) * frequency[best]
            out[..., head] = np.where((last != UNKNOWN_ACTION) & wins & copy, last, best)
        return out


def guess_baselines(guesses: Guesses, source: Clips, batches: int, groups: Sequence[Group]) -> tuple[Baseline, ...]:
    """Return the baselines "frequency" and "copy_last_action" on the first batches of a source; no frame is decoded.

    Their loss is Open P2P's, without the part that pulls logits towards small ones: guesses have none.
    """
    found: list[Baseline] = []
    by_frequency: dict[str, float] = {}
    for name, copy in (("frequency", False), ("copy_last_action", True)):
        scores, hits, labels = ActionScores(groups, by_frequency), 0, 0
        for index in range(batches):
            rows = source.labels(index)
            nats = guesses.nats(rows.targets_BTH, rows.before_BTH, copy=copy)
            scores.add_nats(torch.from_numpy(nats), torch.from_numpy(rows.labels_BTH))
            known = rows.labels_BTH != IGNORED_LABEL
            hits += int(((guesses.likeliest(rows.before_BTH, copy=copy) == rows.labels_BTH) & known).sum())
            labels += int(known.sum())
        values = {key: value for key, value in scores.take().items() if math.isfinite(value)}
        by_frequency = by_frequency or {group: values[f"ce_{group}"] for group, _, _ in groups}
        loss = sum(values[f"ce_{group}"] / math.log(n) for group, n, _ in groups)
        found.append(Baseline(name=name, loss=loss, accuracy=hits / max(1, labels), labels=labels, scores=values))
    return tuple(found)


def _stay(same_A: NDArray[np.int64], followed: int, frequency_A: NDArray[np.float64]) -> float:
    """Return the belief in the last choice under which the training actions are likeliest, found step by step (EM)."""
    if not followed:
        return 0.0
    stay = 0.5
    for _ in range(_EM_ROUNDS):
        stay = float((same_A * stay / (stay + (1.0 - stay) * frequency_A)).sum() / followed)
    return min(stay, 1.0 - 1e-6)
