"""Where fuzzing begins: one message of each kind, every codec, and games that make sense."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from google.rpc import status_pb2
from targets import SPECS

from playserve.codec import encode
from playserve.errors import NoFreeSlotError, to_status
from playserve.p2p import inference_pb2 as theirs
from playserve.specs import Codec, DesktopActionSpec, DiscreteActionSpec, PolicySpec
from playserve.tracing import SessionTrace
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve_client.recap.framing import pack

__all__ = ["seeds"]

_FRAME = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
_SMALL = np.arange(64, dtype=np.uint8).reshape(8, 8)


def _steps() -> Iterator[ps.Step]:
    for codec in Codec:
        yield ps.Step(seq=1, episode_id=1, ticks=2, inputs=[encode(_FRAME, "frame", codec)], budget_us=9)
    every = [
        encode(np.zeros((2, 3, 3), np.uint8), "open", Codec.JPEG),
        encode(np.zeros(4, np.float32), "bounded", Codec.LZ4),
        encode(np.ones(3, bool), "flags"),
        encode(np.array(5), "count"),
    ]
    yield ps.Step(seq=2, inputs=[encode(_FRAME, "frame"), *every], observe_only=True)


def _requests() -> Iterator[ps.PlayRequest]:
    yield from (ps.PlayRequest(step=step) for step in _steps())
    held = pb.DesktopAction(keys=["KeyW"], buttons=[0], mouse_dx_px=3)
    yield ps.PlayRequest(
        open=ps.Open(policy="p", seed=1, pace=ps.PACE_LIVE, rate_hz=20, codecs=[1, 2, 3], instruction="go",
                     sampling=pb.Sampling(temperature=0.5), extras=pb.Extras(value=True),
                     consent=ps.Consent(watch=True))
    )  # fmt: skip
    yield ps.PlayRequest(open=ps.Open(resume_token=b"t" * 24))
    yield ps.PlayRequest(executed=ps.Executed(seq=1, action=pb.Action(index=1), source=pb.ACTION_SOURCE_HUMAN))
    yield ps.PlayRequest(executed=ps.Executed(seq=1, action=pb.Action(desktop=held), source=pb.ACTION_SOURCE_POLICY))
    yield ps.PlayRequest(configure=ps.Configure(instruction="left", sampling=pb.Sampling(temperature=2)))
    yield ps.PlayRequest(reset=ps.Reset(episode_id=3, seed=4))
    yield ps.PlayRequest(ping=ps.Ping(nonce=5))
    yield ps.PlayRequest(close=ps.Close(reason="over"))


def _game(*between: ps.PlayRequest, live: bool = True) -> bytes:
    pace = ps.PACE_LIVE if live else ps.PACE_LOCKSTEP
    messages = [ps.PlayRequest(open=ps.Open(policy="p", seed=1, pace=pace))]
    for seq in range(1, 5):
        messages.append(ps.PlayRequest(step=ps.Step(seq=seq, inputs=[encode(_SMALL, "observation")])))
        messages += between
    parts = (message.SerializeToString() for message in [*messages, ps.PlayRequest(close=ps.Close())])
    return b"".join(struct.pack("<H", len(part)) + part for part in parts)


def _responses() -> Iterator[ps.PlayResponse]:
    for action in (DiscreteActionSpec(n=4), DesktopActionSpec(keys=("KeyW",), buttons=(0,))):
        spec = PolicySpec(name="p", family="f", inputs=SPECS, action=action)
        yield ps.PlayResponse(opened=ps.Opened(session_id="s", policy=spec.to_proto(), codecs=[1]))
    desktop = pb.Action(desktop=pb.DesktopAction(keys=["KeyW"], mouse_dx_px=1))
    for played in (pb.Action(index=2), desktop):
        yield ps.PlayResponse(
            result=ps.StepResult(seq=3, actions=[played], version="1", log_prob=[-1.0], value=0.5,
                                 outputs=[encode(_FRAME, "frame")], dropped=[ps.Dropped(seq=2)])
        )  # fmt: skip
    yield ps.PlayResponse(error=ps.StepError(seq=1, status=to_status(NoFreeSlotError("full", retry_after_s=2))))


def seeds() -> dict[str, list[bytes]]:
    """Return the seeds of each target."""
    rows = ps.RolloutStep(
        env_ids=[0, 1], episode_ids=[1, 1], inputs=[encode(np.stack([_FRAME] * 2), "frame", Codec.LZ4)],
        executed=[ps.RowExecuted(env_id=0, action=pb.Action(index=1))],
    )  # fmt: skip
    picture = theirs.Frame(width=8, height=8, id=1, data=_FRAME.tobytes())
    larger = theirs.Frame(width=16, height=4, id=2, data=bytes(192))
    trace = SessionTrace(1 << 100, 7, 5 << 40).to_metadata()
    return {
        "play_request": [message.SerializeToString() for message in _requests()],
        "rollout_request": [ps.RolloutRequest(step=rows).SerializeToString()],
        "play_response": [message.SerializeToString() for message in _responses()],
        "status": [
            to_status(NoFreeSlotError("full", retry_after_s=2)).SerializeToString(),
            status_pb2.Status(code=3, message="x").SerializeToString(),
        ],
        "recap": [pack(picture.SerializeToString()) + pack(larger.SerializeToString()), pack(b"")],
        "traceparent": ["\n".join(value for _, value in trace).encode()],
        "session": [_game(), _game(live=False), *(_game(message) for message in _requests())],
    }
