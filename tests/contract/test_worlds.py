"""Worlds: actions up, frames down. Every action moves the world, at either pace; only frames may be left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from contract_kit.streams import Play, Rollout, comparable, reason_of, status_of, step_message

from playserve.codec import decode_output
from playserve.specs import PolicySpec
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb

ROLES = ("world", "world_desktop")


@pytest.mark.parametrize("role", ROLES)
def test_every_step_at_lockstep_shows_what_the_spec_says_and_no_action(play: Callable[..., Play], role: str) -> None:
    session, twin = play(role), play(role)
    spec = PolicySpec.from_proto(session.spec)
    seen = []
    for seq in range(1, 7):
        result = session.step(seq)
        assert not result.actions
        shown = {tensor.name: decode_output(tensor) for tensor in result.outputs}
        assert {name: (array.dtype.name, array.shape) for name, array in shown.items()} == {
            tensor.name: (tensor.dtype, tensor.shape) for tensor in spec.outputs
        }
        assert comparable(twin.step(seq)) == comparable(result)  # the seed and the actions are the world
        seen.append(shown["frame"].tobytes())
    assert len(set(seen)) > 1


def test_what_is_done_in_one_world_is_not_done_in_another(play: Callable[..., Play]) -> None:
    session, other = play("world"), play("world")
    session.step(1), other.step(1)
    moved = session.step(2, action=pb.Action(index=1))
    assert comparable(other.step(2, action=pb.Action(index=2))) != comparable(moved)


def test_a_burst_moves_the_world_by_every_action_and_shows_the_newest_frame(play: Callable[..., Play]) -> None:
    live, lockstep = play("world", pace=ps.PACE_LIVE), play("world")
    most, seq = live.opened.max_steps_in_flight, 1
    for length in (1, most, 3, 1):
        steps = range(seq, seq + length)
        for number in steps:
            live.send(step=step_message(live.spec, number))
        results = [live.result()]
        while results[-1].seq != steps[-1]:
            results.append(live.result())
        wanted = [lockstep.step(number) for number in steps]
        for result in results:
            assert comparable(result) == comparable(wanted[result.seq - steps[0]])
            assert result.gap_ticks == 0
            assert all(d.in_memory and d.reason == ps.DROP_REASON_SUPERSEDED for d in result.dropped)
        accounted = [r.seq for r in results] + [d.seq for r in results for d in r.dropped]
        assert sorted(accounted) == list(steps)
        seq += length


def test_a_slow_world_sends_fewer_frames_than_it_gets_actions(play: Callable[..., Play], target: Any) -> None:
    if target.name != "server":
        pytest.skip("only the suite's own server is known to be slow, and to leave frames out")
    live = play("world", pace=ps.PACE_LIVE)
    for number in range(1, 9):
        live.send(step=step_message(live.spec, number))
    results = [live.result()]
    while results[-1].seq != 8:
        results.append(live.result())
    assert [drop.seq for result in results for drop in result.dropped], [result.seq for result in results]


def test_a_new_world_in_a_burst_leaves_no_action_of_the_old_one_out(play: Callable[..., Play]) -> None:
    """The random stream goes on through episodes: a dropped step would change the world that follows."""
    live, lockstep = play("world", pace=ps.PACE_LIVE), play("world")
    for session in (live, lockstep):
        for number in range(1, 4):
            session.send(step=step_message(session.spec, number))
        session.send(reset=ps.Reset(episode_id=1))
        session.send(step=step_message(session.spec, 4, episode_id=1))
        session.send(step=step_message(session.spec, 5, episode_id=2))
    last: dict[str, ps.StepResult] = {}
    for name, session in (("live", live), ("lockstep", lockstep)):
        while name not in last:
            answer = session.recv()
            if answer.HasField("result") and answer.result.seq == 5:
                last[name] = answer.result
    assert last["live"].episode_id == 2
    assert comparable(last["live"]) == comparable(last["lockstep"])


def test_a_reset_with_a_seed_begins_the_world_of_that_seed(play: Callable[..., Play]) -> None:
    session, other = play("world"), play("world", seed=77)
    for number in range(1, 4):
        session.step(number)
    session.send(reset=ps.Reset(episode_id=1, seed=77))
    assert session.recv().reset_done.episode_id == 1
    for number in range(1, 4):
        again = session.step(number + 3, episode_id=1, action=step_message(other.spec, number).action)
        assert comparable(again)[5] == comparable(other.step(number))[5]


@pytest.mark.parametrize("role", ROLES)
def test_a_step_without_a_fitting_action_is_refused_and_has_not_happened(play: Callable[..., Play], role: str) -> None:
    session, twin = play(role), play(role)
    session.step(1), twin.step(1)
    wrong = [pb.Action(), pb.Action(index=1000), pb.Action(desktop=pb.DesktopAction(keys=["NoKey"]))]
    for action in wrong:
        session.send(step=ps.Step(seq=2, action=action))
        assert session.refuses() == "BAD_ACTION"
    session.send(step=ps.Step(seq=2))
    assert session.refuses() == "BAD_ACTION"
    assert comparable(session.step(2)) == comparable(twin.step(2))


def test_what_was_executed_is_not_told_to_a_world(play: Callable[..., Play]) -> None:
    session, twin = play("world"), play("world")
    session.step(1), twin.step(1)
    done = ps.Executed(seq=1, action=pb.Action(index=2), source=pb.ACTION_SOURCE_HUMAN)
    session.send(executed=done)
    assert session.refuses() == "EXECUTED_UNKNOWN"
    assert comparable(session.step(2)) == comparable(twin.step(2))


def test_a_step_that_nobody_looks_at_moves_the_world(play: Callable[..., Play]) -> None:
    session, twin = play("world"), play("world")
    session.step(1), twin.step(1)
    session.send(step=step_message(session.spec, 2, observe_only=True))
    twin.step(2)
    assert comparable(session.step(3)) == comparable(twin.step(3))


@pytest.mark.parametrize("pace", [ps.PACE_LIVE, ps.PACE_LOCKSTEP])
def test_a_world_outlives_its_stream(target: Any, play: Callable[..., Play], streams: list[Any], pace: int) -> None:
    lost, twin = play("world", pace=pace), play("world")
    shown = [comparable(twin.step(number)) for number in range(1, 7)]
    for number in range(1, 5):
        lost.send(step=step_message(lost.spec, number))
    lost.result()
    lost.cancel()
    again = Play(target.stub.Play, open=ps.Open(resume_token=lost.opened.resume_token))
    streams.append(again)
    again.open()
    assert again.opened.resumed
    for number in range(again.opened.last_seq + 1, 7):
        again.send(step=step_message(again.spec, number))
    result = again.result()
    while result.seq != 6:
        result = again.result()
    assert comparable(result) == shown[5]


def test_a_repeated_step_shows_the_same_frame_and_moves_nothing(play: Callable[..., Play]) -> None:
    session, twin = play("world"), play("world")
    session.step(1), twin.step(1)
    first = session.step(2)
    assert comparable(session.step(2)) == comparable(first) == comparable(twin.step(2))
    assert comparable(session.step(3)) == comparable(twin.step(3))


def test_more_than_may_wait_are_refused_one_by_one(play: Callable[..., Play], target: Any) -> None:
    if target.name != "server":
        pytest.skip("only the suite's own server is known to be slow")
    live, lockstep = play("world", pace=ps.PACE_LIVE), play("world")
    count = 4 * live.opened.max_steps_in_flight
    for number in range(1, count + 1):
        live.send(step=step_message(live.spec, number))
    refused, results = set[int](), list[ps.StepResult]()
    accounted = set[int]()
    while len(accounted) < count:
        answer = live.recv()
        if answer.HasField("error"):
            assert reason_of(answer.error.status) == "QUEUE_FULL"
            refused.add(answer.error.seq)
            accounted.add(answer.error.seq)
        else:
            results.append(answer.result)
            accounted |= {answer.result.seq, *(drop.seq for drop in answer.result.dropped)}
    assert refused
    happened = sorted(accounted - refused)
    for number in happened[:-1]:
        lockstep.step(number)
    assert comparable(lockstep.step(happened[-1])) == comparable(results[-1])


def test_a_rollout_of_a_world_is_refused(rollout: Callable[..., Rollout], target: Any) -> None:
    stream = rollout(open=ps.RolloutOpen(policy=target.policy("world").name, num_envs=2))
    assert stream.ends() == "NOT_IMPLEMENTED"


def test_the_open_inference_protocol_has_no_worlds(target: Any) -> None:
    oip = pytest.importorskip("tritonclient.grpc.service_pb2")
    from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

    if target.name != "server":
        pytest.skip("the suite's own server has that protocol")
    stub, name = GRPCInferenceServiceStub(target.channel), target.policy("world").name
    assert not stub.ModelReady(oip.ModelReadyRequest(name=name), timeout=10).ready
    assert name not in [m.name for m in stub.RepositoryIndex(oip.RepositoryIndexRequest(), timeout=10).models]
    request = oip.ModelInferRequest(model_name=name)
    request.parameters["sequence_id"].int64_param = 1
    request.parameters["sequence_start"].bool_param = True
    for method, message in ((stub.ModelInfer, request), (stub.ModelConfig, oip.ModelConfigRequest(name=name))):
        with pytest.raises(grpc.RpcError) as refused:
            method(message, timeout=10)
        assert reason_of(status_of(refused.value)) == "NOT_IMPLEMENTED"
