"""Actions to and from the wire, and what of a human's action a policy can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from playserve.errors import BadActionError
from playserve.specs import ActionSpec, DesktopActionSpec, DiscreteActionSpec
from playserve.v1 import types_pb2 as pb

__all__ = [
    "Action", "DesktopAction", "action_from_proto", "action_to_proto", "clip_action", "executed_from_proto",
    "merge_executed",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class DesktopAction:
    """Keyboard and mouse for one action period: held state, not edges.

    Attributes:
        keys: Held keys, as W3C ``KeyboardEvent.code`` names.
        buttons: Held buttons: 0 left, 1 middle, 2 right, 3 back, 4 forward.
        mouse_dx_px: Relative motion to the right, pixels.
        mouse_dy_px: Relative motion downwards, pixels.
        scroll: Wheel steps, positive away from the user.
    """

    keys: frozenset[str] = frozenset()
    buttons: frozenset[int] = frozenset()
    mouse_dx_px: float = 0.0
    mouse_dy_px: float = 0.0
    scroll: float = 0.0


#: An index into a discrete action set, or keyboard and mouse.
Action = int | DesktopAction


def action_to_proto(action: Action, spec: ActionSpec) -> pb.Action:
    """Return the wire message of `action`; BadActionError where it does not fit `spec`."""
    if isinstance(spec, DiscreteActionSpec):
        if isinstance(action, bool) or not isinstance(action, int | np.integer):
            raise BadActionError(f"action {action!r}, wanted an index 0..{spec.n - 1}")
        _check_index(int(action), spec)
        return pb.Action(index=int(action))
    if not isinstance(action, DesktopAction):
        raise BadActionError(f"action {action!r}, wanted a DesktopAction")
    _check_desktop(action, spec)
    return pb.Action(
        desktop=pb.DesktopAction(
            keys=sorted(action.keys),
            buttons=sorted(action.buttons),
            mouse_dx_px=action.mouse_dx_px,
            mouse_dy_px=action.mouse_dy_px,
            scroll=action.scroll,
        )
    )


def action_from_proto(message: pb.Action, spec: ActionSpec) -> Action:
    """Return the action of a wire message; BadActionError where it does not fit `spec`."""
    action = _read(message, spec)
    if isinstance(action, DesktopAction) and isinstance(spec, DesktopActionSpec):
        _check_desktop(action, spec)
    return action


def executed_from_proto(message: pb.Action, source: int, spec: ActionSpec) -> Action | None:
    """Return what was executed, by an Executed or RowExecuted; None: nothing, or nobody knows.

    A human presses what a human likes: their action is clipped to `spec`. A policy's must fit it.

    Raises:
        BadActionError: The action does not fit, or the source is none.
    """
    if source in (pb.ACTION_SOURCE_NONE, pb.ACTION_SOURCE_UNKNOWN):
        return None
    if source == pb.ACTION_SOURCE_HUMAN:
        return clip_action(_read(message, spec), spec)
    if source != pb.ACTION_SOURCE_POLICY:
        raise BadActionError(f"action source {source}, wanted one of 1 to 4")
    return action_from_proto(message, spec)


def clip_action(action: Action, spec: ActionSpec) -> Action:
    """Return the part of a human's action that `spec` can express.

    Keys and buttons that it does not have are left out, mouse motion is cut to its largest, and scrolling is left out
    where the policy does not scroll. An index has no part: one out of range is an error, as is what is not finite.

    Raises:
        BadActionError: The action is of another kind, an index out of range, or not finite.
    """
    if isinstance(spec, DiscreteActionSpec):
        if isinstance(action, bool) or not isinstance(action, int | np.integer):
            raise BadActionError(f"action {action!r}, wanted an index 0..{spec.n - 1}")
        return _check_index(int(action), spec)
    if not isinstance(action, DesktopAction):
        raise BadActionError(f"action {action!r}, wanted a DesktopAction")
    numbers = (action.mouse_dx_px, action.mouse_dy_px, action.scroll)
    if not all(map(math.isfinite, numbers)):
        raise BadActionError(f"mouse motion and scroll of {numbers}, wanted finite numbers")
    limit = spec.max_mouse_px
    return DesktopAction(
        keys=action.keys.intersection(spec.keys),
        buttons=action.buttons.intersection(spec.buttons),
        mouse_dx_px=max(-limit, min(limit, action.mouse_dx_px)),
        mouse_dy_px=max(-limit, min(limit, action.mouse_dy_px)),
        scroll=action.scroll if spec.scroll else 0.0,
    )


def merge_executed(older: DesktopAction, newer: DesktopAction) -> DesktopAction:
    """Return two actions that were executed one after another as one: what is held now, all motion and scrolling."""
    return DesktopAction(
        keys=newer.keys,
        buttons=newer.buttons,
        mouse_dx_px=older.mouse_dx_px + newer.mouse_dx_px,
        mouse_dy_px=older.mouse_dy_px + newer.mouse_dy_px,
        scroll=older.scroll + newer.scroll,
    )


def _read(message: pb.Action, spec: ActionSpec) -> Action:
    """Return the action of a wire message: of the kind of `spec`, a desktop action unchecked beyond that."""
    kind = message.WhichOneof("kind")
    if isinstance(spec, DiscreteActionSpec):
        if kind != "index":
            raise BadActionError(f"action of kind {kind}, wanted an index 0..{spec.n - 1}")
        return _check_index(message.index, spec)
    if kind != "desktop":
        raise BadActionError(f"action of kind {kind}, wanted desktop")
    desktop = message.desktop
    return DesktopAction(
        keys=frozenset(desktop.keys),
        buttons=frozenset(desktop.buttons),
        mouse_dx_px=desktop.mouse_dx_px,
        mouse_dy_px=desktop.mouse_dy_px,
        scroll=desktop.scroll,
    )


def _check_index(index: int, spec: DiscreteActionSpec) -> int:
    if not 0 <= index < spec.n:
        raise BadActionError(f"action {index}, wanted an index 0..{spec.n - 1}")
    return index


def _check_desktop(action: DesktopAction, spec: DesktopActionSpec) -> None:
    if unknown := action.keys.difference(spec.keys):
        raise BadActionError(f"keys {sorted(unknown)[:8]}, wanted some of {list(spec.keys)}")
    if odd := action.buttons.difference(spec.buttons):
        raise BadActionError(f"buttons {sorted(odd)[:8]}, wanted some of {list(spec.buttons)}")
    # The wire is float32: a motion of exactly the limit must survive the trip.
    limit = spec.max_mouse_px * (1 + 1e-6)
    for axis, value in (("dx", action.mouse_dx_px), ("dy", action.mouse_dy_px)):
        if not abs(value) <= limit:
            raise BadActionError(f"mouse {axis} of {value} px, wanted at most {spec.max_mouse_px} either way")
    if not math.isfinite(action.scroll) or (action.scroll and not spec.scroll):
        raise BadActionError(
            f"scroll of {action.scroll}, wanted {'a finite number' if spec.scroll else '0: the policy does not scroll'}"
        )
