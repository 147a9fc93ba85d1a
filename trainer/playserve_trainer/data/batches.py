"""What the training loop reads: batches of sequences, each a pure function of (seed, index), to resume at any.

A family brings one :class:`BatchSource`; the loop knows nothing else of its data. Shape legend: B rows, T steps,
H heads of an action.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, device

from playserve_trainer.models.policy import IGNORED_LABEL

__all__ = ["IGNORED_LABEL", "Batch", "BatchSource", "PartSource", "ShuffledOrder", "StreamOrder"]


@dataclass(frozen=True, slots=True)
class Batch:
    """B sequences of T steps.

    Attributes:
        inputs: Input tensors [B, T, *shape] by name, in the dtypes of the policy's spec.
        executed_BTH: int64, the action executed before each step, UNKNOWN_ACTION where there is none.
        first_BT: bool, steps that begin an episode, or a sequence whose past is not to be remembered.
        labels_BTH: int64, the expert's actions (of tokenizers int16, the frames' pixels), IGNORED_LABEL where there is
            none to learn.
        samples: Steps in the batch that count as data (D); padding does not.
        episodes_BT: int64, the number of each step's episode, where a source was asked to say it (held-out losses by
            episode); else None.
    """

    inputs: Mapping[str, Tensor]
    executed_BTH: Tensor
    first_BT: Tensor
    labels_BTH: Tensor
    samples: int
    episodes_BT: Tensor | None = None

    def to(self, where: device) -> Batch:
        """Return the batch on a device; nothing is copied if it is there already."""
        if where == self.labels_BTH.device:
            return self
        return Batch(
            {name: tensor.to(where, non_blocking=True) for name, tensor in self.inputs.items()},
            self.executed_BTH.to(where, non_blocking=True),
            self.first_BT.to(where, non_blocking=True),
            self.labels_BTH.to(where, non_blocking=True),
            self.samples,
            None if self.episodes_BT is None else self.episodes_BT.to(where, non_blocking=True),
        )

    def rows(self, start: int, stop: int) -> Batch:
        """Return rows `start` to `stop`; their samples are their share, so that the shares add up."""
        count, span = self.labels_BTH.shape[0], slice(start, stop)
        return Batch(
            {name: tensor[span] for name, tensor in self.inputs.items()},
            self.executed_BTH[span],
            self.first_BT[span],
            self.labels_BTH[span],
            self.samples * stop // count - self.samples * start // count,
            None if self.episodes_BT is None else self.episodes_BT[span],
        )


class BatchSource(Protocol):
    """An endless row of batches.

    With `carries_state`, row b of batch i + 1 goes on where row b of batch i ended (unless `first` says otherwise), and
    the loop hands the memory on.
    """

    @property
    def batch_size(self) -> int:
        """B."""

    @property
    def sequence_length(self) -> int:
        """T."""

    @property
    def carries_state(self) -> bool:
        """Whether rows go on from batch to batch."""

    @property
    def num_samples(self) -> int:
        """Distinct steps behind the batches: what one epoch is."""

    def batch(self, index: int) -> Batch:
        """Return batch `index` (from 0), in fresh memory; the same for ever, whatever was asked for before."""


@runtime_checkable
class PartSource(BatchSource, Protocol):
    """A source that can make some rows of a batch without the others, for several processes or passes."""

    def part(self, index: int, start: int, stop: int) -> Batch:
        """Return rows `start` to `stop` of batch `index`."""


class ShuffledOrder:
    """Rows of batches as positions in an endless chain of permutations: every epoch sees each item once.

    Args:
        num_items: Items to choose from, at least 1.
        batch_size: B.
        seed: Of the permutations.
    """

    def __init__(self, num_items: int, batch_size: int, seed: int) -> None:
        if num_items < 1 or batch_size < 1:
            raise ValueError(f"num_items and batch_size are at least 1, not {num_items}, {batch_size}")
        self._num_items = num_items
        self._batch_size = batch_size
        self._seed = seed
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def items(self, index: int) -> NDArray[np.int64]:
        """Return the items [B] of batch `index`; a batch may reach over the end of an epoch."""
        position = np.arange(index * self._batch_size, (index + 1) * self._batch_size, dtype=np.int64)
        epoch, within = np.divmod(position, self._num_items)
        return np.concatenate([self._epoch(int(e))[within[epoch == e]] for e in np.unique(epoch)])

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._epochs:
            rng = np.random.default_rng([self._seed, epoch])
            # Two are kept, for the batches between two epochs.
            self._epochs = {e: p for e, p in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = rng.permutation(self._num_items)
        return self._epochs[epoch]


class StreamOrder:
    """B rows that walk through the episodes, T steps a batch, in another order of episodes each epoch.

    The episodes of an epoch lie end to end; row b begins at b/B of their length. The few steps behind the last whole
    batch of an epoch are left out, others in each epoch.

    Args:
        lengths: Steps of each episode, [E].
        batch_size: B.
        sequence_length: T.
        seed: Of the orders.
    """

    def __init__(self, lengths: NDArray[np.int64], batch_size: int, sequence_length: int, seed: int) -> None:
        self._lengths = lengths
        self._row_length = int(lengths.sum()) // batch_size
        self.batches_per_epoch = self._row_length // sequence_length
        if self.batches_per_epoch < 1:
            raise ValueError(
                f"{int(lengths.sum())} steps do not fill {batch_size} rows of {sequence_length} steps: take less"
            )
        self._batch_size = batch_size
        self._sequence_length = sequence_length
        self._seed = seed
        self._epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def chunk(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Return (episode [B, T], step within it [B, T], first [B, T]) of batch `index`."""
        epoch, within = divmod(index, self.batches_per_epoch)
        order_E, ends_E = self._epoch(epoch)
        rows_B1 = np.arange(self._batch_size, dtype=np.int64)[:, None] * self._row_length
        position_BT = rows_B1 + within * self._sequence_length + np.arange(self._sequence_length, dtype=np.int64)
        rank_BT = np.searchsorted(ends_E, position_BT, side="right")
        episode_BT = order_E[rank_BT]
        step_BT = position_BT - (ends_E[rank_BT] - self._lengths[episode_BT])
        first_BT = step_BT == 0
        if within == 0:
            first_BT[:, 0] = True  # another epoch, another place: what a row remembers is of no use here
        return episode_BT, step_BT, first_BT

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if epoch not in self._epochs:
            order_E = np.random.default_rng([self._seed, epoch]).permutation(len(self._lengths))
            self._epochs = {epoch: (order_E, np.cumsum(self._lengths[order_E]))}
        return self._epochs[epoch]
