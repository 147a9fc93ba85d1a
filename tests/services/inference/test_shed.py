"""Live frames over a key's quota: left out of the memory; what was executed, and all ticks, are not lost."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rig import Rig

from playserve.errors import ExecutedUnknownError, QuotaExceededError, SeqNotIncreasingError
from playserve_services.auth.gate import Caller
from playserve_services.auth.keys import Quota, Scope
from playserve_services.auth.principal import Anonymous, Principal
from playserve_services.auth.quotas import Accounts
from playserve_services.inference.access import over_quota, shed
from playserve_services.inference.sessions import Answer, Frame, Session, Slot
from playserve_trainer.models.policy import Policy
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy


def policy(catch_up: int = 0) -> Policy:
    return TinyRecurrentPolicy(
        TinyRecurrentConfig(
            hidden=4, rate_hz=20.0, catch_up_frames=catch_up, observation_shape=(1,), observation_dtype="float32"
        )
    )


def live(rig: Rig, answers: list[Answer], catch_up: int = 0) -> Session:
    return rig.open(rig.load("p", policy(catch_up)), answers, live=True)


def leave_out(rig: Rig, session: Session, seq: int, **options: Any) -> None:
    shed(rig.core, session.slots[0], rig.frame(session, seq, **options))


@pytest.mark.parametrize("catch_up", [0, 4])
def test_the_next_answer_reports_them_and_their_ticks(rig: Rig, catch_up: int) -> None:
    answers: list[Answer] = []
    session = live(rig, answers, catch_up)
    rig.step(session, 1)
    rig.engine.run_all()
    leave_out(rig, session, 2, ticks=3)
    leave_out(rig, session, 3)
    assert answers[-1].frame.seq == 1
    rig.step(session, 4)
    rig.engine.run_all()
    last = answers[-1]
    assert [(d.seq, d.ticks, d.in_memory, d.shed) for d in last.dropped] == [(2, 3, False, True), (3, 1, False, True)]
    assert session.slots[0].entered_ticks == 5, "the memory is told how long it saw nothing"
    assert session.frames_dropped == 2
    rig.step(session, 5)
    rig.engine.run_all()
    assert answers[-1].dropped == []
    assert session.slots[0].entered_ticks == 1


def test_a_frame_that_waits_longer_than_they_do_keeps_its_own_ticks(rig: Rig) -> None:
    answers: list[Answer] = []
    session = live(rig, answers, catch_up=4)
    slot = session.slots[0]
    rig.step(session, 1)  # in the engine
    rig.step(session, 2)  # waits
    leave_out(rig, session, 3)
    rig.step(session, 4)  # waits
    assert [frame.shed_ticks for frame in slot.queue] == [0, 1]
    rig.engine.run_all()
    assert [(d.seq, d.in_memory) for d in answers[-1].dropped] == [(2, True), (3, False)], "in order"
    assert slot.entered_ticks == 2


def test_what_was_executed_before_them_goes_to_the_next_frame(rig: Rig) -> None:
    session = live(rig, [])
    slot = session.slots[0]
    rig.step(session, 1)
    rig.engine.run_all()
    slot.executed(1, (2,))
    leave_out(rig, session, 2)
    rig.core.arrive(slot, rig.frame(session, 3))
    assert (slot.queue[-1].executed, slot.queue[-1].executed_told) == ((2,), True)
    leave_out(rig, session, 4)
    slot.executed(4, (1,))
    rig.core.arrive(slot, rig.frame(session, 5))
    assert slot.queue[-1].executed == (1,), "the newer one counts"


def test_they_are_numbered_like_any_other(rig: Rig) -> None:
    session = live(rig, [])
    leave_out(rig, session, 1)
    with pytest.raises(SeqNotIncreasingError):
        leave_out(rig, session, 1)
    with pytest.raises(SeqNotIncreasingError):
        rig.step(session, 1)
    with pytest.raises(ExecutedUnknownError):
        session.slots[0].executed(7, (0,))


def test_after_a_lost_stream_they_may_be_sent_again(rig: Rig) -> None:
    answers: list[Answer] = []
    session = live(rig, answers)
    rig.step(session, 1)
    rig.engine.run_all()
    session.slots[0].executed(1, (2,))
    leave_out(rig, session, 2)
    rig.core.detach(session)
    again = rig.core.resume(session.resume_token, "me")
    again.sink = answers.extend
    rig.core.arrive(again.slots[0], rig.frame(again, 2))
    assert again.slots[0].queue[-1].executed == (2,), "it was told once"
    rig.core.pump()
    rig.engine.run_all()
    assert answers[-1].dropped == []
    assert again.slots[0].entered_ticks == 1


def test_a_reset_forgets_what_was_executed_and_reports_them_all_the_same(rig: Rig) -> None:
    answers: list[Answer] = []
    session = live(rig, answers)
    rig.step(session, 1)
    rig.engine.run_all()
    session.slots[0].executed(1, (2,))
    leave_out(rig, session, 2)
    rig.core.reset(session, 7, seed=9)
    leave_out(rig, session, 3, episode_id=7)
    rig.step(session, 4, episode_id=7)
    rig.engine.run_all()
    slot = session.slots[0]
    assert (slot.seed, slot.episode_id, slot.entered_ticks) == (9, 7, 1)
    assert [d.seq for d in answers[-1].dropped] == [2, 3]


def test_a_flood_of_them_takes_no_more_memory_and_loses_no_tick(rig: Rig) -> None:
    answers: list[Answer] = []
    session = live(rig, answers)
    rig.step(session, 1)
    rig.engine.run_all()
    for seq in range(2, 5002):
        leave_out(rig, session, seq)
    rig.step(session, 5002)
    rig.engine.run_all()
    dropped = answers[-1].dropped
    assert len(dropped) == 1024
    assert sum(d.ticks for d in dropped) == 5000
    assert session.slots[0].entered_ticks == 5001


kinds = st.sampled_from(["step", "shed", "run"])


@given(what=st.lists(st.tuples(kinds, st.integers(1, 5)), max_size=40), catch_up=st.sampled_from([0, 3]))
def test_every_step_is_answered_or_reported_once_and_the_memory_knows_all_ticks(
    what: list[tuple[str, int]], catch_up: int
) -> None:
    rig = Rig()
    answers: list[Answer] = []
    session = live(rig, answers, catch_up)
    entered: list[tuple[int, int]] = []
    enter = Slot.enter

    def noting(slot: Slot, frame: Frame) -> Any:
        result = enter(slot, frame)
        entered.append((frame.seq, slot.entered_ticks))
        return result

    ticks_of: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slot, "enter", noting)
        for kind, ticks in [*what, ("step", 1)]:
            if kind == "run":
                rig.engine.run_all()
                continue
            ticks_of.append(ticks)
            if kind == "shed":
                leave_out(rig, session, len(ticks_of), ticks=ticks)
            else:
                rig.step(session, len(ticks_of), ticks=ticks)
        rig.engine.run_all()
    reported = [d.seq for a in answers for d in a.dropped]
    assert sorted([a.frame.seq for a in answers] + reported) == list(range(1, len(ticks_of) + 1))
    assert all(d.seq < a.frame.seq for a in answers for d in a.dropped)
    for (before, _), (seq, told) in pairwise(entered):
        assert told == sum(ticks_of[before:seq]), "since the frame before it in the memory"
    assert session.slots[0].entered_seq == len(ticks_of)


def _caller(quota: Quota) -> Caller:
    door = Anonymous()
    principal = Principal(name="me", scopes=frozenset({Scope.PLAY}), method="anonymous", key_id="k", quota=quota)
    return Caller(principal, Accounts(), door)


def test_only_live_steps_of_a_key_with_a_quota_are_counted(rig: Rig) -> None:
    loaded = rig.load("p", policy())
    caller = _caller(Quota(frames_per_s=1.0))
    first, second = (rig.open(loaded, live=True, caller=caller) for _ in range(2))
    lockstep = rig.open(loaded, caller=caller)
    free = rig.open(loaded, live=True, caller=_caller(Quota()))
    assert [over_quota(first, 0), over_quota(second, 1)] == [False, True], "over all sessions of the key"
    for session in (lockstep, free):
        assert not any(over_quota(session, 2) for _ in range(5))


def test_where_no_frame_may_be_left_out_it_is_refused_instead(rig: Rig) -> None:
    loaded = rig.load("p", policy())
    loaded.keeps_every_frame = True
    session = rig.open(loaded, live=True, caller=_caller(Quota(frames_per_s=2.0)))
    assert [over_quota(session, 0), over_quota(session, 0)] == [False, False]
    with pytest.raises(QuotaExceededError, match="more than 2 live steps a second") as refused:
        over_quota(session, 0)
    assert refused.value.retry_after_s == pytest.approx(0.5)
