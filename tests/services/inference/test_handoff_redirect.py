"""A server that is told to sends a player on whom it has no room for; both clients follow, once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from handoff_kit import only, replica
from pydantic import ValidationError
from twins import client, opened, settle

from playserve.errors import DrainingError, NoFreeSlotError
from playserve_services.inference.app import InferenceServer
from playserve_services.inference.settings import ServeSettings

LSTM = only("lstm")


def address_of(server: InferenceServer) -> str:
    return f"127.0.0.1:{server.port}"


@pytest.mark.parametrize("resume", [True, False])
async def test_a_full_server_names_one_that_has_room(resume: bool) -> None:
    async with (
        replica(LSTM, slots=1) as there,
        replica(LSTM, slots=1, peers=address_of(there), redirect=True) as here,
        client("aio", address_of(here), timeout_s=20.0) as c,
    ):
        async with opened(c.play("lstm")) as first, opened(c.play("lstm", seed=4, resume=resume)) as second:
            assert (first.address, second.address) == (None, address_of(there))
            assert second.seed == 4
            assert not second.opened.resumed
            assert await second.ping() >= 0
            with pytest.raises(NoFreeSlotError):
                await c.play("lstm")
        assert here.metrics.registry.get_sample_value("playserve_opens_redirected_total", {"policy": "lstm"}) == 1


async def test_the_sync_client_follows_too() -> None:
    async with (
        replica(LSTM) as there,
        replica(LSTM, peers=address_of(there), redirect=True) as here,
    ):
        here.core.start_drain()

        def play() -> Any:
            from playserve_client import PolicyClient

            with PolicyClient(address_of(here), timeout_s=20.0) as c, c.play("lstm", seed=4) as session:
                return session.address, session.seed

        assert await asyncio.to_thread(play) == (address_of(there), 4)


async def test_without_the_setting_or_a_peer_with_room_the_refusal_stands() -> None:
    async with (
        replica(only("atari")) as stranger,
        replica(LSTM, peers=address_of(stranger), redirect=True) as here,
        replica(LSTM, peers=address_of(stranger)) as silent,
    ):
        for server in (here, silent):
            server.core.start_drain()
            async with client("aio", address_of(server), timeout_s=20.0) as c:
                with pytest.raises(DrainingError):
                    await settle(c.play("lstm"))


def test_it_needs_somebody_to_name() -> None:
    with pytest.raises(ValidationError, match="redirect is set"):
        ServeSettings(redirect=True)
    assert ServeSettings(redirect=True, peers_dns="a:1").redirect
