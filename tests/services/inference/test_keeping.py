"""Server-side recording through the endpoint: who consents is recorded as they played, nobody else is, games go on."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from desktop_policy import DesktopPolicy

from playserve.actions import DesktopAction
from playserve.settings import ActionSource, Consent, Pace
from playserve.specs import ImageFormat, PolicySpec, TensorSpec
from playserve_client.aio import PolicyClient
from playserve_client.p2p.recording import Recording, Source, list_recordings, read_recording
from playserve_client.p2p.sidecar import read_sidecar
from playserve_client.p2p.video import VideoReader
from playserve_services.inference.app import InferenceServer
from playserve_services.inference.settings import ServeSettings

pytest.importorskip("av")

RECORDABLE = Consent(record=True)
HUMAN = DesktopAction(keys=frozenset({"KeyW"}), buttons=frozenset({0}), mouse_dx_px=7.0)


class SeeingPolicy(DesktopPolicy):
    """Sees colours."""

    def spec(self) -> PolicySpec:
        picture = TensorSpec(name="observation", dtype="uint8", shape=(16, 16, 3), image_format=ImageFormat.RGB8)
        return dataclasses.replace(super().spec(), inputs=(picture,))


def frame(brightness: int) -> Any:
    return np.full((16, 16, 3), brightness, np.uint8)


@asynccontextmanager
async def recording(folder: Path, policy: Any, **options: Any) -> AsyncIterator[tuple[InferenceServer, PolicyClient]]:
    settings = ServeSettings(port=0, record_sessions=folder, **options)
    async with (
        InferenceServer(settings, {"desktop": lambda: policy}) as server,
        PolicyClient(f"127.0.0.1:{server.port}", timeout_s=20.0) as client,
    ):
        yield server, client


def recorded(folder: Path) -> list[Recording]:
    return [read_recording(path) for path in list_recordings(folder)] if folder.exists() else []


def value(server: InferenceServer, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"playserve_{name}", labels) or 0.0


async def live(session: Any, count: int, first: int = 1, action: DesktopAction = HUMAN, **options: Any) -> None:
    """Play frames that a person plays."""
    for seq in range(first, first + count):
        at_ns = 1_000_000_000 + seq * 50_000_000
        await session.send_step(frame(seq % 200), observe_only=True, capture_time_ns=at_ns, **options)
        await session.executed(seq, action, ActionSource.HUMAN)


async def test_a_persons_game_is_recorded_as_it_was_played(tmp_path: Path) -> None:
    async with recording(tmp_path, SeeingPolicy(rate_hz=20.0)) as (server, client):
        async with client.play("desktop", pace=Pace.LIVE, consent=RECORDABLE, instruction="take the red") as session:
            await live(session, 40)
            session_id = session.session_id
        async with client.play("desktop", pace=Pace.LIVE) as shy:  # nobody asked for it
            await live(shy, 40)
    [kept] = recorded(tmp_path)
    assert len(kept.frames) == 40
    assert [entry.source for entry in kept.frames] == [Source.UNKNOWN] + [Source.USER] * 39
    assert {entry.action for entry in kept.frames[1:]} == {HUMAN}
    assert [entry.time_ns for entry in kept.frames[:3]] == [0, 50_000_000, 100_000_000]
    assert [(of.text, of.start_frame, of.num_frames) for of in kept.instructions] == [("take the red", 0, 40)]
    assert kept.metadata.env == "desktop"
    with VideoReader(kept.path / "16x16.mp4") as video:
        shown = np.stack(list(video.frames(0, 40))).mean((1, 2, 3))
    np.testing.assert_allclose(shown, np.arange(1, 41), atol=3)
    sidecar = read_sidecar(kept.path)
    assert sidecar is not None
    assert sidecar.episode["session"] == session_id
    assert value(server, "recorded_frames_total") == 40
    assert value(server, "sessions_recorded") == 0


async def test_a_policys_game_in_lockstep_is_recorded_with_its_answers(tmp_path: Path) -> None:
    async with (
        recording(tmp_path, SeeingPolicy()) as (_, client),
        client.play("desktop", consent=RECORDABLE, seed=1) as session,
    ):
        answers = [await session.step(frame(i)) for i in range(30)]
    [kept] = recorded(tmp_path)
    assert [entry.source for entry in kept.frames] == [Source.UNKNOWN] + [Source.SYSTEM] * 29
    assert [entry.action.keys for entry in kept.frames[1:]] == [answer.keys for answer in answers[:-1]]


async def test_consent_that_is_taken_back_ends_it_and_episodes_are_recordings_of_their_own(tmp_path: Path) -> None:
    async with (
        recording(tmp_path, SeeingPolicy(rate_hz=20.0)) as (server, client),
        client.play("desktop", pace=Pace.LIVE, consent=RECORDABLE) as session,
    ):
        await live(session, 25)
        await session.reset()
        await live(session, 30, first=26)
        await session.configure(consent=Consent())
        await live(session, 35, first=56)
        async with asyncio.timeout(20):
            while len(recorded(tmp_path)) < 2:  # noqa: ASYNC110 - a thread writes them
                await asyncio.sleep(0.05)
        assert value(server, "sessions_recorded") == 0
    assert [len(kept.frames) for kept in recorded(tmp_path)] == [25, 30]


async def test_a_game_of_which_nothing_is_known_costs_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    async with (
        recording(tmp_path, SeeingPolicy(rate_hz=20.0)) as (server, client),
        client.play("desktop", pace=Pace.LIVE, consent=RECORDABLE) as session,
    ):
        for _ in range(50):
            await session.send_step(frame(1), observe_only=True)
        await session.ping()
        assert value(server, "recorded_frames_total") == 0
    assert recorded(tmp_path) == []


async def test_a_disk_that_takes_nothing_breaks_the_recording_off_and_not_the_game(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("no folder")
    async with (
        recording(folder, SeeingPolicy()) as (server, client),
        client.play("desktop", consent=RECORDABLE) as session,
    ):
        for i in range(30):
            await session.step(frame(i))
        async with asyncio.timeout(20):
            while not server.metrics.registry.get_sample_value(
                "playserve_recordings_failed_total", {"reason": "NotADirectoryError"}
            ):
                await session.step(frame(1))
                await asyncio.sleep(0.02)
        await session.step(frame(9))


async def test_what_the_format_cannot_hold_is_not_recorded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        recording(tmp_path, DesktopPolicy()) as (server, client),
        client.play("desktop", consent=RECORDABLE) as session,
    ):
        for _ in range(3):
            await session.step(np.zeros((8, 8), np.uint8))
        assert value(server, "recordings_failed_total", reason="refused") == 1
    assert "does not see one picture" in caplog.text
    assert not os.listdir(tmp_path)
