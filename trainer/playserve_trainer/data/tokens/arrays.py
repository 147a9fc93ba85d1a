"""The arrays of a token cache on disk: raw files that grow row by row, and are mapped afterwards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import DataLossError

__all__ = ["ARRAYS", "ArrayWriter", "map_array"]

#: dtype of each array on disk.
ARRAYS: Mapping[str, str] = {
    "tokens": "<u2",
    "frames": "|u1",
    "executed": "<i4",
    "labels": "<i4",
    "reward": "<f4",
    "probes": "<f4",
    "lengths": "<i8",
    "seeds": "<i8",
    "places": "<f8",
    "terminated": "|b1",
}


class ArrayWriter:
    """Appends rows to arrays, ``<folder>/<name>.bin`` each; a context manager.

    Args:
        folder: Where to; it is there.
        rows: Shape of a row of each array.
    """

    def __init__(self, folder: Path, rows: Mapping[str, tuple[int, ...]]) -> None:
        self._rows = dict(rows)
        self._counts = dict.fromkeys(rows, 0)
        self._files: dict[str, IO[bytes]] = {name: (folder / f"{name}.bin").open("wb") for name in rows}

    def add(self, **arrays: NDArray[Any]) -> None:
        """Append rows [n, *row] to some arrays, each with an n of its own.

        Raises:
            ValueError: A row has another shape.
        """
        for name, array in arrays.items():
            if array.shape[1:] != self._rows[name]:
                raise ValueError(f"rows of {name} are {list(array.shape[1:])}, wanted {list(self._rows[name])}")
            self._files[name].write(np.ascontiguousarray(array, ARRAYS[name]).tobytes())
            self._counts[name] += len(array)

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Shape of each array as it is now."""
        return {name: [count, *self._rows[name]] for name, count in self._counts.items()}

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            if kind is None:
                file.flush()
                os.fsync(file.fileno())
            file.close()


def map_array(folder: Path, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return an array, mapped and read-only.

    Raises:
        DataLossError: Its file is not there, or has more or fewer bytes than the shape needs.
    """
    dtype, path = np.dtype(ARRAYS[name]), folder / f"{name}.bin"
    wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataLossError(f"{path} cannot be read: {error}") from error
    if size != wanted:
        raise DataLossError(f"{path} has {size} bytes; {dtype} {list(shape)} takes {wanted}")
    if not size:  # of nothing, nothing can be mapped
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", shape=shape)
