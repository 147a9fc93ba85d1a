"""The targets of the contract suite, and the bystander that every case must leave in peace.

The suite runs against the fake server, against `playserve serve` in a process of its own, and, where
PLAYSERVE_CONTRACT_ADDRESS names one, against any server. It finds the policies that it needs by their specs, and a
case whose policy a server does not have is skipped by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from contract_kit.servers import fake_server, serving
from contract_kit.streams import Play, Rollout, comparable

from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve.v1.policy_service_pb2_grpc import PolicyServiceStub

_ADDRESS = os.environ.get("PLAYSERVE_CONTRACT_ADDRESS", "")
_BYSTANDER_STEPS = 5  # before, and as many after


def _closed_rgb(spec: pb.PolicySpec) -> bool:
    return any(len(t.shape) == 3 and t.shape[2] == 3 and -1 not in t.shape and pb.CODEC_JPEG in t.codecs
               for t in spec.inputs)  # fmt: skip


#: What the suite needs of a policy, by the name that it has here.
ROLES: dict[str, Callable[[pb.PolicySpec], bool]] = {
    "desktop": lambda s: _is_desktop(s) and s.rate_hz == 0,
    "desktop_live": lambda s: _is_desktop(s) and s.rate_hz > 0 and s.gap_rule.mode != pb.GAP_MODE_CATCH_UP,
    "desktop_catch_up": lambda s: _is_desktop(s) and s.rate_hz > 0 and s.gap_rule.mode == pb.GAP_MODE_CATCH_UP,
    "memory": lambda s: s.rate_hz == 0 and s.context_frames == 0 and not _closed_rgb(s) and not _is_open(s),
    "frames": _closed_rgb,
    "open": lambda s: _is_open(s),
    "live": lambda s: s.rate_hz > 0 and s.gap_rule.mode != pb.GAP_MODE_CATCH_UP,
    "catch_up": lambda s: s.rate_hz > 0 and s.gap_rule.mode == pb.GAP_MODE_CATCH_UP,
    "world": lambda s: s.rate_hz > 0,
    "world_desktop": lambda s: s.rate_hz > 0,
}


def _is_desktop(spec: pb.PolicySpec) -> bool:
    return spec.action.WhichOneof("kind") == "desktop"


def _belongs(spec: pb.PolicySpec, role: str) -> bool:
    """Return whether a policy is of a role's kind: agent or world, with choices or with keyboard and mouse."""
    is_world = spec.kind == pb.POLICY_KIND_WORLD
    return _is_desktop(spec) == ("desktop" in role) and is_world == role.startswith("world")


def _is_open(spec: pb.PolicySpec) -> bool:
    return any(-1 in t.shape for t in spec.inputs)


@dataclass
class Target:
    """One server that is held to the contract.

    Attributes:
        name: "fake", "server" or "address".
        address: "host:port".
        channel: To it.
        slow_live: Whether its LIVE policy is slow enough that a burst of steps must be merged.
        check: Fails where the server itself has taken harm.
    """

    name: str
    address: str
    channel: grpc.Channel
    slow_live: bool = True
    check: Callable[[], None] = lambda: None
    specs: dict[str, pb.PolicySpec] = field(default_factory=dict)

    @property
    def stub(self) -> PolicyServiceStub:
        """Stubs of PolicyService."""
        return PolicyServiceStub(self.channel)

    def discover(self) -> None:
        """Find a policy for each role."""
        policies = self.stub.ListPolicies(ps.ListPoliciesRequest(), timeout=30).policies
        for role, fits in ROLES.items():
            found = [spec for spec in policies if _belongs(spec, role) and fits(spec)]
            if found:
                self.specs[role] = found[0]

    def policy(self, role: str) -> pb.PolicySpec:
        """Return the policy of a role, or skip the test."""
        if role not in self.specs:
            pytest.skip(f"{self.name}: serves no policy for the role {role!r}")
        return self.specs[role]


