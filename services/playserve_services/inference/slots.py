"""Slots: the preallocated memory of all sessions of one state layout, and who owns which row.

A pool is shared by every policy version whose layout digest is equal, so a canary does not double memory. Ownership
(allocate, release, generation) belongs to the event loop's thread; the tensors are touched only by the engine thread,
which runs one thing at a time. A released slot may therefore be given away at once: whatever is still being computed
for its old owner is finished before anything of the new owner begins, the new owner begins with a reset, and the
old result is thrown away because its generation is gone.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from playserve.errors import DataLossError, LayoutMismatchError, NoFreeSlotError
from playserve_trainer.models.policy import StateTensor

__all__ = ["Part", "SlotLease", "SlotPool", "StateBlob"]

_MAGIC = b"PSST\x01\x00\x00\x00"
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class SlotLease:
    """The right to one slot. `generation` tells this owner from every earlier one."""

    pool: SlotPool
    slot: int
    generation: int

    def valid(self) -> bool:
        """Whether the slot still belongs to this lease."""
        return self.pool.generation(self.slot) == self.generation


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a slot's memory: of one tensor everything, or a range of indices along one axis.

    Attributes:
        name: Of the tensor.
        axis: Of the slot's row; -1: everything.
        first: First index.
        last: Index after the last.
    """

    name: str
    axis: int = -1
    first: int = 0
    last: int = 0


