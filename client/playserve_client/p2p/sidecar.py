"""What a recorder knows beside Open P2P's format: rewards, terminations and probes of each frame, and the episode.

``<uuid>/sidecar.npz`` holds one array [frames, ...] a name (readable by ``numpy.load(path, allow_pickle=False)``), and
under "episode" the UTF-8 bytes of a JSON object: seed, scenario, goal, expert and whatever else. Of all
this a learner reads the column `first` alone: frames that begin an episode.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve_client.p2p.problems import BrokenRecordingError, Problem

__all__ = ["SIDECAR", "Sidecar", "columns", "read_sidecar", "write_sidecar"]

SIDECAR = "sidecar.npz"
_EPISODE = "episode"
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, TypeError, KeyError, EOFError, OSError)


@dataclass(frozen=True)
class Sidecar:
    """The sidecar of one recording.

    Attributes:
        episode: What it is an episode of.
        arrays: Values by name, [frames]; float32 or float64, int64 or bool.
    """

    episode: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def columns(rows: Sequence[Mapping[str, float | int | bool]]) -> dict[str, NDArray[Any]]:
    """Return an array [rows] of each name; a row without a value has nan, and its column is of floats then."""
    names = sorted({name for row in rows for name in row})
    return {name: _column([row.get(name) for row in rows]) for name in names}


def _column(values: Sequence[float | int | bool | None]) -> NDArray[Any]:
    array = np.array([np.nan if value is None else value for value in values])
    if array.dtype == object or array.dtype.kind not in "biuf":
        raise ValueError(f"sidecar values of {array.dtype}, wanted numbers and booleans")
    kind = {"b": np.bool_, "i": np.int64, "u": np.int64}.get(array.dtype.kind, np.float64)
    return array.astype(kind)


def write_sidecar(folder: Path, sidecar: Sidecar) -> None:
    """Write the sidecar into a recording that is not yet finished."""
    if _EPISODE in sidecar.arrays:
        raise ValueError(f"a sidecar array cannot be named {_EPISODE!r}")
    episode = np.frombuffer(json.dumps(sidecar.episode, sort_keys=True).encode(), np.uint8)
    with (folder / SIDECAR).open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **{_EPISODE: episode, **sidecar.arrays})
        file.flush()
        os.fsync(file.fileno())


def read_sidecar(folder: Path) -> Sidecar | None:
    """Return the sidecar of a recording; None: it has none.

    Raises:
        BrokenRecordingError: It is damaged (BAD_SIDECAR).
    """
    path = folder / SIDECAR
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        episode = json.loads(arrays.pop(_EPISODE).tobytes())
        if not isinstance(episode, dict):
            raise ValueError("its episode is no JSON object")
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        raise BrokenRecordingError(path, Problem.BAD_SIDECAR, f"damaged: {error or type(error).__name__}") from error
    return Sidecar(episode, arrays)
