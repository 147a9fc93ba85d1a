"""Rules of the core that have one right answer each."""

from __future__ import annotations

from typing import Any

import pytest
from hash_policy import HashPolicy, HashReference, live_catch_up, live_skip, lockstep
from hypothesis import given
from hypothesis import strategies as st

from playserve.errors import (
    AccessDeniedError,
    DataLossError,
    EngineFailedError,
    EpisodeReusedError,
    ExecutedUnknownError,
    LayoutMismatchError,
    SeqNotIncreasingError,
    SessionExpiredError,
    StepFailedError,
    SupersededError,
)
from playserve_services.inference.core import CoreLimits
from playserve_services.inference.sessions import Answer, SessionState, Settings
from playserve_trainer.models.atari import AtariConfig, AtariPolicy


def exported(rig: Any, session: Any) -> bytes:
    got: list[Any] = []
    rig.core.export_state(session, lambda blob, error: got.append(blob))
    rig.engine.run_all()
    return got[0]  # type: ignore[no-any-return]


@given(observations=st.lists(st.integers(0, 99), min_size=2, max_size=12), cut=st.integers(1, 11))
def test_an_exported_and_imported_session_goes_on_bit_for_bit(make_rig: Any, observations: list[int], cut: int) -> None:
    cut = min(cut, len(observations) - 1)
    rig, elsewhere = make_rig(), make_rig()
    whole: list[Answer] = []
    session = rig.open(rig.load("hash", lockstep()), whole, seed=5)
    for seq, observation in enumerate(observations, 1):
        rig.step(session, seq, observation)
        rig.engine.run_all()
        if seq == cut:
            blob = exported(rig, session)
    rest: list[Answer] = []
    other = elsewhere.load("hash", lockstep())
    elsewhere.open(other)  # so that the slot is another one
    moved = elsewhere.open(other, rest, seed=77)
    done: list[Any] = []
    elsewhere.core.import_state(moved, blob, done.append)
    elsewhere.engine.run_all()
    assert done == [None]
    for seq, observation in list(enumerate(observations, 1))[cut:]:
        elsewhere.step(moved, seq, observation)
        elsewhere.engine.run_all()
    assert [a.action for a in rest] == [a.action for a in whole[cut:]]
    assert moved.slots[0].counter == session.slots[0].counter
    assert moved.slots[0].seed == 5


def test_a_state_of_another_layout_or_damaged_is_refused(rig: Any) -> None:
    session = rig.open(rig.load("hash", lockstep()))
    blob = exported(rig, session)
    atari = rig.open(rig.load("atari", AtariPolicy(AtariConfig(game="pong", num_actions=6, width=1))))
    with pytest.raises(LayoutMismatchError):
        rig.core.import_state(atari, blob, lambda error: None)
    with pytest.raises(DataLossError):
        rig.core.import_state(session, blob[:-1], lambda error: None)


@given(
    observations=st.lists(st.integers(0, 99), min_size=1, max_size=3), executed=st.lists(st.integers(0, 9), min_size=3)
)
def test_catch_up_leaves_the_state_of_lockstep(make_rig: Any, observations: list[int], executed: list[int]) -> None:
    rig = make_rig()
    answers: list[Answer] = []
    session = rig.open(rig.load("hash", live_catch_up()), answers, live=True)
    rig.step(session, 1, 5)  # in the engine while the others arrive
    reference = HashReference()
    reference.enter(5, -1)
    action = 0
    for seq, observation in enumerate(observations, 2):
        session.slots[0].executed(seq - 1, (executed[seq - 2],))
        rig.step(session, seq, observation)
        action = reference.enter(observation, executed[seq - 2])
    rig.engine.run_all()
    assert [a.frame.seq for a in answers] == [1, 1 + len(observations)]
    assert answers[-1].action == (action,)
    assert [d.seq for d in answers[-1].dropped] == list(range(2, 1 + len(observations)))
    assert all(d.in_memory for d in answers[-1].dropped)


def test_skip_answers_the_newest_and_says_what_it_dropped(rig: Any) -> None:
    answers: list[Answer] = []
    session = rig.open(rig.load("hash", live_skip()), answers, live=True)
    for seq in range(1, 6):
        rig.step(session, seq, seq, ticks=2)
    rig.engine.run_all()
    assert [a.frame.seq for a in answers] == [1, 5]
    assert [(d.seq, d.in_memory, d.ticks) for d in answers[1].dropped] == [(2, False, 2), (3, False, 2), (4, False, 2)]
    reference = HashReference()
    reference.enter(1, -1)
    assert answers[1].action == (reference.enter(5, -1),)


