"""What else is on the port: the list of policies, health, reflection, and methods that are not served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from contract_kit.streams import reason_of, status_of
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from playserve.v1 import admin_service_pb2 as ad
from playserve.v1 import admin_service_pb2_grpc, state_transfer_service_pb2_grpc
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import state_transfer_service_pb2 as st
from playserve.v1 import types_pb2 as pb

_SERVING = health_pb2.HealthCheckResponse.SERVING


def _error(call: Callable[[], Any]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def test_policies_are_listed_by_name_and_version(target: Any) -> None:
    policies = target.stub.ListPolicies(ps.ListPoliciesRequest(), timeout=30).policies
    assert [p.name for p in policies] == sorted(p.name for p in policies)
    for spec in policies:
        assert spec.name
        assert spec.version
        assert spec.kind != pb.POLICY_KIND_UNSPECIFIED
        assert spec.outputs if spec.kind == pb.POLICY_KIND_WORLD else spec.inputs
        assert spec.action.WhichOneof("kind")
        assert spec.slots_free <= spec.slots_total
        again = target.stub.GetPolicy(ps.GetPolicyRequest(policy=spec.name, version=spec.version), timeout=30).policy
        assert (again.name, again.version, again.state_layout) == (spec.name, spec.version, spec.state_layout)
        assert list(again.inputs) == list(spec.inputs)


def test_policies_are_found_by_prefix(target: Any) -> None:
    def names(prefix: str) -> list[str]:
        request = ps.ListPoliciesRequest(name_prefix=prefix)
        return [p.name for p in target.stub.ListPolicies(request, timeout=30).policies]

    name = target.policy("memory").name
    assert name in names(name[:2])
    assert all(found.startswith(name[:2]) for found in names(name[:2]))
    assert names("nobody") == names("../") == []


def test_the_newest_version_is_the_default(target: Any) -> None:
    name = target.policy("memory").name
    listed = [p.version for p in target.stub.ListPolicies(ps.ListPoliciesRequest(), timeout=30).policies
              if p.name == name]  # fmt: skip
    assert target.stub.GetPolicy(ps.GetPolicyRequest(policy=name), timeout=30).policy.version == listed[0]


def test_get_policy_refuses_what_is_not_there(target: Any) -> None:
    name = target.policy("memory").name
    missing = _error(lambda: target.stub.GetPolicy(ps.GetPolicyRequest(policy="nobody"), timeout=30))
    assert reason_of(status_of(missing)) == "POLICY_NOT_FOUND"
    missing = _error(lambda: target.stub.GetPolicy(ps.GetPolicyRequest(policy=name, version="99999"), timeout=30))
    assert reason_of(status_of(missing)) == "VERSION_NOT_FOUND"


def test_a_state_that_does_not_fit_is_refused_or_all_are(target: Any) -> None:
    stub = state_transfer_service_pb2_grpc.StateTransferServiceStub(target.channel)
    policy = target.policy("memory")
    fits = {
        "policy": policy.name, "version": policy.version, "state_layout": policy.state_layout,
        "state_bytes": policy.state_bytes_per_session, "session_id": "5e5510", "principal": "anonymous",
    }  # fmt: skip
    for changed, reason in (
        ({"policy": "nobody"}, "POLICY_NOT_FOUND"),
        ({"version": "nothing"}, "VERSION_NOT_FOUND"),
        ({"state_layout": "0"}, "LAYOUT_MISMATCH"),
        ({"session_id": ""}, "MALFORMED_MESSAGE"),
    ):
        request = st.TransferStateRequest(header=st.StateHeader(**{**fits, **changed}))
        error = _error(lambda request=request: list(stub.TransferState(iter([request]), timeout=30)))
        assert reason_of(status_of(error)) in ("NOT_IMPLEMENTED", reason)
    after = {p.name: p.slots_free for p in target.stub.ListPolicies(ps.ListPoliciesRequest(), timeout=30).policies}
    assert after[policy.name] == policy.slots_total - 1, "the bystander has one"


def test_players_cannot_reach_the_operators_service(target: Any) -> None:
    """AdminService has a port of its own."""
    stub = admin_service_pb2_grpc.AdminServiceStub(target.channel)
    for call in (
        lambda: stub.GetStatus(ad.GetStatusRequest(), timeout=30),
        lambda: stub.ListSessions(ad.ListSessionsRequest(), timeout=30),
        lambda: stub.EndSession(ad.EndSessionRequest(session_id="x"), timeout=30),
        lambda: stub.Drain(ad.DrainRequest(), timeout=30),
        lambda: list(stub.WatchSession(ad.WatchSessionRequest(session_id="x"), timeout=30)),
    ):
        assert _error(call).code() is grpc.StatusCode.UNIMPLEMENTED


def test_unknown_methods(target: Any) -> None:
    method = target.channel.unary_unary("/playserve.v1.PolicyService/Nothing")
    assert _error(lambda: method(b"", timeout=30)).code() is grpc.StatusCode.UNIMPLEMENTED


def test_health(target: Any) -> None:
    stub = health_pb2_grpc.HealthStub(target.channel)
    for service in ("", "liveness", "readiness", f"policy/{target.policy('memory').name}"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status == _SERVING
    unknown = _error(lambda: stub.Check(health_pb2.HealthCheckRequest(service="policy/nobody"), timeout=30))
    assert unknown.code() is grpc.StatusCode.NOT_FOUND


def test_reflection(target: Any) -> None:
    if target.name == "fake":
        pytest.skip("fake: serves no reflection")
    stub = reflection_pb2_grpc.ServerReflectionStub(target.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    [answer] = stub.ServerReflectionInfo(iter([request]), timeout=30)
    services = {service.name for service in answer.list_services_response.service}
    assert {"playserve.v1.PolicyService", "grpc.health.v1.Health"} <= services
