"""Clips of a token cache: what worlds and agents learn from, a sequence of frames of one episode at a time.

A clip holds T frames that follow each other in one episode, and begins with an empty memory. An epoch shows each
episode's clips once, in random order, each epoch cut at other places; the few frames before the first cut and behind
the last are left out of that epoch. An episode shorter than T is one clip, filled up with what is not learnt.

Shape legend: N frames of all episodes, E episodes, B rows, T frames of a clip, K tokens of a frame, H numbers of an
action, R values of the reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import numpy as np
import torch
from numpy.typing import NDArray

from playserve.errors import BadSettingError
from playserve_trainer.data.batches import IGNORED_LABEL, Batch, ShuffledOrder
from playserve_trainer.data.tokens.cache import TokenCache
from playserve_trainer.data.tokens.frames import kept_frames
from playserve_trainer.models.policy import UNKNOWN_ACTION

__all__ = ["Learns", "TokenClips", "arriving_rewards", "reward_classes", "reward_values", "starts_of"]

_MOST_REWARDS = 15  # classes; more values than these are binned


class Learns(Enum):
    """What is learnt from a cache, and what is seen: a world, an agent on tokens, an agent on frames."""

    WORLD = "world"
    TOKENS = "tokens"
    FRAMES = "frames"


def arriving_rewards(cache: TokenCache) -> NDArray[np.float32]:
    """Return the reward float32 [N] that comes with each frame: what the action before it brought.

    The last frame of an episode has the last action's, too, for no frame comes after it.
    """
    reward_N = np.zeros(cache.num_frames, np.float32)
    reward_N[1:] = cache.reward_N[:-1]
    reward_N[cache.starts_E] = 0.0
    last_E = cache.starts_E + cache.lengths_E - 1
    reward_N[last_E] += cache.reward_N[last_E]
    return reward_N


def reward_values(rewards: NDArray[np.float32]) -> tuple[float, ...]:
    """Return the values that stand for rewards, rising: those that occur, or bins even in symlog where many do."""
    found = np.unique(np.append(rewards, np.float32(0.0)))
    if len(found) > _MOST_REWARDS:
        low, high = _symlog(found[0]), _symlog(found[-1])
        bins = np.linspace(low, high, _MOST_REWARDS)
        bins[np.abs(bins).argmin()] = 0.0
        found = (np.sign(bins) * np.expm1(np.abs(bins))).astype(np.float32)
    return tuple(round(float(value), 6) for value in found)


def reward_classes(rewards: NDArray[np.float32], values: Sequence[float]) -> NDArray[np.int64]:
    """Return the index int64 [N] of the value nearest to each reward, in symlog."""
    centres_R = _symlog(np.asarray(values, np.float64))
    between = (centres_R[1:] + centres_R[:-1]) / 2
    return np.searchsorted(between, _symlog(rewards.astype(np.float64))).astype(np.int64)


def _symlog(x: NDArray[np.floating] | np.floating) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.sign(x) * np.log1p(np.abs(x))
    return found


def starts_of(
    cache: TokenCache, chosen: NDArray[np.int64], starts: int, frames: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first frames of some episodes: tokens int64 [S, C, K], and the actions before them [S, C, H].

    Of fewer episodes than starts some come again; those spread over the chosen ones are taken.

    Raises:
        BadSettingError: No episode has as many frames.
    """
    long = chosen[cache.lengths_E[chosen] >= frames]
    if not len(long):
        raise BadSettingError(f"no episode has {frames} frames, as a start has: take fewer start_frames")
    taken = long[np.linspace(0, len(long) - 1, starts).round().astype(np.int64)]
    place_SC = cache.starts_E[taken][:, None] + np.arange(frames)
    actions_SCH = np.full((starts, frames, len(cache.heads)), UNKNOWN_ACTION, np.int64)
    actions_SCH[:, 1:] = cache.executed_NH[place_SC[:, :-1]]
    return cache.tokens_NK[place_SC].astype(np.int64), actions_SCH


