"""Sessions whose memory is large: as many as fit, taken when somebody plays, copied without stopping the others."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import pytest
import torch
from desktop_policy import DesktopPolicy
from rig import Rig

from playserve.errors import BadSettingError, DataLossError, LayoutMismatchError, NoFreeSlotError, SessionClosedError
from playserve_client.aio import PolicyClient
from playserve_services.inference import memory, transfer
from playserve_services.inference.app import InferenceServer
from playserve_services.inference.loader import RuntimeFactory
from playserve_services.inference.memory import SessionMemory, slot_bytes
from playserve_services.inference.sessions import Answer, EndReason, Frame, Session
from playserve_services.inference.settings import ServeSettings
from playserve_services.inference.slots import SlotPool
from playserve_trainer.models.policy import StateTensor

MIB = 1 << 20
BIG = {"kv": StateTensor((MIB // 2,), torch.bfloat16), "steps": StateTensor((), torch.int64)}


def test_slots_are_derived_from_the_memory_of_a_session(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert slot_bytes(BIG) == MIB + 8
    assert SessionMemory(limit_bytes=90 * MIB).slots("p2p", BIG, most=256) == 88, "one slot is scratch"
    assert (
        "policy p2p: at most 88 sessions of 1.0 MiB each, 89.0 MiB in all (--session-memory-mib is 90)" in caplog.text
    )
    assert SessionMemory(limit_bytes=90 * MIB).slots("p2p", BIG, most=16) == 16
    assert "at most 16 sessions of 1.0 MiB each, 17.0 MiB in all (--slots)" in caplog.text
    assert SessionMemory(limit_bytes=MIB).slots("memoryless", {}, most=256) == 256
    with pytest.raises(BadSettingError, match=r"'p2p': a session takes 1.0 MiB.*--session-memory-mib is 2"):
        SessionMemory(limit_bytes=2 * MIB).slots("p2p", BIG, most=256)


def test_without_a_limit_it_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 200 * MIB)
    automatic = SessionMemory()
    assert automatic.slots("p2p", BIG, most=256) == 98
    assert automatic.slots("p2p", BIG, most=256, promised=40 * MIB) == 58, "other layouts will take theirs"
    with pytest.raises(BadSettingError, match="50% of the 200 MiB that are free"):
        automatic.slots("p2p", BIG, most=256, promised=99 * MIB)
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    assert automatic.slots("p2p", BIG, most=7) == 7


def test_this_machine_says_what_is_free() -> None:
    free = memory.free_bytes("cpu")
    assert free is None or free > 0


def test_versions_of_a_layout_share_what_was_derived_for_it() -> None:
    factory = RuntimeFactory(slots=256, max_batch=2, session_bytes=10 * MIB)
    pool = factory.pool(DesktopPolicy(state_bytes=MIB))
    assert pool.capacity == 8
    assert factory.pool(DesktopPolicy(state_bytes=MIB)) is pool
    assert factory.pool(DesktopPolicy(state_bytes=MIB // 2)).capacity == 18


def test_a_session_too_many_is_refused_when_it_opens() -> None:
    async def main() -> None:
        settings = ServeSettings(port=0, session_memory_mib=4)
        policies = {"desktop": lambda: DesktopPolicy(state_bytes=MIB)}
        async with (
            InferenceServer(settings, policies) as server,
            PolicyClient(f"127.0.0.1:{server.port}", timeout_s=20.0) as client,
        ):
            (info,) = await client.list_policies()
            assert (info.slots_total, info.slots_free) == (2, 2)
            assert info.state_bytes_per_session == MIB + 8
            async with client.play("desktop"), client.play("desktop"):
                with pytest.raises(NoFreeSlotError, match=r"0 of 2 are free \(1.0 MiB each\)"):
                    await client.play("desktop")
            async with client.rollout("desktop", 2):
                pass
            with pytest.raises(NoFreeSlotError):
                await client.rollout("desktop", 3)

    asyncio.run(main())


def _resident_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / MIB


def test_memory_is_taken_when_somebody_writes_it() -> None:
    before = _resident_mib()
    pool = SlotPool("d", {"kv": StateTensor((64 * MIB,), torch.uint8)}, capacity=64)
    assert _resident_mib() - before < 32, "4 GiB were promised, and none taken"
    pool.tensors["kv"][3] += 1
    assert 32 < _resident_mib() - before < 128
    for name, dtype in (("b", torch.bool), ("h", torch.bfloat16), ("n", torch.int64)):
        tensor = SlotPool("d", {name: StateTensor((3, 5), dtype)}, 2).tensors[name]
        assert tensor.shape == (3, 3, 5)
        assert tensor.dtype == dtype
        assert not tensor.any()
        assert tensor.data_ptr() % 64 == 0


def test_nobody_clears_a_slot_between_two_owners() -> None:
    pool = SlotPool("d", BIG, capacity=1)
    (lease,) = pool.allocate()
    pool.tensors["kv"][lease.slot] = 1.0
    pool.release(lease)
    (again,) = pool.allocate()
    assert pool.tensors["kv"][again.slot].all(), "its new owner begins with a reset"


def _frame(rig: Rig, session: Session, seq: int) -> Frame:
    inputs = {"observation": np.full((8, 8), seq, np.uint8)}
    return Frame(seq=seq, episode_id=0, inputs=inputs, arrived_ns=rig.now_ns, settings=session.settings)


def _play(rig: Rig, session: Session, seqs: range) -> None:
    for seq in seqs:
        rig.core.arrive(session.slots[0], _frame(rig, session, seq))
        rig.core.pump()
        rig.engine.run_all()


def test_a_large_memory_moves_in_pieces_between_the_batches_of_others(
    make_rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_CHUNK_BYTES", 1000)
    rig, elsewhere = make_rig(), make_rig()
    policy = rig.load("d", DesktopPolicy(state_bytes=4500))
    whole: list[Answer] = []
    others: list[Answer] = []
    session, other = rig.open(policy, whole, seed=1), rig.open(policy, others, seed=2)
    _play(rig, session, range(1, 4))
    policy.pool.tensors["history"][session.slots[0].lease.slot] = torch.arange(4500).to(torch.uint8)
    blobs: list[Any] = []
    rig.core.export_state(session, lambda blob, error: blobs.append(blob))
    # While it is copied: a frame of its own waits, one of another session is computed.
    rig.core.arrive(session.slots[0], _frame(rig, session, 4))
    rig.core.arrive(other.slots[0], _frame(rig, other, 1))
    rig.core.pump()
    assert rig.engine.run_one()
    assert rig.engine.run_one()
    assert len(others) == 1
    assert not blobs
    rig.engine.run_all()
    assert len(blobs) == 1
    assert [a.frame.seq for a in whole] == [1, 2, 3, 4], "it went on by itself"
    rest: list[Answer] = []
    moved = elsewhere.open(elsewhere.load("d", DesktopPolicy(state_bytes=4500)), rest, seed=9)
    errors: list[Any] = []
    elsewhere.core.import_state(moved, blobs[0], errors.append)
    elsewhere.engine.run_all()
    assert errors == [None]
    pool = moved.slots[0].lease.pool
    assert torch.equal(pool.tensors["history"][moved.slots[0].lease.slot], torch.arange(4500).to(torch.uint8))
    _play(elsewhere, moved, range(4, 5))
    assert [a.decoded for a in rest] == [a.decoded for a in whole[3:]]


def test_a_session_that_ends_meanwhile_ends_the_copy(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_CHUNK_BYTES", 1000)
    session = rig.open(rig.load("d", DesktopPolicy(state_bytes=4500)))
    told: list[Any] = []
    rig.core.export_state(session, lambda blob, error: told.append((blob, type(error))))
    rig.engine.run_one()
    rig.core.end(session, EndReason.CLOSED)
    rig.engine.run_all()
    assert told == [(None, SessionClosedError)]


def test_damage_within_a_large_memory_is_found_and_the_session_begins_anew(rig: Rig) -> None:
    policy = rig.load("d", DesktopPolicy(state_bytes=4500))
    session = rig.open(policy, seed=1)
    _play(rig, session, range(1, 4))
    blobs: list[bytearray] = []
    rig.core.export_state(session, lambda blob, error: blobs.append(blob))  # type: ignore[arg-type]
    rig.engine.run_all()
    damaged = bytearray(blobs[0])
    damaged[-1000] ^= 1
    into = rig.open(policy, seed=5)
    errors: list[Any] = []
    rig.core.import_state(into, damaged, errors.append)
    rig.engine.run_all()
    assert [type(error) for error in errors] == [DataLossError]
    slot = into.slots[0]
    assert (slot.fresh, slot.seed, slot.entered_seq, slot.busy) == (True, 5, 0, False)
    with pytest.raises(LayoutMismatchError):
        rig.core.import_state(rig.open(rig.load("e", DesktopPolicy())), blobs[0], errors.append)


def test_settings_say_how_much() -> None:
    assert ServeSettings().session_bytes is None
    assert ServeSettings(session_memory_mib=3).session_bytes == 3 * MIB
