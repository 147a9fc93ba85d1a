"""State machine: open, step, cancel, expiry, reset, detach, resume, drain and crash in any order, beside a reference.

The memory of every session is a hash of all that it has seen, so one frame in the wrong slot, a lost reset or a late
result scattered to a new owner changes every later action of some session.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
from hash_policy import HashPolicy, HashReference
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from playserve.errors import DrainingError, NoFreeSlotError, PlayserveError, QueueFullError, SessionNotFoundError
from playserve.specs import GapMode, GapRule
from playserve_services.inference.core import CoreLimits
from playserve_services.inference.sessions import Answer, EndReason, Session, SessionState


@dataclasses.dataclass
class Sent:
    """A frame that the test sent."""

    observation: int
    executed: int | None  # None: lockstep's own answer
    episode: int


class Game:
    """One slot of one session, as the client sees it, with the reference of its memory."""

    def __init__(self, session: Session, row: int, live: bool) -> None:
        self.session, self.row, self.live = session, row, live
        self.seq = 0
        self.episode = 0
        self.sent: dict[int, Sent] = {}
        self.entered = 0
        self.memory = HashReference()
        self.memory_episode = 0
        self.last_action: int | None = None
        self.gone: set[int] = set()  # dropped, and not in the memory
        self.answered: list[int] = []
        self.awaiting: list[int] = []

    def on_answer(self, answer: Answer) -> None:
        seq = answer.frame.seq
        for dropped in answer.dropped:
            if not dropped.in_memory:
                self.gone.add(dropped.seq)
            if dropped.seq in self.awaiting:
                self.awaiting.remove(dropped.seq)
        assert seq in self.awaiting, f"answer {seq} came uncalled for"
        if not self.live:
            assert self.awaiting[0] == seq, "lockstep answers out of order"
        self.awaiting.remove(seq)
        action = self._replay_to(seq)
        assert answer.action == (action,), f"session {self.session.session_id} row {self.row} seq {seq}: state leaked"
        self.answered.append(seq)

    def _replay_to(self, seq: int) -> int:
        inherited: int | None = None
        action = -1
        for s in sorted(k for k in self.sent if self.entered < k <= seq):
            frame = self.sent[s]
            if s in self.gone:
                # Executed actions are never dropped: the newest that was told stands for the frame that follows.
                if frame.executed is not None:
                    inherited = frame.executed
                continue
            if frame.episode != self.memory_episode or self.entered == 0:
                self.memory = HashReference()
                self.memory_episode = frame.episode
                executed = -1
            elif frame.executed is not None:
                executed = frame.executed
            elif self.live:
                executed = -1 if inherited is None else inherited
            else:
                executed = -1 if self.last_action is None else self.last_action
            inherited = None
            action = self.memory.enter(frame.observation, executed)
            self.last_action = action
            self.entered = s
        return action


class CoreMachine(RuleBasedStateMachine):
    """See the module's docstring."""

    rig_class: Any = None  # set by the test: a class from conftest

    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        limits = CoreLimits(max_steps_in_flight=3, idle_timeout_ns=10**10, detach_window_ns=5 * 10**9)
        self.rig = self.rig_class(slots=5, max_batch=3, limits=limits)
        self.policies = {
            "lockstep": self.rig.load("lockstep", HashPolicy()),
            "skip": self.rig.load("skip", HashPolicy(GapRule(mode=GapMode.SKIP), rate_hz=20)),
            "catch_up": self.rig.load(
                "catch_up", HashPolicy(GapRule(mode=GapMode.CATCH_UP, catch_up_frames=3), rate_hz=20)
            ),
        }
        self.modules = {n: p.runtime._policy for n, p in self.policies.items()}  # type: ignore[attr-defined]
        self.games: dict[str, list[Game]] = {}
        self.ended_with: dict[str, PlayserveError | None] = {}

    # -- helpers --------------------------------------------------------------------------------------------------

    def _attach(self, session: Session) -> None:
        games = self.games[session.session_id]

        def sink(answers: list[Answer]) -> None:
            assert not session.ended, "an answer after the end"
            for answer in answers:
                games[answer.slot.row].on_answer(answer)

        session.sink = sink
        session.on_end = lambda error: self.ended_with.__setitem__(session.session_id, error)

    def _usable(self, session: Session) -> bool:
        return session.state is SessionState.OPEN

    # -- rules ----------------------------------------------------------------------------------------------------

    @rule(target=sessions, kind=st.sampled_from(["lockstep", "skip", "catch_up"]), rows=st.integers(1, 3))
    def open(self, kind: str, rows: int) -> Any:
        live = kind != "lockstep"
        rollout = not live and rows > 1
        count = rows if rollout else 1
        free = self.policies[kind].pool.free
        try:
            session = self.rig.open(self.policies[kind], live=live, rollout=rollout, num_slots=count, seed=1)
        except DrainingError:
            assert self.rig.core.draining
            return multiple()
        except NoFreeSlotError:
            assert free < count
            return multiple()
        self.games[session.session_id] = [Game(session, row, live) for row in range(count)]
        self._attach(session)
        return session

    @rule(
        session=sessions,
        row=st.integers(0, 2),
        observation=st.integers(0, 1000),
        executed=st.none() | st.integers(-1, 20),
        new_episode=st.integers(0, 9),
        burst=st.integers(1, 4),
    )
    def step(
        self, session: Session, row: int, observation: int, executed: int | None, new_episode: int, burst: int
    ) -> None:
        if not self._usable(session):
            return
        game = self.games[session.session_id][row % len(session.slots)]
        slot = session.slots[game.row]
        for i in range(burst):
            told = executed if i == 0 and game.seq > 0 else None
            if told is not None:
                slot.executed(slot.seen_seq, None if told < 0 else (told,))
            if new_episode == 0 and i == 0:
                game.episode += 1
            seq = game.seq + 1
            frame = self.rig.frame(session, seq, observation + i, episode_id=game.episode)
            try:
                self.rig.core.arrive(slot, frame)
            except QueueFullError:
                assert not game.live
                assert len(game.awaiting) >= 3
                if new_episode == 0 and i == 0:
                    game.episode -= 1
                if told is not None:  # it stays in force for the frame that comes instead
                    slot.pending_executed = None
                break
            game.seq = seq
            game.sent[seq] = Sent(observation + i, told, game.episode)
            game.awaiting.append(seq)
        self.rig.core.pump()

    @rule(count=st.integers(1, 3))
    def engine(self, count: int) -> None:
        for _ in range(count):
            self.rig.engine.run_one()

    @rule(session=sessions)
    def cancel(self, session: Session) -> None:
        """The stream is lost: what waits is forgotten, what is in the engine enters the memory."""
        if self._usable(session):
            self.rig.core.detach(session)
            assert session.ended == session.rollout

    @rule(session=sessions, seconds=st.sampled_from([0.0, 4.0, 6.0]))
    def resume(self, session: Session, seconds: float) -> None:
        if session.ended or session.state is SessionState.DRAINING or session.rollout:
            with pytest.raises(SessionNotFoundError):
                self.rig.core.resume(session.resume_token, "me")
            return
        self.rig.advance(seconds)
        self.rig.core.tick()
        if session.ended:
            return
        self.rig.core.resume(session.resume_token, "me")
        self.rig.engine.run_all()  # as the stream does: it waits until the session is idle
        slot, game = session.slots[0], self.games[session.session_id][0]
        entered = slot.entered_seq
        if slot.last_answer is not None and slot.last_answer.frame.seq in game.awaiting:
            game.on_answer(slot.last_answer)  # Opened.last_result
        dropped = {d.seq for d in slot.dropped if not d.in_memory}
        game.gone |= dropped
        if game.entered < entered:
            game._replay_to(entered)
        for seq in [s for s in game.sent if s > entered]:
            del game.sent[seq]
        game.awaiting.clear()
        game.seq = entered
        game.episode = slot.seen_episode
        self._attach(session)

    @rule(session=sessions)
    def reset(self, session: Session) -> None:
        if self._usable(session) and not session.rollout:
            game = self.games[session.session_id][0]
            game.episode += 1
            self.rig.core.reset(session, game.episode, None)

    @rule(session=consumes(sessions))
    def close(self, session: Session) -> None:
        if self._usable(session):
            outstanding = session.outstanding
            self.rig.core.close(session)
            assert session.ended == (outstanding == 0)

    @rule(session=consumes(sessions))
    def end(self, session: Session) -> None:
        self.rig.core.end(session, EndReason.ENDED_BY_OPERATOR)
        self.rig.core.end(session, EndReason.ENDED_BY_OPERATOR)  # twice is once

    @rule(seconds=st.sampled_from([1.0, 11.0]))
    def expire(self, seconds: float) -> None:
        self.rig.advance(seconds)
        before = {s.session_id: s for s in self.rig.core.sessions()}
        self.rig.core.tick()
        for session in before.values():
            if session.state is SessionState.OPEN and session.outstanding == 0:
                assert self.rig.now_ns - session.heard_ns <= 10**10

    @rule(kind=st.sampled_from(["lockstep", "skip", "catch_up"]))
    def crash(self, kind: str) -> None:
        """The model raises: its sessions end, for nobody knows what their memory holds; others go on."""
        if not self.rig.engine.jobs:
            return
        self.modules[kind].fail = True
        self.rig.engine.run_one()
        self.modules[kind].fail = False

    @precondition(lambda self: len(self.games) > 6)
    @rule()
    def drain(self) -> None:
        self.rig.core.start_drain()

    # -- invariants -----------------------------------------------------------------------------------------------

    @invariant()
    def no_slot_is_lost_or_owned_twice(self) -> None:
        pool = self.policies["lockstep"].pool
        assert all(policy.pool is pool for policy in self.policies.values())
        owned = [slot.lease.slot for session in self.rig.core.sessions() for slot in session.slots]
        assert len(owned) == len(set(owned)), "a slot has two owners"
        assert 0 not in owned, "the scratch slot was given away"
        assert pool.free + len(owned) == pool.capacity, "a slot is lost"
        assert all(slot.lease.valid() for session in self.rig.core.sessions() for slot in session.slots)

    @invariant()
    def counts_agree(self) -> None:
        sessions = list(self.rig.core.sessions())
        assert sum(p.sessions for p in self.policies.values()) == len(sessions)
        assert self.rig.core._live_open == sum(s.live for s in sessions)

    def teardown(self) -> None:
        """Everything that was asked of a session that still plays is answered in the end."""
        self.rig.engine.run_all()
        for session in self.rig.core.sessions():
            if session.state is SessionState.OPEN:
                for game in self.games[session.session_id]:
                    told_next = {d.seq for d in session.slots[game.row].dropped}  # with the next result
                    assert set(game.awaiting) <= told_next, "a step was never answered"
            self.rig.core.end(session, EndReason.CLOSED)
        assert self.policies["lockstep"].pool.free == 5


def test_sessions_stay_isolated_in_any_order_of_events(make_rig: Any) -> None:
    CoreMachine.rig_class = make_rig
    from hypothesis.stateful import run_state_machine_as_test

    logging.getLogger("playserve_services").setLevel(logging.CRITICAL)  # every crash would be a page of log
    try:
        run_state_machine_as_test(CoreMachine, settings=settings(max_examples=60, stateful_step_count=50))  # type: ignore[no-untyped-call]
    finally:
        logging.getLogger("playserve_services").setLevel(logging.NOTSET)
