"""Streams that are lost half-way: the session goes on where it was, and every answer is that of an undisturbed run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from contract_kit.streams import Play, comparable, observation, reason_of, status_of, step_message

from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb

_STEPS = 20


def _resume(play: Callable[..., Play], session: Play, **fields: Any) -> Play:
    again = play(open=ps.Open(resume_token=session.opened.resume_token, **fields)).open()
    assert again.opened.resumed
    assert again.opened.session_id == session.opened.session_id
    assert again.opened.policy.version == session.opened.policy.version
    return again


def test_a_stream_dropped_between_steps(play: Callable[..., Play], undisturbed: Callable[[str, int], Any]) -> None:
    session = play("memory")
    answers = []
    for seq in range(1, _STEPS + 1):
        answers.append(comparable(session.step(seq)))
        if seq % 3 == 0:
            session.cancel()
            session = _resume(play, session)
            assert session.opened.last_seq == seq
            assert comparable(session.opened.last_result) == answers[-1]
            assert session.opened.seed == 11
    assert answers == undisturbed("memory", _STEPS)


def test_a_stream_dropped_with_a_step_under_way(
    play: Callable[..., Play], undisturbed: Callable[[str, int], Any]
) -> None:
    """Whether the step got through or not, sending it again is right."""
    session = play("memory")
    answers = []
    for seq in range(1, _STEPS + 1):
        if seq % 2 == 0:
            session.send(step=step_message(session.spec, seq))
            session.cancel()
            session = _resume(play, session)
            assert session.opened.last_seq in (seq - 1, seq)
            if session.opened.last_seq == seq:
                assert comparable(session.opened.last_result)[0] == seq
        answers.append(comparable(session.step(seq)))
    assert answers == undisturbed("memory", _STEPS)


def test_many_drops_never_end_a_session(play: Callable[..., Play], undisturbed: Callable[[str, int], Any]) -> None:
    session = play("memory")
    answers = [comparable(session.step(1))]
    for _ in range(60):
        session.cancel()
        session = _resume(play, session)
        assert session.opened.last_seq == 1
    answers.append(comparable(session.step(2)))
    assert answers == undisturbed("memory", 2)


def test_steps_that_waited_are_sent_again(play: Callable[..., Play]) -> None:
    """Opened.last_seq says which: everything after it."""
    whole = play("live", pace=ps.PACE_LOCKSTEP)  # the slow one
    wanted = [comparable(whole.step(seq)) for seq in range(1, 9)]
    session = play("live", pace=ps.PACE_LOCKSTEP)
    for seq in range(1, 7):
        session.send(step=step_message(session.spec, seq))
    answers = [comparable(session.result())]
    session.cancel()
    session = _resume(play, session)
    last = session.opened.last_seq
    assert 1 <= last <= 6
    assert comparable(session.opened.last_result) == wanted[last - 1]
    answers = wanted[:last] + [comparable(session.step(seq)) for seq in range(last + 1, 9)]
    assert answers == wanted


def test_what_was_executed_survives_the_stream(play: Callable[..., Play]) -> None:
    def run(drop: bool) -> list[Any]:
        session = play("memory")
        own = session.step(1).actions[0].index
        other = pb.Action(index=(own + 1) % session.spec.action.discrete.n)
        session.send(executed=ps.Executed(seq=1, action=other, source=pb.ACTION_SOURCE_HUMAN))
        session.ping()
        if drop:
            session.cancel()
            session = _resume(play, session)
        return [comparable(session.step(seq)) for seq in range(2, 8)]

    assert run(drop=True) == run(drop=False)


@pytest.mark.parametrize("waiting", [False, True])
def test_a_reset_survives_the_stream(play: Callable[..., Play], waiting: bool) -> None:
    """It was acknowledged, so the client does not send it again: episode and seed hold."""

    def run(drop: bool) -> list[Any]:
        session = play("live", pace=ps.PACE_LOCKSTEP, seed=5)
        for seq in (1, 2, 3):
            session.send(step=step_message(session.spec, seq))
        for _ in range(3 if not waiting else 1):
            session.result()
        session.send(reset=ps.Reset(episode_id=4, seed=99))
        session.send(step=step_message(session.spec, 4, episode_id=4))
        if drop:
            while not session.recv().HasField("reset_done"):
                pass
            session.cancel()
            session = _resume(play, session)
            assert session.opened.episode_id == 4
            for seq in range(session.opened.last_seq + 1, 4):
                # Of the old episode: the server has forgotten them, and they do not matter any more.
                session.send(step=step_message(session.spec, seq))
                assert session.refuses() == "EPISODE_REUSED"
            if session.opened.last_seq < 4:
                session.send(step=step_message(session.spec, 4, episode_id=4))
            else:
                session.send(step=step_message(session.spec, 4, episode_id=4))
        session.send(step=step_message(session.spec, 5, episode_id=4))
        results: list[Any] = []
        while not results or results[-1][0] != 5:
            answer = session.recv()
            if answer.HasField("result") and answer.result.seq >= 4:
                results.append(comparable(answer.result))
        return results

    assert run(drop=True) == run(drop=False)


def test_a_session_that_is_attached_goes_to_the_newer_stream(
    play: Callable[..., Play], undisturbed: Callable[[str, int], Any]
) -> None:
    old = play("memory")
    answers = [comparable(old.step(1))]
    new = _resume(play, old)
    assert new.opened.last_seq == 1
    assert old.ends() == "SUPERSEDED"
    assert old.status.code == grpc.StatusCode.ABORTED.value[0]
    answers += [comparable(new.step(seq)) for seq in (2, 3)]
    assert answers == undisturbed("memory", 3)


def test_a_superseded_stream_cannot_end_or_feed_the_session(
    play: Callable[..., Play], undisturbed: Callable[[str, int], Any]
) -> None:
    session = play("memory")
    answers = [comparable(session.step(1))]
    for seq in range(2, 12):
        new = play(open=ps.Open(resume_token=session.opened.resume_token))
        # The old stream's last words race with the resume.
        session.send(step=ps.Step(seq=10**9)).send(close=ps.Close()).half_close()
        try:
            session.rest()
            new.open()
        except AssertionError:
            # Close came first: then the session is over, as it should be.
            with pytest.raises(AssertionError, match="SESSION_NOT_FOUND"):
                new.recv()
            return
        session = new
        answers.append(comparable(session.step(seq)))
        assert answers == undisturbed("memory", seq)


def test_settings_survive(play: Callable[..., Play]) -> None:
    session = play("memory")
    session.send(configure=ps.Configure(sampling=pb.Sampling(mode=pb.SAMPLING_MODE_ARGMAX)))
    revision = session.recv().configured.revision
    session.cancel()
    again = _resume(play, session, seed=12345, sampling=pb.Sampling(temperature=-1))  # ignored, all of it
    assert again.opened.config_revision == revision
    assert again.opened.seed == 11
    assert again.step(1).config_revision == revision


def test_codecs_are_agreed_on_anew(play: Callable[..., Play], undisturbed: Callable[[str, int], Any]) -> None:
    session = play("frames")
    answers = [comparable(session.step(1))]
    session.cancel()
    session = _resume(play, session)  # offers nothing
    assert list(session.opened.codecs) == [pb.CODEC_RAW]
    packed = observation(session.spec, 2, codec=pb.CODEC_LZ4)
    session.send(step=ps.Step(seq=2, inputs=packed))
    assert session.refuses() == "CODEC_NOT_NEGOTIATED"
    session.cancel()
    session = _resume(play, session, codecs=[pb.CODEC_LZ4])
    assert list(session.opened.codecs) == [pb.CODEC_RAW, pb.CODEC_LZ4]
    answers.append(comparable(session.step(2, inputs=packed)))
    assert answers == undisturbed("frames", 2)


def test_a_closed_session_cannot_be_resumed(play: Callable[..., Play]) -> None:
    session = play("memory")
    session.step(1)
    assert session.close() == "OK"
    assert play(open=ps.Open(resume_token=session.opened.resume_token)).ends() == "SESSION_NOT_FOUND"


def test_a_lost_rollout_frees_its_slots(target: Any, rollout: Callable[..., Any]) -> None:
    name = target.policy("frames").name

    def free() -> int:
        return target.stub.GetPolicy(ps.GetPolicyRequest(policy=name), timeout=30).policy.slots_free

    before = free()
    stream = rollout("frames", num_envs=3)
    assert free() <= before - 3 + 1
    stream.rows([0, 1, 2], 1)
    stream.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        list(stream.call)
    assert reason_of(status_of(caught.value)).startswith("<CANCELLED")
    # The server learns of it a moment later: as soon as there is room, the same number fits again.
    for _ in range(200):
        if free() >= before:
            break
        observation(target.policy("memory"), 1)
    assert free() >= before
