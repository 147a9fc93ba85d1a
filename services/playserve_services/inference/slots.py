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
import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from playserve.errors import DataLossError, LayoutMismatchError, NoFreeSlotError
from playserve_trainer.models.policy import StateTensor

__all__ = ["SlotLease", "SlotPool", "StateBlob"]

_MAGIC = b"PSST\x01\x00\x00\x00"


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
class StateBlob:
    """One slot's exported memory: a JSON header, then the tensors' bytes.

    Bytes: magic (8), header length (u32 little-endian), header, tensors in the order of the header, SHA-256 (32) of
    everything before it. Header: layout digest, tensor names, and what the caller adds (version, seq, RNG counter,
    settings).
    """

    header: Mapping[str, Any]
    tensors: Mapping[str, bytes]

    def pack(self) -> bytes:
        """Return the bytes."""
        header = {**self.header, "tensors": [[name, len(data)] for name, data in self.tensors.items()]}
        head = json.dumps(header, sort_keys=True).encode()
        body = b"".join([_MAGIC, struct.pack("<I", len(head)), head, *self.tensors.values()])
        return body + hashlib.sha256(body).digest()

    @classmethod
    def unpack(cls, data: bytes) -> StateBlob:
        """Return the blob of `data`; damaged or foreign bytes raise DataLossError."""
        if len(data) < 44 or data[:8] != _MAGIC:
            raise DataLossError(f"{len(data)} bytes that do not begin as an exported state")
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            raise DataLossError("an exported state whose digest does not match its bytes")
        (length,) = struct.unpack_from("<I", data, 8)
        header = json.loads(data[12 : 12 + length])
        tensors, at = {}, 12 + length
        for name, size in header.pop("tensors"):
            tensors[name] = data[at : at + size]
            at += size
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
            name: torch.zeros((capacity + 1, *t.shape), dtype=t.dtype, device=device) for name, t in layout.items()
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
                f"{count} slots wanted, {len(self._free)} of {self.capacity} are free", retry_after_s=1.0
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

    def export_slot(self, slot: int) -> dict[str, bytes]:
        """Return the memory of a slot, tensor by tensor. Call it on the engine thread."""
        return {
            name: tensor[slot].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            for name, tensor in self.tensors.items()
        }

    def import_slot(self, slot: int, digest: str, tensors: Mapping[str, bytes]) -> None:
        """Overwrite the memory of a slot. Call it on the engine thread.

        Raises:
            LayoutMismatchError: The blob's layout is another one, or its tensors have other names or sizes.
        """
        if digest != self.digest:
            raise LayoutMismatchError(f"a state of layout {digest!r} does not fit a pool of layout {self.digest!r}")
        wanted = {name: t[0].numel() * t.element_size() for name, t in self.tensors.items()}
        got = {name: len(data) for name, data in tensors.items()}
        if got != wanted:
            raise LayoutMismatchError(f"state tensors (bytes) {got} came, {wanted} were wanted")
        for name, data in tensors.items():
            tensor = self.tensors[name]
            flat = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            tensor[slot].copy_(flat.view(tensor.dtype).reshape(tensor[slot].shape))