@dataclass(frozen=True, slots=True)
class StateBlob:
    """One slot's exported memory: a JSON header, then the tensors' bytes.

    Bytes: magic (8), header length (u32 little-endian), header, tensors in the order of the header, SHA-256 (32) of
    everything before it. Header: layout digest, tensor names, and what the caller adds (version, seq, RNG counter,
    settings).
    """

    header: Mapping[str, Any]
    tensors: Mapping[str, bytes | memoryview]

    def pack(self) -> bytes:
        """Return the bytes."""
        sizes = {name: len(data) for name, data in self.tensors.items()}
        body = b"".join([self.head(self.header, sizes), *self.tensors.values()])
        return body + hashlib.sha256(body).digest()

    @staticmethod
    def head(header: Mapping[str, Any], sizes: Mapping[str, int]) -> bytes:
        """Return the bytes before the tensors, which have these sizes."""
        head = json.dumps(
            {**header, "tensors": [[name, size] for name, size in sizes.items()]}, sort_keys=True
        ).encode()
        return b"".join([_MAGIC, struct.pack("<I", len(head)), head])

    @classmethod
    def unpack(cls, data: bytes) -> StateBlob:
        """Return the blob of `data`; damaged or foreign bytes raise DataLossError."""
        if len(data) >= 44 and hashlib.sha256(data[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
            raise DataLossError("an exported state whose digest does not match its bytes")
        return cls.unverified(data)

    @classmethod
    def unverified(cls, data: bytes | bytearray) -> StateBlob:
        """Return the blob of `data`, its tensors as views of them; only the digest says whether they are whole.

        Raises:
            DataLossError: The bytes do not begin as those of a blob, or are not as many as it says.
        """
        if len(data) < 44 or data[:8] != _MAGIC:
            raise DataLossError(f"{len(data)} bytes that do not begin as an exported state")
        (length,) = struct.unpack_from("<I", data, 8)
        try:
            header = json.loads(data[12 : 12 + length])
            sizes = [(str(name), int(size)) for name, size in header.pop("tensors")]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataLossError(f"an exported state whose header cannot be read: {error}") from error
        tensors, at, view = {}, 12 + length, memoryview(data)
        for name, size in sizes:
            tensors[name] = view[at : at + size]
            at += size
        if at + _DIGEST_BYTES != len(data) or any(size < 0 for _, size in sizes):
            raise DataLossError(f"an exported state of {len(data)} bytes; its header says {at + _DIGEST_BYTES}")
        return cls(header, tensors)


class SlotPool:
    """Slots 1..capacity of one layout; slot 0 is scratch for padding.

    Args:
        digest: Layout digest.
        layout: Memory tensors of one slot; may be empty.
        capacity: Slots to give away, at least 1.
        device: Where the tensors live.
    """

    def __init__(
        self, digest: str, layout: Mapping[str, StateTensor], capacity: int, device: torch.device | str = "cpu"
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a pool has at least 1 slot, not {capacity}")
        self.digest = digest
        self.layout = dict(layout)
        self.capacity = capacity
        self.tensors = {
            name: _zeros((capacity + 1, *t.shape), t.dtype, torch.device(device)) for name, t in layout.items()
        }
        self._free: deque[int] = deque(range(1, capacity + 1))
        self._generations = [0] * (capacity + 1)
        self._owned = [False] * (capacity + 1)

    @property
    def free(self) -> int:
        """Number of free slots."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Number of owned slots."""
        return self.capacity - len(self._free)

    @property
    def bytes_per_slot(self) -> int:
        """Memory of one slot in bytes."""
        return sum(t[0].numel() * t.element_size() for t in self.tensors.values())

    def generation(self, slot: int) -> int:
        """Return the current generation of a slot; odd while it is owned."""
        return self._generations[slot]

    def allocate(self, count: int = 1) -> list[SlotLease]:
        """Return `count` leases, or raise NoFreeSlotError and take none."""
        if count > len(self._free):
            raise NoFreeSlotError(
                f"{count} slots wanted, {len(self._free)} of {self.capacity} are free "
                f"({self.bytes_per_slot / 2**20:.1f} MiB each)",
                retry_after_s=1.0,
            )
        leases = []
        for _ in range(count):
            slot = self._free.popleft()
            assert not self._owned[slot], f"slot {slot} was free and owned"  # noqa: S101 - invariant
            self._owned[slot] = True
            self._generations[slot] += 1
            leases.append(SlotLease(self, slot, self._generations[slot]))
        return leases

    def release(self, lease: SlotLease) -> bool:
        """Take a slot back. Returns False, and does nothing, when the lease was released before."""
        if not lease.valid():
            return False
        self._generations[lease.slot] += 1
        self._owned[lease.slot] = False
        self._free.append(lease.slot)
        return True

    def sizes(self) -> dict[str, int]:
        """Return the bytes of one slot by tensor."""
        return {name: t[0].numel() * t.element_size() for name, t in self.tensors.items()}

    def chunks(self, most: int) -> list[tuple[str, int, int]]:
        """Return (tensor, begin, end) of the pieces of a slot's memory, at most `most` bytes each, in order."""
        return [
            (name, begin, min(begin + most, size))
            for name, size in self.sizes().items()
            for begin in range(0, size, most)
        ]

    def read_chunk(self, slot: int, name: str, out: memoryview, begin: int = 0) -> None:
        """Copy a slot's memory, from byte `begin` of a tensor on, into `out`. Call it on the engine thread."""
        part = self._bytes(slot, name)[begin : begin + len(out)]
        torch.frombuffer(out, dtype=torch.uint8).copy_(part)

    def write_chunk(self, slot: int, name: str, data: memoryview | bytes, begin: int = 0) -> None:
        """Overwrite a part of a slot's memory, from byte `begin` of a tensor on. Call it on the engine thread."""
        array = np.frombuffer(data, np.uint8).copy()  # torch takes no memory that cannot be written
        self._bytes(slot, name)[begin : begin + len(array)].copy_(torch.from_numpy(array))

    def parts(self) -> list[Part]:
        """Return all of a slot's memory."""
        return [Part(name) for name in self.layout]

    def written(self, begin: int, end: int) -> list[Part]:
        """Return what of a slot's memory steps `begin` to `end` - 1 of one episode may have written; `begin` is not 0.

        Of tensors that are not here, or do not say it (`StateTensor.ring`), that is everything.
        """
        found = []
        for name, tensor in self.layout.items():
            if tensor.ring is None or name not in self.tensors:
                found.append(Part(name))
            else:
                found += [Part(name, tensor.ring.axis, *span) for span in tensor.ring.written(begin, end)]
        return found

    def part_bytes(self, part: Part) -> int:
        """Return the size of a part.

        Raises:
            LayoutMismatchError: There is no such part of this layout.
        """
        tensor = self.layout.get(part.name)
        if tensor is None:
            raise LayoutMismatchError(f"no memory tensor {part.name!r}; there are {sorted(self.layout)}")
        shape, size = tensor.shape, math.prod(tensor.shape) * tensor.dtype.itemsize
        if part.axis == -1:
            return size
        if not 0 <= part.axis < len(shape) or not 0 <= part.first < part.last <= shape[part.axis]:
            raise LayoutMismatchError(f"{part} is not within the shape {shape}")
        return size // shape[part.axis] * (part.last - part.first)

    def read_part(self, slot: int, part: Part) -> bytearray:
        """Return a part of a slot's memory. Call it on the engine thread."""
        data = bytearray(self.part_bytes(part))
        if data and part.axis == -1:
            self.read_chunk(slot, part.name, memoryview(data))
        elif data:
            rows = self._part(slot, part).contiguous().reshape(-1).view(torch.uint8)
            torch.frombuffer(data, dtype=torch.uint8).copy_(rows)
        return data

    def write_part(self, slot: int, part: Part, data: bytes | bytearray | memoryview) -> None:
        """Overwrite a part of a slot's memory with as many bytes as it has. Call it on the engine thread."""
        if not len(data):
            return
        if part.axis == -1:
            self.write_chunk(slot, part.name, memoryview(data))
            return
        if part.name not in self.tensors:
            raise LayoutMismatchError(f"{part}: memory that lies elsewhere takes whole tensors only")
        rows = self._part(slot, part)
        array = np.frombuffer(data, np.uint8).copy()
        rows.copy_(torch.from_numpy(array).view(rows.dtype).view(rows.shape))

    def _part(self, slot: int, part: Part) -> Tensor:
        return self.tensors[part.name][slot].narrow(part.axis, part.first, part.last - part.first)

    def _bytes(self, slot: int, name: str) -> Tensor:
        return self.tensors[name][slot].reshape(-1).view(torch.uint8)

    def export_slot(self, slot: int) -> dict[str, bytes]:
        """Return the memory of a slot, tensor by tensor. Call it on the engine thread."""
        return {name: self._bytes(slot, name).cpu().numpy().tobytes() for name in self.tensors}

    def import_slot(self, slot: int, digest: str, tensors: Mapping[str, bytes | memoryview]) -> None:
        """Overwrite the memory of a slot. Call it on the engine thread.

        Raises:
            LayoutMismatchError: The blob's layout is another one, or its tensors have other names or sizes.
        """
        self.check(digest, tensors)
        for name, data in tensors.items():
            if len(data):
                self.write_chunk(slot, name, data)

    def check(self, digest: str, tensors: Mapping[str, bytes | memoryview]) -> None:
        """Raise LayoutMismatchError where a slot's memory from elsewhere is not one of this layout."""
        if digest != self.digest:
            raise LayoutMismatchError(f"a state of layout {digest!r} does not fit a pool of layout {self.digest!r}")
        got, wanted = {name: len(data) for name, data in tensors.items()}, self.sizes()
        if got != wanted:
            raise LayoutMismatchError(f"state tensors (bytes) {got} came, {wanted} were wanted")


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros. On a CPU their pages are not there before somebody writes them: nobody may ever play in most."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = np.zeros(size + 64, np.uint8)
    begin = -raw.ctypes.data % 64  # aligned as torch would have it
    return torch.from_numpy(raw[begin : begin + size]).view(dtype).view(shape)
