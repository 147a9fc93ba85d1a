"""What of a slot travels beside its tensors: its place in the episode and in its random stream, and its settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from playserve.errors import DataLossError
from playserve_services.inference.sessions import Settings, Slot

__all__ = ["restore_slot", "slot_header"]

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
