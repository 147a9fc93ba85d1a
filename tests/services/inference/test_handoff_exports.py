"""What goes from one replica to another is the whole memory, though most of it was copied while the game went on."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from handoff_kit import FAMILIES, frame_of, make
from hypothesis import given
from hypothesis import strategies as st
from rig import Rig

from playserve.actions import DesktopAction
from playserve.errors import DataLossError, LayoutMismatchError
from playserve_services.inference.handoff.exports import Delta, LastExport, SnapshotReader, snapshot_head
from playserve_services.inference.record import SlotRecord
from playserve_services.inference.sessions import DroppedStep, Frame, Session, Settings
from playserve_services.inference.slots import Part, SlotPool, StateBlob
from playserve_trainer.models.policy import Policy, Ring, StateTensor

MOST = 18  # steps; the rings have 3 to 8 places
LAYOUT = {
    "ring": StateTensor((2, 9, 3), torch.bfloat16, Ring(axis=1, places=4, size=2, head=1)),
    "steps": StateTensor((), torch.int64),
}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def policy(request: pytest.FixtureRequest) -> Policy:
    return make(request.param)


def play(rig: Rig, session: Session, steps: range) -> None:
    for number in steps:
        frame = Frame(
            seq=number, episode_id=0, inputs=frame_of(session.policy.spec.inputs, 1, number),
            arrived_ns=rig.now_ns, settings=session.settings,
        )  # fmt: skip
        rig.core.arrive(session.slots[0], frame)
        rig.core.pump()
        rig.engine.run_all()


def rows(session: Session) -> dict[str, bytes]:
    lease = session.slots[0].lease
    return lease.pool.export_slot(lease.slot)


def test_a_snapshot_and_what_was_written_since_are_the_whole_memory(policy: Policy) -> None:
    rig = Rig()
    session, copy = (rig.open(rig.load("p", policy), seed=3, settings=Settings(instruction="")) for _ in range(2))
    pool, slot, other = session.policy.pool, session.slots[0].lease.slot, copy.slots[0].lease.slot
    snapshots = []
    for number in range(1, MOST + 1):
        play(rig, session, range(number, number + 1))
        assert session.slots[0].age == number
        for begin, snapshot in snapshots:
            pool.import_slot(other, pool.digest, snapshot)
            for part in pool.written(begin, number):
                pool.write_part(other, part, bytes(pool.read_part(slot, part)))
            assert rows(copy) == rows(session), (begin, number)
        snapshots.append((number, rows(session)))


@given(
    places=st.integers(1, 9), size=st.integers(1, 3), head=st.integers(0, 2), begin=st.integers(1, 40),
    steps=st.integers(0, 30),
)  # fmt: skip
def test_a_ring_names_each_place_that_a_step_writes_and_none_twice(
    places: int, size: int, head: int, begin: int, steps: int
) -> None:
    touched = {i for t in range(begin, begin + steps) for place in (t % places, (t - 1) % places)
               for i in range(head + place * size, head + (place + 1) * size)}  # fmt: skip
    touched |= set(range(head)) if steps else set()
    named = [i for a, b in Ring(0, places, size, head).written(begin, begin + steps) for i in range(a, b)]
    assert sorted(named) == sorted(set(named))
    assert set(named) >= touched
    if steps < places:
        assert set(named) == touched


def test_parts_are_read_and_written_and_others_are_left_alone() -> None:
    pool = SlotPool("d", LAYOUT, capacity=2)
    pool.tensors["ring"][1] = torch.arange(54).view(2, 9, 3)
    for part in (Part("ring", 1, 2, 5), Part("ring", 0, 1, 2), Part("ring", 2, 0, 1), Part("ring"), Part("steps")):
        pool.tensors["ring"][2] = -1
        pool.write_part(2, part, bytes(pool.read_part(1, part)))
        if part.axis >= 0:
            moved = pool.tensors["ring"][2].narrow(part.axis, part.first, part.last - part.first)
            assert torch.equal(moved, pool.tensors["ring"][1].narrow(part.axis, part.first, part.last - part.first))
            assert int((pool.tensors["ring"][2] == -1).sum()) == 54 - moved.numel()
    for wrong in (Part("x"), Part("ring", 3, 0, 1), Part("ring", 1, 8, 10), Part("ring", 1, 4, 4), Part("ring", -2)):
        with pytest.raises(LayoutMismatchError):
            pool.part_bytes(wrong)


@given(cuts=st.lists(st.integers(0, 300), max_size=6), bit=st.none() | st.integers(0, 100_000))
def test_a_snapshot_comes_in_any_pieces_and_damage_is_found(cuts: list[int], bit: int | None) -> None:
    pool = SlotPool("d", LAYOUT, capacity=1)
    content = {name: bytes(range(size % 256)) + bytes(size - size % 256) for name, size in pool.sizes().items()}
    data = bytearray(StateBlob({"layout": "d"}, content).pack())
    assert data.startswith(snapshot_head(pool))
    if bit is not None:
        data[bit // 8 % len(data)] ^= 1 << bit % 8
    reader = SnapshotReader(pool)
    got = {name: bytearray(size) for name, size in pool.sizes().items()}
    edges = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    try:
        for begin, end in itertools.pairwise(edges):
            for name, at, piece in reader.feed(bytes(data[begin:end])):
                got[name][at : at + len(piece)] = piece
    except (DataLossError, LayoutMismatchError):
        assert bit is not None
        assert not reader.digest
    else:
        assert bit is None
        assert len(reader.digest) == 64
        assert got == content


def _slot() -> tuple[Rig, Any]:
    rig = Rig()
    session = rig.open(rig.load("p", make("p2p")), seed=1 << 63, settings=Settings(temperature=0.1, instruction="ä"))
    slot = session.slots[0]
    slot.counter, slot.entered_seq, slot.seen_seq, slot.fresh, slot.age, slot.episode_id = 9, 12, 12, False, 4, 2
    slot.last_action = (1, 2, 3)
    slot.pending_executed = (12, DesktopAction(frozenset({"KeyW", "KeyA"}), frozenset({0}), -3.25, 0.1, 1.0))
    slot.pending_seed = (5, None)
    slot.dropped = [DroppedStep(11, stale=True, in_memory=True, ticks=2), DroppedStep(13, False, False, 1)]
    return rig, slot


def test_a_record_says_everything_but_what_the_client_sends_again() -> None:
    rig, slot = _slot()
    record = SlotRecord.of(slot)
    other = rig.open(slot.session.policy, seed=2).slots[0]
    SlotRecord.read(record.header()).restore(other)
    for name in ("seed", "counter", "episode_id", "entered_seq", "fresh", "age", "last_action", "pending_executed",
                 "pending_seed"):  # fmt: skip
        assert getattr(other, name) == getattr(slot, name), name
    assert other.session.settings == slot.session.settings
    assert other.dropped == slot.dropped[:1]
    assert (other.seen_seq, other.seen_episode) == (12, 5)
    # A step that waits is sent again, and so is what was executed before it, unless that was told once.
    play_frame = Frame(seq=13, episode_id=2, inputs={}, arrived_ns=0, settings=Settings(), executed=(4,),
                       executed_known=True)  # fmt: skip
    slot.queue.append(play_frame)
    assert SlotRecord.of(slot).pending_executed == (12, (4,))


@pytest.mark.parametrize("field", ["seed", "settings", "dropped", "age"])
def test_a_record_that_is_not_whole_is_refused(field: str) -> None:
    _, slot = _slot()
    header = SlotRecord.of(slot).header()
    for wrong in ("x", None, -1):
        with pytest.raises(DataLossError, match=field):
            SlotRecord.read({**header, field: wrong})
    with pytest.raises(DataLossError, match=field):
        SlotRecord.read({name: value for name, value in header.items() if name != field})


def test_a_delta_is_checked_before_any_of_it_counts() -> None:
    pool = SlotPool("ring", LAYOUT, 1)
    parts = [(part, bytes(pool.part_bytes(part))) for part in pool.written(5, 6)]
    data, digest = Delta("ab", parts).pack()
    again, same = Delta.unpack(data, pool)
    assert (again.follows, same) == ("ab", digest)
    assert [(part, bytes(content)) for part, content in again.parts] == parts
    for damaged in (data[:-1], data[:60] + b"?" + data[61:], b""):
        with pytest.raises(DataLossError):
            Delta.unpack(damaged, pool)
    with pytest.raises(DataLossError, match="neither"):
        Delta.unpack(Delta("", parts).pack()[0], pool)
    with pytest.raises(LayoutMismatchError):
        Delta.unpack(Delta("ab", [(Part("steps"), b"")]).pack()[0], pool)


def test_a_last_export_is_checked_before_any_of_it_counts() -> None:
    _, slot = _slot()
    pool = slot.lease.pool
    record = SlotRecord.of(slot)
    parts = [(part, bytes(pool.part_bytes(part))) for part in pool.parts()]
    whole = LastExport(record, "", parts)
    data, digest = whole.pack()
    assert hashlib.sha256(data).digest() == digest
    again = LastExport.unpack(data, digest, pool)
    assert again.record == SlotRecord.read(record.header())
    assert [(part, bytes(data)) for part, data in again.parts] == parts
    for damaged in (data[:-1], data[1:], data[:100] + b"?" + data[101:], b"", data[:20]):
        with pytest.raises(DataLossError):
            LastExport.unpack(damaged, digest, pool)
    with pytest.raises(DataLossError):
        LastExport.unpack(data, bytes(32), pool)
    with pytest.raises(LayoutMismatchError, match="lacks"):
        LastExport.unpack(*dataclasses.replace(whole, parts=parts[1:]).pack(), pool)
    with pytest.raises(LayoutMismatchError):
        LastExport.unpack(*dataclasses.replace(whole, parts=[(Part("steps"), b"")]).pack(), pool)
    with pytest.raises(LayoutMismatchError):
        LastExport.unpack(*dataclasses.replace(whole, parts=[(Part("other"), b"")], follows="0").pack(), pool)
    foreign = StateBlob({"record": record.header()}, {}).pack()
    with pytest.raises(DataLossError):
        LastExport.unpack(foreign, hashlib.sha256(foreign).digest(), pool)
    assert np.prod(pool.tensors["steps"].shape) == pool.capacity + 1
