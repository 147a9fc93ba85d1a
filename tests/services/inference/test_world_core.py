"""Worlds in the core: what is done in them is never lost, whatever the device and the clock do."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from rig import Rig
from tiny_world import CELLS, TinyWorld, WorldReference, found

from playserve.actions import DesktopAction
from playserve.errors import ExecutedUnknownError, NotImplementedHereError, QueueFullError
from playserve.specs import ImageFormat, TensorSpec
from playserve_services.inference import keeping
from playserve_services.inference.decoding import num_executed, num_heads, refuse_world
from playserve_services.inference.loader import RuntimeFactory
from playserve_services.inference.runtime import Row
from playserve_services.inference.sessions import Answer, Frame, Session

ACTIONS = [0, 1, 4, 4, 3, 2, 2, 1, 5, 1, 4, 0, 3]


def frame(rig: Rig, session: Session, seq: int, action: Any, **options: Any) -> Frame:
    options.setdefault("episode_id", session.slots[0].seen_episode)
    return Frame(
        seq=seq, inputs={}, arrived_ns=rig.now_ns, settings=session.settings, executed=action, executed_known=True,
        executed_told=True, **options,
    )  # fmt: skip


def arrive(rig: Rig, session: Session, seq: int, action: int, **options: Any) -> None:
    rig.core.arrive(session.slots[0], frame(rig, session, seq, (action,), **options))


def shown(answer: Answer) -> tuple[Any, ...]:
    picture = np.asarray(answer.outputs["frame"])
    return found(picture, 1), found(picture, 0), float(answer.outputs["reward"]), bool(answer.outputs["terminated"])


@pytest.fixture
def rig() -> Rig:
    return Rig(slots=4)


def opened(rig: Rig, answers: list[Answer], **options: Any) -> Session:
    loaded = next(iter(rig.catalog), None) or rig.load("world", TinyWorld())
    return rig.open(loaded, answers, seed=7, **options)


def test_the_served_world_is_the_game_that_it_says_it_is(rig: Rig) -> None:
    answers: list[Answer] = []
    session, game = opened(rig, answers), WorldReference(seed=7)
    for seq, action in enumerate(ACTIONS, 1):
        arrive(rig, session, seq, action)
        rig.core.pump()
        rig.engine.run_all()
        assert shown(answers[-1]) == game.step(action)
        assert answers[-1].action == ()


def test_a_burst_enters_one_by_one_and_only_the_newest_is_shown(rig: Rig) -> None:
    answers: list[Answer] = []
    session, game = opened(rig, answers, live=True), WorldReference(seed=7)
    arrive(rig, session, 1, ACTIONS[0])
    rig.core.pump()  # the first is in the engine; the others come behind it
    for seq, action in enumerate(ACTIONS[1:6], 2):
        arrive(rig, session, seq, action)
    rig.engine.run_one()
    arrive(rig, session, 7, ACTIONS[6])  # too late for this burst: its newest was 6
    rig.engine.run_all()
    wanted = [game.step(action) for action in ACTIONS[:7]]
    assert [answer.frame.seq for answer in answers] == [1, 6, 7]
    assert [shown(answer) for answer in answers] == [wanted[0], wanted[5], wanted[6]]
    assert [step.seq for step in answers[1].dropped] == [2, 3, 4, 5]
    assert all(step.in_memory and not step.stale for step in answers[1].dropped)


def test_whoever_always_sends_too_fast_still_sees_the_world(rig: Rig) -> None:
    answers: list[Answer] = []
    session = opened(rig, answers, live=True)
    seq = 0
    for _ in range(20):
        for _ in range(2):  # two actions arrive while one is computed
            seq += 1
            try:
                arrive(rig, session, seq, 1)
            except QueueFullError:
                seq -= 1
        rig.core.pump()
        rig.engine.run_one()
    assert len(answers) >= 3
    accounted = [a.frame.seq for a in answers] + [step.seq for a in answers for step in a.dropped]
    assert sorted(accounted) == list(range(1, answers[-1].frame.seq + 1))


def test_what_waits_when_a_new_world_begins_enters_the_old_one_first(rig: Rig) -> None:
    answers: list[Answer] = []
    session, game = opened(rig, answers, live=True), WorldReference(seed=7)
    for seq in range(1, 4):
        arrive(rig, session, seq, ACTIONS[seq])
    rig.core.reset(session, 1, None)
    arrive(rig, session, 4, 2)
    arrive(rig, session, 5, 3, episode_id=2)
    rig.core.pump()
    rig.engine.run_all()
    for seq in range(1, 4):
        game.step(ACTIONS[seq])
    game.begin()
    game.step(2)
    game.begin()
    assert shown(answers[-1]) == game.step(3)
    assert [step.seq for answer in answers for step in answer.dropped] == [1, 2, 3, 4]


def test_a_lost_stream_forgets_what_waits_and_the_burst_that_it_was(rig: Rig) -> None:
    answers: list[Answer] = []
    session, game = opened(rig, answers, live=True), WorldReference(seed=7)
    for seq in range(1, 6):
        arrive(rig, session, seq, ACTIONS[seq])
    rig.core.pump()
    rig.core.detach(session)
    rig.engine.run_all()
    slot = session.slots[0]
    assert (slot.entered_seq, slot.queue) == (1, slot.queue.__class__())
    rig.core.resume(session.resume_token, "me")
    session.sink = answers.extend
    arrive(rig, session, 2, ACTIONS[2])  # the client leaves out the others: it gets its answer now
    rig.core.pump()
    rig.engine.run_all()
    game.step(ACTIONS[1])
    assert (answers[-1].frame.seq, shown(answers[-1])) == (2, game.step(ACTIONS[2]))


def test_a_late_frame_is_not_sent_and_its_action_counts(rig: Rig) -> None:
    answers: list[Answer] = []
    session, game = opened(rig, answers, live=True), WorldReference(seed=7)
    for seq, action in enumerate(ACTIONS[:3], 1):
        late = {"budget": True, "deadline_ns": rig.now_ns} if seq == 2 else {}
        arrive(rig, session, seq, action, **late)
        rig.advance(0.01)
        rig.core.pump()
        rig.engine.run_all()
    wanted = [game.step(action) for action in ACTIONS[:3]]
    assert [shown(answer) for answer in answers] == [wanted[0], wanted[2]]
    assert [(step.seq, step.stale, step.in_memory) for step in answers[1].dropped] == [(2, True, True)]


def test_what_was_executed_is_no_news_for_a_world(rig: Rig) -> None:
    session = opened(rig, [])
    arrive(rig, session, 1, 0)
    with pytest.raises(ExecutedUnknownError, match="a world's"):
        session.slots[0].executed(1, (3,))


def test_worlds_in_one_batch_do_not_touch_each_other(rig: Rig) -> None:
    games = []
    for number in range(3):
        answers: list[Answer] = []
        session = opened(rig, answers)
        session.slots[0].seed = number
        games.append((session, answers, WorldReference(seed=number)))
    for seq in range(1, 9):
        for number, (session, _, _) in enumerate(games):
            arrive(rig, session, seq, ACTIONS[(seq + number) % len(ACTIONS)])
        rig.core.pump()
        rig.engine.run_all()
        for number, (_, answers, game) in enumerate(games):
            assert shown(answers[-1]) == game.step(ACTIONS[(seq + number) % len(ACTIONS)])
            assert answers[-1].batch_size <= 3


def test_a_world_has_as_many_draws_as_heads_and_one_to_begin_with() -> None:
    choices, desktop = TinyWorld(), TinyWorld(side=32, desktop=True)
    assert (num_heads(choices.spec(), choices), num_executed(choices.spec(), choices)) == (3, 1)
    assert (num_heads(desktop.spec(), desktop), num_executed(desktop.spec(), desktop)) == (3, 5)
    with pytest.raises(NotImplementedHereError, match=r"world.*Triton"):
        refuse_world(choices.spec(), "Triton does not compute those")


@pytest.mark.parametrize("graphs", ["off", "compile"])
def test_keyboard_and_mouse_move_a_world_in_padded_batches(graphs: Any) -> None:
    torch._dynamo.reset()
    factory = RuntimeFactory(slots=4, max_batch=2, buckets=(1, 2), graphs=graphs, compiler="eager")
    policy = TinyWorld(desktop=True)
    runtime = factory.make_runtime(policy.spec(), policy, factory.pool(policy))
    right = DesktopAction(keys=frozenset({"KeyD"}), mouse_dx_px=20.0)
    rows = [[Row(1, step == 0, {}, right, 7, step, 1.0, False)] for step in range(3)]
    places = [found(runtime.run(row, want_log_prob=False).outputs["frame"][0], 1) for row in rows]
    (x, y), game = places[0], WorldReference(seed=7)
    assert places[0] == game.step(0)[0]
    assert places[1:] == [((x + 3) % CELLS, y), ((x + 6) % CELLS, y)]


def test_nobody_keeps_recordings_of_worlds() -> None:
    start = TensorSpec(name="start", dtype="uint8", shape=(8, 8, 3), image_format=ImageFormat.RGB8, optional=True)
    assert keeping._image(dataclasses.replace(TinyWorld(desktop=True).spec(), inputs=(start,))) is None
