"""A small world that is a real game: a dot walks on a torus and eats coins, whose places the sampler draws.

Where the dot is follows from every action since the world began, and where the coin is from every draw, so that a lost,
repeated or foreign step shows in every later frame. :class:`WorldReference` is the same game in plain Python.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from playserve.actions import Action, DesktopAction
from playserve.errors import BadActionError
from playserve.specs import (
    ActionSpec,
    DesktopActionSpec,
    DiscreteActionSpec,
    ImageFormat,
    PolicyKind,
    PolicySpec,
    TensorSpec,
)
from playserve_services.inference.sampling import uniforms
from playserve_trainer.models.policy import ForwardOutput, Memory, Policy, Sampler, StateTensor, StepOutput

__all__ = ["CELLS", "NAMES", "TinyWorld", "WorldReference", "world"]

#: Cells of a side.
CELLS = 16
NAMES = ("NOOP", "UP", "LEFT", "DOWN", "RIGHT", "FIRE")
_KEYS = ("KeyW", "KeyA", "KeyS", "KeyD")
_MOVES = ((0, 0), (0, -1), (-1, 0), (0, 1), (1, 0), (0, 0))
_MOUSE_PX = 40.0
_DESKTOP = DesktopActionSpec(keys=_KEYS, buttons=(0,), max_mouse_px=_MOUSE_PX)
_START = 2  # the head by which a world begins: one beyond the others


class WorldReference:
    """One world, as the policy must show it.

    Args:
        seed: Of the session.
        episode_steps: Steps after which it is over.
    """

    def __init__(self, seed: int, episode_steps: int = 200) -> None:
        self.seed, self.episode_steps = seed, episode_steps
        self.counter = 0
        self.begin()

    def begin(self) -> None:
        """Empty its memory: the next step begins a world. The random stream goes on."""
        self.place: tuple[int, int] | None = None

    def step(self, action: int) -> tuple[tuple[int, int], tuple[int, int], float, bool]:
        """Return where the dot and the coin are after an action, the reward, and whether it is over."""
        drawn = [int(u * CELLS) for u in uniforms([self.seed], [self.counter], 3)[0]]
        self.counter += 1
        if self.place is None:
            self.place, self.coin, self.steps = (drawn[_START], CELLS // 2), (drawn[0], drawn[1]), 0
            return self.place, self.coin, 0.0, False
        self.steps += 1
        self.place = tuple((at + move) % CELLS for at, move in zip(self.place, _MOVES[action], strict=True))  # type: ignore[assignment]
        eaten = self.place == self.coin
        if eaten:
            self.coin = drawn[0], drawn[1]
        return self.place, self.coin, float(eaten), self.steps >= self.episode_steps


class TinyWorld(Policy):
    """No inputs. Outputs: `frame` uint8 [side, side, channels], `reward`, `terminated`, `uncertainty`.

    Args:
        side: Pixels of a side, a multiple of 16 for square cells; others leave a black rim.
        channels: 3: the dot is green, the coin red; 1: both are grey.
        desktop: Played with WASD and the mouse; else with six actions.
        rate_hz: Steps a second.
        step_s: How long a step takes besides.
        episode_steps: Steps after which it is over.
    """

    def __init__(
        self, *, side: int = 16, channels: int = 3, desktop: bool = False, rate_hz: float = 20.0, step_s: float = 0.0,
        episode_steps: int = 200,
    ) -> None:  # fmt: skip
        super().__init__()
        self._side, self._channels, self._desktop = side, channels, desktop
        self._rate_hz, self._step_s, self._episode_steps = rate_hz, step_s, episode_steps
        self.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))
        self._moves_A2: Tensor
        self.register_buffer("_moves_A2", torch.tensor(_MOVES), persistent=False)

    def spec(self) -> PolicySpec:
        image = ImageFormat.RGB8 if self._channels == 3 else ImageFormat.GRAY8
        action: ActionSpec = _DESKTOP if self._desktop else DiscreteActionSpec(n=len(NAMES), names=NAMES)
        return PolicySpec(
            name="tiny-world",
            family="tiny-world",
            kind=PolicyKind.WORLD,
            inputs=(),
            outputs=(
                TensorSpec(
                    name="frame", dtype="uint8", shape=(self._side, self._side, self._channels), image_format=image
                ),
                TensorSpec(name="reward", dtype="float32", shape=()),
                TensorSpec(name="terminated", dtype="bool", shape=()),
                TensorSpec(name="uncertainty", dtype="float32", shape=()),
            ),
            action=action,
            rate_hz=self._rate_hz,
            context_frames=0,
            uses_executed_actions=True,
            environment={"game": "coins"},
        )

    def state_layout(self) -> Mapping[str, StateTensor]:
        return {"world": StateTensor((5,), torch.int64)}

    def heads(self) -> tuple[int, ...]:
        return (CELLS, CELLS)

    def executed_size(self) -> int:
        return len(_KEYS) + 1 if self._desktop else 1

    def encode_action(self, action: Action) -> tuple[int, ...]:
        if not self._desktop:
            return super().encode_action(action)
        if not isinstance(action, DesktopAction):
            raise BadActionError(f"action {action!r}, wanted a DesktopAction")
        return (*(int(key in action.keys) for key in _KEYS), round(action.mouse_dx_px / 10))

    def forward(self, *args: Any, **options: Any) -> ForwardOutput:
        raise NotImplementedError

    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        if self._step_s:
            time.sleep(self._step_s)
        old_B5, reset_B = memory.read("world"), memory.reset_B
        flat_BC = torch.zeros(len(old_B5), CELLS)
        drawn_B2 = torch.stack([sample(flat_BC, head) for head in range(2)], 1)
        start_B = sample(flat_BC, _START)
        start_B2 = torch.stack([start_B, torch.full_like(start_B, CELLS // 2)], 1)
        moved_B2 = (old_B5[:, :2] + self._motion(executed_BH)) % CELLS
        at_B2 = torch.where(reset_B[:, None], start_B2, moved_B2)
        eaten_B = (at_B2 == old_B5[:, 2:4]).all(1) & ~reset_B
        coin_B2 = torch.where((reset_B | eaten_B)[:, None], drawn_B2, old_B5[:, 2:4])
        steps_B = torch.where(reset_B, 0, old_B5[:, 4] + 1)
        memory.write("world", torch.cat([at_B2, coin_B2, steps_B[:, None]], 1))
        outputs = {
            "frame": self._frames(at_B2, coin_B2),
            "reward": eaten_B.float(),
            "terminated": steps_B >= self._episode_steps,
            "uncertainty": (reset_B | eaten_B).float() * math.log(CELLS),
        }
        return StepOutput(actions_BH=drawn_B2, outputs=outputs)

    def _motion(self, executed_BH: Tensor) -> Tensor:
        if not self._desktop:
            return self._moves_A2[executed_BH[:, 0].clamp(min=0)]
        up_B, left_B, down_B, right_B, mouse_B = executed_BH.unbind(1)
        return torch.stack([right_B - left_B + mouse_B, down_B - up_B], 1)

    def _frames(self, at_B2: Tensor, coin_B2: Tensor) -> Tensor:
        cell = self._side // CELLS
        shown = []
        for place_B2 in (coin_B2, at_B2):
            columns_BC, rows_BC = (torch.nn.functional.one_hot(place_B2[:, axis], CELLS) for axis in (0, 1))
            grid_BCC = rows_BC[:, :, None] * columns_BC[:, None, :]
            pixels_BHW = grid_BCC.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
            rim = self._side - pixels_BHW.shape[1]
            shown.append(torch.nn.functional.pad(pixels_BHW, (0, rim, 0, rim)))
        coin_BHW, at_BHW = shown
        if self._channels == 3:
            frame_BHWC = torch.stack([coin_BHW * 255, at_BHW * 255, torch.zeros_like(at_BHW)], 3)
        else:
            frame_BHWC = torch.maximum(coin_BHW * 100, at_BHW * 255)[..., None]
        return frame_BHWC.to(torch.uint8)


def found(frame: np.ndarray[Any, Any], channel: int) -> tuple[int, int]:
    """Return (column, row) of the cell that is lit in a frame [16, 16, 3]: channel 1 is the dot, 0 the coin."""
    rows, columns = np.nonzero(frame[:, :, channel])
    return int(columns[0]), int(rows[0])


def world() -> TinyWorld:
    """Return the world that demos and tests of the command line serve."""
    return TinyWorld(side=64)


def played(reference: WorldReference, actions: Sequence[int]) -> list[tuple[Any, ...]]:
    """Return what a world shows, step by step."""
    return [reference.step(action) for action in actions]
