"""The batcher: earliest deadline first, lockstep in what live leaves, never a batch longer than the smallest slack."""

from __future__ import annotations

from typing import Any

import pytest
from hash_policy import live_skip, lockstep
from hypothesis import given
from hypothesis import strategies as st

from playserve_services.inference.core import CoreLimits
from playserve_services.inference.timemodel import TimeModel

MS = 1_000_000


def teach(policy: Any, fixed_s: float, per_row_s: float) -> None:
    for rows in (1, 4, 16, 2, 8) * 20:
        policy.time_model.observe(rows, fixed_s + per_row_s * rows)


@given(fixed=st.floats(1e-5, 1e-2), slope=st.floats(1e-6, 1e-2))
def test_the_time_model_finds_a_line(fixed: float, slope: float) -> None:
    model = TimeModel()
    for rows in (1, 4, 16, 2, 8) * 20:
        model.observe(rows, fixed + slope * rows)
    assert model.predict(32) == pytest.approx(fixed + slope * 32, rel=0.02)
    n = model.max_rows(fixed + slope * 10.5, 64)
    assert 9 <= n <= 11
    assert model.max_rows(0.0, 64) == 1


def test_one_batch_size_only_is_taken_as_all_slope() -> None:
    model = TimeModel()
    for _ in range(50):
        model.observe(8, 0.008)
    assert model.predict(16) == pytest.approx(0.016, rel=0.01)


def test_live_frames_go_before_lockstep_and_by_deadline(make_rig: Any) -> None:
    rig = make_rig(slots=8, max_batch=2)
    policy = rig.load("hash", live_skip())
    order: list[str] = []
    sessions = {}
    for name, live, rate in (("slow", True, 10.0), ("fast", True, 40.0), ("lock", False, 0.0), ("mid", True, 20.0)):
        session = sessions[name] = rig.open(policy, live=live, rate_hz=rate)
        session.sink = lambda answers, name=name: order.append(name)
    blocker = rig.open(policy)
    rig.step(blocker, 1)  # keeps the engine busy while the others arrive
    for name in ("lock", "slow", "fast", "mid"):
        rig.step(sessions[name], 1)
    rig.engine.run_all()
    assert order == ["fast", "mid", "slow", "lock"]


def test_lockstep_that_waited_long_enough_is_not_starved(make_rig: Any) -> None:
    rig = make_rig(slots=8, max_batch=1, limits=CoreLimits(lockstep_patience_ns=100 * MS))
    policy = rig.load("hash", live_skip())
    answers: list[Any] = []
    live = rig.open(policy, live=True)
    lock = rig.open(policy, answers)
    rig.step(live, 1)
    rig.step(lock, 1)
    for seq in range(2, 12):  # live always has a frame waiting
        rig.step(live, seq)
        rig.engine.run_one()
        rig.advance(0.02)
    assert answers, "lockstep starved behind live"


def test_big_lockstep_batches_are_split_to_fit_the_live_slack(make_rig: Any) -> None:
    rig = make_rig(slots=70, max_batch=64, limits=CoreLimits(live_dispatch_ns=10 * MS))
    policy = rig.load("hash", lockstep())
    teach(policy, 0.001, 0.001)
    rollout = rig.open(policy, num_slots=64, rollout=True)
    sizes: list[int] = []
    submit = rig.engine.submit
    rig.engine.submit = lambda batch: (sizes.append(len(batch.rounds[0])), submit(batch))[1]

    def burst(seq: int) -> None:
        for slot in rollout.slots:
            rig.core.arrive(slot, rig.frame(rollout, seq))
        rig.core.pump()

    burst(1)
    assert sizes == [64], "nobody plays live: one batch"
    rig.engine.run_all()
    teach(policy, 0.001, 0.001)
    live = rig.open(policy, live=True, rate_hz=20.0)
    sizes.clear()
    burst(2)
    assert 8 <= sizes[0] <= 10, "a live frame may come at any time: 10 ms at most"
    rig.step(live, 1)
    rig.advance(0.045)  # 5 ms of the live frame's 50 are left
    rig.engine.run_one()
    assert len(sizes) == 2
    assert sizes[1] <= 5, "the live row and what fits into its slack"


def test_lockstep_rows_share_a_live_batch_only_up_to_half_a_dispatch(make_rig: Any) -> None:
    rig = make_rig(slots=70, max_batch=64, limits=CoreLimits(live_dispatch_ns=10 * MS))
    policy = rig.load("hash", lockstep())
    teach(policy, 0.001, 0.001)
    rollout = rig.open(policy, num_slots=32, rollout=True)
    live = rig.open(policy, live=True, rate_hz=20.0)
    sizes: list[int] = []
    submit = rig.engine.submit
    rig.engine.submit = lambda batch: (sizes.append(len(batch.rounds[0])), submit(batch))[1]
    for slot in rollout.slots:
        rig.core.arrive(slot, rig.frame(rollout, 1))
    rig.step(live, 1)
    assert 3 <= sizes[0] <= 5, "a live row, and what fits into 5 ms beside it"
    rig.engine.run_one()
    assert 8 <= sizes[1] <= 10, "no live row waits: a whole dispatch"


def test_a_late_live_batch_is_as_big_as_it_can_be(make_rig: Any) -> None:
    rig = make_rig(slots=20, max_batch=16)
    policy = rig.load("hash", live_skip())
    teach(policy, 0.1, 0.01)
    sizes: list[int] = []
    submit = rig.engine.submit
    rig.engine.submit = lambda batch: (sizes.append(len(batch.rounds[0])), submit(batch))[1]
    sessions = [rig.open(policy, live=True) for _ in range(9)]
    for session in sessions:
        rig.step(session, 1)
    rig.engine.run_all()
    assert sizes == [1, 8]
