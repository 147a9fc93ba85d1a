"""Rollout: many environments on one stream. A bad row gets a row's error, and the others are answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from contract_kit.streams import Play, Rollout, observation, reason_of, retry_after_s

from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb

RolloutOf = Callable[..., Rollout]


@pytest.mark.parametrize("first", [{"step": ps.RolloutStep()}, {"ping": ps.Ping()}, {"close": ps.Close()}, None])
def test_anything_before_open_ends_the_stream(rollout: RolloutOf, first: dict[str, Any] | None) -> None:
    stream = rollout().send() if first is None else rollout(**first)
    assert stream.ends() == "NOT_OPEN"


def test_nothing_at_all(rollout: RolloutOf) -> None:
    assert rollout().half_close().ends() == "NOT_OPEN"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"policy": "nobody"}, "POLICY_NOT_FOUND"),
        ({"policy": "../memory"}, "POLICY_NOT_FOUND"),
        ({"version": "999999"}, "VERSION_NOT_FOUND"),
        ({"num_envs": 0}, "BAD_SETTING"),
        ({"num_envs": 2**32 - 1}, "NO_FREE_SLOT"),
        ({"sampling": pb.Sampling(temperature=-1)}, "BAD_SETTING"),
    ],
    ids=str,
)
def test_bad_opens(rollout: RolloutOf, target: Any, fields: dict[str, Any], reason: str) -> None:
    message = {"policy": target.policy("memory").name, "num_envs": 1, **fields}
    stream = rollout(open=ps.RolloutOpen(**message))
    assert stream.ends() == reason
    if reason == "NO_FREE_SLOT":
        assert stream.status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert retry_after_s(stream.status) is not None


def test_opened(rollout: RolloutOf) -> None:
    opened = rollout("memory", seed=5).opened
    assert opened.session_id
    assert opened.policy.version
    assert opened.seed == 5
    assert opened.max_message_bytes > 0
    assert opened.max_steps_in_flight > 0
    assert opened.idle_timeout_us > 0
    assert pb.CODEC_RAW in opened.codecs


def _columns(**fields: Any) -> Callable[[pb.PolicySpec], ps.RolloutStep]:
    def make(spec: pb.PolicySpec) -> ps.RolloutStep:
        rows = len(fields.get("env_ids", [0, 1]))
        inputs = observation(spec, 1, rows=max(rows, 1))
        return ps.RolloutStep(**{"env_ids": [0, 1], "episode_ids": [1] * rows, "inputs": inputs, **fields})

    return make


def _stacked(**fields: Any) -> Callable[[pb.PolicySpec], ps.RolloutStep]:
    def make(spec: pb.PolicySpec) -> ps.RolloutStep:
        inputs = observation(spec, 1, rows=2)
        if "shape" in fields:
            shape = fields["shape"]
            del inputs[0].shape[:]
            inputs[0].shape.extend(shape(list(spec.inputs[0].shape)))
        for name in fields.keys() - {"shape"}:
            setattr(inputs[0], name, fields[name])
        return ps.RolloutStep(env_ids=[0, 1], episode_ids=[1, 1], inputs=inputs)

    return make


BAD_MESSAGES: dict[str, tuple[Callable[[pb.PolicySpec], ps.RolloutStep], str]] = {
    "no rows": (lambda spec: ps.RolloutStep(), "BAD_ROW"),
    "an environment that is not there": (_columns(env_ids=[0, 4]), "BAD_ROW"),
    "an environment far away": (_columns(env_ids=[0, 2**32 - 1]), "BAD_ROW"),
    "an environment twice": (_columns(env_ids=[1, 1]), "BAD_ROW"),
    "too few episodes": (_columns(episode_ids=[1]), "BAD_ROW"),
    "too many episodes": (_columns(episode_ids=[1, 1, 1]), "BAD_ROW"),
    "too few seeds": (_columns(episode_seeds=[1]), "BAD_ROW"),
    "executed of an environment that is not there": (
        _columns(executed=[ps.RowExecuted(env_id=9, source=pb.ACTION_SOURCE_NONE)]),
        "BAD_ROW",
    ),
    "no inputs": (_columns(inputs=[]), "INPUT_MISSING"),
    "unknown input": (_stacked(name="nobody"), "INPUT_UNKNOWN"),
    "wrong dtype": (_stacked(dtype=pb.DTYPE_FLOAT32), "DTYPE_MISMATCH"),
    "one row too few": (_stacked(shape=lambda s: [1, *s]), "SHAPE_MISMATCH"),
    "one row too many": (_stacked(shape=lambda s: [3, *s]), "SHAPE_MISMATCH"),
    "no rows dimension": (_stacked(shape=lambda s: s), "SHAPE_MISMATCH"),
    "a claim of 2 GB": (_stacked(shape=lambda s: [2**25, *s]), "SHAPE_MISMATCH"),
    "too few bytes": (_stacked(data=b"tiny"), "SIZE_MISMATCH"),
    "noise in LZ4": (_stacked(codec=pb.CODEC_LZ4, data=b"\xf0" * 50), "DECODE_FAILED"),
    "JPEG": (_stacked(codec=pb.CODEC_JPEG), "CODEC_NOT_NEGOTIATED"),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_a_bad_message_is_refused_whole_and_changes_nothing(rollout: RolloutOf, case: str) -> None:
    make, reason = BAD_MESSAGES[case]
    stream, twin = rollout("memory"), rollout("memory")
    assert stream.rows([0, 1], 1).actions(2) == twin.rows([0, 1], 1).actions(2)
    stream.send(step=make(stream.opened.policy))
    error = stream.error()
    assert reason_of(error.status) == reason
    assert not error.HasField("env_id")
    for index in range(2, 6):
        assert stream.rows([0, 1], index).actions(2) == twin.rows([0, 1], index).actions(2)


def test_messages_that_make_no_sense(rollout: RolloutOf) -> None:
    stream = rollout("memory")
    stream.send(open=ps.RolloutOpen(policy="memory", num_envs=1))
    assert stream.refuses() == "ALREADY_OPEN"
    stream.send()
    assert stream.refuses() == "MALFORMED_MESSAGE"
    stream.ping(2**64 - 1)
    stream.rows([2], 1).actions(1)


def test_a_bad_row_leaves_its_neighbours_alone(rollout: RolloutOf) -> None:
    stream = rollout("memory")
    stream.rows([0, 1, 2], 1, episode=5).actions(3)
    stream.rows([0, 1, 2], 2, episode=[5, 4, 6])
    answers, errors = {}, {}
    while len(answers) + len(errors) < 3:
        answer = stream.recv()
        if answer.HasField("error"):
            errors[answer.error.env_id] = reason_of(answer.error.status)
        else:
            answers.update(zip(answer.result.env_ids, answer.result.episode_ids, strict=True))
    assert errors == {1: "EPISODE_REUSED"}
    assert answers == {0: 5, 2: 6}
    assert set(stream.rows([1], 3, episode=5).actions(1)) == {1}


def test_a_bad_executed_action(rollout: RolloutOf) -> None:
    stream = rollout("memory")
    stream.rows([0, 1], 1).actions(2)
    bad = ps.RowExecuted(env_id=1, action=pb.Action(index=99), source=pb.ACTION_SOURCE_HUMAN)
    stream.rows([1], 2, executed=[bad])
    assert stream.refuses() == "BAD_ACTION"
    stream.rows([0], 2).actions(1)


def test_an_executed_action_without_a_row(rollout: RolloutOf) -> None:
    stream = rollout("memory")
    stream.rows([0, 1], 1).actions(2)
    none = ps.RowExecuted(env_id=3, source=pb.ACTION_SOURCE_NONE)
    stream.rows([0], 3, executed=[none])  # environment 3 has done nothing yet
    refused = False
    for _ in range(2):
        answer = stream.recv()
        if answer.HasField("error"):
            refused = True
            assert answer.error.env_id == 3
            assert reason_of(answer.error.status) == "EXECUTED_UNKNOWN"
    assert refused


@pytest.mark.parametrize("reason", ["BAD_ACTION", "EXECUTED_UNKNOWN"])
def test_a_refused_executed_action_costs_its_row_and_no_other(target: Any, rollout: RolloutOf, reason: str) -> None:
    stream, twin = rollout("memory"), rollout("memory")
    first = [0, 1] if reason == "EXECUTED_UNKNOWN" else [0, 1, 2]
    assert stream.rows(first, 1).actions(len(first)) == twin.rows(first, 1).actions(len(first))
    index = 99 if reason == "BAD_ACTION" else 0
    bad = ps.RowExecuted(env_id=2, action=pb.Action(index=index), source=pb.ACTION_SOURCE_HUMAN)
    good = ps.RowExecuted(env_id=1, action=pb.Action(index=1), source=pb.ACTION_SOURCE_HUMAN)
    stream.rows([2, 0, 1], 2, executed=[bad, good])
    answers, errors = {}, []
    while len(answers) + len(errors) < 3:
        answer = stream.recv()
        if answer.HasField("error"):
            errors.append((answer.error.env_id, reason_of(answer.error.status)))
        else:
            answers.update(zip(answer.result.env_ids, answer.result.action_indices, strict=True))
    assert errors == [(2, reason)]
    assert answers == twin.rows([0, 1], 2, executed=[good]).actions(2)
    # The row has not happened: its memory is as it was, and it is answered once.
    assert stream.rows([2], 3).actions(1) == twin.rows([2], 3).actions(1)
    stream.ping()


def test_a_row_plays_the_game_that_a_session_plays(rollout: RolloutOf, play: Callable[..., Play]) -> None:
    """Same policy, same episode seed, same observations: the same actions, however the rows are mixed."""
    seeds = {0: 101, 1: 102, 2: 103}
    sessions = {}
    for env, seed in seeds.items():
        session = play("memory", seed=seed)
        sessions[env] = [session.step(seq).actions[0].index for seq in range(1, 9)]
    stream = rollout("memory", num_envs=3)
    got: dict[int, list[int]] = {env: [] for env in seeds}
    for subset in ([0, 1, 2], [2], [0, 1], [1, 0, 2], [1]) * 4:
        todo = [env for env in subset if len(got[env]) < 8]
        for env in todo:  # rows of one message share an observation here, so each goes alone
            stream.rows([env], len(got[env]) + 1, episode_seeds=[seeds[env]])
            got[env].append(stream.actions(1)[env])
    assert {env: actions for env, actions in got.items() if len(actions) == 8} == {
        env: sessions[env] for env in got if len(got[env]) == 8
    }
    assert sum(map(len, got.values())) >= 20


def test_rows_in_flight_are_answered_in_their_order(rollout: RolloutOf) -> None:
    stream = rollout("memory", num_envs=3)
    depth = min(4, stream.opened.max_steps_in_flight)
    for index in range(1, depth + 1):
        stream.rows([0, 1, 2], index, episode=index)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    while sum(map(len, seen.values())) < 3 * depth:
        result = stream.recv().result
        assert len(result.env_ids) == len(result.episode_ids) == len(result.action_indices) > 0
        for env, episode in zip(result.env_ids, result.episode_ids, strict=True):
            seen[env].append(episode)
    assert seen == {env: list(range(1, depth + 1)) for env in range(3)}


def test_too_many_rows_in_flight(rollout: RolloutOf) -> None:
    stream = rollout("live", num_envs=2)  # the slow one
    limit = stream.opened.max_steps_in_flight
    for index in range(1, 3 * limit + 1):
        stream.rows([0], index)
    stream.rows([1], 1)  # the neighbour is not held up
    answered, refused, neighbour = 0, 0, False
    while answered + refused < 3 * limit or not neighbour:
        answer = stream.recv()
        if answer.HasField("error"):
            assert (answer.error.env_id, reason_of(answer.error.status)) == (0, "QUEUE_FULL")
            refused += 1
        else:
            answered += list(answer.result.env_ids).count(0)
            neighbour |= 1 in answer.result.env_ids
    assert answered >= limit
    stream.rows([0], 99).actions(1)


def test_extras(rollout: RolloutOf) -> None:
    stream = rollout("memory", extras=pb.Extras(log_prob=True, value=True))
    result = stream.rows([0, 3], 1).recv().result
    assert len(result.log_probs) == len(result.values) == len(result.env_ids)
    plain = rollout("memory").rows([0, 3], 1).recv().result
    assert not plain.log_probs
    assert not plain.values


def test_lz4_rows(rollout: RolloutOf) -> None:
    raw, packed = rollout("memory"), rollout("memory")
    assert pb.CODEC_LZ4 in packed.opened.codecs
    assert pb.CODEC_JPEG not in packed.opened.codecs
    for index in range(1, 5):
        inputs = observation(packed.opened.policy, index, rows=3, codec=pb.CODEC_LZ4)
        assert raw.rows([0, 1, 2], index).actions(3) == packed.rows([0, 1, 2], index, inputs=inputs).actions(3)


@pytest.mark.parametrize("how", ["close", "half-close"])
def test_close_answers_what_is_outstanding(rollout: RolloutOf, how: str) -> None:
    stream = rollout("live", num_envs=2)  # the slow one
    for index in range(1, 4):
        stream.rows([0, 1], index)
    if how == "close":
        stream.send(close=ps.Close())
    stream.half_close()
    answers, reason = stream.rest()
    assert reason == "OK"
    assert sum(len(answer.result.env_ids) for answer in answers) == 6
