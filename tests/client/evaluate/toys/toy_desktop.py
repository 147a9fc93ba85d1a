"""A game of keyboard and mouse that says an instruction in each episode, and a fake policy that follows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from playserve.actions import DesktopAction
from playserve.specs import DesktopActionSpec

# What only the policy needs is imported there: workers import this module too.
if TYPE_CHECKING:
    from playserve.testing import FakePolicy, StepContext

SPEC = DesktopActionSpec(keys=("KeyA", "KeyD"), buttons=(0,), max_mouse_px=50.0)
WORDS = {"left": "KeyA", "right": "KeyD"}


class ToyDesktop(gymnasium.Env):
    """Holding the key that the episode's word means scores 1; motion scores its size, to see that it arrives."""

    def __init__(self, name: str = "", *, silent: bool = False) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (4,), np.uint8)
        self.desktop_actions = SPEC
        self._silent = silent

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._t, self._word = 0, ("left", "right")[int(seed or 0) % 2]
        self._length = 3 + int(seed or 0) % 4
        return self._show(), {} if self._silent else {"instruction": f"go {self._word}"}

    def step(self, action: DesktopAction) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert isinstance(action, DesktopAction)
        self._t += 1
        held = WORDS[self._word] in action.keys
        reward = float(held) + 100.0 * (0 in action.buttons) + abs(action.mouse_dx_px) / 1000.0
        return self._show(), reward, self._t >= self._length, False, {"episode_facts": {"word": self._word}}

    def _show(self) -> Any:
        return np.full(4, self._t, np.uint8)


def answer(inputs: dict[str, Any], context: StepContext) -> DesktopAction:
    """Hold the key that the instruction names; move as far as the step's number."""
    keys = frozenset(key for word, key in WORDS.items() if context.instruction == f"go {word}")
    return DesktopAction(keys=keys, mouse_dx_px=float(inputs["observation"][0]))


def policy(**fields: Any) -> FakePolicy:
    """Return the policy "toy-desktop"; it has more keys than the game knows."""
    from playserve.specs import PolicySpec, TensorSpec
    from playserve.testing import FakePolicy

    action = DesktopActionSpec(keys=("KeyA", "KeyD", "Space"), buttons=(0, 2), max_mouse_px=50.0)
    tensor = TensorSpec(name="observation", dtype="uint8", shape=(4,))
    spec = PolicySpec(
        name="toy-desktop", version="1", family="fake", inputs=(tensor,),
        **{"action": action, "takes_instruction": True, **fields},
    )  # fmt: skip
    return FakePolicy(spec=spec, handler=answer, slots=16)
