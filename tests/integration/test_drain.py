"""Graceful end: SIGTERM lets games play on, takes no new ones, and the exit status is 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from contract_kit.streams import comparable
from grpc_health.v1 import health_pb2, health_pb2_grpc

from playserve.v1 import admin_service_pb2 as ad
from playserve.v1 import admin_service_pb2_grpc
from playserve.v1 import policy_service_pb2 as ps

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def _check(wire: Any, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(wire.channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status


def test_a_drain_lets_games_play_on(
    serve: Callable[..., Any], connect: Callable[[str], Any], eventually: Callable[..., Any]
) -> None:
    server = serve("memory", flags=["--health-port", "0", "--drain-grace-s", "60"])
    wire, probes = connect(server.address), connect(server.address_of("health"))
    reference = wire.play("memory")
    wanted = [comparable(reference.step(seq)) for seq in range(1, 10)]
    assert reference.close() == "OK"
    session = wire.play("memory")
    rows = wire.rollout("memory", 2)
    answers = [comparable(session.step(seq)) for seq in (1, 2)]
    rows.rows([0, 1], 1).actions(2)
    for service in ("", "liveness", "readiness", "policy/memory"):
        assert _check(probes, service) == _SERVING

    server.terminate()
    eventually(lambda: _check(probes, "readiness") == _NOT_SERVING, "readiness to go")
    assert _check(probes, "liveness") == _SERVING
    assert _check(wire, "policy/memory") == _NOT_SERVING
    refused = wire.begin(policy="memory")
    assert refused.ends() == "DRAINING"
    assert refused.status.code == grpc.StatusCode.UNAVAILABLE.value[0]
    # What runs goes on, even over a lost stream.
    answers += [comparable(session.step(seq)) for seq in (3, 4, 5)]
    session.cancel()
    session = wire.begin(resume_token=session.opened.resume_token).open()
    answers += [comparable(session.step(seq)) for seq in range(6, 10)]
    assert answers == wanted
    rows.rows([1], 2).actions(1)
    assert server.process.poll() is None
    assert session.close() == "OK"
    assert rows.close() == "OK"
    assert server.wait() == 0
    assert "Traceback" not in server.log()


def test_a_grace_that_is_over_ends_what_still_plays(serve: Callable[..., Any], connect: Callable[[str], Any]) -> None:
    server = serve("memory", flags=["--drain-grace-s", "0.3"])
    wire = connect(server.address)
    session, rows = wire.play("memory"), wire.rollout("memory", 2)
    session.step(1)
    server.terminate()
    assert session.ends() == "SESSION_ENDED"
    assert rows.ends() == "SESSION_ENDED"
    assert server.wait() == 0
    assert "Traceback" not in server.log()


def test_asked_twice_it_ends_at_once(
    serve: Callable[..., Any], connect: Callable[[str], Any], eventually: Callable[..., Any]
) -> None:
    server = serve("memory", flags=["--drain-grace-s", "600"])
    wire = connect(server.address)
    session = wire.play("memory")
    server.terminate()
    eventually(lambda: "draining" in server.log(), "the drain to begin")
    session.step(1)
    server.terminate()
    assert session.ends() == "SESSION_ENDED"
    assert server.wait() == 0


def test_an_operator_drains(serve: Callable[..., Any], connect: Callable[[str], Any]) -> None:
    server = serve("memory", flags=["--admin-port", "0", "--drain-grace-s", "600"])
    wire = connect(server.address)
    admin = admin_service_pb2_grpc.AdminServiceStub(connect(server.address_of("admin")).channel)
    session = wire.play("memory")
    assert not admin.GetStatus(ad.GetStatusRequest(), timeout=30).draining
    assert admin.Drain(ad.DrainRequest(), timeout=30).sessions == 1
    assert admin.GetStatus(ad.GetStatusRequest(), timeout=30).draining
    assert wire.begin(policy="memory").ends() == "DRAINING"
    # What is listed can still be looked at.
    assert wire.stub.GetPolicy(ps.GetPolicyRequest(policy="memory"), timeout=30).policy.version
    session.step(1)
    assert session.close() == "OK"
    assert server.wait() == 0
