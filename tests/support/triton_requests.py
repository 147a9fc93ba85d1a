"""Requests of an unmodified tritonclient: what its users write by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import tritonclient.grpc as client
from tritonclient.utils import np_to_triton_dtype

__all__ = ["frame", "inputs", "outputs_of"]


def inputs(**arrays: Any) -> list[client.InferInput]:
    """Return the inputs of one frame: each array without its row; a text becomes its bytes, a number a seed."""
    found = []
    for name, value in arrays.items():
        if isinstance(value, str):
            array = np.frombuffer(value.encode(), np.uint8)
        elif isinstance(value, int):
            array = np.array([value], np.uint64)
        else:
            array = value
        tensor = client.InferInput(name, (1, *array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array[None])
        found.append(tensor)
    return found


def frame(number: int, *shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return noise, the same each time for a number."""
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def outputs_of(result: client.InferResult) -> dict[str, Any]:
    """Return the outputs of an answer by name, as lists without their row."""
    return {output.name: result.as_numpy(output.name)[0].tolist() for output in result.get_response().outputs}
