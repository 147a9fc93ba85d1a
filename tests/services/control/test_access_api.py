"""Who may do what; keys issued and revoked; the view and its ETag; no secret in audit, logs or answers."""

from __future__ import annotations

import datetime
import logging
from typing import Any

import pytest

from playserve_services.auth.keys import check_key
from playserve_services.control.settings import ControlSettings
from playserve_services.registry_view import RegistryView


@pytest.fixture
async def guarded(start_plane):
    async with start_plane(require_keys=True) as made:
        yield made


def in_(hours: float) -> str:
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)).isoformat()


async def test_without_a_key_only_probes_answer(guarded) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await guarded.client.get(path)).status_code == 200
    document = (await guarded.client.get("/openapi.json")).json()
    open_to_all = {"/healthz", "/readyz", "/metrics"}
    for path, methods in document["paths"].items():
        for method in set(methods) & {"get", "put", "post", "delete"}:
            names = dict.fromkeys(("policy", "version", "alias", "name", "session_id", "recording_id"), "1")
            url = path.format_map({**names, "key_id": "0" * 12, "job_id": "0" * 16, "sha256": "0" * 64})
            answer = await guarded.client.request(method, url)
            if path not in open_to_all:
                assert (answer.status_code, answer.json()["reason"]) == (401, "UNAUTHENTICATED"), (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer nonsense", "Basic bWU6bWU=", f"Bearer psk_{'0' * 12}_{'x' * 43}"]
)
async def test_what_is_no_key_is_refused(guarded, header) -> None:
    answer = await guarded.client.get("/v1/policies", headers={"Authorization": header} if header else {})
    assert (answer.status_code, answer.json()["reason"]) == (401, "UNAUTHENTICATED")


async def test_a_wrong_secret_with_a_right_id_is_refused(guarded) -> None:
    right = guarded.key("admin")["Authorization"]
    answer = await guarded.client.get("/v1/keys", headers={"Authorization": right[:-43] + "x" * 43})
    assert answer.status_code == 401


async def test_scopes_say_who_may_do_what(guarded) -> None:
    guarded.register("p", "1")
    play, publish, admin = guarded.key("play"), guarded.key("publish"), guarded.key("admin")
    client = guarded.client

    async def status(method: str, path: str, key: dict[str, str], **more: Any) -> int:
        return int((await client.request(method, path, headers=key, **more)).status_code)

    for key in (play, publish, admin):
        for path in (
            "/v1/policies",
            "/v1/policies/p/versions",
            "/v1/policies/p/evaluations",
            "/v1/replicas",
            "/v1/jobs",
        ):
            assert await status("GET", path, key) == 200
    replica = guarded.key("replica")
    for path in ("/v1/keys", "/v1/audit"):
        assert [await status("GET", path, key) for key in (play, publish, replica, admin)] == [403, 403, 403, 200]
    # What a replica's key is for, and nothing else: it cannot make itself an admin's.
    assert [await status("GET", "/v1/view", key) for key in (play, publish, replica, admin)] == [403, 403, 200, 200]
    beat = {"json": {"instance": "i", "address": "h:1"}}
    assert [await status("PUT", "/v1/replicas/r", key, **beat) for key in (play, replica, admin)] == [403, 200, 200]
    assert await status("DELETE", "/v1/replicas/r", replica) == 403
    assert await status("POST", "/v1/keys", replica, json={"principal": "x", "scopes": ["admin"]}) == 403
    alias = {"json": {"version": "1"}}
    statuses = [await status("PUT", "/v1/policies/p/aliases/stable", key, **alias) for key in (play, publish, admin)]
    assert statuses == [403, 403, 200]
    statuses = [await status("PUT", "/v1/policies/p/versions/9", key) for key in (play, publish, admin)]
    assert statuses == [403, 404, 404]


