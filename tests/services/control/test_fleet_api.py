"""Replicas by heartbeats, drains, sessions of a real inference server listed and ended, silent ones named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from contract_kit.servers import ServerProcess, serving
from contract_kit.streams import Play
from small_authority import Authority

from playserve.v1 import policy_service_pb2 as ps
from playserve.v1.policy_service_pb2_grpc import PolicyServiceStub


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving(["memory"], "--admin-port", "0", "--drain-grace-s", "600") as started:
        yield started


@pytest.fixture
def session(server) -> Iterator[str]:
    """Return the id of a session that plays."""
    with grpc.insecure_channel(server.address) as channel:
        stream: Any = Play(PolicyServiceStub(channel).Play, open=ps.Open(policy="memory", seed=1)).open()
        yield stream.opened.session_id
        stream.close()


def beat(**more: Any) -> dict[str, Any]:
    return {"instance": "one", "address": "10.0.0.1:50051", **more}


def beat_of(server: ServerProcess, **more: Any) -> dict[str, Any]:
    return beat(address=server.address, admin_address=server.address_of("admin"), versions={"memory": ["0"]}, **more)


async def test_a_replica_registers_by_its_heartbeat(plane) -> None:
    body = beat(slots_total=32, slots_used=3, versions={"p": ["1", "2"]}, view_revision=-1, server_version="0.1",
                admin_address="", slots_free=29, sessions=3, name="r-0", of_a_newer_version=True)  # fmt: skip
    answer = await plane.client.put("/v1/replicas/r-0", json=body)
    assert answer.json() == {"drain": False, "revision": 0}
    (shown,) = (await plane.client.get("/v1/replicas")).json()
    assert (shown["name"], shown["fresh"], shown["slots_used"]) == ("r-0", True, 3)
    assert shown["versions"] == {"p": ["1", "2"]}
    assert (await plane.client.get("/v1/replicas/r-0")).json()["address"] == "10.0.0.1:50051"
    await plane.client.put("/v1/replicas/r-0", json=beat(slots_used=4))
    await plane.client.put("/v1/replicas/r-0", json=beat(address="10.0.0.2:50051"))
    audit = (await plane.client.get("/v1/audit", params={"subject": "r-0"})).json()
    assert [row["before"].get("address") for row in audit] == ["10.0.0.1:50051", None]  # not each heartbeat
    assert (await plane.client.delete("/v1/replicas/r-0")).status_code == 204
    assert (await plane.client.get("/v1/replicas/r-0")).status_code == 404


@pytest.mark.parametrize(
    "body",
    [{}, beat(address="nowhere"), beat(address="http://x:1"), beat(admin_address="a b:1"), beat(slots_total=-1),
     beat(instance="../x"), beat(versions={"..": ["1"], "UP": []})],
)  # fmt: skip
async def test_heartbeats_that_are_none_are_refused(plane, body) -> None:
    assert (await plane.client.put("/v1/replicas/r", json=body)).status_code == 422


async def test_a_drain_is_in_the_view_until_the_server_is_another(plane) -> None:
    await plane.client.put("/v1/replicas/r", json=beat())
    drained = (await plane.client.post("/v1/replicas/r/drain")).json()
    assert (drained["drain_wanted"], drained["told"]) == (True, False)
    assert "--admin-port" in drained["problem"]
    view = (await plane.client.get("/v1/view")).json()
    assert (view["draining"], view["revision"]) == (["r"], 1)
    assert (await plane.client.put("/v1/replicas/r", json=beat())).json() == {"drain": True, "revision": 1}
    restarted = await plane.client.put("/v1/replicas/r", json=beat(instance="two"))
    assert restarted.json() == {"drain": False, "revision": 2}
    assert (await plane.client.get("/v1/view")).json()["draining"] == []
    await plane.client.post("/v1/replicas/r/drain")
    assert (await plane.client.delete("/v1/replicas/r/drain")).json()["drain_wanted"] is False
    assert (await plane.client.post("/v1/replicas/other/drain")).status_code == 404


async def test_after_the_loss_of_a_registry_replicas_are_outrun(plane) -> None:
    """They never go back to an older view, and would not listen to a registry that begins at zero."""
    told = await plane.client.put("/v1/replicas/r", json=beat(view_revision=41))
    assert told.json()["revision"] == 42
    assert (await plane.client.get("/v1/view")).json()["revision"] == 42
    assert (await plane.client.put("/v1/replicas/r", json=beat(view_revision=42))).json()["revision"] == 42
    (line,) = (await plane.client.get("/v1/audit", params={"action": "registry.outrun"})).json()
    assert (line["before"], line["after"]) == ({"revision": 0}, {"revision": 42})
    # What nobody can have counted to is not followed.
    assert (await plane.client.put("/v1/replicas/r", json=beat(view_revision=2**53))).json()["revision"] == 42


async def test_sessions_of_a_real_server_are_listed_and_ended(plane, server, session) -> None:
    await plane.client.put("/v1/replicas/real", json=beat_of(server))
    await plane.client.put("/v1/replicas/gone", json=beat(admin_address="127.0.0.1:1"))
    answer = (await plane.client.get("/v1/sessions")).json()
    (shown,) = answer["sessions"]
    assert (shown["session_id"], shown["replica"], shown["policy"]) == (session, "real", "memory")
    assert shown["facts"]["state"] == "open"
    assert [(row["replica"], row["reason"]) for row in answer["unreachable"]] == [("gone", "UNAVAILABLE")]
    assert (await plane.client.get("/v1/sessions", params={"policy": "other"})).json()["sessions"] == []
    url = f"/v1/replicas/real/sessions/{session}"
    assert (await plane.client.delete(url, params={"reason": "maintenance"})).status_code == 200
    again = await plane.client.delete(url)
    assert (again.status_code, again.json()["reason"]) == (404, "SESSION_NOT_FOUND")
    assert (await plane.client.get("/v1/sessions", params={"replica": "real"})).json()["sessions"] == []
    audit = (await plane.client.get("/v1/audit", params={"action": "session.ended"})).json()
    assert [row["after"] for row in audit] == [{"reason": "maintenance"}]


async def test_sessions_of_a_silent_server_are_as_last_reported(start_plane, server, session) -> None:
    async with start_plane(replica_timeout_s=60) as plane:
        await plane.client.put("/v1/replicas/real", json=beat_of(server))
        first = (await plane.client.get("/v1/sessions")).json()
        await plane.client.put("/v1/replicas/real", json=beat_of(server) | {"admin_address": "127.0.0.1:1"})
        later = (await plane.client.get("/v1/sessions")).json()
        assert later["sessions"] == first["sessions"]
        assert [row["replica"] for row in later["unreachable"]] == ["real"]
        refused = await plane.client.delete(f"/v1/replicas/real/sessions/{session}")
        assert (refused.status_code, refused.json()["reason"]) == (503, "UNAVAILABLE")


async def test_a_player_sees_and_ends_their_own_sessions_only(start_plane, server, session) -> None:
    async with start_plane(require_keys=True) as plane:
        admin = plane.key("admin")
        await plane.client.put("/v1/replicas/real", json=beat_of(server), headers=admin)
        # The server was started without keys: its sessions are everybody's, by the name of anonymous.
        ann, nobody = plane.key("play", principal="ann"), plane.key("play", principal="anonymous")
        url = f"/v1/replicas/real/sessions/{session}"
        for key, ids in ((ann, []), (nobody, [session]), (admin, [session])):
            shown = (await plane.client.get("/v1/sessions", headers=key)).json()["sessions"]
            assert [row["session_id"] for row in shown] == ids
        assert (await plane.client.delete(url, headers=ann)).status_code == 403
        assert (await plane.client.delete(f"{url}x", headers=ann)).status_code == 404
        assert (await plane.client.delete(url, headers=nobody)).status_code == 200


async def test_a_replica_that_wants_a_key_is_named_with_what_to_do(plane, tmp_path) -> None:
    from playserve_services.auth.keyring import KeyFile

    KeyFile(tmp_path / "keys.json").change(lambda keys: keys, missing_ok=True)
    with serving(["memory"], "--admin-port", "0", "--keys", str(tmp_path / "keys.json")) as keyed:
        await plane.client.put("/v1/replicas/real", json=beat_of(keyed))
        (row,) = (await plane.client.get("/v1/sessions")).json()["unreachable"]
    assert row["reason"] == "UNAVAILABLE"
    assert "PLAYSERVE_CONTROL_REPLICA_KEY" in row["detail"]


async def test_a_replica_that_wants_a_certificate_of_every_caller_is_shown_one(start_plane, tmp_path) -> None:
    authority = Authority(tmp_path / "authority")
    served, own = authority.issue("server"), authority.issue("control")
    tls = ["--tls-cert", str(served.certificate), "--tls-key", str(served.key),
           "--tls-client-ca", str(authority.root), "--tls-client-scopes", "admin"]  # fmt: skip
    with serving(["memory"], "--admin-port", "0", *tls) as mutual:
        shown = {"replica_tls_cert": own.certificate, "replica_tls_key": own.key}
        for options, reached in (({}, False), (shown, True)):
            async with start_plane(replica_tls_ca=authority.root, **options) as plane:
                await plane.client.put("/v1/replicas/real", json=beat_of(mutual))
                answer = (await plane.client.get("/v1/sessions")).json()
                assert (answer["unreachable"] == []) is reached, answer


async def test_a_real_server_is_told_to_drain(plane) -> None:
    with serving(["memory"], "--admin-port", "0", "--drain-grace-s", "600") as own:
        await plane.client.put("/v1/replicas/real", json=beat_of(own))
        drained = (await plane.client.post("/v1/replicas/real/drain", json={"grace_s": 60})).json()
        assert (drained["told"], drained["sessions"], drained["problem"]) == (True, 0, "")