class TokenClips:
    """Clips of some episodes; a BatchSource.

    Inputs: `tokens` int64 [B, T, K], or `frame` uint8 [B, T, H, W, C]. A world's labels are the tokens of the frame,
    the class of the reward that comes with it, and whether the game ends there; the first frame of a clip is given. An
    agent's are the expert's action.

    Args:
        cache: The cache.
        chosen: Indices of the episodes to take from.
        learns: What is learnt.
        batch_size: B.
        sequence_length: T, at least 2 for a world.
        seed: Of the order and the cuts.
        rewards_N: int64, class of the reward that comes with each frame; of worlds only.
        tell_episodes: Whether batches say the episode of each frame.

    Raises:
        BadSettingError: The cache does not hold what is seen, or no frame is left.
    """

    def __init__(
        self,
        cache: TokenCache,
        chosen: NDArray[np.int64],
        learns: Learns,
        *,
        batch_size: int,
        sequence_length: int,
        seed: int,
        rewards_N: NDArray[np.int64] | None = None,
        tell_episodes: bool = False,
    ) -> None:
        self._frames = kept_frames(cache) if learns is Learns.FRAMES else None
        if learns is not Learns.FRAMES and not cache.num_tokens:
            raise BadSettingError("the token cache holds no tokens: make it with `playserve data tokenize --tokenizer`")
        if learns is Learns.WORLD and (rewards_N is None or sequence_length < 2):
            raise BadSettingError("a world learns from clips of two frames or more, and from rewards")
        chosen = chosen[cache.lengths_E[chosen] > 0]
        clips_E = np.maximum(1, cache.lengths_E[chosen] // sequence_length)
        if not len(chosen):
            raise BadSettingError("there is no episode to make clips of")
        self._cache = cache
        self._rewards_N = rewards_N if learns is Learns.WORLD else None
        self._episode_X = np.repeat(chosen, clips_E)
        self._number_X = np.concatenate([np.arange(count) for count in clips_E])
        spare_E = np.maximum(0, cache.lengths_E[chosen] - clips_E * sequence_length)
        self._spare_X = np.repeat(spare_E, clips_E)
        self._order = ShuffledOrder(len(self._episode_X), batch_size, seed)
        self._seed, self._tell_episodes = seed, tell_episodes
        self.batch_size, self.sequence_length = batch_size, sequence_length
        self.carries_state = False
        # Frames of an epoch; those that its cuts leave out come in another.
        self.num_samples = int(np.minimum(cache.lengths_E[chosen], clips_E * sequence_length).sum())

    def batch(self, index: int) -> Batch:
        """Return batch `index`; see :class:`playserve_trainer.data.batches.BatchSource`."""
        cache, items_B = self._cache, self._order.items(index)
        episode_B = self._episode_X[items_B]
        step_BT = self._begins(index, items_B)[:, None] + np.arange(self.sequence_length)
        length_B1 = cache.lengths_E[episode_B][:, None]
        there_BT = step_BT < length_B1
        place_BT = cache.starts_E[episode_B][:, None] + np.minimum(step_BT, length_B1 - 1)
        first_BT = np.zeros(step_BT.shape, np.bool_)
        first_BT[:, 0] = True
        executed_BTH = cache.executed_NH[np.maximum(place_BT - 1, 0)].astype(np.int64)
        executed_BTH[step_BT == 0] = UNKNOWN_ACTION
        if self._frames is not None:
            inputs = {"frame": torch.from_numpy(self._frames[place_BT])}
        else:
            inputs = {"tokens": torch.from_numpy(cache.tokens_NK[place_BT].astype(np.int64))}
        labels_BTX = self._labels(inputs, episode_B, step_BT, place_BT)
        labels_BTX[~there_BT] = IGNORED_LABEL
        episodes_BT = np.broadcast_to(episode_B[:, None], step_BT.shape).copy() if self._tell_episodes else None
        return Batch(
            inputs,
            torch.from_numpy(executed_BTH),
            torch.from_numpy(first_BT),
            torch.from_numpy(labels_BTX),
            int(there_BT.sum()),
            None if episodes_BT is None else torch.from_numpy(episodes_BT),
        )

    def _begins(self, index: int, items_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the step of its episode at which each clip of a batch begins."""
        epoch_B = np.arange(index * self.batch_size, (index + 1) * self.batch_size) // len(self._episode_X)
        offset_B = np.zeros(len(items_B), np.int64)
        for epoch in np.unique(epoch_B):
            # One number an episode and epoch: all its clips move together.
            draws_E = np.random.default_rng([self._seed, 2, int(epoch)]).random(len(self._cache.lengths_E))
            of = items_B[epoch_B == epoch]
            offset_B[epoch_B == epoch] = draws_E[self._episode_X[of]] * (self._spare_X[of] + 1)
        return self._number_X[items_B] * self.sequence_length + offset_B

    def _labels(
        self,
        inputs: dict[str, torch.Tensor],
        episode_B: NDArray[np.int64],
        step_BT: NDArray[np.int64],
        place_BT: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        cache = self._cache
        if self._rewards_N is None:
            labels_BTH = cache.labels_NH[place_BT].astype(np.int64)
            labels_BTH[labels_BTH < 0] = IGNORED_LABEL
            return labels_BTH
        last_BT = step_BT == cache.lengths_E[episode_B][:, None] - 1
        ends_BT = last_BT & cache.terminated_E[episode_B][:, None]
        arriving_BT2 = np.stack([self._rewards_N[place_BT], ends_BT.astype(np.int64)], axis=2)
        labels_BTX = np.concatenate([inputs["tokens"].numpy(), arriving_BT2], axis=2)
        labels_BTX[:, 0] = IGNORED_LABEL
        return labels_BTX