def test_lockstep_takes_its_answer_as_executed_unless_told(rig: Any) -> None:
    answers: list[Answer] = []
    session = rig.open(rig.load("hash", lockstep()), answers)
    reference, slot = HashReference(), session.slots[0]
    rig.step(session, 1, 1)
    rig.engine.run_all()
    first = reference.enter(1, -1)
    rig.step(session, 2, 2)
    rig.engine.run_all()
    second = reference.enter(2, first)
    slot.executed(2, (17,))
    rig.step(session, 3, 3)
    rig.engine.run_all()
    third = reference.enter(3, 17)
    slot.executed(3, None)  # nobody acted
    rig.step(session, 4, 4)
    rig.engine.run_all()
    assert [a.action for a in answers] == [(first,), (second,), (third,), (reference.enter(4, -1),)]
    with pytest.raises(ExecutedUnknownError):
        slot.executed(2, (1,))
    with pytest.raises(ExecutedUnknownError):
        slot.executed(9, (1,))


def test_an_executed_action_reaches_a_frame_that_waits_already(rig: Any) -> None:
    answers: list[Answer] = []
    session = rig.open(rig.load("hash", lockstep()), answers)
    for seq in (1, 2, 3):
        rig.step(session, seq, seq)
    session.slots[0].executed(2, (9,))
    rig.engine.run_all()
    reference = HashReference()
    second = reference.enter(2, reference.enter(1, -1))
    assert second == answers[1].action[0]
    assert answers[2].action == (reference.enter(3, 9),)


def test_numbering(rig: Any) -> None:
    session = rig.open(rig.load("hash", lockstep()), [])
    rig.step(session, 5, episode_id=3)
    for seq in (1, 4, 5):
        with pytest.raises(SeqNotIncreasingError):
            rig.step(session, seq, episode_id=3)
    with pytest.raises(EpisodeReusedError, match="episode 2 came after episode 3"):
        rig.step(session, 6, episode_id=2)
    with pytest.raises(EpisodeReusedError):
        rig.core.reset(session, 3, None)
    rig.engine.run_all()
    assert session.steps == 1


def test_budgets(rig: Any) -> None:
    answers: list[Answer] = []
    session = rig.open(rig.load("hash", live_skip()), answers, live=True)
    rig.step(session, 1, 1)
    rig.core.arrive(session.slots[0], rig.frame(session, 2, 2, budget=True, deadline_ns=rig.now_ns + 1000))
    rig.advance(0.01)
    rig.engine.run_all()
    assert [a.frame.seq for a in answers] == [1], "too late to be of use"
    rig.step(session, 3, 3)
    rig.engine.run_all()
    assert [(d.seq, d.stale, d.in_memory) for d in answers[1].dropped] == [(2, True, True)]


def test_observe_only_changes_the_memory_and_answers_nothing(rig: Any) -> None:
    answers: list[Answer] = []
    session = rig.open(rig.load("hash", lockstep()), answers)
    rig.step(session, 1, 1, observe_only=True)
    rig.engine.run_all()
    session.slots[0].executed(1, (4,))
    rig.step(session, 2, 2)
    rig.engine.run_all()
    reference = HashReference()
    reference.enter(1, -1)
    assert [a.action for a in answers] == [(reference.enter(2, 4),)]


def test_silence_expires_and_a_detached_session_is_kept_for_its_window(make_rig: Any) -> None:
    rig = make_rig(limits=CoreLimits(idle_timeout_ns=10**10, detach_window_ns=5 * 10**9))
    policy = rig.load("hash", lockstep())
    told: list[Any] = []
    silent, lost = rig.open(policy), rig.open(policy)
    silent.on_end = told.append
    rig.core.detach(lost)
    rig.advance(4)
    rig.core.tick()
    assert lost.state is SessionState.DETACHED
    rig.core.heard(silent)
    rig.advance(7)
    rig.core.tick()
    assert lost.ended
    assert not silent.ended
    rig.advance(4)
    rig.core.tick()
    assert isinstance(told[0], SessionExpiredError)
    assert policy.pool.free == policy.pool.capacity