@pytest.fixture(scope="session", params=["fake", "server", *(["address"] if _ADDRESS else [])])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Yield a started server."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]

    def connected(address: str, **fields: Any) -> Iterator[Target]:
        with grpc.insecure_channel(address, options=options) as channel:
            found = Target(request.param, address, channel, **fields)
            found.discover()
            yield found

    if request.param == "fake":
        with fake_server() as server:
            yield from connected(server.address)
    elif request.param == "address":
        yield from connected(_ADDRESS, slow_live=False)
    else:
        flags = ["--slots", "32", "--max-batch", "8", "--fixed-batch", "--max-message-mb", "4",
                 "--detach-window-s", "20"]  # fmt: skip
        policies = ["memory", "frames", "live", "catch_up", "desktop", "desktop_live", "desktop_catch_up",
                    "world", "world_desktop"]  # fmt: skip
        with serving(policies, *flags) as process:
            seen = 0

            def check() -> None:
                nonlocal seen
                assert process.process.poll() is None, process.log()
                log = process.log()
                new, seen = log[seen:], len(log)  # each test answers for its own lines
                assert "Traceback" not in new, new

            yield from connected(process.address, check=check)


@pytest.fixture
def streams() -> Iterator[list[Any]]:
    """Collect the streams of a test; end them after it."""
    opened: list[Any] = []
    yield opened
    for stream in opened:
        stream.close()


@pytest.fixture
def play(target: Target, streams: list[Any]) -> Callable[..., Play]:
    """Return a function that begins a Play call; with a role, it opens a session of that policy and reads Opened."""

    def begin(role: str = "", **fields: Any) -> Play:
        if not role:
            stream = Play(target.stub.Play, **fields)
            streams.append(stream)
            return stream
        fields.setdefault("seed", 11)
        fields.setdefault("extras", pb.Extras(log_prob=True, value=True))
        fields.setdefault("codecs", [pb.CODEC_LZ4, pb.CODEC_JPEG])
        stream = Play(target.stub.Play, open=ps.Open(policy=target.policy(role).name, **fields))
        streams.append(stream)
        return stream.open()

    return begin


@pytest.fixture
def rollout(target: Target, streams: list[Any]) -> Callable[..., Rollout]:
    """Return a function that begins a Rollout call; with a role, it opens one and reads RolloutOpened."""

    def begin(role: str = "", num_envs: int = 4, **fields: Any) -> Rollout:
        if not role:
            stream = Rollout(target.stub.Rollout, **fields)
            streams.append(stream)
            return stream
        fields.setdefault("seed", 11)
        fields.setdefault("codecs", [pb.CODEC_LZ4, pb.CODEC_JPEG])
        message = ps.RolloutOpen(policy=target.policy(role).name, num_envs=num_envs, **fields)
        stream = Rollout(target.stub.Rollout, open=message)
        streams.append(stream)
        return stream.open()

    return begin


@pytest.fixture(scope="session")
def undisturbed(target: Target) -> Callable[[str, int], list[Any]]:
    """Return a function that gives the answers of a session that nothing happened to."""
    known: dict[str, list[Any]] = {}

    def answers(role: str, steps: int) -> list[Any]:
        if len(known.get(role, ())) < steps:
            first = ps.Open(policy=target.policy(role).name, seed=11, extras=pb.Extras(log_prob=True, value=True))
            session = Play(target.stub.Play, open=first).open()
            known[role] = [comparable(session.step(seq)) for seq in range(1, max(steps, 24) + 1)]
            assert session.close() == "OK"
        return known[role][:steps]

    return answers


@pytest.fixture(autouse=True)
def bystander(
    target: Target, play: Callable[..., Play], undisturbed: Callable[[str, int], list[Any]]
) -> Iterator[Play]:
    """Play a session beside every test: what the test does must not change one of its answers, nor hurt the server."""
    session = play("memory")
    before = [comparable(session.step(seq)) for seq in range(1, _BYSTANDER_STEPS + 1)]
    yield session
    after = [comparable(session.step(seq)) for seq in range(_BYSTANDER_STEPS + 1, 2 * _BYSTANDER_STEPS + 1)]
    assert before + after == undisturbed("memory", 2 * _BYSTANDER_STEPS)
    assert target.stub.ListPolicies(ps.ListPoliciesRequest(), timeout=30).policies
    target.check()
