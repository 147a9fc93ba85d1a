"""Keyboard and mouse through the core: what a policy is told, how its answers are decoded, how executed ones merge."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from desktop_policy import HEADS, DesktopPolicy, decode, encode, enter
from rig import Rig

from playserve.actions import DesktopAction
from playserve.errors import NotImplementedHereError
from playserve_services.inference.loader import RuntimeFactory
from playserve_services.inference.runtime import Row, Rows, TorchRuntime
from playserve_services.inference.sampling import BatchSampler, uniforms
from playserve_services.inference.sessions import Answer, Frame, Session, Settings
from playserve_services.inference.slots import SlotPool
from playserve_services.inference.timemodel import TimeModel
from playserve_trainer.models.policy import StepOutput


def frame(rig: Rig, session: Session, seq: int, seen: int = 0, **options: Any) -> Frame:
    array = np.zeros((8, 8), np.uint8)
    array[0, 0] = seen
    options.setdefault("episode_id", session.slots[0].seen_episode)
    return Frame(
        seq=seq, inputs={"observation": array}, arrived_ns=rig.now_ns, settings=session.settings, **options
    )  # fmt: skip


def arrive(rig: Rig, session: Session, seq: int, seen: int = 0, **options: Any) -> None:
    rig.core.arrive(session.slots[0], frame(rig, session, seq, seen, **options))
    rig.core.pump()


def memory_of(session: Session) -> int:
    lease = session.slots[0].lease
    return int(lease.pool.tensors["hash"][lease.slot, 0])


def held(*keys: str, dx: float = 0.0, dy: float = 0.0) -> DesktopAction:
    return DesktopAction(keys=frozenset(keys), mouse_dx_px=dx, mouse_dy_px=dy)


def test_in_lockstep_the_policy_is_told_its_own_answer_as_an_executed_action_would_be_told(rig: Rig) -> None:
    answers: list[Answer] = []
    session = rig.open(rig.load("d", DesktopPolicy()), answers, seed=3)
    told: tuple[int, ...] | None = None
    state = 0
    for seq in range(1, 8):
        arrive(rig, session, seq, seen=seq)
        rig.engine.run_all()
        state = enter(state, seq, told)
        assert memory_of(session) == state
        action = answers[-1].decoded
        assert isinstance(action, DesktopAction)
        within = uniforms([3], [seq - 1], len(HEADS) + 2)[0, len(HEADS) :]
        assert action == decode(answers[-1].action, within.tolist())
        told = encode(action)
    twin_answers: list[Answer] = []
    twin = rig.open(rig.catalog.resolve("d"), twin_answers, seed=3)
    for seq, answer in enumerate(answers, 1):
        arrive(rig, twin, seq, seen=seq)
        rig.engine.run_all()
        twin.slots[0].executed(seq, answer.decoded)  # type: ignore[arg-type]
    assert [a.decoded for a in twin_answers] == [a.decoded for a in answers]


def test_batch_mates_change_neither_action_nor_pixels(rig: Rig) -> None:
    policy = rig.load("d", DesktopPolicy())
    drawn = Settings(decode="truncated_normal")
    alone: list[Answer] = []
    session = rig.open(policy, alone, seed=9, settings=drawn)
    for seq in range(1, 6):
        arrive(rig, session, seq, seen=seq)
        rig.engine.run_all()
    rig.core.end_all()
    among: list[Answer] = []
    mates = [rig.open(policy, seed=n) for n in range(3)]
    session = rig.open(policy, among, seed=9, settings=drawn)
    for seq in range(1, 6):
        for mate in mates:
            rig.core.arrive(mate.slots[0], frame(rig, mate, seq, seen=7 * seq))
        arrive(rig, session, seq, seen=seq)
        rig.engine.run_all()
    assert [a.decoded for a in among] == [a.decoded for a in alone]


@pytest.mark.parametrize("decoding", ["", "mean", "conservative", "truncated_normal"])
def test_the_decoding_of_motion_is_a_setting_and_changes_nothing_else(rig: Rig, decoding: str) -> None:
    answers: list[Answer] = []
    session = rig.open(rig.load("d", DesktopPolicy()), answers, seed=1, settings=Settings(decode=decoding))
    plain: list[Answer] = []
    twin = rig.open(rig.catalog.resolve("d"), plain, seed=1)
    for seq in range(1, 7):
        for each in (session, twin):
            arrive(rig, each, seq, seen=seq)
        rig.engine.run_all()
    for answer, other, seq in zip(answers, plain, range(6), strict=True):
        within = uniforms([1], [seq], len(HEADS) + 2)[0, len(HEADS) :].tolist()
        assert answer.action == other.action
        assert answer.decoded == decode(answer.action, within, decoding)


def test_log_probs_are_those_of_each_head(rig: Rig) -> None:
    answers: list[Answer] = []
    settings = Settings(log_prob=True, value=True, temperature=0.5)
    session = rig.open(rig.load("d", DesktopPolicy()), answers, seed=1, settings=settings)
    arrive(rig, session, 1, seen=5)
    rig.engine.run_all()
    state, before = enter(0, 5, None), 0
    assert answers[0].value == state
    wanted = []
    for head, value in enumerate(answers[0].action):
        angles = torch.tensor([(state + 17 * before) * i + head for i in range(1, HEADS[head] + 1)]).float()
        logits = 2.0 * torch.sin(angles * 0.37) / 0.5
        wanted.append(float(torch.log_softmax(logits.double(), 0)[value]))
        before = before * 8 + value
    assert answers[0].log_prob == pytest.approx(wanted, abs=1e-4)


def test_catch_up_takes_each_frame_with_what_was_executed_before_it_in_one_batch(rig: Rig) -> None:
    answers: list[Answer] = []
    session = rig.open(rig.load("d", DesktopPolicy(rate_hz=20.0, catch_up_frames=4)), answers, live=True)
    slot = session.slots[0]
    arrive(rig, session, 1, seen=1)
    actions = [held("KeyW", dx=10), held("KeyA", dx=-40), DesktopAction()]
    for seq, action in enumerate(actions, 1):  # all while step 1 is computed
        slot.executed(seq, action)
        arrive(rig, session, seq + 1, seen=seq + 1)
    rig.engine.run_one()
    assert len(rig.engine.jobs) == 1, "the three that wait enter in one dispatch"
    rig.engine.run_all()
    state = enter(0, 1, None)
    for seq, action in enumerate(actions, 2):
        state = enter(state, seq, encode(action))
    assert memory_of(session) == state
    assert [(d.seq, d.in_memory) for d in answers[-1].dropped] == [(2, True), (3, True)]


@pytest.mark.parametrize("catch_up_frames", [0, 1])
def test_what_was_executed_before_dropped_frames_adds_up(rig: Rig, catch_up_frames: int) -> None:
    answers: list[Answer] = []
    session = rig.open(rig.load("d", DesktopPolicy(rate_hz=20.0, catch_up_frames=catch_up_frames)), answers, live=True)
    slot = session.slots[0]
    arrive(rig, session, 1, seen=1)
    for seq, action in enumerate([held("KeyW", dx=20), held("KeyA", dx=15, dy=-3), held("KeyD", dx=50)], 1):
        slot.executed(seq, action)
        arrive(rig, session, seq + 1, seen=seq + 1)
    rig.engine.run_all()
    # 85 pixels are more than the spec has: the most that it has.
    assert memory_of(session) == enter(enter(0, 1, None), 4, encode(held("KeyD", dx=60, dy=-3)))
    assert [(d.seq, d.in_memory) for d in answers[-1].dropped] == [(2, False), (3, False)]


def test_what_nobody_knows_does_not_become_known_by_merging(rig: Rig) -> None:
    session = rig.open(rig.load("d", DesktopPolicy(rate_hz=20.0)), live=True)
    slot = session.slots[0]
    arrive(rig, session, 1, seen=1)
    slot.executed(1, held("KeyW", dx=20))
    arrive(rig, session, 2, seen=2)
    slot.executed(2, None)  # unknown, and said so
    arrive(rig, session, 3, seen=3)
    rig.engine.run_all()
    assert memory_of(session) == enter(enter(0, 1, None), 3, None)


def test_settings_and_place_travel_with_an_exported_session(make_rig: Any) -> None:
    rig, elsewhere = make_rig(), make_rig()
    whole: list[Answer] = []
    rest: list[Answer] = []
    settings = Settings(decode="truncated_normal", instruction="go", temperature=0.7)
    session = rig.open(rig.load("d", DesktopPolicy()), whole, seed=5, settings=settings)
    blobs: list[Any] = []
    for seq in range(1, 9):
        arrive(rig, session, seq, seen=seq)
        rig.engine.run_all()
        if seq == 4:
            rig.core.export_state(session, lambda blob, error: blobs.append(blob))
            rig.engine.run_all()
    moved = elsewhere.open(elsewhere.load("d", DesktopPolicy()), rest, seed=1)
    elsewhere.core.import_state(moved, blobs[0], lambda error: None)
    elsewhere.engine.run_all()
    for seq in range(5, 9):
        arrive(elsewhere, moved, seq, seen=seq)
        elsewhere.engine.run_all()
    assert [a.decoded for a in rest] == [a.decoded for a in whole[4:]]


def run(runtime: TorchRuntime, seeds: list[int]) -> Rows:
    rows = [
        Row(slot, True, {"observation": np.full((8, 8), slot, np.uint8)}, held("KeyW", dx=seed), seed, 0, 1.0, False,
            decode="truncated_normal")
        for slot, seed in enumerate(seeds, 1)
    ]  # fmt: skip
    return runtime.run(rows, want_log_prob=True)


def make(**options: Any) -> TorchRuntime:
    policy = DesktopPolicy(instruction=False)
    factory = RuntimeFactory(**{"slots": 4, "max_batch": 4, **options})
    spec = dataclasses.replace(policy.spec(), name="d", version="1")
    runtime = factory.make(spec, policy, factory.pool(policy)).runtime
    assert isinstance(runtime, TorchRuntime)
    return runtime


def test_graphs_draw_the_same_of_every_head_as_plain_computation() -> None:
    plain = run(make(), [4, 5, 6])
    compiled = run(make(buckets=[1, 2, 4], graphs="compile", compiler="eager"), [4, 5, 6])
    assert compiled.actions == plain.actions
    assert compiled.decoded == plain.decoded
    assert plain.log_probs is not None
    assert compiled.log_probs is not None
    assert plain.log_probs.shape == (3, len(HEADS))
    np.testing.assert_allclose(compiled.log_probs, plain.log_probs, rtol=1e-6)


def test_a_policy_that_does_not_say_its_heads_is_not_served() -> None:
    class Silent(DesktopPolicy):
        def heads(self) -> tuple[int, ...]:
            raise NotImplementedError("nobody knows")

    policy = Silent()
    pool = SlotPool(policy.layout(), policy.state_layout(), 1)
    with pytest.raises(NotImplementedHereError, match="nobody knows"):
        TorchRuntime(dataclasses.replace(policy.spec(), version="1"), policy, pool, max_batch=1)


def test_an_executed_action_that_cannot_be_encoded_counts_as_unknown(rig: Rig, caplog: Any) -> None:
    class Picky(DesktopPolicy):
        def encode_action(self, action: Any) -> tuple[int, ...]:
            if action.scroll:
                raise ValueError("scroll")
            return super().encode_action(action)

    session = rig.open(rig.load("d", Picky()))
    arrive(rig, session, 1, seen=1)
    rig.engine.run_all()
    session.slots[0].executed(1, DesktopAction(scroll=1.0))
    arrive(rig, session, 2, seen=2)
    rig.engine.run_all()
    assert memory_of(session) == enter(enter(0, 1, None), 2, None)
    assert "counts as unknown" in caplog.text


def test_draws_within_bins_come_from_heads_of_their_own() -> None:
    sampler = BatchSampler([1], [2], 3, [1.0], [False], torch.device("cpu"), want_log_prob=False)
    whole = uniforms([1], [2], 5)
    assert np.array_equal(whole[:, :3], uniforms([1], [2], 3))
    drawn = [int(sampler(torch.zeros(1, 10), head)) for head in range(3)]
    assert drawn == [int(u * 10) for u in whole[0, :3]]


@pytest.mark.parametrize(
    ("wanted", "own", "autocast"),
    [(False, True, False), (False, False, False), (True, True, False), (True, False, True)],
)
def test_a_policy_makes_its_own_weights_for_play_or_is_computed_under_autocast(
    wanted: bool, own: bool, autocast: bool
) -> None:
    asked: list[str] = []
    under: list[bool] = []

    class Prepared(DesktopPolicy):
        def prepare_for_play(self, precision: str) -> bool:
            asked.append(precision)
            return own

        def step(self, *args: Any) -> StepOutput:
            under.append(torch.is_autocast_enabled("cpu"))
            return super().step(*args)

    policy = Prepared()
    factory = RuntimeFactory(slots=4, max_batch=4, autocast=wanted)
    factory.make(dataclasses.replace(policy.spec(), version="1"), policy, factory.pool(policy))
    assert asked == ["bfloat16" if wanted else "float32"]
    assert set(under) == {autocast}


def test_frames_that_catch_up_count_as_batches_of_their_own_for_the_time_model(rig: Rig) -> None:
    policy = rig.load("d", DesktopPolicy(rate_hz=20.0, catch_up_frames=4))
    observed: list[tuple[float, float]] = []

    class Spy(TimeModel):
        def observe(self, rows: float, seconds: float) -> None:
            observed.append((rows, seconds))
            super().observe(rows, seconds)

    policy.time_model = Spy()
    session = rig.open(policy, live=True)
    for seq in range(1, 5):
        arrive(rig, session, seq, seen=seq)
    rig.engine.run_all()
    assert [rows for rows, _ in observed] == [1, 1], "one frame, then three that entered one after another"
