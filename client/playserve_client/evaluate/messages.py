"""What parent and workers say to each other: small binary messages on the hot path, JSON for the rest. No pickle.

=====  ==========  ====================================================================================
kind   direction   content
=====  ==========  ====================================================================================
``J``  both        a JSON object: hello, attach, assign, finished, failed
``A``  to worker   int64 [n, 3]: row, tag, action
``D``  to worker   JSON: [row, tag, keys, buttons, dx, dy, scroll] of each row, of environments with keyboard and mouse
``R``  to parent   int64 [1 + n, 2]: (steps since the last report, 0), then (row, tag) of each ready row
=====  ==========  ====================================================================================

A tag is the wire's episode id: it rises with every episode that is begun, so an answer to an abandoned attempt is told
by its tag.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.actions import DesktopAction
from playserve_client.evaluate.actions import desktop_from_json, desktop_to_json

__all__ = [
    "ACTIONS", "DESKTOP", "JSON", "READY", "actions_message", "array_of", "desktop_message", "desktop_of",
    "json_message", "json_of", "ready_message",
]  # fmt: skip

ACTIONS, DESKTOP, JSON, READY = ord("A"), ord("D"), ord("J"), ord("R")


def json_message(value: Mapping[str, Any]) -> bytes:
    """Return a ``J`` message."""
    return b"J" + json.dumps(value).encode()


def json_of(message: bytes) -> dict[str, Any]:
    """Return the object of a ``J`` message."""
    value: dict[str, Any] = json.loads(message[1:])
    return value


def actions_message(rows_N3: NDArray[np.int64]) -> bytes:
    """Return an ``A`` message of (row, tag, action)."""
    return b"A" + rows_N3.tobytes()


def desktop_message(rows: Iterable[tuple[int, int, DesktopAction]]) -> bytes:
    """Return a ``D`` message of (row, tag, action)."""
    return b"D" + json.dumps([[row, tag, *desktop_to_json(action)] for row, tag, action in rows]).encode()


def desktop_of(message: bytes) -> list[tuple[int, int, DesktopAction]]:
    """Return the content of a ``D`` message."""
    return [(row, tag, desktop_from_json(action)) for row, tag, *action in json.loads(message[1:])]


def ready_message(steps: int, rows: list[tuple[int, int]]) -> bytes:
    """Return an ``R`` message."""
    return b"R" + np.array([(steps, 0), *rows], np.int64).tobytes()


def array_of(message: bytes, width: int) -> NDArray[np.int64]:
    """Return the content of an ``A`` (width 3) or ``R`` (width 2) message, [n, width]."""
    return np.frombuffer(message, np.int64, offset=1).reshape(-1, width)
