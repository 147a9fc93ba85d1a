"""The bytes that go from one replica to another: a snapshot of a slot's memory, then what has changed, then a record.

All are `StateBlob`s. A snapshot has every tensor of the layout; it is sent while the game goes on, and so is only good
together with what was written since it began. Deltas have what was written while the export before them went, so that
less and less is left; each names the export that it follows. The last export has a `SlotRecord`, and parts of tensors:
all, or those that the steps since have written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from playserve.errors import DataLossError, LayoutMismatchError
from playserve_services.inference.record import SlotRecord
from playserve_services.inference.slots import Part, SlotPool, StateBlob

__all__ = ["CHUNK_BYTES", "Contents", "Delta", "LastExport", "SnapshotReader",
           "export_limit", "groups_of", "snapshot_head"]  # fmt: skip

#: Bytes of one message; half of the smallest limit that a server can be given.
CHUNK_BYTES = 512 << 10
#: A header, with a record, takes no more.
_MAX_HEAD_BYTES = 256 << 10
_DIGEST_BYTES = 32
#: Bytes that are copied between two batches.
_GROUP_BYTES = 4 << 20


def export_limit(pool: SlotPool) -> int:
    """Return the most bytes that an export of a slot of a pool may have."""
    return pool.bytes_per_slot + _MAX_HEAD_BYTES + _DIGEST_BYTES


def snapshot_head(pool: SlotPool) -> bytes:
    """Return the bytes of a snapshot before its tensors."""
    return StateBlob.head({"layout": pool.digest}, pool.sizes())


Contents = Sequence[tuple[Part, bytes | bytearray | memoryview]]


def groups_of(pool: SlotPool, parts: Sequence[Part]) -> list[list[Part]]:
    """Return the parts in groups, each of which is copied between two batches."""
    groups: list[list[Part]] = []
    room = 0
    for part in parts:
        size = pool.part_bytes(part)
        if not groups or size > room:
            groups.append([])
            room = _GROUP_BYTES
        groups[-1].append(part)
        room -= size
    return groups


@dataclass(frozen=True, slots=True)
class Delta:
    """What a game has written since the export before it, while it goes on.

    Attributes:
        follows: SHA-256, in hexadecimal, of that export: a snapshot, or another delta.
        parts: Parts of the memory, with their bytes.
    """

    follows: str
    parts: Contents

    def pack(self) -> tuple[bytes, str]:
        """Return the bytes, and what the next export says that it follows."""
        body = _pack({"follows": self.follows}, self.parts)
        inner = hashlib.sha256(body).digest()
        return body + inner, inner.hex()

    @classmethod
    def unpack(cls, data: bytes, pool: SlotPool) -> tuple[Delta, str]:
        """Return what the bytes say, every part checked against the layout, and their SHA-256 as :meth:`pack` gave it.

        Raises:
            DataLossError: They are damaged, or are no delta.
            LayoutMismatchError: Parts that the layout does not have.
        """
        blob = StateBlob.unpack(data)
        follows = blob.header.get("follows")
        if not isinstance(follows, str) or not follows:
            raise DataLossError("neither a snapshot, a delta nor a last export")
        return cls(follows, _parts(blob, pool)), data[-_DIGEST_BYTES:].hex()


@dataclass(frozen=True, slots=True)
class LastExport:
    """What a session is when it leaves.

    Attributes:
        record: Everything but tensors.
        follows: SHA-256 of the snapshot or delta that it changes, in hexadecimal; empty: it needs none.
        parts: Parts of the memory, with their bytes.
    """

    record: SlotRecord
    follows: str
    parts: Contents

    def pack(self) -> tuple[bytes, bytes]:
        """Return the bytes, and their SHA-256."""
        body = _pack({"record": self.record.header(), "follows": self.follows}, self.parts)
        # The session stands still meanwhile: what is hashed is hashed once.
        digest = hashlib.sha256(body)
        inner = digest.digest()
        digest.update(inner)
        return body + inner, digest.digest()

    @classmethod
    def unpack(cls, data: bytes | bytearray, sha256: bytes, pool: SlotPool) -> LastExport:
        """Return what the bytes say, every part checked against the layout.

        Raises:
            DataLossError: They are damaged, or are no last export, or not the one of that SHA-256.
            LayoutMismatchError: Parts that the layout does not have, or not all of it without a snapshot.
        """
        inner = bytes(data[-_DIGEST_BYTES:])
        digest = hashlib.sha256(memoryview(data)[:-_DIGEST_BYTES])
        whole = digest.digest() == inner
        digest.update(inner)
        if not whole or digest.digest() != sha256:
            raise DataLossError("the last export is not the one that the commit tells of")
        blob = StateBlob.unverified(data)
        try:
            record = SlotRecord.read(blob.header["record"])
            follows = str(blob.header["follows"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataLossError(f"the header of a last export cannot be read: {error}") from error
        parts = _parts(blob, pool)
        if not follows and not record.fresh and {part for part, _ in parts if part.axis == -1} < set(pool.parts()):
            raise LayoutMismatchError("an export without a snapshot lacks parts of the memory")
        return cls(record, follows, parts)


def _pack(header: Mapping[str, Any], parts: Contents) -> bytes:
    """Return the bytes of an export but for its digest."""
    header = {**header, "parts": [[p.name, p.axis, p.first, p.last] for p, _ in parts]}
    sizes = {str(i): len(data) for i, (_, data) in enumerate(parts)}
    return b"".join([StateBlob.head(header, sizes), *(data for _, data in parts)])


def _parts(blob: StateBlob, pool: SlotPool) -> Contents:
    """Return the parts that a blob holds; raises DataLossError or LayoutMismatchError."""
    try:
        parts = [Part(str(n), int(a), int(f), int(e)) for n, a, f, e in blob.header["parts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataLossError(f"the parts of an export cannot be read: {error}") from error
    tensors = list(blob.tensors.values())
    if [pool.part_bytes(part) for part in parts] != [len(tensor) for tensor in tensors]:
        raise LayoutMismatchError(f"{len(parts)} parts and their bytes do not belong together")
    return list(zip(parts, tensors, strict=True))


class SnapshotReader:
    """Puts the bytes of a snapshot, as they come, into pieces for a slot.

    Args:
        pool: Of the slot.

    Attributes:
        head: The bytes with which it begins.
        digest: SHA-256 of it, in hexadecimal, once all of it has come undamaged; else empty.
    """

    def __init__(self, pool: SlotPool) -> None:
        self.head = snapshot_head(pool)
        self._sizes = list(pool.sizes().items())
        self._at = 0  # of the tensors' bytes
        self._digest = hashlib.sha256()
        self._tail = bytearray()  # the digest, as it comes
        self._begun = bytearray()  # the header, as it comes
        self.digest = ""

    def feed(self, data: bytes) -> list[tuple[str, int, memoryview]]:
        """Take the next bytes; return pieces of tensors: name, first byte, bytes.

        Raises:
            LayoutMismatchError: The snapshot is of another layout.
            DataLossError: It is damaged, or longer than it says.
        """
        view = memoryview(data)
        missing = len(self.head) - len(self._begun)
        if missing > 0:
            self._begun += view[:missing]
            if self._begun != self.head[: len(self._begun)]:
                raise LayoutMismatchError("a snapshot of another layout, or no snapshot")
            view = view[missing:]
            if len(self._begun) == len(self.head):
                self._digest.update(self.head)
        pieces, begin = [], 0
        for name, size in self._sizes:
            end = begin + size
            while len(view) and begin <= self._at < end:
                piece = view[: end - self._at]
                pieces.append((name, self._at - begin, piece))
                self._at += len(piece)
                view = view[len(piece) :]
                self._digest.update(piece)
            begin = end
        if len(view):
            self._tail += view
            if len(self._tail) > _DIGEST_BYTES:
                raise DataLossError("a snapshot that is longer than its layout")
            if len(self._tail) == _DIGEST_BYTES:
                if bytes(self._tail) != self._digest.digest():
                    raise DataLossError("a snapshot whose digest does not match its bytes")
                self.digest = self._tail.hex()
        return pieces
