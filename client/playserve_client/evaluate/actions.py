"""Actions of an episode as the worker keeps them: arrays for a file, and what worker and parent say to each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.actions import Action, DesktopAction

__all__ = ["desktop_from_json", "desktop_to_json", "pack_actions", "packed_bytes", "unpack_actions"]

_NUM_BUTTONS = 5


def desktop_to_json(action: DesktopAction) -> list[Any]:
    """Return a JSON value of an action."""
    motion = action.mouse_dx_px, action.mouse_dy_px, action.scroll
    return [sorted(action.keys), sorted(action.buttons), *motion]


def desktop_from_json(value: Sequence[Any]) -> DesktopAction:
    """Return the action of a JSON value."""
    keys, buttons, *motion = value
    return DesktopAction(frozenset(keys), frozenset(buttons), *motion)


def pack_actions(actions: Sequence[Action], num_actions: int) -> dict[str, NDArray[Any]]:
    """Return an episode's actions as arrays for a file.

    Indices are one array, ``executed`` [T]. Keyboard and mouse are ``executed`` float32 [T, K + 5 + 3], held keys and
    buttons as 0 or 1, then motion to the right and down and scrolling; ``keys`` [K] names the first columns.
    """
    if num_actions:
        return {"executed": np.array(actions, np.int16 if num_actions <= 1 << 15 else np.int32)}
    played = [action for action in actions if isinstance(action, DesktopAction)]
    keys = sorted({key for action in played for key in action.keys})
    table = np.zeros((len(played), len(keys) + _NUM_BUTTONS + 3), np.float32)
    for row, action in zip(table, played, strict=True):
        row[: len(keys)] = [key in action.keys for key in keys]
        row[len(keys) : -3] = [button in action.buttons for button in range(_NUM_BUTTONS)]
        row[-3:] = action.mouse_dx_px, action.mouse_dy_px, action.scroll
    return {"executed": table, "keys": np.array(keys, np.str_)}


def unpack_actions(stored: Mapping[str, NDArray[Any]]) -> list[Action]:
    """Return the actions of :func:`pack_actions`."""
    table = stored["executed"]
    if table.ndim == 1:
        return [int(action) for action in table]
    keys = [str(key) for key in stored["keys"]]
    return [
        DesktopAction(
            frozenset(key for key, held in zip(keys, row, strict=False) if held),
            frozenset(b for b in range(_NUM_BUTTONS) if row[len(keys) + b]),
            *(float(value) for value in row[-3:]),
        )
        for row in table
    ]


def packed_bytes(packed: Mapping[str, NDArray[Any]]) -> bytes:
    """Return bytes that are equal where the actions are."""
    names = json.dumps([str(key) for key in packed["keys"]]).encode() if "keys" in packed else b""
    return packed["executed"].tobytes() + names
