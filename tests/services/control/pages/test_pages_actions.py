"""The buttons: promote through the gate, roll back, split, drain."""

from __future__ import annotations

import re
from typing import Any

import pytest


@pytest.fixture
async def filled(start_plane, fleet):
    async with start_plane() as plane:
        fleet(plane.context)
        plane.client.base_url = "http://127.0.0.1/dashboard"
        yield plane


async def press(plane: Any, page: str, **changes: str) -> Any:
    """Open a page and send its form, with its hidden fields and with changes."""
    text = (await plane.client.get(page)).text
    (form,) = re.findall(r'<form class="card stack" method="post".*?</form>', text, re.DOTALL)
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', form)
    action = re.search(r'action="([^"]+)"', form)
    assert action is not None
    return await plane.client.post(f"http://127.0.0.1{action[1]}", data={**dict(found), **changes})


async def aliases(plane: Any) -> dict[str, str]:
    return dict((await plane.client.get("http://127.0.0.1/v1/policies/breakout")).json()["aliases"])


async def test_promote_and_roll_back(filled) -> None:
    page = (await filled.client.get("/policies/breakout/promote?version=1&alias=stable")).text
    assert "points at nothing" in page
    answer = await press(filled, "/policies/breakout/promote?version=1&alias=stable")
    assert answer.headers["location"] == "/dashboard/policies/breakout?done=promoted"
    assert await aliases(filled) == {"stable": "1"}
    after = (await filled.client.get("/policies/breakout?done=promoted")).text
    assert "The alias points at that version now." in after
    # Version 2 scored 20 to 29, version 1 10 to 19: the gate lets it through, and not the other way round.
    page = (await filled.client.get("/policies/breakout/promote?version=2&alias=stable")).text
    assert "passed" in page
    assert (await press(filled, "/policies/breakout/promote?version=2&alias=stable", gated="yes")).status_code == 303
    refused = await press(filled, "/policies/breakout/promote?version=1&alias=stable", gated="yes")
    assert refused.status_code == 409
    assert "was not promoted" in refused.text
    assert await aliases(filled) == {"stable": "2"}
    page = (await filled.client.get("/policies/breakout/roll-back?alias=stable")).text
    assert "pointed at version 1 before" in page
    assert (await press(filled, "/policies/breakout/roll-back?alias=stable")).status_code == 303
    assert await aliases(filled) == {"stable": "1"}


async def test_who_was_slower_than_somebody_else_is_told(filled) -> None:
    await press(filled, "/policies/breakout/promote?version=1&alias=stable")
    answer = await press(filled, "/policies/breakout/promote?version=2&alias=stable", expected="")
    assert answer.status_code == 409
    assert "not at nothing as was expected" in answer.text


async def test_split(filled) -> None:
    for version, alias in (("1", "stable"), ("2", "candidate")):
        await press(filled, f"/policies/breakout/promote?version={version}&alias={alias}")
    assert (await press(filled, "/policies/breakout/canary?percent=12.5")).status_code == 303
    policy = (await filled.client.get("http://127.0.0.1/v1/policies/breakout")).json()
    assert policy["canary_weight"] == 0.125
    page = (await filled.client.get("/policies/breakout")).text
    assert 'x="87.50" width="12.50"' in page


async def test_drain_and_back(filled) -> None:
    assert ">serving<" in (await filled.client.get("/replicas/replica-0")).text
    answer = await press(filled, "/replicas/replica-0/drain", grace_s="60")
    assert answer.headers["location"] == "/dashboard/replicas/replica-0?done=drain-view"  # it has no admin address
    page = (await filled.client.get("/replicas/replica-0")).text
    assert ">draining<" in page
    csrf = re.search(r'name="csrf" value="([^"]+)"', page)
    assert csrf is not None
    answer = await filled.client.post("/replicas/replica-0/undrain", data={"csrf": csrf[1]})
    assert answer.headers["location"].endswith("done=undrain")
    after = (await filled.client.get("/replicas/replica-0")).text
    assert ">draining<" not in after
    assert ">behind<" in after  # it has not followed the view since
