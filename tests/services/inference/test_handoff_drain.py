"""A drain hands every game to a peer that has room for it; one that finds no place plays on until the grace is over."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from handoff_kit import Game, only, replica
from pydantic import ValidationError

from playserve.errors import DataLossError, SessionClosedError
from playserve.settings import Pace
from playserve_client.aio import PolicyClient
from playserve_services.inference.app import InferenceServer
from playserve_services.inference.handoff import draining, receiving
from playserve_services.inference.settings import ServeSettings

LSTM = only("lstm")


def client_of(server: InferenceServer, **options: Any) -> PolicyClient:
    return PolicyClient(address_of(server), timeout_s=20.0, **options)


def address_of(server: InferenceServer) -> str:
    return f"127.0.0.1:{server.port}"


def metric(server: InferenceServer, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"playserve_{name}", labels) or 0.0


async def test_a_drain_spreads_its_games_over_the_peers_by_their_free_slots() -> None:
    async with (
        replica(LSTM, slots=2) as small,
        replica(LSTM, slots=7) as large,
        replica(LSTM, slots=8, peers=f"{address_of(small)},{address_of(large)}", detach_window_s=4.0) as here,
        client_of(here) as client,
    ):
        games = [await Game(client, "lstm", Pace.LIVE, seed=n, reset_at=()).__aenter__() for n in range(7)]
        for game in games:
            await game.play(2)
        resting = await client.play("lstm", seed=7)
        await resting.detach()
        here.start_drain(grace_s=30.0)
        leaving = asyncio.create_task(here.drain())
        while len(here.core):
            for game in games:
                await game.play(1)
        assert not leaving.done(), "whoever asks for the session that was left is told where it is"
        assert len(here.core.moves) == 8
        await leaving
        places = Counter(game.session.address for game in games if game.session is not None)
        assert set(places) <= {address_of(small), address_of(large)}
        assert (len(small.core), len(large.core)) == (2, 6)
        for game in games:
            await game.play(2)
            assert game.session is not None
            await game.session.close()
        assert metric(here, "sessions_given_total", policy="lstm") == 8
        assert metric(here, "handoff_pause_seconds_count") == 8
        assert metric(here, "handoff_bytes_total") > 8 * here.catalog.resolve("lstm").pool.bytes_per_slot
        assert metric(here, "sessions_ended_total", policy="lstm", reason="moved") == 8
        assert metric(large, "sessions_taken_total", policy="lstm") == 6
        assert metric(large, "sessions_open", policy="lstm") == large.catalog.resolve("lstm").sessions


async def test_a_game_without_a_place_plays_on_until_the_grace_is_over_or_a_place_is_found() -> None:
    async with (
        replica(LSTM, slots=1) as there,
        replica(LSTM, peers=address_of(there), detach_window_s=0.2) as here,
        client_of(here) as client,
        client_of(there) as elsewhere,
    ):
        taken = await elsewhere.play("lstm")
        game = await Game(client, "lstm", Pace.LOCKSTEP, reset_at=()).__aenter__()
        here.start_drain(grace_s=30.0)
        leaving = asyncio.create_task(here.drain())
        await game.play(1)
        await asyncio.sleep(0.7)  # a round finds no place
        await game.play(1)
        assert game.session is not None
        assert game.session.address is None
        await taken.close()
        while len(here.core):
            await game.play(1)
            await asyncio.sleep(0.02)
        await game.play(1)
        assert game.session.address == address_of(there)
        await game.session.close()
        await leaving


async def test_peers_are_found_by_a_name_and_those_that_do_not_answer_are_passed_over() -> None:
    async with (
        replica(LSTM) as there,
        replica(LSTM, peers="127.0.0.1:1", peers_dns=f"localhost:{there.port}", detach_window_s=0.2) as here,
        client_of(here) as client,
    ):
        game = await Game(client, "lstm", Pace.LOCKSTEP, reset_at=()).__aenter__()
        await game.play(2)
        here.start_drain(grace_s=30.0)
        await here.drain()
        await game.play(2)
        assert game.session is not None
        assert game.session.address == address_of(there)
        await game.session.close()


async def test_without_peers_a_drain_is_what_it_was() -> None:
    async with replica(LSTM) as here, client_of(here) as client:
        session = await client.play("lstm")
        here.start_drain(grace_s=0.2)
        await here.drain()
        assert len(here.core) == 1
        here.core.end_all()
        with pytest.raises(SessionClosedError):
            await session.ping()


async def test_a_peer_that_fails_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def lose(self: Any, commit: Any) -> None:
        asked.append(commit)
        raise DataLossError("as if a disk had failed")

    monkeypatch.setattr(receiving._Taking, "_commit", lose)
    monkeypatch.setattr(draining, "_ROUND_S", 0.01)
    async with replica(LSTM) as there, replica(LSTM, peers=address_of(there)) as here, client_of(here) as client:
        game = await Game(client, "lstm", Pace.LOCKSTEP, reset_at=()).__aenter__()
        here.start_drain(grace_s=30.0)
        leaving = asyncio.create_task(here.drain())
        while metric(here, "handoffs_failed_total", policy="lstm", reason="DATA_LOSS") < 3:
            await game.play(1)
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        await game.play(1)
        assert len(asked) == 3
        assert metric(there, "takeovers_failed_total", reason="DATA_LOSS") == 3
        assert game.session is not None
        await game.session.close()
        await leaving


async def test_the_end_of_the_grace_stops_what_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(self: Any, commit: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(receiving._Taking, "_commit", hang)
    async with replica(LSTM) as there, replica(LSTM, peers=address_of(there)) as here, client_of(here) as client:
        game = await Game(client, "lstm", Pace.LOCKSTEP, reset_at=()).__aenter__()
        here.start_drain(grace_s=0.5)
        await here.drain()
        await game.play(3)  # it stays, and goes on
        assert game.session is not None
        await game.session.close()


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"peers": "a"}, "peer 'a', wanted HOST:PORT"),
        ({"peers": "a:0"}, "wanted HOST:PORT"),
        ({"peers_dns": "a:b"}, "wanted HOST:PORT"),
        ({"peers_key_file": Path("k")}, "neither peers nor peers_dns"),
        ({"peers": "10.0.0.1:1", "peers_key_file": Path("k")}, "in plain text"),
        ({"peers_dns": "a:1", "peers_key_file": Path("k")}, "in plain text"),
        ({"peers": "a:1", "peers_ca": Path("k")}, "tls_cert is not"),
        ({"peers": "a:1", "peers_name": "k"}, "tls_cert is not"),
    ],
)
def test_settings_that_say_nothing_or_too_much(settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        ServeSettings(**settings)


def test_settings_of_peers() -> None:
    assert ServeSettings(peers="a:1, [::1]:2,").peer_addresses == ("a:1", "[::1]:2")
    assert ServeSettings(peers="127.0.0.1:1", peers_key_file=Path("k")).peers_key_file == Path("k")
    assert ServeSettings(advertise="a:1").advertise == "a:1", "a receiver tells it, with or without a registry"
