"""Packs a user's frames into the wire's tensors, and refuses what the policy does not take before it travels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from playserve.codec import Array, encode
from playserve.errors import DTypeMismatchError, InputMissingError, InputUnknownError, ShapeMismatchError
from playserve.specs import Codec, PolicySpec
from playserve.v1 import types_pb2 as pb

__all__ = ["Frame", "InputPacker"]

#: One array, where the policy has one required input, or arrays by input name.
Frame = Array | Mapping[str, Array]


class InputPacker:
    """Packs inputs for one session or rollout.

    Args:
        spec: The policy.
        preferred: Packings that the user wants, best first.
        allowed: Packings that the server allowed.
    """

    def __init__(self, spec: PolicySpec, preferred: Sequence[Codec], allowed: Collection[int]) -> None:
        self._specs = {tensor.name: tensor for tensor in spec.inputs}
        self._codecs = {
            tensor.name: next((c for c in preferred if c in allowed and c in tensor.codecs), Codec.RAW)
            for tensor in spec.inputs
        }
        required = [tensor.name for tensor in spec.inputs if not tensor.optional]
        self._single = required[0] if len(required) == 1 else None

    def step(self, frame: Frame) -> list[pb.Tensor]:
        """Return one step's tensors."""
        return [self._pack(name, array, ()) for name, array in self._named(frame).items()]

    def rows(self, frame: Frame, n: int) -> list[tuple[str, Array]]:
        """Return (name, array [n, *shape]) of each input of n rows, checked but not packed yet."""
        named = [(name, np.asarray(array)) for name, array in self._named(frame).items()]
        for name, array in named:
            self._check(name, array, (n,))
        return named

    def pack_rows(self, name: str, array: Array) -> pb.Tensor:
        """Return the tensor of one input of some rows; JPEG packs single images, so rows go raw then."""
        codec = self._codecs[name]
        return encode(array, name, Codec.RAW if codec is Codec.JPEG else codec)

    def _named(self, frame: Frame) -> Mapping[str, Array]:
        if isinstance(frame, Mapping):
            return frame
        if self._single is None:
            raise InputMissingError(f"one array came; the policy takes inputs by name: {sorted(self._specs)}")
        return {self._single: frame}

    def _pack(self, name: str, array: Array, lead: tuple[int, ...]) -> pb.Tensor:
        array = np.asarray(array)
        self._check(name, array, lead)
        return encode(array, name, self._codecs[name])

    def _check(self, name: str, array: Array, lead: tuple[int, ...]) -> None:
        spec = self._specs.get(name)
        if spec is None:
            raise InputUnknownError(f"input {name!r} is unknown; the policy takes {sorted(self._specs)}")
        if array.dtype != spec.dtype:
            raise DTypeMismatchError(f"input {name!r}: dtype {array.dtype}, wanted {spec.dtype}")
        wanted = lead + spec.shape
        if array.shape != wanted and not _fits(array, wanted):
            raise ShapeMismatchError(f"input {name!r}: shape {list(array.shape)}, wanted {list(wanted)}")


def _fits(array: Array, wanted: tuple[int, ...]) -> bool:
    return array.ndim == len(wanted) and all(
        a == b or (b == -1 and a > 0) for a, b in zip(array.shape, wanted, strict=True)
    )
