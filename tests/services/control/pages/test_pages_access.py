"""Who may see the dashboard and press its buttons."""

from __future__ import annotations

import re
from typing import Any

import pytest

from playserve_services.auth.keys import parse_key
from playserve_services.control.pages.access import COOKIE
from playserve_services.control.repository.audit import SYSTEM
from playserve_services.control.repository.keys import revoke_key

BASE = "http://127.0.0.1/dashboard"


@pytest.fixture
async def locked(start_plane, fleet):
    """Return a control plane that asks for keys."""
    async with start_plane(require_keys=True) as plane:
        fleet(plane.context)
        plane.client.base_url = BASE
        yield plane


def key_of(plane: Any, *scopes: str, principal: str = "me") -> str:
    return str(plane.key(*scopes, principal=principal)["Authorization"].removeprefix("Bearer "))


async def sign_in(plane: Any, key: str, **more: str) -> Any:
    return await plane.client.post("/sign-in", data={"key": key, **more})


async def csrf_of(plane: Any, path: str = "/") -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', (await plane.client.get(path)).text)
    assert found, path
    return found[1]


async def test_without_a_key_there_is_nothing_but_the_form(locked) -> None:
    for path in ("/", "/sessions", "/policies/breakout", "/recordings", "/jobs", "/audit"):
        answer = await locked.client.get(path)
        assert answer.status_code == 303, path
        assert answer.headers["location"].startswith("/dashboard/sign-in?next=/")
    form = await locked.client.get("/sign-in")
    assert (form.status_code, "breakout" in form.text) == (200, False)
    assert 'type="password"' in form.text
    for path in ("/replicas/replica-0/drain", "/sign-out", "/policies/breakout/promote"):
        assert (await locked.client.post(path, data={"csrf": ""})).status_code == 401, path
    live = await locked.client.get("/", headers={"Sec-Fetch-Dest": "empty"})
    assert live.status_code == 401  # the script that updates a page is not shown the form


async def test_a_key_signs_in_and_the_cookie_is_kept_from_scripts_and_other_sites(locked) -> None:
    key = key_of(locked, "admin")
    answer = await sign_in(locked, key, next="/policies")
    assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard/policies")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/dashboard" in cookie
    assert "secure" not in cookie  # plain text on loopback
    page = await locked.client.get("/policies")
    assert page.status_code == 200
    secret = parse_key(key)[1]
    assert secret not in page.text
    assert secret not in answer.headers["set-cookie"]


async def test_over_tls_the_cookie_is_for_tls_only(locked) -> None:
    locked.client.base_url = BASE.replace("http:", "https:")
    answer = await sign_in(locked, key_of(locked, "admin"))
    assert "secure" in answer.headers["set-cookie"].lower()


@pytest.mark.parametrize("to", ["//evil.example", "/\\evil.example", "https://evil.example", "/..//evil", "x", "/%0d"])
async def test_nobody_is_sent_elsewhere(locked, to) -> None:
    answer = await sign_in(locked, key_of(locked, "play"), next=to)
    assert answer.headers["location"] == "/dashboard/"


async def test_a_wrong_key_is_refused_and_not_shown_again(locked) -> None:
    wrong = f"psk_{'0' * 12}_{'x' * 43}"
    answer = await sign_in(locked, wrong)
    assert answer.status_code == 401
    assert wrong not in answer.text
    assert COOKIE not in answer.headers.get("set-cookie", "")
    assert (await locked.client.get("/")).status_code == 303


async def test_a_revoked_key_ends_the_browsers_session_at_once(locked) -> None:
    key = key_of(locked, "admin")
    await sign_in(locked, key)
    assert (await locked.client.get("/")).status_code == 200
    with locked.context.database.change() as session:
        revoke_key(session, SYSTEM, parse_key(key)[0])
    assert (await locked.client.get("/")).status_code == 303


async def test_signing_out_ends_the_session_on_the_server(locked) -> None:
    await sign_in(locked, key_of(locked, "admin"))
    token = locked.client.cookies[COOKIE]
    answer = await locked.client.post("/sign-out", data={"csrf": await csrf_of(locked)})
    assert answer.headers["location"] == "/dashboard/sign-in"
    locked.client.cookies.set(COOKIE, token, domain="127.0.0.1", path="/dashboard")
    assert (await locked.client.get("/")).status_code == 303


async def test_players_see_no_buttons_and_may_press_none(locked) -> None:
    await sign_in(locked, key_of(locked, "play", principal="ann"))
    for path in ("/", "/replicas/replica-0", "/policies/breakout"):
        page = (await locked.client.get(path)).text
        assert "/drain" not in page
        assert "/audit" not in page
        assert "Promote" not in page
    csrf = await csrf_of(locked)
    for path in ("/replicas/replica-0/drain", "/policies/breakout/promote?version=1", "/audit"):
        assert (await locked.client.get(path)).status_code == 403, path
    for path in ("/replicas/replica-0/drain", "/replicas/replica-0/undrain", "/policies/breakout/canary"):
        assert (await locked.client.post(path, data={"csrf": csrf, "percent": "1"})).status_code == 403, path


ACTIONS: list[tuple[str, dict[str, str]]] = [
    ("/replicas/replica-0/drain", {"grace_s": "60"}),
    ("/policies/breakout/promote", {"version": "1", "alias": "stable"}),
]


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize(("path", "fields"), ACTIONS)
async def test_forms_that_are_not_ours_are_refused(start_plane, fleet, path, fields, keys) -> None:
    async with start_plane(require_keys=keys) as plane:
        fleet(plane.context)
        plane.client.base_url = BASE
        if keys:
            await sign_in(plane, key_of(plane, "admin"))
        csrf = await csrf_of(plane, "/replicas/replica-0/drain")
        good = {**fields, "csrf": csrf}
        for data, headers in (
            (fields, {}),
            ({**fields, "csrf": csrf[:-1] + "x"}, {}),
            ({**fields, "csrf": "ü"}, {}),
            (good, {"Origin": "https://evil.example"}),
            (good, {"Origin": "null"}),
            (good, {"Sec-Fetch-Site": "cross-site"}),
        ):
            answer = await plane.client.post(path, data=data, headers=headers)
            assert answer.status_code == 403, (data, headers)
        audit = (await plane.client.get("/audit")).text
        assert "replica.drain" not in audit
        assert "alias.set" not in audit
        answer = await plane.client.post(path, data=good, headers={"Origin": "http://127.0.0.1"})
        assert answer.status_code == 303


async def test_a_token_of_another_session_is_refused(locked) -> None:
    key = key_of(locked, "admin")
    await sign_in(locked, key)
    old = await csrf_of(locked)
    await sign_in(locked, key)
    assert (await locked.client.post("/replicas/replica-0/drain", data={"csrf": old})).status_code == 403


async def test_bodies_that_are_no_plain_forms_are_refused(locked) -> None:
    for sent in ({"files": {"key": ("a", b"x" * 1000)}}, {"json": {"key": "x"}}, {"content": b"x", "headers": {
        "content-type": "text/plain"}}):  # fmt: skip
        assert (await locked.client.post("/sign-in", **sent)).status_code == 415
    large = await locked.client.post("/sign-in", data={"key": "x" * (5 << 20)})
    assert large.status_code == 413


async def test_signing_in_from_another_site_is_refused(locked) -> None:
    data = {"key": key_of(locked, "admin")}
    answer = await locked.client.post("/sign-in", data=data, headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403
