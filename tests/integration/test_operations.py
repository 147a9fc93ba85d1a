"""What an operator sees and does: AdminService, metrics, logs."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from contract_kit.servers import serving
from contract_kit.streams import observation, reason_of, status_of, step_message

from playserve.v1 import admin_service_pb2 as ad
from playserve.v1 import admin_service_pb2_grpc
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """Yield a server with every port and JSON logs."""
    flags = ["--admin-port", "0", "--metrics-port", "0", "--health-port", "0", "--log-format", "json", "--slots", "16"]
    with serving(["memory", "live", "frames"], *flags) as process:
        yield process


@pytest.fixture
def wire(server: Any, connect: Callable[[str], Any]) -> Any:
    return connect(server.address)


@pytest.fixture
def admin(server: Any, connect: Callable[[str], Any]) -> Any:
    return admin_service_pb2_grpc.AdminServiceStub(connect(server.address_of("admin")).channel)


def _metrics(server: Any) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{server.address_of('metrics')}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found = (re.fullmatch(r"(\S+(?:\{.*\})?) (\S+)", line) for line in text.splitlines() if not line.startswith("#"))
    return {match[1]: float(match[2]) for match in found if match}


def test_status_and_sessions(wire: Any, admin: Any) -> None:
    client = pb.ClientInfo(name="a test", version="1", platform="here")
    session = wire.play("live", pace=ps.PACE_LIVE, client=client, consent=ps.Consent(watch=True))
    rows = wire.rollout("memory", 3)
    session.step(1, budget_us=60_000_000)
    status = admin.GetStatus(ad.GetStatusRequest(), timeout=30)
    assert status.server_version
    assert status.uptime_us > 0
    assert {spec.name for spec in status.policies} == {"memory", "live", "frames"}
    assert status.sessions >= 2
    listed = {info.session_id: info for info in admin.ListSessions(ad.ListSessionsRequest(), timeout=30).sessions}
    info = listed[session.opened.session_id]
    assert (info.policy, info.version, info.steps, info.num_envs) == ("live", "1", 1, 1)
    assert info.state == ad.SESSION_STATE_OPEN
    assert info.pace == ps.PACE_LIVE
    assert info.client == client
    assert info.consent.watch
    assert not info.consent.record
    assert info.age_us >= info.idle_us
    assert listed[rows.opened.session_id].num_envs == 3
    only = admin.ListSessions(ad.ListSessionsRequest(policy="memory"), timeout=30).sessions
    assert {info.policy for info in only} == {"memory"}


def test_a_detached_session_is_shown_as_such(wire: Any, admin: Any, eventually: Callable[..., Any]) -> None:
    session = wire.play("memory")
    session.cancel()

    def detached() -> bool:
        sessions = admin.ListSessions(ad.ListSessionsRequest(), timeout=30).sessions
        states = {info.session_id: info.state for info in sessions}
        return states[session.opened.session_id] == ad.SESSION_STATE_DETACHED

    eventually(detached)
    assert wire.begin(resume_token=session.opened.resume_token).open().close() == "OK"


def test_an_operator_ends_a_session(wire: Any, admin: Any) -> None:
    session, other = wire.play("memory"), wire.play("memory")
    session.step(1)
    admin.EndSession(ad.EndSessionRequest(session_id=session.opened.session_id, reason="maintenance"), timeout=30)
    assert session.ends() == "SESSION_ENDED"
    assert session.status.code == grpc.StatusCode.ABORTED.value[0]
    assert "maintenance" in session.status.message
    assert wire.begin(resume_token=session.opened.resume_token).ends() == "SESSION_NOT_FOUND"
    other.step(1)
    with pytest.raises(grpc.RpcError) as caught:
        admin.EndSession(ad.EndSessionRequest(session_id=session.opened.session_id), timeout=30)
    assert reason_of(status_of(caught.value)) == "SESSION_NOT_FOUND"


def test_an_operator_watches_a_session(wire: Any, admin: Any) -> None:
    session = wire.play("memory", consent=ps.Consent(watch=True))
    events = admin.WatchSession(ad.WatchSessionRequest(session_id=session.opened.session_id), timeout=30)
    events.initial_metadata()
    session.step(1)
    event = next(events)
    assert (event.step.seq, event.result.seq) == (1, 1)
    assert session.close() == "OK"
    assert list(events) == []
    with pytest.raises(grpc.RpcError) as caught:
        list(admin.WatchSession(ad.WatchSessionRequest(session_id="x"), timeout=30))
    assert reason_of(status_of(caught.value)) == "SESSION_NOT_FOUND"


def test_metrics(server: Any, wire: Any) -> None:
    before = _metrics(server)
    assert before['playserve_slots_total{layout="' + wire.stub.GetPolicy(
        ps.GetPolicyRequest(policy="memory"), timeout=30).policy.state_layout + '",policy="memory"}'] == 16  # fmt: skip

    def grown(name: str) -> float:
        return _metrics(server).get(name, 0.0) - before.get(name, 0.0)

    session = wire.play("live", pace=ps.PACE_LIVE)
    for seq in range(1, 11):
        session.send(step=step_message(session.spec, seq, budget_us=60_000_000))
    results = [session.result()]
    while results[-1].seq != 10:
        results.append(session.result())
    session.send(step=ps.Step(seq=11))
    assert session.refuses() == "INPUT_MISSING"
    assert grown('playserve_sessions_open{policy="live"}') == 1
    assert session.close() == "OK"
    rows = wire.rollout("memory", 2)
    rows.rows([0, 1], 1).actions(2)
    assert rows.close() == "OK"
    full = wire.begin(policy="nobody").ends()
    assert full == "POLICY_NOT_FOUND"
    with pytest.raises(grpc.RpcError):
        wire.stub.GetPolicy(ps.GetPolicyRequest(policy="x" * 300), timeout=30)
    assert grown('playserve_sessions_opened_total{kind="live",policy="live"}') == 1
    assert grown('playserve_sessions_opened_total{kind="rollout",policy="memory"}') == 1
    assert grown('playserve_sessions_ended_total{policy="live",reason="closed"}') == 1
    assert grown('playserve_sessions_open{policy="live"}') == 0
    assert grown('playserve_errors_total{policy="live",reason="INPUT_MISSING"}') == 1
    assert grown('playserve_errors_total{policy="",reason="POLICY_NOT_FOUND"}') == 2
    assert grown('playserve_frames_total{policy="live"}') == len(results)
    assert grown('playserve_frames_dropped_total{policy="live"}') == 10 - len(results)
    assert grown('playserve_frames_total{policy="memory"}') == 2
    for name in ("frame_age", "decode", "queue", "compute", "total"):
        assert grown(f'playserve_{name}_seconds_count{{policy="live"}}') >= 1
    assert grown('playserve_batch_rows_count{policy="live"}') >= 1
    assert not [name for name in _metrics(server) if "xxx" in name], "a caller's text became a label"


def test_refused_opens_are_counted_by_reason(server: Any, wire: Any) -> None:
    taken = wire.rollout("frames", 16)
    assert wire.begin(policy="frames").ends() == "NO_FREE_SLOT"
    metrics = _metrics(server)
    assert metrics['playserve_opens_refused_total{policy="frames",reason="NO_FREE_SLOT"}'] >= 1
    used = [value for name, value in metrics.items() if name.startswith("playserve_slots_used{") and "frames" in name]
    assert used == [16]
    assert taken.close() == "OK"


def test_every_log_line_is_json_and_there_is_none_for_a_frame(server: Any, wire: Any) -> None:
    session = wire.play("memory")
    before = len(server.log().splitlines())
    for seq in range(1, 101):
        session.step(seq)
    session.send(step=ps.Step(seq=200, inputs=observation(session.spec, 1) * 2))
    assert session.refuses() == "INPUT_UNKNOWN"
    lines = server.log().splitlines()
    assert len(lines) - before <= 5
    for line in lines:
        assert {"time", "level", "logger", "message"} <= json.loads(line).keys()