def test_only_its_owner_resumes_a_session_and_the_newest_stream_wins(rig: Any) -> None:
    session = rig.open(rig.load("hash", lockstep()))
    told: list[Any] = []
    session.on_end = told.append
    with pytest.raises(AccessDeniedError):
        rig.core.resume(session.resume_token, "somebody")
    assert session.state is SessionState.OPEN
    assert not told
    assert rig.core.resume(session.resume_token, "me") is session
    assert isinstance(told[0], SupersededError)


def test_a_failed_batch_costs_memoryless_sessions_one_step_and_others_their_session(rig: Any) -> None:
    policy = HashPolicy()
    loaded = rig.load("hash", policy)
    ended: list[Any] = []
    session = rig.open(loaded)
    session.on_end = ended.append
    policy.fail = True
    rig.step(session, 1)
    rig.engine.run_all()
    assert isinstance(ended[0], EngineFailedError)
    assert loaded.pool.free == loaded.pool.capacity
    atari = AtariPolicy(AtariConfig(game="pong", num_actions=6, width=1))
    memoryless = rig.open(rig.load("atari", atari))
    errors: list[Any] = []
    memoryless.on_step_error = lambda slot, seq, error: errors.append((seq, error))
    rig.core.arrive(memoryless.slots[0], rig.frame(memoryless, 1))  # lacks the input "frames": the model raises
    rig.core.pump()
    rig.engine.run_all()
    assert [(seq, type(error)) for seq, error in errors] == [(1, StepFailedError)]
    assert memoryless.state is SessionState.OPEN


def test_a_follower_takes_new_weights_between_steps_and_a_pinned_session_does_not(rig: Any) -> None:
    answers: list[Answer] = []
    old = rig.load("hash", lockstep(), "1")
    follower = rig.open(old, answers, follow=True)
    pinned = rig.open(old, answers)
    for session in (follower, pinned):
        rig.step(session, 1, 1)
    rig.engine.run_all()
    new = rig.load("hash", lockstep(), "2")
    for seq in (2, 3):
        for session in (follower, pinned):
            rig.step(session, seq, seq)
        rig.engine.run_all()
    versions = {id(s): [a.version for a in answers if a.slot.session is s] for s in (follower, pinned)}
    assert versions[id(pinned)] == ["1", "1", "1"]
    assert versions[id(follower)] == ["1", "2", "2"]
    assert (old.sessions, new.sessions) == (1, 1)
    assert follower.slots[0].last_action == pinned.slots[0].last_action, "the memory went along"


def test_settings_belong_to_the_frames_that_come_after_them(rig: Any) -> None:
    answers: list[Answer] = []
    session = rig.open(rig.load("hash", lockstep()), answers, settings=Settings())
    rig.step(session, 1)
    rig.step(session, 2)
    assert rig.core.configure(session, temperature=0.5).revision == 2
    rig.step(session, 3)
    rig.engine.run_all()
    assert [a.frame.settings.revision for a in answers] == [1, 1, 2]


def test_frames_that_arrive_together_go_into_one_batch(make_rig: Any) -> None:
    deferred: list[Any] = []
    rig = make_rig(defer=deferred.append)
    policy = rig.load("hash", lockstep())
    answers: list[Answer] = []
    sessions = [rig.open(policy, answers) for _ in range(3)]
    for session in sessions:
        rig.core.arrive(session.slots[0], rig.frame(session, 1))
        rig.core.pump_soon()
    assert len(deferred) == 1
    assert not rig.engine.jobs
    deferred.pop()()
    rig.engine.run_all()
    assert [answer.batch_size for answer in answers] == [3, 3, 3]
    rig.core.arrive(sessions[0].slots[0], rig.frame(sessions[0], 2))
    rig.core.pump_soon()
    assert len(deferred) == 1, "the next frames are deferred again"


def test_a_session_alone_does_not_wait_for_others(make_rig: Any) -> None:
    rig = make_rig(defer=lambda function: pytest.fail("deferred"))
    session = rig.open(rig.load("hash", lockstep()))
    rig.core.arrive(session.slots[0], rig.frame(session, 1))
    rig.core.pump_soon()
    assert len(rig.engine.jobs) == 1
