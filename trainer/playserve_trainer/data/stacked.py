"""Batches of stacked frames out of recorded episodes: shuffled steps for memoryless policies, streams for the others.

Frames are stacked as the environment's own frame stack does it: oldest first, the first frame of an episode repeated.
Shape legend: B rows, T steps, M = B * T, C stacked frames, N steps of all episodes, H and W of a frame.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from playserve_trainer.data.batches import Batch, ShuffledOrder, StreamOrder
from playserve_trainer.data.episodes import Episodes
from playserve_trainer.models.policy import UNKNOWN_ACTION

__all__ = ["ShuffledSteps", "Streams", "gather_stacks"]


def gather_stacks(
    frames_NHW: NDArray[np.uint8],
    steps_M: NDArray[np.int64],
    start_N: NDArray[np.int64],
    depth: int,
    out_MHWC: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Return the frame stacks uint8 [M, H, W, C] seen at some steps.

    Args:
        frames_NHW: Single frames of all episodes.
        steps_M: Which steps.
        start_N: First step of each step's episode; no stack reaches behind it.
        depth: C.
        out_MHWC: Where to put them; None: fresh memory.
    """
    _, height, width = frames_NHW.shape
    shape = (len(steps_M), height, width, depth)
    out_MHWC = np.empty(shape, np.uint8) if out_MHWC is None else out_MHWC
    frames_NX, out_MXC = frames_NHW.reshape(-1, height * width), out_MHWC.reshape(len(steps_M), -1, depth)
    first_M = start_N[steps_M]
    for channel in range(depth):
        # One strided copy a channel: 0.01 ms a stack, five times faster than any gather in torch.
        out_MXC[:, :, channel] = frames_NX[np.maximum(steps_M - (depth - 1 - channel), first_M)]
    return out_MHWC


class _Frames:
    """What both sources share: from steps to a batch."""

    def __init__(
        self, episodes: Episodes, batch_size: int, sequence_length: int, depth: int, *, tell_episodes: bool
    ) -> None:
        self._episodes = episodes
        self._depth = depth
        self._tell_episodes = tell_episodes
        self.batch_size = batch_size
        self.sequence_length = sequence_length

    def _batch(self, step_BT: NDArray[np.int64], first_BT: NDArray[np.bool_]) -> Batch:
        data, shape = self._episodes, step_BT.shape
        stacks_MHWC = gather_stacks(data.frames_NHW, step_BT.reshape(-1), data.start_N, self._depth)
        begins_BT = step_BT == data.start_N[step_BT]
        executed_BT = np.where(begins_BT, UNKNOWN_ACTION, data.executed_N[np.maximum(step_BT - 1, 0)])
        episodes_BT = None
        if self._tell_episodes:
            episodes_BT = torch.from_numpy(np.searchsorted(data.starts_E, step_BT, side="right") - 1)
        return Batch(
            {"frames": torch.from_numpy(stacks_MHWC).view(*shape, *stacks_MHWC.shape[1:])},
            torch.from_numpy(executed_BT).unsqueeze(-1),
            torch.from_numpy(first_BT),
            torch.from_numpy(data.label_N[step_BT]).unsqueeze(-1),
            step_BT.size,
            episodes_BT,
        )


class ShuffledSteps(_Frames):
    """Single steps (T = 1) in random order, every step once an epoch.

    Args:
        episodes: The data.
        chosen: Indices of the episodes to take from.
        batch_size: B.
        seed: Of the order.
        depth: Frames in a stack.
        tell_episodes: Whether batches say the episode of each step.
    """

    def __init__(
        self,
        episodes: Episodes,
        chosen: NDArray[np.int64],
        *,
        batch_size: int,
        seed: int,
        depth: int = 4,
        tell_episodes: bool = False,
    ) -> None:
        super().__init__(episodes, batch_size, 1, depth, tell_episodes=tell_episodes)
        self._steps = episodes.steps_of(chosen)
        self._order = ShuffledOrder(len(self._steps), batch_size, seed)
        self.carries_state = False
        self.num_samples = len(self._steps)

    def batch(self, index: int) -> Batch:
        """Return batch `index`; see :class:`playserve_trainer.data.batches.BatchSource`."""
        step_B1 = self._steps[self._order.items(index)][:, None]
        return self._batch(step_B1, np.ones(step_B1.shape, np.bool_))


class Streams(_Frames):
    """B rows that walk through the episodes, T steps a batch; the memory goes on from batch to batch.

    Args:
        episodes: The data.
        chosen: Indices of the episodes to take from.
        batch_size: B.
        sequence_length: T.
        seed: Of the order of the episodes.
        depth: Frames in a stack.
        tell_episodes: Whether batches say the episode of each step.
    """

    def __init__(
        self,
        episodes: Episodes,
        chosen: NDArray[np.int64],
        *,
        batch_size: int,
        sequence_length: int,
        seed: int,
        depth: int = 4,
        tell_episodes: bool = False,
    ) -> None:
        super().__init__(episodes, batch_size, sequence_length, depth, tell_episodes=tell_episodes)
        self._starts_E = episodes.starts_E[chosen]
        self._order = StreamOrder(episodes.lengths_E[chosen], batch_size, sequence_length, seed)
        self.carries_state = True
        self.num_samples = int(episodes.lengths_E[chosen].sum())

    def batch(self, index: int) -> Batch:
        """Return batch `index`; see :class:`playserve_trainer.data.batches.BatchSource`."""
        episode_BT, step_BT, first_BT = self._order.chunk(index)
        return self._batch(self._starts_E[episode_BT] + step_BT, first_BT)
