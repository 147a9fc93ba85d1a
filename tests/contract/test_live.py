"""LIVE: the newest step is answered, waiting ones follow the policy's gap rule, and nothing is lost in silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contract_kit.streams import Play, comparable, step_message

from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb

_BUDGET_US = 60_000_000  # a busy machine must not make a step stale


def _burst(session: Play, steps: range, ticks: int = 1, **fields: Any) -> list[ps.StepResult]:
    """Send steps as fast as possible and return the results up to the last one's."""
    for seq in steps:
        session.send(step=step_message(session.spec, seq, ticks=ticks, budget_us=_BUDGET_US, **fields))
    results = [session.result()]
    while results[-1].seq != steps[-1]:
        results.append(session.result())
    return results


def test_the_newest_wins_and_every_step_is_accounted_for(play: Callable[..., Play], target: Any) -> None:
    session = play("live", pace=ps.PACE_LIVE)
    results = _burst(session, range(1, 31), ticks=2)
    answered = [result.seq for result in results]
    dropped = [drop.seq for result in results for drop in result.dropped]
    assert answered == sorted(answered)
    assert sorted(answered + dropped) == list(range(1, 31))
    if target.slow_live:
        assert dropped
    for result in results:
        assert all(drop.seq < result.seq for drop in result.dropped)
        assert all(drop.reason == ps.DROP_REASON_SUPERSEDED for drop in result.dropped)
        assert result.gap_ticks == 2 * sum(not drop.in_memory for drop in result.dropped)
    # A step that follows the burst finds nothing left over.
    after = _burst(session, range(31, 32))[0]
    assert not after.dropped
    assert after.gap_ticks == 0


def test_ticks_add_up_to_a_number_that_fits(play: Callable[..., Play]) -> None:
    session = play("live", pace=ps.PACE_LIVE)
    results = _burst(session, range(1, 21), ticks=2**32 - 1)
    assert results[-1].seq == 20
    assert _burst(session, range(21, 22))[0].seq == 21


def test_a_new_episode_in_a_burst_is_not_answered_for_the_old_one(play: Callable[..., Play]) -> None:
    session = play("live", pace=ps.PACE_LIVE, sampling=pb.Sampling(mode=pb.SAMPLING_MODE_ARGMAX))
    for seq in range(1, 6):
        session.send(step=step_message(session.spec, seq, episode_id=1, budget_us=_BUDGET_US))
    for seq in range(6, 11):
        session.send(step=step_message(session.spec, seq, episode_id=2, budget_us=_BUDGET_US))
    results = [session.result()]
    while results[-1].seq != 10:
        results.append(session.result())
    assert results[-1].episode_id == 2
    assert all(result.episode_id == (1 if result.seq < 6 else 2) for result in results)
    accounted = [result.seq for result in results] + [drop.seq for result in results for drop in result.dropped]
    assert sorted(accounted) == list(range(1, 11))


def test_catch_up_leaves_the_memory_that_lockstep_leaves(play: Callable[..., Play]) -> None:
    """Bursts no longer than catch_up_frames: all enter the memory, only the newest is answered."""
    live = play("catch_up", pace=ps.PACE_LIVE)
    limit = live.spec.gap_rule.catch_up_frames
    lockstep = play("catch_up", pace=ps.PACE_LOCKSTEP)
    seq, saw_drop = 1, False
    for length in (1, limit, 2, limit, max(1, limit // 2)):
        steps = range(seq, seq + length)
        results = _burst(live, steps)
        for result in results:
            assert all(drop.in_memory for drop in result.dropped)
            assert result.gap_ticks == 0
            saw_drop |= bool(result.dropped)
        for number in steps:
            answer = lockstep.step(number)
            # LIVE takes what was executed as unknown unless it is told.
            lockstep.send(executed=ps.Executed(seq=number, source=pb.ACTION_SOURCE_UNKNOWN))
        assert comparable(results[-1]) == comparable(answer)
        seq += length


def test_executed_actions_are_never_dropped(play: Callable[..., Play]) -> None:
    """Under CATCH_UP each step of a burst knows what was done before it."""
    live = play("catch_up", pace=ps.PACE_LIVE)
    lockstep = play("catch_up", pace=ps.PACE_LOCKSTEP)
    choices = live.spec.action.discrete.n
    last = live.spec.gap_rule.catch_up_frames
    for seq in range(1, last + 1):
        live.send(step=step_message(live.spec, seq, budget_us=_BUDGET_US))
        done = ps.Executed(seq=seq, action=pb.Action(index=seq % choices), source=pb.ACTION_SOURCE_HUMAN)
        if seq < last:
            live.send(executed=done)
        wanted = lockstep.step(seq)
        lockstep.send(executed=done)
    result = live.result()
    while result.seq != last:
        result = live.result()
    assert comparable(result) == comparable(wanted)


def test_live_sessions_take_observations_without_answering(play: Callable[..., Play]) -> None:
    session = play("catch_up", pace=ps.PACE_LIVE)
    for seq in range(1, 4):
        session.send(step=step_message(session.spec, seq, observe_only=True))
    session.send(step=step_message(session.spec, 4, budget_us=_BUDGET_US))
    result = session.result()
    assert result.seq == 4
    assert not result.dropped  # nobody waits for an answer to what was only observed
