"""What the integration tests share: servers in processes of their own, stubs, and waiting for what must come."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from contract_kit.servers import ServerProcess, serving
from contract_kit.streams import Play, Rollout

from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve.v1.policy_service_pb2_grpc import PolicyServiceStub

_LIMIT_S = 60.0


class Wire:
    """Stubs and streams to one port of a server."""

    def __init__(self, channel: grpc.Channel, streams: list[Any]) -> None:
        self.channel = channel
        self.stub = PolicyServiceStub(channel)
        self._streams = streams

    def begin(self, **fields: Any) -> Play:
        """Begin a Play call with an Open."""
        stream = Play(self.stub.Play, open=ps.Open(**fields))
        self._streams.append(stream)
        return stream

    def play(self, policy: str, **fields: Any) -> Play:
        """Open a session and read Opened."""
        fields.setdefault("seed", 11)
        fields.setdefault("extras", pb.Extras(log_prob=True, value=True))
        return self.begin(policy=policy, **fields).open()

    def rollout(self, policy: str, num_envs: int) -> Rollout:
        """Open a rollout and read RolloutOpened."""
        stream = Rollout(self.stub.Rollout, open=ps.RolloutOpen(policy=policy, num_envs=num_envs, seed=1))
        self._streams.append(stream)
        return stream.open()

    def versions(self, policy: str) -> list[str]:
        """Return the versions that can be opened, newest first."""
        listed = self.stub.ListPolicies(ps.ListPoliciesRequest(), timeout=30).policies
        return [spec.version for spec in listed if spec.name == policy]


@pytest.fixture
def connect() -> Iterator[Callable[[str], Wire]]:
    """Return a function that connects to an address; streams end with the test."""
    with contextlib.ExitStack() as stack:
        streams: list[Any] = []

        def make(address: str) -> Wire:
            return Wire(stack.enter_context(grpc.insecure_channel(address)), streams)

        yield make
        for stream in streams:
            stream.close()  # so that it holds no slot in the next test


@pytest.fixture
def serve() -> Iterator[Callable[..., ServerProcess]]:
    """Return a function that starts `playserve serve` with policies of contract_kit.served and more flags."""
    with contextlib.ExitStack() as stack:
        yield lambda *policies, flags=(), **env: stack.enter_context(serving(policies, *flags, **env))


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Return a function that waits until another one returns something true, and returns that."""

    def wait(probe: Callable[[], Any], what: str = "") -> Any:
        deadline = time.monotonic() + _LIMIT_S
        while not (found := probe()):
            assert time.monotonic() < deadline, f"waited {_LIMIT_S:.0f} s for {what or probe}"
            time.sleep(0.02)
        return found

    return wait


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., str]:
    """Return a function that publishes a small recurrent policy, made from a seed, and returns its version."""
    import torch

    from playserve_trainer import checkpoint
    from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy
    from playserve_trainer.store import CheckpointStore

    def put(store: Path, policy: str, seed: int, hidden: int = 16) -> str:
        torch.manual_seed(seed)
        model = TinyRecurrentPolicy(TinyRecurrentConfig(hidden=hidden))
        folder = tmp_path / f"checkpoint-{policy}-{seed}-{hidden}"
        checkpoint.save(folder, model, checkpoint.Manifest.describe(model, seed=seed))
        return CheckpointStore(store).publish(policy, folder)

    return put
