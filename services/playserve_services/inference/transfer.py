"""Taking a session's memory out, and putting it in elsewhere.

Beside the slot's tensors travel its place in the episode and in its random stream, and its settings.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from typing import Any

from playserve.errors import DataLossError, SessionClosedError
from playserve_services.inference.engine import Engine
from playserve_services.inference.record import SlotRecord
from playserve_services.inference.sessions import Session, Slot
from playserve_services.inference.slots import StateBlob

__all__ = ["export_state", "import_state"]

# So much is copied between two batches; they wait a millisecond or two for it.
_CHUNK_BYTES = 2 << 20
_DIGEST_BYTES = 32


def export_state(engine: Engine, session: Session, done: Callable[[bytearray | None, Exception | None], None]) -> None:
    """See :meth:`InferenceCore.export_state`. The slot is busy until `done` is called."""
    slot = session.slots[0]
    if slot.busy:
        raise ValueError(f"session {session.session_id} has a frame in the engine")
    _Export(engine, slot, done).go_on()


class _Export:
    """Copies a slot's memory piece by piece, between the engine's batches: one may have a hundred megabytes."""

    def __init__(self, engine: Engine, slot: Slot, done: Callable[[bytearray | None, Exception | None], None]) -> None:
        self._engine, self._slot, self._lease, self._done = engine, slot, slot.lease, done
        pool = slot.lease.pool
        head = StateBlob.head(SlotRecord.of(slot).header(), pool.sizes())
        self._at = len(head)
        self._data = bytearray(len(head) + pool.bytes_per_slot + _DIGEST_BYTES)
        self._data[: self._at] = head
        self._digest = hashlib.sha256(head)
        self._chunks = deque(pool.chunks(_CHUNK_BYTES))
        slot.busy = True

    def go_on(self) -> None:
        if not self._chunks:
            self._data[self._at :] = self._digest.digest()
            self._end(None)
        elif not self._lease.valid():
            self._end(SessionClosedError("the session ended while it was exported"))
        else:
            self._engine.call(self._copy, self._copied)

    def _copy(self) -> None:
        """Copy the next piece. Engine's thread."""
        name, begin, end = self._chunks.popleft()
        piece = memoryview(self._data)[self._at : self._at + end - begin]
        self._lease.pool.read_chunk(self._lease.slot, name, piece, begin)
        self._digest.update(piece)
        self._at += end - begin

    def _copied(self, _: Any, error: Exception | None) -> None:
        if error is None:
            self.go_on()
        else:
            self._end(error)

    def _end(self, error: Exception | None) -> None:
        self._slot.busy = False
        self._done(self._data if error is None else None, error)


def import_state(
    engine: Engine, session: Session, data: bytes | bytearray, done: Callable[[Exception | None], None]
) -> None:
    """See :meth:`InferenceCore.import_state`. The slot is busy until `done` is called."""
    slot = session.slots[0]
    if slot.busy or slot.queue or slot.seen_seq:
        raise ValueError(f"session {session.session_id} has begun to play")
    blob = StateBlob.unverified(data)
    slot.lease.pool.check(str(blob.header.get("layout", "")), blob.tensors)
    _Import(engine, slot, data, blob, done).go_on()


class _Import:
    """Writes a slot's memory piece by piece. It counts only when the digest has turned out to be right."""

    def __init__(
        self, engine: Engine, slot: Slot, data: bytes | bytearray, blob: StateBlob,
        done: Callable[[Exception | None], None],
    ) -> None:  # fmt: skip
        self._engine, self._slot, self._lease, self._done = engine, slot, slot.lease, done
        self._blob, self._wanted = blob, bytes(data[-_DIGEST_BYTES:])
        head_bytes = len(data) - _DIGEST_BYTES - sum(map(len, blob.tensors.values()))
        self._digest = hashlib.sha256(memoryview(data)[:head_bytes])
        self._chunks = deque(slot.lease.pool.chunks(_CHUNK_BYTES))
        slot.busy = True

    def go_on(self) -> None:
        if not self._chunks:
            self._end(self._restore())
        elif not self._lease.valid():
            self._end(SessionClosedError("the session ended while it was imported"))
        else:
            self._engine.call(self._copy, self._copied)

    def _copy(self) -> None:
        """Write the next piece. Engine's thread."""
        name, begin, end = self._chunks.popleft()
        piece = memoryview(self._blob.tensors[name])[begin:end]
        self._digest.update(piece)
        self._lease.pool.write_chunk(self._lease.slot, name, piece, begin)

    def _copied(self, _: Any, error: Exception | None) -> None:
        if error is None:
            self.go_on()
        else:
            self._end(error)

    def _restore(self) -> Exception | None:
        if self._digest.digest() != self._wanted:
            return DataLossError("an exported state whose digest does not match its bytes")
        if self._lease.valid():
            try:
                SlotRecord.read(self._blob.header).restore(self._slot)
            except DataLossError as error:
                return error
        return None

    def _end(self, error: Exception | None) -> None:
        self._slot.busy = False
        self._done(error)
