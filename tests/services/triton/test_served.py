"""A front with sessions on a real Triton: what players get is what a server gives that computes by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tiny_p2p import POLICY
from triton_models import triton_server

from playserve.errors import PlayserveError, ServerUnavailableError, SessionNotFoundError
from playserve.settings import Extras, Pace
from playserve_client.aio import PolicyClient
from playserve_services.inference.app import InferenceServer
from playserve_services.inference.settings import ServeSettings
from playserve_services.triton.host import HostSettings
from playserve_services.triton.repository import export_batch

pytestmark = [pytest.mark.triton, pytest.mark.timeout(300)]


def _settings(store: Path, url: str = "", **more: Any) -> ServeSettings:
    engine = {"engine": "triton", "triton_url": url} if url else {}
    return ServeSettings(store=str(store), port=0, slots=4, **engine, **more)


async def _play(server: InferenceServer, seed: int, steps: int, version: str = "1") -> list[Any]:
    """Play in lockstep; return the actions, with their log-probabilities."""
    rng, found = np.random.default_rng(seed), []
    async with (
        PolicyClient(f"127.0.0.1:{server.port}") as client,
        client.play(
            POLICY, version=version, pace=Pace.LOCKSTEP, seed=seed, instruction="shoot", extras=Extras(log_prob=True)
        ) as session,
    ):
        name = session.spec.inputs[0].name
        for _ in range(steps):
            await session.send_step({name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)})
            result = await session.recv(30.0)
            found.append((result.action, result.log_prob))
    return found


async def test_players_get_what_a_server_gives_that_computes_by_itself(triton: str, tiny_store: Path) -> None:
    async with InferenceServer(_settings(tiny_store)) as own:
        expected = [await _play(own, seed, 12) for seed in (1, 2)]
    async with InferenceServer(_settings(tiny_store, triton)) as front:
        assert [await _play(front, seed, 12) for seed in (1, 2)] == expected
        assert len(front.core) == 0
        # Together they share batches, so that sums may be added in another order: actions are the same all the same.
        together = await asyncio.gather(_play(front, 1, 12), _play(front, 2, 12))
        assert [[action for action, _ in game] for game in together] == [[a for a, _ in game] for game in expected]


async def test_two_fronts_of_one_triton_do_not_meet(triton: str, tiny_store: Path) -> None:
    async with (
        InferenceServer(_settings(tiny_store, triton)) as left,
        InferenceServer(_settings(tiny_store, triton, triton_front=1)) as right,
    ):
        alone = await _play(left, 5, 8)
        both = await asyncio.gather(_play(left, 5, 8), _play(right, 6, 8))
        assert both[0] == alone


async def test_a_triton_that_dies_ends_the_sessions_with_a_typed_error(
    host_settings: HostSettings, tiny_store: Path, tmp_path: Path
) -> None:
    export_batch(host_settings, tmp_path / "models")
    with triton_server(tmp_path / "models") as address:
        server = InferenceServer(_settings(tiny_store, address))
        await server.__aenter__()
        client = PolicyClient(f"127.0.0.1:{server.port}")
        session = await client.play(POLICY, pace=Pace.LOCKSTEP).__aenter__()
        name = session.spec.inputs[0].name
        frame = np.zeros((32, 32, 3), np.uint8)
        await session.send_step({name: frame})
        await session.recv(30.0)

    async def play_on() -> None:
        while True:
            await session.send_step({name: frame})
            await session.recv(30.0)

    with pytest.raises(PlayserveError) as raised:
        await asyncio.wait_for(play_on(), 60)
    assert not isinstance(raised.value, SessionNotFoundError)
    assert server.core.engine_dead
    await client.close()
    await server.stop()


async def test_a_front_without_its_triton_does_not_start(tiny_store: Path) -> None:
    with pytest.raises(ServerUnavailableError, match="no Triton answers"):
        async with InferenceServer(_settings(tiny_store, "127.0.0.1:9")):
            pass
    with pytest.raises(ValidationError, match="one needs the other"):
        ServeSettings(engine="triton")
