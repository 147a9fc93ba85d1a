"""What a world shows: its outputs by their names, as a picture and numbers.

Shape legend: H height, W width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from playserve.actions import Action, DesktopAction
from playserve.errors import UnsupportedError
from playserve.specs import ActionSpec, DiscreteActionSpec, PolicyKind, PolicySpec
from playserve_client.results import StepResult

__all__ = ["Shown", "as_rgb", "check_world", "idle_action", "show"]

_IDLE_NAMES = ("noop", "idle", "none", "wait")


@dataclass(frozen=True, slots=True)
class Shown:
    """One step of a world.

    Attributes:
        frame: uint8 [H, W, 3].
        reward: That came with the step; 0 where the world has none.
        terminated: Whether the episode ended with it.
        uncertainty: How unsure the world was of the frame, nats a token; None: it does not say.
    """

    frame: NDArray[np.uint8]
    reward: float
    terminated: bool
    uncertainty: float | None


def check_world(spec: PolicySpec) -> tuple[int, int]:
    """Return height and width of a world's frames.

    Raises:
        UnsupportedError: It is no world, needs more than actions, or shows no picture.
    """
    if spec.kind is not PolicyKind.WORLD:
        raise UnsupportedError(f"{spec.name!r} is no world but an agent: it plays, and is not played in")
    if needed := [tensor.name for tensor in spec.inputs if not tensor.optional]:
        raise UnsupportedError(f"the world {spec.name!r} needs inputs beside actions: {needed}")
    frame = next((tensor for tensor in spec.outputs if tensor.name == "frame"), None)
    fits = frame is not None and frame.dtype == "uint8" and len(frame.shape) == 3 and frame.shape[2] in (1, 3)
    if frame is None or not fits or min(frame.shape) < 1:
        has = [(tensor.name, tensor.dtype, list(tensor.shape)) for tensor in spec.outputs]
        raise UnsupportedError(f"the world {spec.name!r} shows {has}; wanted 'frame', uint8 [H, W, 1 or 3]")
    return frame.shape[0], frame.shape[1]


def as_rgb(frame_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a frame, uint8 [H, W, 1 or 3], as uint8 [H, W, 3]; the frame itself where it has three channels."""
    return np.repeat(frame_HWC, 3, axis=2) if frame_HWC.shape[2] == 1 else frame_HWC


def show(result: StepResult) -> Shown:
    """Return what a result of a world shows; see :func:`check_world`."""
    outputs = result.outputs
    return Shown(
        frame=as_rgb(np.asarray(outputs["frame"])),
        reward=float(outputs["reward"]) if "reward" in outputs else 0.0,
        terminated=bool(outputs["terminated"]) if "terminated" in outputs else False,
        uncertainty=float(outputs["uncertainty"]) if "uncertainty" in outputs else None,
    )


def idle_action(spec: ActionSpec) -> Action:
    """Return what does nothing: no key, or the action that is called so; else the first one."""
    if not isinstance(spec, DiscreteActionSpec):
        return DesktopAction()
    names = [name.lower() for name in spec.names]
    return next((names.index(name) for name in _IDLE_NAMES if name in names), 0)
