"""Whole conversations, judged by the rules of docs/protocol.md: random ones, and those of its paper test.

The games of the paper test are told to the server with the policies and observations that it has: who speaks, numbers,
episodes, settings, budgets and observe-only are the trace's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from contract_kit.streams import observation, world_action

pytest.importorskip("tritonclient.grpc")
from wire_traces.others import JUDGES
from wire_traces.parse import read
from wire_traces.rules import check
from wire_traces.talk import as_events, random_requests

from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb

PLAY = "playserve.v1.PolicyService/Play"
TRACES = Path(__file__).resolve().parents[1] / "proto" / "traces"
_BUDGET_US = 60_000_000  # a busy machine must not make a step stale


def hold(target: Any, requests: Sequence[ps.PlayRequest]) -> list[ps.PlayResponse]:
    """Hold one conversation, and judge it."""
    answers = list(target.stub.Play(iter(requests), timeout=60))
    check(as_events(requests, answers), JUDGES)
    return answers


@pytest.mark.parametrize(
    ("role", "pace"),
    [
        ("memory", ps.PACE_LOCKSTEP),
        ("live", ps.PACE_LOCKSTEP),
        ("live", ps.PACE_LIVE),
        ("catch_up", ps.PACE_LIVE),
        ("world_desktop", ps.PACE_LOCKSTEP),
    ],
)
def test_random_conversations(target: Any, role: str, pace: ps.Pace.ValueType) -> None:
    spec = target.policy(role)
    for seed in range(4):
        hold(target, random_requests(spec, pace, random.Random(seed)))


def conversations(trace: str) -> dict[str, list[ps.PlayRequest]]:
    """Return what the players of a trace send, by stream, but for streams that resume another."""
    sent: dict[str, list[ps.PlayRequest]] = {}
    for event in read(TRACES / f"{trace}.textproto"):
        if event.kind == "up" and isinstance(event.message, ps.PlayRequest):
            sent.setdefault(event.stream, []).append(event.message)
    return {name: requests for name, requests in sent.items() if not requests[0].open.resume_token}


def retold(requests: Sequence[ps.PlayRequest], spec: pb.PolicySpec) -> list[ps.PlayRequest]:
    """Return a conversation in the words of another policy, with a Close at its end."""
    told = []
    for request in requests:
        copy = ps.PlayRequest()
        copy.CopyFrom(request)
        kind = copy.WhichOneof("message")
        if kind == "open":
            copy.open.policy, copy.open.version = spec.name, ""
            copy.open.rate_hz = spec.rate_hz if copy.open.rate_hz else 0.0
            copy.open.ClearField("codecs")
        elif kind == "step":
            del copy.step.inputs[:]
            copy.step.inputs.extend(observation(spec, copy.step.seq))
            copy.step.ClearField("action")
            if spec.kind == pb.POLICY_KIND_WORLD:
                copy.step.action.CopyFrom(world_action(spec, copy.step.seq))
            copy.step.budget_us = _BUDGET_US
        elif kind == "executed" and copy.executed.HasField("action"):
            copy.executed.action.index = copy.executed.seq % spec.action.discrete.n
        told.append(copy)
    if told[-1].WhichOneof("message") != "close":
        told.append(ps.PlayRequest(close=ps.Close()))
    return told


@pytest.mark.parametrize(
    ("trace", "stream", "role"),
    [
        ("minimal", "play", "memory"),
        ("live", "play", "catch_up"),
        ("live", "play", "live"),
        ("world", "dream", "world"),
        ("world", "dream", "memory"),  # its player's part fits any policy
        ("handoff", "play", "memory"),
        ("handoff", "lost", "memory"),
    ],
)
def test_the_games_of_the_paper_test(target: Any, trace: str, stream: str, role: str) -> None:
    requests = retold(conversations(trace)[stream], target.policy(role))
    answers = hold(target, requests)
    steps = [r.step.seq for r in requests if r.WhichOneof("message") == "step" and not r.step.observe_only]
    answered = [a.result.seq for a in answers if a.WhichOneof("message") == "result"]
    dropped = [d.seq for a in answers for d in a.result.dropped]
    assert sorted(answered + [seq for seq in dropped if seq in steps]) == steps, "a step is answered, or reported"


def test_every_game_of_the_paper_test_is_told() -> None:
    told = {(trace, stream) for trace, stream, _ in test_the_games_of_the_paper_test.pytestmark[0].args[1]}
    there = {(path.stem, stream) for path in TRACES.glob("*.textproto") for stream in conversations(path.stem)}
    assert told == there
