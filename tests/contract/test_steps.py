"""Steps that a server must refuse in-band, each with its documented reason, while the session goes on."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import lz4.block
import numpy as np
import pytest
import simplejpeg
from contract_kit.streams import Play, comparable, observation, reason_of, step_message

from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb

Spec = pb.PolicySpec
Inputs = list[pb.Tensor]


def _changed(spec: Spec, **fields: object) -> Inputs:
    """Return valid inputs with some fields of the first one changed."""
    inputs = observation(spec, 1)
    for name, value in fields.items():
        if name == "shape":
            del inputs[0].shape[:]
            inputs[0].shape.extend(value)
        else:
            setattr(inputs[0], name, value)
    return inputs


def _jpeg(spec: Spec, height: int | None = None, width: int | None = None) -> bytes:
    """Return a JPEG of the policy's frame; with a size, one whose header claims that size."""
    h, w, _ = spec.inputs[0].shape
    data = bytearray(simplejpeg.encode_jpeg(np.zeros((h, w, 3), np.uint8), colorspace="RGB", colorsubsampling="444"))
    if height is not None and width is not None:
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _nbytes(spec: Spec) -> int:
    return int(np.prod(spec.inputs[0].shape))


_TWO_GB = [46341, 46341, 1]  # 2.1e9 bytes

