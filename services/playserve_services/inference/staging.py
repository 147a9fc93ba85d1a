"""Where a batch is laid out before it is computed, and how its results come back: one copy each way on a GPU.

All arrays of a batch size lie in one buffer, so that they travel as one copy; on a CUDA device the buffer is pinned and
the copy does not block. The device's side has the same layout at fixed addresses, which CUDA graphs need. Results are
put together on the device and come back as one copy. On a CPU both sides are the same memory and nothing is copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["OUTPUT", "Array", "Computed", "Field", "Packed", "Readback", "Staged", "Staging", "pack"]

Array = npt.NDArray[Any]

#: Before the names of a policy's outputs, among the arrays of :meth:`Computed.named`.
OUTPUT = "output/"

_ALIGNMENT = 64  # bytes; every dtype may begin there


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a batch: its name, and the shape and dtype of a row."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(self.dtype.itemsize) * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Staged:
    """The arrays of one batch size, [size, *shape] by name: written through `host`, computed from `device`.

    Attributes:
        size: Rows.
        host: Arrays; views of the host's buffer.
        device: Tensors of the same layout; the same memory on a CPU.
        num_bytes: Of the buffer that this size needs.
    """

    size: int
    host: Mapping[str, Array]
    device: Mapping[str, Tensor]
    num_bytes: int


class Staging:
    """Buffers for every batch size up to `max_size`. One thread.

    Args:
        fields: The arrays.
        max_size: Most rows.
        device: Where batches are computed.
    """

    def __init__(self, fields: Sequence[Field], max_size: int, device: torch.device) -> None:
        self._fields = list(fields)
        total = self._offsets(max_size)[-1]
        cuda = device.type == "cuda"
        self._host = torch.zeros(total, dtype=torch.uint8, pin_memory=cuda)
        self._device = self._host if device.type == "cpu" else torch.zeros(total, dtype=torch.uint8, device=device)
        self._copied = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]
        # Made once a size: making tensors costs more than a small batch does.
        self._staged: dict[int, Staged] = {}

    @property
    def pinned(self) -> bool:
        """Whether the host's buffer is page-locked, so that copies do not block."""
        return self._host.is_pinned() if self._device is not self._host else False

    def _offsets(self, size: int) -> list[int]:
        """Return where each field begins in the buffer of `size` rows, and where the buffer ends."""
        offsets = [0]
        for field in self._fields:
            end = offsets[-1] + field.row_bytes * size
            offsets.append(-(-end // _ALIGNMENT) * _ALIGNMENT)
        return offsets

    def of(self, size: int) -> Staged:
        """Return the arrays of a batch size. What another size left in them is overwritten by the caller."""
        staged = self._staged.get(size)
        if staged is None:
            offsets = self._offsets(size)
            host, device = {}, {}
            for field, begin in zip(self._fields, offsets, strict=False):
                end, shape = begin + field.row_bytes * size, (size, *field.shape)
                dtype = torch.from_numpy(np.empty(0, field.dtype)).dtype
                host[field.name] = self._host[begin:end].view(dtype).view(shape).numpy()
                device[field.name] = self._device[begin:end].view(dtype).view(shape)
            staged = self._staged[size] = Staged(size, host, device, offsets[-1])
        return staged

    def wait(self) -> None:
        """Return when the host's buffer may be written again: at once, but after a batch that failed half-way."""
        if self._copied is not None:
            self._copied.synchronize()

    def send(self, staged: Staged) -> None:
        """Begin to copy to the device."""
        if self._device is not self._host:
            n = staged.num_bytes
            self._device[:n].copy_(self._host[:n], non_blocking=True)
            if self._copied is not None:
                self._copied.record(torch.cuda.current_stream(self._device.device))


@dataclass(frozen=True, slots=True)
class Computed:
    """What one batch gave, on the device.

    Attributes:
        actions_BH: int64 [B, H].
        log_probs_BH: float32 [B, H], or None: nothing was drawn, or nobody wants them.
        value_B: float32 [B], or None.
        outputs: [B, ...] by output name.
    """

    actions_BH: Tensor
    log_probs_BH: Tensor | None
    value_B: Tensor | None
    outputs: Mapping[str, Tensor]

    def named(self) -> dict[str, Tensor]:
        """Return all tensors by name; outputs have :data:`OUTPUT` before theirs."""
        named = {"actions": self.actions_BH}
        if self.log_probs_BH is not None:
            named["log_probs"] = self.log_probs_BH
        if self.value_B is not None:
            named["value"] = self.value_B.float()
        named.update({OUTPUT + name: tensor for name, tensor in self.outputs.items()})
        return named


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch's results as one tensor of bytes on the device, and what lies in it: (name, dtype, shape) in order."""

    data: Tensor
    parts: Sequence[tuple[str, np.dtype[Any], tuple[int, ...]]]


def pack(computed: Computed) -> Packed:
    """Put results together into one tensor, on their device."""
    # Widest numbers first: then every part is aligned without padding.
    named = sorted(computed.named().items(), key=lambda item: -item[1].element_size())
    data = torch.cat([tensor.contiguous().reshape(-1).view(torch.uint8) for _, tensor in named])
    parts = [(name, torch.empty(0, dtype=t.dtype).numpy().dtype, tuple(t.shape)) for name, t in named]
    return Packed(data, parts)


class Readback:
    """Brings packed results to the host, one copy a batch. One thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffer: Tensor | None = None

    def fetch(self, packed: Packed) -> dict[str, Array]:
        """Return the results by name, as arrays that are valid until the next call."""
        data = packed.data
        if self._device.type == "cuda":
            n = data.numel()
            if self._buffer is None or self._buffer.numel() < n:
                self._buffer = torch.empty(n, dtype=torch.uint8, pin_memory=True)
            host = self._buffer[:n]
            host.copy_(data, non_blocking=True)
            torch.cuda.current_stream(self._device).synchronize()
            data = host
        arrays: dict[str, Array] = {}
        raw, at = data.cpu().numpy(), 0
        for name, dtype, shape in packed.parts:
            end = at + dtype.itemsize * math.prod(shape)
            arrays[name] = raw[at:end].view(dtype).reshape(shape)
            at = end
        return arrays
