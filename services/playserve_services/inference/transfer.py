"""Taking a session's memory out, and putting it in elsewhere.

Beside the slot's tensors travel its place in the episode and in its random stream, and its settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from playserve.errors import DataLossError, LayoutMismatchError
from playserve_services.inference.engine import Engine
from playserve_services.inference.sessions import Session, Settings, Slot
from playserve_services.inference.slots import StateBlob

__all__ = ["export_state", "import_state", "restore_slot", "slot_header"]

_FIELDS = ("seed", "counter", "episode_id", "entered_seq", "fresh")


def slot_header(slot: Slot) -> dict[str, Any]:
    """Return the header of an export: layout, version, place, settings."""
    session = slot.session
    return {
        "layout": slot.lease.pool.digest,
        "policy": session.policy.spec.name,
        "version": session.policy.spec.version,
        "last_action": None if slot.last_action is None else list(slot.last_action),
        "settings": dataclasses.asdict(session.settings),
        **{name: getattr(slot, name) for name in _FIELDS},
    }


def restore_slot(slot: Slot, header: Mapping[str, Any]) -> None:
    """Take over the place, the random stream and the settings of an export.

    Raises:
        DataLossError: The header lacks a field.
    """
    try:
        for name in _FIELDS:
            setattr(slot, name, header[name])
        last = header["last_action"]
        slot.session.settings = Settings(**header["settings"])
    except (KeyError, TypeError) as error:
        raise DataLossError(f"the header of an exported state is not whole: {error}") from error
    slot.last_action = None if last is None else tuple(last)
    slot.seen_seq, slot.seen_episode = slot.entered_seq, slot.episode_id


def export_state(engine: Engine, session: Session, done: Callable[[bytes | None, Exception | None], None]) -> None:
    """See :meth:`InferenceCore.export_state`."""
    slot = session.slots[0]
    if slot.busy:
        raise ValueError(f"session {session.session_id} has a frame in the engine")
    header = slot_header(slot)
    pool, index = slot.lease.pool, slot.lease.slot

    def finish(tensors: Any, error: Exception | None) -> None:
        done(None if error is not None else StateBlob(header, tensors).pack(), error)

    engine.call(lambda: pool.export_slot(index), finish)


def import_state(engine: Engine, session: Session, data: bytes, done: Callable[[Exception | None], None]) -> None:
    """See :meth:`InferenceCore.import_state`."""
    blob = StateBlob.unpack(data)
    slot = session.slots[0]
    if slot.busy or slot.queue or slot.seen_seq:
        raise ValueError(f"session {session.session_id} has begun to play")
    pool, lease = slot.lease.pool, slot.lease
    digest = str(blob.header.get("layout", ""))
    if digest != pool.digest:
        raise LayoutMismatchError(f"a state of layout {digest!r} does not fit a pool of layout {pool.digest!r}")

    def write() -> None:
        pool.import_slot(lease.slot, digest, blob.tensors)

    def finish(_: Any, error: Exception | None) -> None:
        if error is None and lease.valid():
            restore_slot(slot, blob.header)
        done(error)

    engine.call(write, finish)