BAD_INPUTS: dict[str, tuple[Callable[[Spec], Inputs], str]] = {
    "wrong dtype": (lambda s: _changed(s, dtype=pb.DTYPE_FLOAT32), "DTYPE_MISMATCH"),
    "no dtype": (lambda s: _changed(s, dtype=pb.DTYPE_UNSPECIFIED), "DTYPE_MISMATCH"),
    "unknown dtype": (lambda s: _changed(s, dtype=99), "DTYPE_MISMATCH"),
    "transposed shape": (lambda s: _changed(s, shape=[3, 84, 84]), "SHAPE_MISMATCH"),
    "one dimension too many": (lambda s: _changed(s, shape=[1, *s.inputs[0].shape]), "SHAPE_MISMATCH"),
    "no shape": (lambda s: _changed(s, shape=[]), "SHAPE_MISMATCH"),
    "negative shape": (lambda s: _changed(s, shape=[-84, -84, 3]), "SHAPE_MISMATCH"),
    "a thousand dimensions": (lambda s: _changed(s, shape=[1] * 1000), "SHAPE_MISMATCH"),
    "too few bytes": (lambda s: _changed(s, data=bytes(_nbytes(s) - 1)), "SIZE_MISMATCH"),
    "too many bytes": (lambda s: _changed(s, data=bytes(_nbytes(s) + 1)), "SIZE_MISMATCH"),
    "no bytes": (lambda s: _changed(s, data=b""), "SIZE_MISMATCH"),
    "no inputs": (lambda s: [], "INPUT_MISSING"),
    "unknown input": (lambda s: _changed(s, name="nobody"), "INPUT_UNKNOWN"),
    "input without a name": (lambda s: _changed(s, name=""), "INPUT_UNKNOWN"),
    "one input more": (lambda s: [*observation(s, 1), pb.Tensor(name="more")], "INPUT_UNKNOWN"),
    "the same input twice": (lambda s: observation(s, 1) * 2, "INPUT_UNKNOWN"),
    "no codec": (lambda s: _changed(s, codec=pb.CODEC_UNSPECIFIED), "CODEC_NOT_NEGOTIATED"),
    "unknown codec": (lambda s: _changed(s, codec=77), "CODEC_NOT_NEGOTIATED"),
    "a claim of 2 GB": (lambda s: _changed(s, shape=_TWO_GB, data=b"tiny"), "SHAPE_MISMATCH"),
    "a claim of 2 GB in LZ4": (
        lambda s: _changed(s, shape=_TWO_GB, codec=pb.CODEC_LZ4, data=b"\x1f\x00\x01\x00" + b"\xff" * 64),
        "SHAPE_MISMATCH",
    ),
    "a claim past 64 bits": (lambda s: _changed(s, shape=[2**31 - 1] * 3, data=b"tiny"), "SHAPE_MISMATCH"),
    "an LZ4 bomb of 256 MB": (
        lambda s: _changed(s, codec=pb.CODEC_LZ4, data=lz4.block.compress(bytes(1 << 28), store_size=False)),
        "DECODE_FAILED",
    ),
    "LZ4 of one byte too many": (
        lambda s: _changed(s, codec=pb.CODEC_LZ4, data=lz4.block.compress(bytes(_nbytes(s) + 1), store_size=False)),
        "DECODE_FAILED",
    ),
    "LZ4 of one byte too few": (
        lambda s: _changed(s, codec=pb.CODEC_LZ4, data=lz4.block.compress(bytes(_nbytes(s) - 1), store_size=False)),
        "SIZE_MISMATCH",
    ),
    "LZ4 that is noise": (
        lambda s: _changed(s, codec=pb.CODEC_LZ4, data=np.random.default_rng(0).bytes(5000)),
        "DECODE_FAILED",
    ),
    "LZ4 too short for its claim": (lambda s: _changed(s, codec=pb.CODEC_LZ4, data=b"\x00"), "SIZE_MISMATCH"),
    # 16 bits hold no 100,000: this is the largest size that a JPEG can claim.
    "a JPEG header of 65535 x 65535": (
        lambda s: _changed(s, codec=pb.CODEC_JPEG, data=_jpeg(s, 65535, 65535)),
        "FRAME_TOO_LARGE",
    ),
    "a claim of 100000 x 100000 in JPEG": (
        lambda s: _changed(s, shape=[100_000, 100_000, 3], codec=pb.CODEC_JPEG, data=_jpeg(s, 65535, 65535)),
        "SHAPE_MISMATCH",
    ),
    "a JPEG of another size": (lambda s: _changed(s, codec=pb.CODEC_JPEG, data=_jpeg(s, 85, 84)), "SIZE_MISMATCH"),
    "half a JPEG": (lambda s: _changed(s, codec=pb.CODEC_JPEG, data=_jpeg(s)[: len(_jpeg(s)) // 2]), "DECODE_FAILED"),
    "a JPEG of noise": (
        lambda s: _changed(s, codec=pb.CODEC_JPEG, data=np.random.default_rng(1).bytes(5000)),
        "DECODE_FAILED",
    ),
    "a JPEG without bytes": (lambda s: _changed(s, codec=pb.CODEC_JPEG, data=b""), "DECODE_FAILED"),
    "a PNG": (lambda s: _changed(s, codec=pb.CODEC_JPEG, data=b"\x89PNG\r\n\x1a\n" + bytes(64)), "DECODE_FAILED"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_are_refused_and_the_session_goes_on(
    play: Callable[..., Play], undisturbed: Callable[[str, int], list[Any]], case: str
) -> None:
    make, reason = BAD_INPUTS[case]
    session = play("frames")
    answers = [comparable(session.step(1))]
    session.send(step=ps.Step(seq=2, inputs=make(session.spec)))
    error = session.error()
    assert reason_of(error.status) == reason
    assert error.seq == 2
    assert error.status.message
    # A refused step did not happen: its number is free, and the memory is as it was.
    answers += [comparable(session.step(seq)) for seq in (2, 3)]
    assert answers == undisturbed("frames", 3)


@pytest.mark.parametrize("codec", [pb.CODEC_RAW, pb.CODEC_LZ4, pb.CODEC_JPEG])
def test_a_claim_of_2_gb_where_the_shape_is_open(play: Callable[..., Play], codec: int) -> None:
    session = play("open")
    inputs = _changed(session.spec, shape=[26755, 26755, 3], codec=codec, data=b"\xff\xd8tiny")
    session.send(step=ps.Step(seq=1, inputs=inputs))
    assert session.refuses() == "FRAME_TOO_LARGE"
    session.step(1)


@pytest.mark.parametrize("codec", [pb.CODEC_LZ4, pb.CODEC_JPEG])
def test_a_codec_that_was_not_offered_is_refused(play: Callable[..., Play], codec: int) -> None:
    session = play("frames", codecs=[])
    assert list(session.opened.codecs) == [pb.CODEC_RAW]
    session.send(step=ps.Step(seq=1, inputs=_changed(session.spec, codec=codec, data=_jpeg(session.spec))))
    assert session.refuses() == "CODEC_NOT_NEGOTIATED"
    session.step(1)


def test_lz4_is_lossless_and_jpeg_is_taken(
    play: Callable[..., Play], undisturbed: Callable[[str, int], list[Any]]
) -> None:
    session = play("frames")
    assert set(session.opened.codecs) == {pb.CODEC_RAW, pb.CODEC_LZ4, pb.CODEC_JPEG}
    packed = [session.step(seq, inputs=observation(session.spec, seq, codec=pb.CODEC_LZ4)) for seq in (1, 2, 3)]
    assert [comparable(result) for result in packed] == undisturbed("frames", 3)
    session.step(4, inputs=observation(session.spec, 4, codec=pb.CODEC_JPEG))


def test_numbers_and_episodes(play: Callable[..., Play]) -> None:
    session = play("memory", episode_id=5)
    session.send(step=step_message(session.spec, 0, episode_id=5))
    assert session.refuses() == "SEQ_NOT_INCREASING"
    first = session.step(3, episode_id=5)  # gaps are allowed
    session.send(step=step_message(session.spec, 2, episode_id=5))
    assert session.refuses() == "SEQ_NOT_INCREASING"
    session.send(step=step_message(session.spec, 4, episode_id=4))
    assert session.refuses() == "EPISODE_REUSED"
    session.send(reset=ps.Reset(episode_id=5))
    assert session.refuses() == "EPISODE_REUSED"
    # A new episode begins with an empty memory.
    other = session.step(4, episode_id=9, inputs=observation(session.spec, 3))
    session.send(step=step_message(session.spec, 5, episode_id=8))
    assert session.refuses() == "EPISODE_REUSED"
    assert [round(value, 3) for value in (first.value, other.value)] == [round(first.value, 3)] * 2
    session.step(2**64 - 1, episode_id=2**64 - 1)


def test_a_repeated_step_gets_the_same_answer_and_is_not_taken_twice(
    play: Callable[..., Play], undisturbed: Callable[[str, int], list[Any]]
) -> None:
    session = play("memory")
    answers = []
    for seq in range(1, 7):
        first = comparable(session.step(seq))
        again = comparable(session.step(seq))
        assert first == again
        answers.append(first)
    # Even when its bytes are other ones: the answer is to the number.
    session.send(step=ps.Step(seq=6))
    assert comparable(session.result()) == answers[-1]
    assert answers == undisturbed("memory", 6)


def test_messages_that_make_no_sense_in_an_open_session(play: Callable[..., Play]) -> None:
    session = play("memory")
    session.send(open=ps.Open(policy=session.spec.name))
    assert session.refuses() == "ALREADY_OPEN"
    session.send()
    assert session.refuses() == "MALFORMED_MESSAGE"
    session.step(1)


def test_executed(play: Callable[..., Play]) -> None:
    session = play("memory")
    action, human = pb.Action(index=1), pb.ACTION_SOURCE_HUMAN
    session.send(executed=ps.Executed(seq=0, action=action, source=human))
    assert session.refuses() == "EXECUTED_UNKNOWN"
    session.step(1)
    for seq in (7, 2**64 - 1):
        session.send(executed=ps.Executed(seq=seq, action=action, source=human))
        error = session.error()
        assert (error.seq, reason_of(error.status)) == (seq, "EXECUTED_UNKNOWN")
    for bad in (
        ps.Executed(seq=1, action=action),  # no source
        ps.Executed(seq=1, action=action, source=9),
        ps.Executed(seq=1, source=human),  # no action
        ps.Executed(seq=1, action=pb.Action(index=-1), source=human),
        ps.Executed(seq=1, action=pb.Action(index=session.spec.action.discrete.n), source=human),
        ps.Executed(seq=1, action=pb.Action(desktop=pb.DesktopAction(keys=["KeyW"])), source=human),
    ):
        session.send(executed=bad)
        assert session.refuses() == "BAD_ACTION"
    session.step(2)
    session.send(executed=ps.Executed(seq=1, action=action, source=human))  # step 2 is in the memory
    assert session.refuses() == "EXECUTED_UNKNOWN"


def test_what_was_executed_is_what_the_policy_is_told(play: Callable[..., Play]) -> None:
    """Under LOCKSTEP the answer counts as executed, until an Executed says something else."""

    def run(*executed: ps.Executed) -> list[Any]:
        session = play("memory")
        session.step(1)
        for message in executed:
            session.send(executed=message)
        return [comparable(session.step(seq)) for seq in range(2, 8)]

    session = play("memory")
    own = session.step(1).actions[0]
    other = pb.Action(index=(own.index + 1) % session.spec.action.discrete.n)
    plain = run()
    assert run(ps.Executed(seq=1, action=own, source=pb.ACTION_SOURCE_POLICY)) == plain
    by_hand = run(ps.Executed(seq=1, action=other, source=pb.ACTION_SOURCE_HUMAN))
    nothing = run(ps.Executed(seq=1, source=pb.ACTION_SOURCE_NONE))
    assert by_hand != plain
    assert nothing not in (plain, by_hand)
    assert run(ps.Executed(seq=1, action=other, source=pb.ACTION_SOURCE_UNKNOWN)) == nothing
    # The last word stands.
    twice = (ps.Executed(seq=1, source=pb.ACTION_SOURCE_NONE),
             ps.Executed(seq=1, action=other, source=pb.ACTION_SOURCE_HUMAN))  # fmt: skip
    assert run(*twice) == by_hand


def test_an_observed_step_enters_the_memory_and_is_not_answered(play: Callable[..., Play]) -> None:
    watched = play("memory")
    watched.step(1)
    watched.send(step=step_message(watched.spec, 2, observe_only=True))
    got = [comparable(watched.step(seq)) for seq in (3, 4, 5)]
    played = play("memory")
    played.step(1)
    played.step(2)
    # Somebody else was in control: nobody knows what was done after step 2.
    played.send(executed=ps.Executed(seq=2, source=pb.ACTION_SOURCE_UNKNOWN))
    assert got == [comparable(played.step(seq)) for seq in (3, 4, 5)]


def test_reset_empties_the_memory_and_sets_the_seed(play: Callable[..., Play]) -> None:
    session = play("memory", episode_id=1, seed=5)
    first = [session.step(seq, episode_id=1) for seq in (1, 2, 3)]
    session.send(reset=ps.Reset(episode_id=2, seed=5))
    assert session.recv().reset_done.episode_id == 2
    again = [session.step(seq + 3, episode_id=2, inputs=observation(session.spec, seq)) for seq in (1, 2, 3)]
    assert [a.actions[0].index for a in first] == [a.actions[0].index for a in again]
    assert [comparable(a)[2:4] for a in first] == [comparable(a)[2:4] for a in again]


@pytest.mark.parametrize(
    "change",
    [
        ps.Configure(sampling=pb.Sampling(temperature=-1.0)),
        ps.Configure(sampling=pb.Sampling(temperature=100.5)),
        ps.Configure(sampling=pb.Sampling(temperature=float("nan"))),
        ps.Configure(sampling=pb.Sampling(temperature=float("inf"))),
        ps.Configure(sampling=pb.Sampling(mode=7)),
        ps.Configure(instruction="x" * 4097),
    ],
)
def test_bad_settings_change_nothing(play: Callable[..., Play], change: ps.Configure) -> None:
    session = play("memory")
    session.send(configure=change)
    assert session.refuses() == "BAD_SETTING"
    assert session.step(1).config_revision == session.opened.config_revision


def test_settings_have_revisions(play: Callable[..., Play]) -> None:
    session = play("memory")
    before = session.opened.config_revision
    assert session.step(1).config_revision == before
    revisions = []
    for message in (
        ps.Configure(sampling=pb.Sampling(mode=pb.SAMPLING_MODE_ARGMAX)),
        ps.Configure(instruction="go left", consent=ps.Consent(watch=True)),
        ps.Configure(),
    ):
        session.send(configure=message)
        revisions.append(session.recv().configured.revision)
    assert revisions == sorted(set(revisions))
    assert revisions[0] > before
    assert session.step(2).config_revision == revisions[-1]


def test_extras_come_only_when_asked_for(play: Callable[..., Play]) -> None:
    plain = play("memory", extras=pb.Extras()).step(1, capture_time_ns=123)
    assert not plain.log_prob
    assert not plain.HasField("value")
    assert plain.capture_time_ns == 123
    wanted = play("memory").step(1)
    assert len(wanted.log_prob) == 1
    assert wanted.log_prob[0] <= 0
    assert wanted.HasField("value")
    assert plain.actions == wanted.actions
    assert plain.version == wanted.version != ""


def test_too_many_steps_in_flight_are_refused_one_by_one(play: Callable[..., Play]) -> None:
    session = play("live", pace=ps.PACE_LOCKSTEP)  # the slow one
    limit = session.opened.max_steps_in_flight
    assert limit >= 1
    sent = 3 * limit
    for seq in range(1, sent + 1):
        session.send(step=step_message(session.spec, seq))
    session.send(ping=ps.Ping(nonce=1))
    answered, refused = [], []
    while len(answered) + len(refused) < sent:
        answer = session.recv()
        kind = answer.WhichOneof("message")
        if kind == "result":
            answered.append(answer.result.seq)
        elif kind == "error":
            assert reason_of(answer.error.status) == "QUEUE_FULL"
            refused.append(answer.error.seq)
        else:
            assert kind == "pong"
    assert answered == sorted(answered)
    assert sorted(answered + refused) == list(range(1, sent + 1))
    assert answered[:limit] == list(range(1, limit + 1))
    if refused:
        # Nothing of a refused step stays: the next one finds the memory of the answered ones.
        session.send(step=step_message(session.spec, sent + 1))
        while not (answer := session.recv()).HasField("result"):
            assert answer.HasField("pong")
        assert answer.result.seq == sent + 1


def test_ping(play: Callable[..., Play]) -> None:
    session = play("memory")
    for nonce in (0, 7, 2**64 - 1):
        session.ping(nonce)
