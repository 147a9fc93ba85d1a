"""How sessions begin and end: what Open may ask for, and every way a stream may be over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from contract_kit.streams import Play, comparable, observation, retry_after_s, step_message

from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb


@pytest.mark.parametrize(
    "first",
    [
        {"step": ps.Step(seq=1)},
        {"executed": ps.Executed(seq=1)},
        {"configure": ps.Configure()},
        {"reset": ps.Reset(episode_id=1)},
        {"ping": ps.Ping(nonce=1)},
        {"close": ps.Close()},
    ],
    ids=lambda first: next(iter(first)),
)
def test_anything_before_open_ends_the_stream(play: Callable[..., Play], first: dict[str, Any]) -> None:
    session = play(**first)
    assert session.ends() == "NOT_OPEN"
    assert session.status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]


def test_an_empty_first_message_and_no_message_at_all(play: Callable[..., Play]) -> None:
    assert play().send().ends() == "NOT_OPEN"
    assert play().half_close().ends() == "NOT_OPEN"


@pytest.mark.parametrize(
    "name", ["nobody", "", "../memory", "..", "/etc/passwd", "memory/../memory", "a\x00b", "MEMORY", "x" * 5000, "ü"]
)
def test_unknown_and_bad_names(play: Callable[..., Play], target: Any, name: str) -> None:
    assert play(open=ps.Open(policy=name)).ends() == "POLICY_NOT_FOUND"
    with pytest.raises(grpc.RpcError) as caught:
        target.stub.GetPolicy(ps.GetPolicyRequest(policy=name), timeout=30)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("version", ["999999", "nobody", "../1", "-1", "1/../1", "x" * 5000])
def test_unknown_versions(play: Callable[..., Play], target: Any, version: str) -> None:
    name = target.policy("memory").name
    session = play(open=ps.Open(policy=name, version=version))
    assert session.ends() == "VERSION_NOT_FOUND"
    assert session.status.code == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize("token", [b"\x00", b"no such token", bytes(24), b"x" * 100_000])
def test_unknown_resume_tokens(play: Callable[..., Play], token: bytes) -> None:
    session = play(open=ps.Open(resume_token=token))
    assert session.ends() == "SESSION_NOT_FOUND"
    assert session.status.code == grpc.StatusCode.NOT_FOUND.value[0]


def test_the_public_id_is_no_token(play: Callable[..., Play]) -> None:
    session_id = play("memory").opened.session_id
    assert play(open=ps.Open(resume_token=session_id.encode())).ends() == "SESSION_NOT_FOUND"


@pytest.mark.parametrize(
    "fields",
    [
        {"sampling": pb.Sampling(temperature=-0.5)},
        {"sampling": pb.Sampling(temperature=101)},
        {"sampling": pb.Sampling(temperature=float("nan"))},
        {"sampling": pb.Sampling(mode=9)},
        {"instruction": "x" * 4097},
        {"rate_hz": -1.0},
        {"rate_hz": float("nan")},
        {"rate_hz": float("inf")},
        {"pace": 9},
        {"version_policy": 9},
    ],
    ids=str,
)
def test_settings_out_of_range(play: Callable[..., Play], target: Any, fields: dict[str, Any]) -> None:
    name = target.policy("memory").name
    assert play(open=ps.Open(policy=name, **fields)).ends() == "BAD_SETTING"


def test_a_live_client_has_the_policys_rate(play: Callable[..., Play]) -> None:
    opened = play("live", pace=ps.PACE_LIVE, rate_hz=0).opened  # 0: the policy's own
    rate = opened.policy.rate_hz
    play("live", pace=ps.PACE_LIVE, rate_hz=rate)
    wrong = play(open=ps.Open(policy=opened.policy.name, pace=ps.PACE_LIVE, rate_hz=1.5 * rate))
    assert wrong.ends() == "RATE_MISMATCH"
    play("live", pace=ps.PACE_LOCKSTEP, rate_hz=1.5 * rate)  # a game that waits has no rate


def test_opened_says_all_that_a_client_must_know(play: Callable[..., Play]) -> None:
    opened = play("memory", seed=77, episode_id=3).opened
    assert opened.session_id
    assert len(opened.resume_token) >= 16
    assert opened.policy.inputs
    assert opened.policy.state_layout
    assert opened.policy.version
    assert opened.seed == 77
    assert opened.episode_id == 3
    assert not opened.resumed
    assert opened.last_seq == 0
    assert not opened.HasField("last_result")
    assert opened.max_message_bytes > 0
    assert opened.idle_timeout_us > 0
    assert opened.detach_window_us > 0
    assert opened.max_steps_in_flight > 0
    other = play("memory", seed=None).opened
    assert other.session_id != opened.session_id
    assert other.resume_token != opened.resume_token


def test_a_drawn_seed_is_said_and_gives_the_same_game(play: Callable[..., Play]) -> None:
    first = play("memory", seed=None)
    answers = [comparable(first.step(seq)) for seq in range(1, 7)]
    again = play("memory", seed=first.opened.seed)
    assert [comparable(again.step(seq)) for seq in range(1, 7)] == answers
    # Settings at their zero values mean the defaults.
    plain = play("memory", seed=first.opened.seed, sampling=pb.Sampling())
    assert [comparable(plain.step(seq)) for seq in range(1, 7)] == answers


def test_a_follower_plays_as_others_do_while_nothing_newer_is_there(
    play: Callable[..., Play], undisturbed: Callable[[str, int], list[Any]]
) -> None:
    follower = play("memory", version_policy=ps.VERSION_POLICY_FOLLOW)
    results = [follower.step(seq) for seq in range(1, 7)]
    assert {result.version for result in results} == {follower.opened.policy.version}
    assert [comparable(result) for result in results] == undisturbed("memory", 6)


def test_no_free_slot_says_when_to_come_again(
    play: Callable[..., Play], rollout: Callable[..., Any], target: Any
) -> None:
    spec = target.policy("frames")

    def free() -> int:
        request = ps.GetPolicyRequest(policy=spec.name)
        return target.stub.GetPolicy(request, timeout=30).policy.slots_free

    taken = []
    while free():
        taken.append(rollout("frames", num_envs=free()))
    refused = play(open=ps.Open(policy=spec.name))
    assert refused.ends() == "NO_FREE_SLOT"
    assert refused.status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert retry_after_s(refused.status) is not None
    for stream in taken:
        assert stream.close() == "OK"
    play("frames").step(1)
    assert free() > 0


def test_a_lost_stream_of_refusals_takes_no_slot(play: Callable[..., Play], target: Any) -> None:
    def free() -> int:
        spec = target.policy("catch_up")
        return target.stub.GetPolicy(ps.GetPolicyRequest(policy=spec.name), timeout=30).policy.slots_free

    before = free()
    name = target.policy("catch_up").name
    for _ in range(3):
        assert play(open=ps.Open(policy=name, pace=ps.PACE_LIVE, rate_hz=3)).ends() == "RATE_MISMATCH"
    assert free() == before
    session = play("catch_up")
    assert free() == before - 1
    assert session.close() == "OK"
    assert free() == before


@pytest.mark.parametrize("how", ["close", "half-close"])
def test_close_answers_what_is_outstanding(play: Callable[..., Play], how: str) -> None:
    session = play("live", pace=ps.PACE_LOCKSTEP)  # the slow one
    for seq in range(1, 5):
        session.send(step=step_message(session.spec, seq))
    if how == "close":
        session.send(close=ps.Close(reason="done"))
        session.send(step=step_message(session.spec, 5))  # after Close nothing counts
    session.half_close()
    answers, reason = session.rest()
    assert reason == "OK"
    assert [answer.result.seq for answer in answers] == [1, 2, 3, 4]
    assert play(open=ps.Open(resume_token=session.opened.resume_token)).ends() == "SESSION_NOT_FOUND"


def test_a_message_larger_than_the_limit_ends_the_stream_and_not_the_session(play: Callable[..., Play]) -> None:
    session = play("memory")
    before = comparable(session.step(1))
    inputs = observation(session.spec, 2)
    inputs[0].data = bytes(session.opened.max_message_bytes + 1)
    session.send(step=ps.Step(seq=2, inputs=inputs))
    session.ends()
    assert session.status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    again = play(open=ps.Open(resume_token=session.opened.resume_token)).open()
    assert again.opened.last_seq == 1
    assert comparable(again.opened.last_result) == before
    again.step(2)


def test_bytes_that_are_no_message_end_the_stream_and_not_the_session(play: Callable[..., Play], target: Any) -> None:
    session = play("memory")
    session.step(1)
    method = target.channel.stream_stream("/playserve.v1.PolicyService/Play")
    resumed = ps.PlayRequest(open=ps.Open(resume_token=session.opened.resume_token)).SerializeToString()
    broken = Play(lambda requests, timeout: method(iter([resumed, b"\xff\xff\xff\xff"]), timeout=timeout))
    answers, reason = broken.rest()
    assert len(answers) == 1
    assert reason == "MALFORMED_MESSAGE"
    again = play(open=ps.Open(resume_token=session.opened.resume_token)).open()
    assert again.opened.last_seq == 1
    again.step(2)
    session.rest()  # superseded
