"""Random conversations that keep the client's rules, to hold any server's answers against the judge."""

from __future__ import annotations

import random
from collections.abc import Sequence

from contract_kit.streams import step_message

from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from wire_traces.parse import Event

__all__ = ["as_events", "random_requests"]

_METHOD = "playserve.v1.PolicyService/Play"
_BUDGET_US = 60_000_000  # a busy machine must not make a step stale


def random_requests(
    spec: pb.PolicySpec, pace: ps.Pace.ValueType, rng: random.Random, n: int = 40
) -> list[ps.PlayRequest]:
    """Return the messages of one session from Open to Close; its last step wants an answer."""
    requests = [ps.PlayRequest(open=ps.Open(policy=spec.name, pace=pace))]
    seq = episode = 0
    for _ in range(n):
        kind = rng.choices(["step", "executed", "configure", "reset", "episode", "ping"], [55, 15, 8, 7, 7, 8])[0]
        if kind == "step":
            seq += rng.choice([1, 1, 2])
            requests.append(_step(spec, seq, episode, rng))
        elif kind == "executed" and seq:
            done = ps.Executed(seq=seq, source=pb.ACTION_SOURCE_HUMAN)
            if spec.action.WhichOneof("kind") == "discrete":
                done.action.index = 1
            else:
                done.action.desktop.mouse_dx_px = 1.0
            requests.append(ps.PlayRequest(executed=done))
        elif kind == "configure":
            requests.append(ps.PlayRequest(configure=ps.Configure(sampling=pb.Sampling(temperature=0.5))))
        elif kind == "ping":
            requests.append(ps.PlayRequest(ping=ps.Ping(nonce=seq)))
        elif kind in ("reset", "episode"):
            episode += 1
            if kind == "reset":
                requests.append(ps.PlayRequest(reset=ps.Reset(episode_id=episode, seed=3)))
    last = step_message(spec, seq + 1, episode_id=episode, budget_us=_BUDGET_US)
    return [*requests, ps.PlayRequest(step=last), ps.PlayRequest(close=ps.Close())]


def _step(spec: pb.PolicySpec, seq: int, episode: int, rng: random.Random) -> ps.PlayRequest:
    return ps.PlayRequest(
        step=step_message(
            spec,
            seq,
            episode_id=episode,
            ticks=rng.choice([0, 1, 3]),
            observe_only=rng.random() < 0.2,
            capture_time_ns=seq,
            budget_us=_BUDGET_US,
        )
    )


def as_events(requests: Sequence[ps.PlayRequest], answers: Sequence[ps.PlayResponse]) -> list[Event]:
    """Return a finished call as a trace. Nobody knows how the two directions met: whatever was sent comes first."""
    up = [Event(i, "play", "up", _METHOD, request) for i, request in enumerate(requests)]
    down = [Event(i, "play", "down", _METHOD, answer) for i, answer in enumerate(answers)]
    begin, end = Event(0, "play", "start", _METHOD), Event(len(down), "play", "end", _METHOD, code="OK")
    return [begin, up[0], down[0], *up[1:], *down[1:], end]