async def test_a_key_is_shown_once_and_holds_until_it_is_revoked(guarded, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    admin = guarded.key("admin", principal="boss")
    body = {"principal": "player", "scopes": ["play"], "quota": {"sessions": 2}, "expires_at": in_(1)}
    made = await guarded.client.post("/v1/keys", json=body, headers=admin)
    assert made.status_code == 201, made.text
    assert made.headers["cache-control"] == "no-store"
    text, kept = made.json()["key"], made.json()["kept"]
    mine = {"Authorization": f"Bearer {text}"}
    assert (await guarded.client.get("/v1/policies", headers=mine)).status_code == 200
    view = RegistryView.model_validate_json((await guarded.client.get("/v1/view", headers=admin)).content)
    checked = check_key(text, {key.id: key for key in view.keys})
    assert checked is not None
    assert (checked.principal, checked.quota.sessions) == ("player", 2)
    revoked = await guarded.client.delete(f"/v1/keys/{kept['id']}", headers=admin)
    assert revoked.json()["revoked_at"]
    assert (await guarded.client.delete(f"/v1/keys/{kept['id']}", headers=admin)).json() == revoked.json()
    assert (await guarded.client.get("/v1/policies", headers=mine)).status_code == 401
    after = RegistryView.model_validate_json((await guarded.client.get("/v1/view", headers=admin)).content)
    assert after.revision == view.revision + 1
    assert kept["id"] not in {key.id for key in after.keys}
    # Neither keys nor digests are anywhere that people look.
    listed = (await guarded.client.get("/v1/keys", headers=admin)).text
    audit = (await guarded.client.get("/v1/audit", headers=admin)).text
    for secret in (text, text[-43:], checked.secret_sha256, admin["Authorization"][-43:]):
        assert secret not in listed + audit + caplog.text
    actions = [
        (row["action"], row["principal"]) for row in (await guarded.client.get("/v1/audit", headers=admin)).json()
    ]
    assert actions[:2] == [("key.revoked", "boss"), ("key.issued", "boss")]


async def test_a_key_expires(guarded) -> None:
    from playserve_services.control.models import ApiKeyRow

    admin = guarded.key("admin")
    body = {"principal": "player", "scopes": ["play"], "expires_at": in_(1)}
    made = (await guarded.client.post("/v1/keys", json=body, headers=admin)).json()
    before = await guarded.client.get("/v1/view", headers=admin)
    with guarded.context.database.change() as session:  # an hour later
        row = session.get(ApiKeyRow, made["kept"]["id"])
        row.expires_at = datetime.datetime.now(datetime.UTC)
    answer = await guarded.client.get("/v1/policies", headers={"Authorization": f"Bearer {made['key']}"})
    assert answer.status_code == 401
    after = await guarded.client.get("/v1/view", headers={**admin, "If-None-Match": before.headers["etag"]})
    assert after.status_code == 200
    assert len(after.json()["keys"]) == len(before.json()["keys"]) - 1


@pytest.mark.parametrize(
    "body",
    [{"principal": "", "scopes": ["play"]}, {"principal": "x", "scopes": []}, {"principal": "x", "scopes": ["root"]},
     {"principal": "x\n", "scopes": ["play"]},
     {"principal": "x", "scopes": ["play"], "expires_at": "2020-01-01T00:00:00Z"},
     {"principal": "x", "scopes": ["play"], "expires_at": "2099-01-01T00:00:00"}],
)  # fmt: skip
async def test_keys_that_make_no_sense_are_refused(plane, body) -> None:
    answer = await plane.client.post("/v1/keys", json=body)
    assert (answer.status_code, answer.json()["reason"]) == (422, "BAD_SETTING")


async def test_a_refused_body_is_not_repeated(plane) -> None:
    answer = await plane.client.post("/v1/keys", json={"principal": {"psk": "hunter2"}, "scopes": ["play"]})
    assert "hunter2" not in answer.text


async def test_the_view_is_unchanged_until_something_changes(plane) -> None:
    plane.register("p", "1", "2")
    first = await plane.client.get("/v1/view")
    assert RegistryView.model_validate_json(first.content).policies["p"].aliases == {}
    tag = {"If-None-Match": f'"other", W/{first.headers["etag"]}'}
    same = await plane.client.get("/v1/view", headers=tag)
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", first.headers["etag"])
    await plane.client.put("/v1/policies/p/aliases/stable", json={"version": "1"})
    await plane.client.put("/v1/policies/p/aliases/candidate", json={"version": "2"})
    await plane.client.put("/v1/policies/p/canary", json={"weight": 0.25})
    changed = await plane.client.get("/v1/view", headers=tag)
    view = RegistryView.model_validate_json(changed.content)
    assert view.revision == RegistryView.model_validate_json(first.content).revision + 3
    assert view.policies["p"].aliases == {"stable": "1", "candidate": "2"}
    assert view.policies["p"].canary_weight == 0.25
    # The same again is no change, though it is in the audit.
    await plane.client.put("/v1/policies/p/aliases/stable", json={"version": "1"})
    assert (await plane.client.get("/v1/view")).headers["etag"] == changed.headers["etag"]


async def test_a_database_that_goes_away_is_503_and_comes_back(start_plane, postgres_url) -> None:
    from sqlalchemy import create_engine, text

    from playserve_services.control.database import parse_url

    async with start_plane(database=postgres_url) as plane:
        assert (await plane.client.get("/readyz")).status_code == 200
        name = parse_url(postgres_url).database
        other = create_engine(parse_url(postgres_url).set(database="postgres"), isolation_level="AUTOCOMMIT")
        with other.connect() as connection:
            connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
            ended = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
            connection.execute(ended, {"name": name})
        for path in ("/readyz", "/v1/policies", "/v1/view"):
            answer = await plane.client.get(path)
            assert (answer.status_code, answer.json()["reason"]) == (503, "NOT_READY")
            assert answer.headers["retry-after"]
        assert (await plane.client.get("/healthz")).status_code == 200
        assert "playserve_control_database_up 0.0" in (await plane.client.get("/metrics")).text
        with other.connect() as connection:
            connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))
        other.dispose()
        assert (await plane.client.get("/v1/policies")).status_code == 200
        assert "playserve_control_database_up 1.0" in (await plane.client.get("/metrics")).text


