"""`playserve serve --graphs compile`: the same game as without, also where a policy cannot be compiled."""

from __future__ import annotations

import grpc
import pytest
from contract_kit.servers import serving
from contract_kit.streams import Play, comparable

from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve.v1.policy_service_pb2_grpc import PolicyServiceStub


def game(address: str, policy: str, steps: int = 12) -> list[object]:
    with grpc.insecure_channel(address) as channel:
        first = ps.Open(policy=policy, seed=11, extras=pb.Extras(log_prob=True, value=True))
        session = Play(PolicyServiceStub(channel).Play, open=first).open()
        played = [comparable(session.step(seq)) for seq in range(1, steps + 1)]
        assert session.close() == "OK"
        return played


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_policy_plays_the_same_game() -> None:
    with serving(["memory"]) as plain, serving(["memory"], "--graphs", "compile", "--max-batch", "2") as compiled:
        assert game(compiled.address, "memory") == game(plain.address, "memory")
        assert "without graphs" not in compiled.log()
        assert "Traceback" not in compiled.log()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_policy_that_cannot_be_compiled_is_served_without() -> None:
    # Its step sleeps, which no graph can hold.
    with serving(["live"]) as plain, serving(["live"], "--graphs", "compile", "--max-batch", "2") as server:
        assert "policy live version 1: its step cannot be compiled" in server.log()
        assert game(server.address, "live") == game(plain.address, "live")
