"""A game for the evaluator's tests, which worker processes import, and a fake policy for it.

As a program it is a fake policy server: ``toy_rollout.py PORT DELAY_S`` prints "ready" and serves until it is killed.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

# What only the policy needs is imported there: workers import this module too.
if TYPE_CHECKING:
    from playserve.testing import FakePolicy, StepContext


class Toy(gymnasium.Env):
    """An episode is a function of the seed and the actions; it lasts 10 to 29 steps.

    Args:
        name: Ignored; the factory's first argument where one is given.
        dict_obs: Show a dict of arrays, one of which no policy takes.
        wait_seed: The episode of this seed does not go on before `wait_file` has `wait_lines` lines.
        hang_once: A file; the process that creates it stands still for ever in the third step of an odd seed.
        crash_once: A file; the process that creates it dies in the third step of an odd seed.
        fail_seed: The episode of this seed raises.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(self, name: str = "", *, dict_obs: bool = False, wait_seed: int = -1, wait_file: str = "",
                 wait_lines: int = 0, crash_once: str = "", hang_once: str = "", crash_always: bool = False,
                 fail_seed: int = -1, step_s: float = 0.0, render_mode: str | None = None) -> None:  # fmt: skip
        self.render_mode = render_mode
        self._dict, self._crash, self._fail = dict_obs, crash_once, fail_seed
        self._wait_seed, self._wait_file, self._wait_lines = wait_seed, Path(wait_file), wait_lines
        self._hang = hang_once
        self._crash_always, self._step_s = crash_always, step_s
        box = gymnasium.spaces.Box(0, 255, (6,), np.uint8)
        self.observation_space: Any = (
            gymnasium.spaces.Dict({"frame": box, "extra": gymnasium.spaces.Box(0, 1, (2, 2), np.float32)})
            if dict_obs
            else box
        )
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._seed, self._t = int(seed or 0), 0
        self._rng = np.random.default_rng(seed)
        self._length = 10 + self._seed % 20
        self._frame = self._rng.integers(0, 256, 6).astype(np.uint8)
        return self._show(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert 0 <= action < 3
        self._t += 1
        while self._seed == self._wait_seed and self._lines() < self._wait_lines:
            time.sleep(0.01)
        if self._step_s:
            time.sleep(self._step_s)
        if self._seed == self._fail:
            raise RuntimeError("the toy is broken")
        if self._crash_always:
            os._exit(3)
        if self._crash and self._seed % 2 and self._t == 3 and not Path(self._crash).exists():
            Path(self._crash).touch()
            os._exit(3)
        if self._hang and self._seed % 2 and self._t == 3 and not Path(self._hang).exists():
            Path(self._hang).touch()
            time.sleep(3600)
        reward = float((int(self._frame[0]) + action) % 4)
        self._frame = (self._rng.integers(0, 256, 6) + action).astype(np.uint8)
        return self._show(), reward, self._t >= self._length, False, {}

    def _lines(self) -> int:
        return self._wait_file.read_bytes().count(b"\n") if self._wait_file.exists() else 0

    def render(self) -> Any:
        return np.full((8, 12, 3), self._frame[0], np.uint8) if self.render_mode == "rgb_array" else None

    def _show(self) -> Any:
        return {"frame": self._frame, "extra": np.zeros((2, 2), np.float32)} if self._dict else self._frame


def answer(inputs: dict[str, Any], context: StepContext) -> int:
    """Return an action that depends on everything that it may: frame, seed, step, memory of the episode."""
    from playserve.settings import SamplingMode

    context.state["sum"] = context.state.get("sum", 0) + int(inputs["frame"][0])
    seed = 0 if context.sampling.mode is SamplingMode.ARGMAX else context.seed
    return (context.state["sum"] + seed + context.step) % 3


def policy(slots: int = 64, shape: tuple[int, ...] = (6,), version: str = "1") -> FakePolicy:
    """Return the policy "toy"."""
    from playserve.specs import DiscreteActionSpec, PolicySpec, TensorSpec
    from playserve.testing import FakePolicy

    frame = TensorSpec(name="frame", dtype="uint8", shape=shape)
    spec = PolicySpec(name="toy", version=version, family="fake", inputs=(frame,), action=DiscreteActionSpec(n=3))
    return FakePolicy(spec=spec, handler=answer, slots=slots)


if __name__ == "__main__":
    from playserve.testing import FakePolicyServer

    with FakePolicyServer({"toy": policy()}, port=int(sys.argv[1]), delay_s=float(sys.argv[2])) as server:
        print("ready", server.address, flush=True)  # noqa: T201
        while True:
            time.sleep(1)
