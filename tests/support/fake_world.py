"""The tiny world's game behind the fake server: what clients of worlds are tested with, without torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from playserve.specs import ActionSpec, DiscreteActionSpec, ImageFormat, PolicyKind, PolicySpec, TensorSpec
from playserve.testing import FakePolicy, FakeReply, StepContext

__all__ = ["NAMES", "fake_world", "frame_of", "world_spec"]

NAMES = ("NOOP", "UP", "LEFT", "DOWN", "RIGHT", "FIRE")
_MOVES = ((0, 0), (0, -1), (-1, 0), (0, 1), (1, 0), (0, 0))


def world_spec(
    *, side: int = 16, channels: int = 3, rate_hz: float = 20.0, action: ActionSpec | None = None, **fields: Any
) -> PolicySpec:
    """Return the spec of a world named "coins"."""
    outputs = (
        TensorSpec(
            name="frame", dtype="uint8", shape=(side, side, channels),
            image_format=ImageFormat.RGB8 if channels == 3 else ImageFormat.GRAY8,
        ),
        TensorSpec(name="reward", dtype="float32", shape=()),
        TensorSpec(name="terminated", dtype="bool", shape=()),
        TensorSpec(name="uncertainty", dtype="float32", shape=()),
    )  # fmt: skip
    return PolicySpec(
        name="coins", version="1", family="fake", kind=PolicyKind.WORLD, inputs=(), outputs=outputs, rate_hz=rate_hz,
        action=action or DiscreteActionSpec(n=len(NAMES), names=NAMES), context_frames=0, uses_executed_actions=True,
        **fields,
    )  # fmt: skip


def frame_of(spec: PolicySpec, place: tuple[int, int], shade: int = 255) -> Any:
    """Return a frame with a dot."""
    frame = np.zeros(spec.outputs[0].shape, np.uint8)
    frame[place[1], place[0], -1] = shade
    return frame


def fake_world(spec: PolicySpec, *, episode_steps: int = 1000, seen: list[Any] | None = None) -> FakePolicy:
    """Return a world whose dot starts in the column that its seed says, and wanders as it is told.

    It gives 1 for FIRE, is over after so many steps, and is as unsure as its step's number.
    """
    side = spec.outputs[0].shape[0]

    def dream(inputs: Any, context: StepContext) -> FakeReply:
        state = context.state
        if seen is not None:
            seen.append((context.episode_id, context.action))
        if "place" not in state:
            state["place"] = (context.seed % side, side // 2)
        elif isinstance(context.action, int):
            dx, dy = _MOVES[context.action % len(_MOVES)]
            state["place"] = ((state["place"][0] + dx) % side, (state["place"][1] + dy) % side)
        outputs = {
            "frame": frame_of(spec, state["place"]),
            "reward": np.asarray(context.action == 5 and context.step > 0, np.float32),
            "terminated": np.asarray(context.step >= episode_steps),
            "uncertainty": np.asarray(context.step, np.float32),
        }
        return FakeReply(outputs=outputs)

    return FakePolicy(spec=spec, handler=dream)
