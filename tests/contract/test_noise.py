"""Byte strings that nobody meant, sent as messages: each gets a documented answer, nobody else notices."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from contract_kit.streams import observation, reason_of, status_of, step_message
from google.protobuf.message import DecodeError, Message

from playserve.errors import REASONS
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb

_LANES = 4
_CHUNK = 40  # strings of one stream


def _valid(spec: pb.PolicySpec, rng: random.Random) -> Message:
    """Return a message that makes sense in an open Play session."""
    seq = rng.randrange(1, 1 << rng.choice([3, 10, 40]))
    return rng.choice(
        [
            ps.PlayRequest(step=step_message(spec, seq % 64 + 1, episode_id=rng.randrange(3))),
            ps.PlayRequest(step=step_message(spec, seq, ticks=3)),
            ps.PlayRequest(step=ps.Step(seq=seq, inputs=observation(spec, 1, codec=pb.CODEC_LZ4), observe_only=True)),
            ps.PlayRequest(executed=ps.Executed(seq=seq, action=pb.Action(index=1), source=pb.ACTION_SOURCE_HUMAN)),
            ps.PlayRequest(configure=ps.Configure(instruction="left", sampling=pb.Sampling(temperature=2))),
            ps.PlayRequest(reset=ps.Reset(episode_id=seq, seed=seq)),
            ps.PlayRequest(ping=ps.Ping(nonce=seq)),
            ps.PlayRequest(open=ps.Open(policy=spec.name, seed=seq, resume_token=b"x" * 24)),
        ]
    )


def _valid_rows(spec: pb.PolicySpec, rng: random.Random) -> Message:
    step = ps.RolloutStep(
        env_ids=[0, 1], episode_ids=[rng.randrange(4), rng.randrange(4)], episode_seeds=[1, 2],
        inputs=observation(spec, 1, rows=2),
        executed=[ps.RowExecuted(env_id=0, action=pb.Action(index=1), source=pb.ACTION_SOURCE_HUMAN)],
    )  # fmt: skip
    return rng.choice([ps.RolloutRequest(step=step), ps.RolloutRequest(ping=ps.Ping(nonce=1))])


def _mutated(data: bytes, rng: random.Random) -> bytes:
    """Flip one byte or bit, which mostly leaves a message; now and then do worse, which mostly does not."""
    changed = bytearray(data)
    worse = rng.random() < 0.1
    for _ in range(rng.randint(1, 4) if worse else 1):
        at = rng.randrange(len(changed) + 1)
        what = rng.randrange(4 if worse else 2)
        if what == 0 and changed:
            changed[at % len(changed)] = rng.randrange(256)
        elif what == 1 and changed:
            changed[at % len(changed)] ^= 1 << rng.randrange(8)
        elif what == 2:
            changed[at:at] = rng.randbytes(rng.randint(1, 5))
        else:
            del changed[at : at + rng.randint(1, 5)]
    return bytes(changed)


def _noise(spec: pb.PolicySpec, rng: random.Random, rows: bool) -> bytes:
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(200))
    return _mutated((_valid_rows if rows else _valid)(spec, rng).SerializeToString(), rng)


def _chunks(strings: list[bytes], message: type[Message]) -> Iterator[tuple[list[bytes], bool]]:
    """Yield what goes on one stream: up to the first string that must end it, and whether there is one."""
    chunk: list[bytes] = []
    for data in strings:
        chunk.append(data)
        try:
            broken = False
            closes = message.FromString(data).WhichOneof("message") == "close"  # type: ignore[attr-defined]
        except DecodeError:
            broken, closes = True, False
        if broken or closes or len(chunk) == _CHUNK:
            yield chunk, broken
            chunk = []
    if chunk:
        yield chunk, False


async def _stream(call: Any, first: bytes, strings: list[bytes], message: Any) -> tuple[str, list[Any], bytes]:
    """Send everything, half-close; return the reason of the end, the in-band errors and the session's token."""
    errors, token = [], b""

    async def write() -> None:
        try:
            for data in ([first] if first else []) + strings:
                await call.write(data)
            await call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # it ended already; the reader knows how

    writer = asyncio.ensure_future(write())
    try:
        async for data in call:
            answer = message.FromString(data)
            if answer.HasField("error"):
                errors.append(answer.error)
            elif answer.HasField("opened") and message is ps.PlayResponse:
                token = answer.opened.resume_token
        reason = "OK"
    except grpc.RpcError as error:
        reason = reason_of(status_of(error))
    await writer
    return reason, errors, token


