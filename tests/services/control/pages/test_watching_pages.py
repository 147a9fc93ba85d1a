"""The live view of real sessions on real servers, in real Chromium; who may watch, and what is noted of it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from contract_kit.servers import ServerProcess, serving
from fake_world import frame_of, world_spec

from playserve.codec import encode
from playserve.errors import SessionClosedError
from playserve.settings import Consent
from playserve.specs import Codec, PolicySpec
from playserve.v1 import admin_service_pb2 as ad
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve_client import PolicyClient
from playserve_services.auth.keys import parse_key
from playserve_services.control.pages.pictures import Picture, png
from playserve_services.control.repository.audit import SYSTEM
from playserve_services.control.repository.keys import revoke_key
from playserve_services.control.repository.replicas import Beat, heartbeat

DONE = "document.readyState === 'complete'"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving(["frames", "desktop"], "--policy", "screens=screen_policy:screens", "--admin-port", "0") as started:
        yield started


def register(context: Any, server: ServerProcess) -> None:
    with context.database.change() as session:
        beat = Beat(
            instance="one",
            address=server.address,
            admin_address=server.address_of("admin"),
            server_version="0.1",
            slots_total=8,
            slots_used=1,
            versions={},
            view_revision=0,
            draining=False,
        )
        heartbeat(session, SYSTEM, "real", beat)


def observation(spec: PolicySpec, seed: int) -> dict[str, Any]:
    if spec.inputs[0].name == "tty_chars":
        chars, colors = np.full((24, 80), 32, np.uint8), np.full((24, 80), 7, np.int8)
        chars[0, :13], chars[5, seed % 80], colors[5, seed % 80] = list(b"<b>Hello!</b>"), ord("@"), 15
        return {"tty_chars": chars, "tty_colors": colors, "tty_cursor": np.array([5, seed % 80], np.uint8)}
    random = np.random.default_rng(seed)
    return {
        tensor.name: random.integers(0, 255, [dim if dim > 0 else 8 for dim in tensor.shape], dtype=np.uint8)
        for tensor in spec.inputs
    }  # fmt: skip


@contextlib.contextmanager
def playing(server: ServerProcess, policy: str, *, watch: bool = True) -> Iterator[str]:
    """Play until the context ends; yield the id of the session."""
    stop, opened, ids = threading.Event(), threading.Event(), []

    def play() -> None:
        with contextlib.suppress(SessionClosedError):
            play_on()

    def play_on() -> None:
        with PolicyClient(server.address) as client, client.play(policy, consent=Consent(watch=watch)) as session:
            ids.append(session.session_id)
            opened.set()
            seed = 0
            while not stop.wait(0.03):
                seed += 1
                session.step(observation(session.spec, seed))

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    assert opened.wait(30)
    try:
        yield ids[0]
    finally:
        stop.set()
        thread.join(30)


@pytest.mark.parametrize("policy", ["frames", "desktop"])
def test_frames_come_with_what_was_done_on_them(open_site, server, browser, policy) -> None:
    site = open_site()
    register(site.context, server)
    browser.look("dark")
    with playing(server, policy) as session_id:
        browser.open(f"{site.url}/sessions", DONE)
        assert browser.run("document.querySelector('td a').textContent") == "Watch"
        browser.open(
            f"{site.url}/sessions/real/{session_id}", "Number(document.querySelector('.watch').dataset.drawn) > 3"
        )
        assert browser.run("document.querySelector('[data-image]').naturalWidth") > 7
        assert browser.run("document.querySelector('[data-action]').textContent") not in (
            "",
            "\N{EN DASH}",
            "no answer",
        )
        assert browser.run("document.querySelector('[data-overlay]').childElementCount") > 0
        first = browser.run("document.querySelector('[data-image]').src")
        browser.wait_for(f"document.querySelector('[data-image]').src !== {first!r}")
        step = int(browser.run("document.querySelector('[data-seq]').textContent"))
        browser.run("document.querySelector('[data-pause]').click()")
        browser.run("document.querySelector('[data-pause]').click()")
        browser.wait_for(f"Number(document.querySelector('[data-seq]').textContent) > {step}")
        assert browser.problems == []
    browser.wait_for("document.querySelector('.watch').dataset.over === 'yes'")
    assert "over" in browser.run("document.querySelector('[data-status]').textContent")


def test_screens_of_a_terminal_are_drawn_as_text(open_site, server, browser) -> None:
    site = open_site()
    register(site.context, server)
    browser.look("dark")
    with playing(server, "screens") as session_id:
        drawn = "Number(document.querySelector('.watch').dataset.drawn) > 3"
        browser.open(f"{site.url}/sessions/real/{session_id}", drawn)
        lines = browser.run("document.querySelector('[data-terminal]').textContent").split("\n")
        assert len(lines) == 25
        assert lines[0] == "<b>Hello!</b>".ljust(80)
        assert browser.run("document.querySelector('.tty .cursor').textContent") == "@"
        assert browser.run("getComputedStyle(document.querySelector('.tty .cursor')).color") == "rgb(255, 255, 255)"
        assert browser.run("document.querySelector('[data-action]').textContent") not in ("", "no answer")
        assert browser.problems == []


async def test_watching_is_audited_and_only_for_who_may(start_plane, server) -> None:
    with playing(server, "frames") as session_id, playing(server, "frames", watch=False) as private:
        async with start_plane() as plane:
            register(plane.context, server)
            plane.client.base_url = "http://127.0.0.1/dashboard"
            refused = await plane.client.get(f"/sessions/real/{private}/events")
            assert refused.status_code == 403
            assert "does not consent" in refused.text
            assert "nothing to see" in (await plane.client.get(f"/sessions/real/{private}")).text
            assert (await plane.client.get("/sessions/real/nobody/events")).status_code == 404
            assert "session.watched" not in (await plane.client.get("/audit")).text
        async with start_plane(require_keys=True) as plane:
            register(plane.context, server)
            plane.client.base_url = "http://127.0.0.1/dashboard"
            stream = {"Sec-Fetch-Dest": "empty"}  # as browsers ask for one
            assert (await plane.client.get(f"/sessions/real/{session_id}/events", headers=stream)).status_code == 401
            key = plane.key("play", principal="ann")["Authorization"].removeprefix("Bearer ")
            await plane.client.post("/sign-in", data={"key": key})
            assert (await plane.client.get(f"/sessions/real/{session_id}/events")).status_code == 404  # not hers


def test_what_is_watched_is_in_the_audit_and_ends_with_a_reason(open_site, server) -> None:
    site = open_site()
    register(site.context, server)
    with playing(server, "frames") as session_id, httpx.Client(base_url=site.url, timeout=60) as client:
        with client.stream("GET", f"/sessions/real/{session_id}/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            lines = answer.iter_lines()
            next(line for line in lines if line == "event: step")
            step = json.loads(next(lines).removeprefix("data: "))
            assert step["image"].startswith("data:image/png;base64,")
            end(server, session_id)
            next(line for line in lines if line == "event: over")
            assert json.loads(next(lines).removeprefix("data: "))["why"]
        assert "session.watched" in client.get("/audit").text


def test_who_signs_out_sees_no_more(open_site, server, monkeypatch) -> None:
    monkeypatch.setattr("playserve_services.control.pages.watching._CHECK_S", 0.1)
    site = open_site(require_keys=True)
    register(site.context, server)
    key = site.key("admin")
    with playing(server, "frames") as session_id, httpx.Client(base_url=site.url, timeout=60) as client:
        client.post("/sign-in", data={"key": key})
        with client.stream("GET", f"/sessions/real/{session_id}/events") as answer:
            lines = answer.iter_lines()
            next(line for line in lines if line == "event: step")
            with site.context.database.change() as session:
                revoke_key(session, SYSTEM, parse_key(key)[0])
            next(line for line in lines if line == "event: over")
            assert "not signed in" in next(lines)


def end(server: ServerProcess, session_id: str) -> None:
    import grpc

    from playserve.v1.admin_service_pb2_grpc import AdminServiceStub

    with grpc.insecure_channel(server.address_of("admin")) as channel:
        AdminServiceStub(channel).EndSession(ad.EndSessionRequest(session_id=session_id))


def spec_of(**inputs: dict[str, Any]) -> PolicySpec:
    message = pb.PolicySpec(
        name="p", version="1", kind=pb.POLICY_KIND_AGENT, action=pb.ActionSpec(discrete=pb.DiscreteActionSpec(n=2)),
        inputs=[pb.TensorSpec(name=name, **fields) for name, fields in inputs.items()],
    )  # fmt: skip
    return PolicySpec.from_proto(message)


def test_a_screen_of_a_terminal_is_runs_of_text() -> None:
    spec = spec_of(
        tty_chars={"dtype": pb.DTYPE_UINT8, "shape": [24, 80], "codecs": [pb.CODEC_LZ4]},
        tty_colors={"dtype": pb.DTYPE_INT8, "shape": [24, 80]},
        tty_cursor={"dtype": pb.DTYPE_UINT8, "shape": [2]},
    )
    chars = np.full((24, 80), 32, np.uint8)
    chars[3, :5] = list(b"@<b>|")
    colors = np.zeros((24, 80), np.int8)
    colors[3, 0] = 15
    arrays = {"tty_chars": chars, "tty_colors": colors, "tty_cursor": np.array([3, 0], np.uint8)}
    tensors = [encode(array, name, Codec.LZ4 if name == "tty_chars" else Codec.RAW) for name, array in arrays.items()]
    event = ad.WatchSessionResponse(
        step=ps.Step(seq=3, inputs=tensors), result=ps.StepResult(seq=3, actions=[pb.Action(index=1)])
    )
    value = Picture(spec).event(event)
    assert value["terminal"]["cursor"] == [3, 0]
    row = value["terminal"]["rows"][3]
    assert row[0] == ["@", 15, False]
    assert "".join(text for text, _, _ in row) == "@<b>|".ljust(80)
    assert value["actions"] == [{"name": "action 1"}]


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (4, 6, 4)])
def test_pictures_are_what_was_seen(shape: tuple[int, ...]) -> None:
    import base64
    import io

    from PIL import Image

    spec = spec_of(frame={"dtype": pb.DTYPE_UINT8, "shape": list(shape)})
    image = np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8)
    value = Picture(spec).event(ad.WatchSessionResponse(step=ps.Step(seq=1, inputs=[encode(image, "frame")])))
    assert (value["width"], value["height"]) == (6, 4)
    with Image.open(io.BytesIO(base64.b64decode(value["image"].partition(",")[2]))) as picture:
        shown = np.asarray(picture)
    assert np.array_equal(shown, image[:, :, -1] if shape[-1] == 4 else image)  # of a stack the newest
    assert value["actions"] == []


def test_of_a_world_what_it_shows_is_drawn_and_what_was_done_in_it_is_said() -> None:
    spec = world_spec(side=4)
    shown = ps.StepResult(seq=1, outputs=[encode(frame_of(spec, (1, 2)), "frame")])
    value = Picture(spec).event(ad.WatchSessionResponse(step=ps.Step(seq=1, action=pb.Action(index=4)), result=shown))
    assert (value["width"], value["height"]) == (4, 4)
    assert value["actions"] == [{"name": "RIGHT"}]
    silent = Picture(spec).event(ad.WatchSessionResponse(step=ps.Step(seq=2, action=pb.Action(index=0))))
    assert silent == {"seq": 2, "episode": 0, "actions": [{"name": "NOOP"}]}


def test_png_of_one_pixel() -> None:
    assert png(np.zeros((1, 1), np.uint8)).startswith(b"\x89PNG")
