"""Rolls a world out: from recorded frames, on recorded actions, through the same `step` that serves it.

The sampler decides what is drawn, so it also tells the world what it was shown: while frames are given, the tokens are
theirs. What is drawn hangs on (seed, start, step, head) alone, neither on the batch nor on its order.

Shape legend: B rows, T steps, C frames that are given, K tokens of a frame, H numbers of an action, A choices,
X = K + 2 numbers that a step draws, S frames that the world keeps of a start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from playserve.errors import BadSettingError
from playserve_trainer.models.gpt import WorldPolicy
from playserve_trainer.models.policy import Memory
from playserve_trainer.worlds.starts import Start, Trail

__all__ = ["Dream", "Dreamer"]


@dataclass(frozen=True, slots=True)
class Dream:
    """What a world showed after some starts.

    Attributes:
        tokens_BTK: int64.
        frames_BTHWC: uint8.
        reward_BT: float32, the value of the class that was drawn.
        ended_BT: bool, whether the world said that the game was over with the frame; it goes on all the same.
        uncertainty_BT: float32, mean entropy of a frame's tokens, nats.
    """

    tokens_BTK: NDArray[np.int64]
    frames_BTHWC: NDArray[np.uint8]
    reward_BT: NDArray[np.float32]
    ended_BT: NDArray[np.bool_]
    uncertainty_BT: NDArray[np.float32]


class Dreamer:
    """Rolls a world out. The starts that its checkpoint carries are replaced by those that it is given.

    Args:
        world: In eval mode; nobody else uses it meanwhile.
        given: Frames that are given; at least as many as the world keeps of a start.
        seed: Of all draws.
        temperature: Of all draws; 0: the likeliest.

    Raises:
        BadSettingError: Fewer frames are given than a start has, or the temperature is negative.
    """

    def __init__(self, world: WorldPolicy, *, given: int, seed: int = 0, temperature: float = 1.0) -> None:
        if given < world.config.start_frames:
            raise BadSettingError(
                f"{given} frames are given; the world begins with {world.config.start_frames}, so at least as many"
            )
        if not temperature >= 0:
            raise BadSettingError(f"a temperature is at least 0, not {temperature}")
        self._world, self._given, self._seed, self._temperature = world, given, seed, temperature

    def dream(self, starts: Sequence[Start], trail: Trail, tokens_BCK: NDArray[np.integer]) -> Dream:
        """Return what the world shows on the recorded actions; where no row has a frame any more, its last frame.

        Args:
            starts: The rows.
            trail: What was recorded around them.
            tokens_BCK: Of the frames that are given.
        """
        world = self._world
        device, kept = world.device(), world.config.start_frames
        given_BCK = torch.from_numpy(tokens_BCK.astype(np.int64)).to(device)
        executed_BCH = torch.from_numpy(trail.executed_BCH).to(device)
        acted_BTH = torch.from_numpy(trail.acted_BTH).to(device)
        # Row b begins with start b: the sampler says so where the world asks.
        world.start_tokens_SCK, world.start_actions_SCH = given_BCK[:, :kept], executed_BCH[:, :kept]
        pools = {
            name: torch.zeros(len(starts) + 1, *row.shape, dtype=row.dtype, device=device)
            for name, row in world.state_layout().items()
        }
        slots_B, numbers = torch.arange(1, len(starts) + 1, device=device), [start.number for start in starts]
        found: list[tuple[Tensor, ...]] = []
        last = int(trail.there_BT.any(0).sum())
        for step in range(kept - self._given, last + 1):  # 0: the last that is given
            at = self._given - 1 + step
            reset_B = torch.full_like(slots_B, step == kept - self._given, dtype=torch.bool)
            told_BH = executed_BCH[:, at] if step <= 0 else acted_BTH[:, step - 1]
            draws = _Draws(self._uniforms(numbers, step), given_BCK[:, at] if step <= 0 else None, self._temperature)
            out = world.step({}, told_BH, Memory(pools, slots_B, reset_B), draws)
            if step > 0:
                shown = out.outputs
                of = (
                    out.actions_BH[:, :-2],
                    shown["frame"],
                    shown["reward"],
                    shown["terminated"],
                    shown["uncertainty"],
                )
                found.append(tuple(tensor.cpu() for tensor in of))
        found += found[-1:] * (acted_BTH.shape[1] - last)
        return Dream(*(torch.stack(column, dim=1).numpy() for column in zip(*found, strict=True)))

    def _uniforms(self, numbers: Sequence[int], step: int) -> Tensor:
        """Return float64 [B, X] in [0, 1) for a step of some starts."""
        heads = len(self._world.heads())
        rows = [np.random.default_rng([self._seed, number, step + self._given]).random(heads) for number in numbers]
        return torch.from_numpy(np.stack(rows)).to(self._world.device())


class _Draws:
    """Draws a step's numbers by their uniforms, or tells the world those of a frame that is given.

    Args:
        uniforms_BX: float64.
        given_BK: Tokens of the frame, or None.
        temperature: Of the draws.
    """

    def __init__(self, uniforms_BX: Tensor, given_BK: Tensor | None, temperature: float) -> None:
        self._uniforms_BX, self._given_BK, self._temperature = uniforms_BX, given_BK, temperature

    def __call__(self, logits_BA: Tensor, head: int) -> Tensor:
        """Return int64 [B]; see :data:`playserve_trainer.models.policy.Sampler`."""
        if head == self._uniforms_BX.shape[1]:  # which start a row begins with
            return torch.arange(len(logits_BA), device=logits_BA.device)
        if self._given_BK is not None and head < self._given_BK.shape[1]:
            return self._given_BK[:, head]
        if not self._temperature:
            return logits_BA.argmax(-1)
        cdf_BA = (logits_BA.double() / self._temperature).softmax(-1).cumsum(-1)
        # Scaling by the last entry keeps rounding from drawing past the end.
        target_B1 = self._uniforms_BX[:, head : head + 1] * cdf_BA[:, -1:]
        return (cdf_BA <= target_B1).sum(-1).clamp(max=logits_BA.shape[-1] - 1)