async def _send(target: Any, spec: pb.PolicySpec, address: str, count: int) -> tuple[Counter[str], Counter[str], int]:
    ends: Counter[str] = Counter()
    in_band: Counter[str] = Counter()
    sent = 0
    # (method, request, response, first message or nothing: then the noise itself comes first, share of all strings)
    opens = ps.PlayRequest(open=ps.Open(policy=spec.name, codecs=[pb.CODEC_LZ4], seed=1)).SerializeToString()
    rows = ps.RolloutRequest(open=ps.RolloutOpen(policy=spec.name, num_envs=2, seed=1)).SerializeToString()
    plans: list[tuple[str, Any, Any, bytes, float]] = [
        ("Play", ps.PlayRequest, ps.PlayResponse, opens, 0.75),
        ("Rollout", ps.RolloutRequest, ps.RolloutResponse, rows, 0.2),
        ("Play", ps.PlayRequest, ps.PlayResponse, b"", 0.04),
        ("Rollout", ps.RolloutRequest, ps.RolloutResponse, b"", 0.01),
    ]
    rng = random.Random(20240501)
    async with grpc.aio.insecure_channel(address) as channel:
        for method, request, response, first, share in plans:
            stub = channel.stream_stream(f"/playserve.v1.PolicyService/{method}")
            strings = [_noise(spec, rng, method == "Rollout") for _ in range(int(count * share))]
            sent += len(strings)
            # Noise before Open ends its stream at once, so each goes alone.
            chunks = list(_chunks(strings, request)) if first else [([data], False) for data in strings]
            todo = iter(chunks)

            async def lane(stub: Any = stub, first: bytes = first, todo: Any = todo, response: Any = response) -> None:
                token = b""
                for chunk, broken in todo:
                    # Bytes that are no message end the stream; the session goes on, on the next one.
                    begin = ps.PlayRequest(open=ps.Open(resume_token=token)).SerializeToString() if token else first
                    reason, errors, token = await _stream(stub(timeout=60), begin, chunk, response)
                    ends[reason] += 1
                    in_band.update(reason_of(error.status) for error in errors)
                    if broken:
                        assert reason == "MALFORMED_MESSAGE", (reason, chunk[-1])
                    else:
                        token = b""
                        assert reason == "OK" or not first, (reason, chunk)
                if token:
                    last = ps.PlayRequest(open=ps.Open(resume_token=token)).SerializeToString()
                    assert (await _stream(stub(timeout=60), last, [], response))[0] == "OK"

            await asyncio.gather(*(lane() for _ in range(_LANES)))
    return ends, in_band, sent


@pytest.mark.timeout(300)  # a few seconds of a quiet machine
@pytest.mark.parametrize("count", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_byte_strings_that_nobody_meant(target: Any, record_property: Any, count: int) -> None:
    spec = target.policy("memory")
    ends, in_band, sent = asyncio.run(_send(target, spec, target.address, count))
    record_property("ends", dict(ends))
    record_property("in_band", dict(in_band))
    assert sent == count
    server_faults = {"STEP_FAILED", "ENGINE_FAILED", "DATA_LOSS"}
    assert set(ends) - {"OK"} <= set(REASONS) - server_faults, ends
    assert set(in_band) <= set(REASONS) - server_faults, in_band
    assert len(in_band) >= 5, in_band