async def test_a_browser_is_not_tricked_into_a_server_without_keys(plane) -> None:
    plane.register("p", "1")
    rebound = await plane.client.get("/v1/policies", headers={"Host": "evil.example"})
    assert (rebound.status_code, rebound.json()["reason"]) == (403, "PERMISSION_DENIED")
    url = "/v1/store/sync"
    assert (await plane.client.post(url, headers={"Sec-Fetch-Site": "cross-site"})).status_code == 403
    assert (await plane.client.post(url, headers={"Sec-Fetch-Site": "same-origin"})).status_code == 200
    assert (await plane.client.get("/v1/policies", headers={"Host": "localhost:8080"})).status_code == 200
    assert (await plane.client.get("/v1/policies", headers={"Host": "[::1]:8080"})).status_code == 200


@pytest.mark.parametrize(
    ("options", "required"),
    [({}, False), ({"require_keys": True}, True), ({"host": "0.0.0.0", "insecure_listen": True}, False),
     ({"host": "0.0.0.0", "insecure_listen": True, "require_keys": True}, True),
     ({"host": "0.0.0.0", "tls_cert": "c", "tls_key": "k"}, True)],
)  # fmt: skip
def test_keys_are_required_beyond_loopback(options, required) -> None:
    assert ControlSettings(**options).keys_required is required


@pytest.mark.parametrize(
    "options",
    [{"host": "0.0.0.0"}, {"host": "::", "require_keys": True}, {"host": "example.com"}, {"tls_cert": "c"},
     {"host": "0.0.0.0", "tls_cert": "c", "tls_key": "k", "require_keys": False}, {"unknown": 1}],
)  # fmt: skip
def test_settings_that_would_let_others_in_are_refused(options) -> None:
    with pytest.raises(ValueError):
        ControlSettings(**options)


def test_settings_tell_no_secrets() -> None:
    settings = ControlSettings(database="postgresql://me:hunter2@h/n", job_key="hunter2", replica_key="hunter2")
    assert "hunter2" not in repr(settings)


async def test_recordings_are_ones_own(guarded) -> None:
    ann, bob, admin = guarded.key("play", principal="ann"), guarded.key("play", principal="bob"), guarded.key("admin")
    body = {"policy": "p", "version": "1", "session_id": "s", "url": "s3://b/x", "sha256": "a" * 64, "size_bytes": 7}
    post, get = guarded.client.post, guarded.client.get
    assert (await post("/v1/recordings", json=body, headers=ann)).json()["principal"] == "ann"
    assert (await post("/v1/recordings", json={**body, "principal": "ann"}, headers=bob)).status_code == 403
    assert (await post("/v1/recordings", json={**body, "principal": "bob"}, headers=admin)).status_code == 201
    shown = [
        [row["principal"] for row in (await get("/v1/recordings", headers=key)).json()] for key in (ann, bob, admin)
    ]
    assert shown == [["ann"], ["bob"], ["bob", "ann"]]
