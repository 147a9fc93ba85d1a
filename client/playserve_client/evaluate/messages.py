"""What parent and workers say to each other: small binary messages on the hot path, JSON for the rest. No pickle.

=====  ==========  ====================================================================================
kind   direction   content
=====  ==========  ====================================================================================
``J``  both        a JSON object: hello, attach, assign, finished, failed
``A``  to worker   int64 [n, 3]: row, tag, action
``R``  to parent   int64 [1 + n, 2]: (steps since the last report, 0), then (row, tag) of each ready row
=====  ==========  ====================================================================================

A tag is the wire's episode id: it rises with every episode that is begun, so an answer to an abandoned attempt is told
by its tag.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ACTIONS", "JSON", "READY", "actions_message", "array_of", "json_message", "json_of", "ready_message"]

ACTIONS, JSON, READY = ord("A"), ord("J"), ord("R")


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


def ready_message(steps: int, rows: list[tuple[int, int]]) -> bytes:
    """Return an ``R`` message."""
    return b"R" + np.array([(steps, 0), *rows], np.int64).tobytes()


def array_of(message: bytes, width: int) -> NDArray[np.int64]:
    """Return the content of an ``A`` (width 3) or ``R`` (width 2) message, [n, width]."""
    return np.frombuffer(message, np.int64, offset=1).reshape(-1, width)
