"""Two replicas are restarted one after the other under 32 live games: no game is lost, no step, and no bit changes."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from contextlib import ExitStack
from typing import Any

import pytest
from contract_kit.servers import ServerProcess, serving
from handoff_kit import Game

from playserve.settings import Pace
from playserve_client.aio import PolicyClient

GAMES = 32
POLICIES = ("catch_up", "live")  # live's step is slow: some are in the device when their turn comes
PERIOD_S = 0.05


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def start(port: int, peer: int) -> Any:
    return serving(
        POLICIES, "--port", str(port), "--peers", f"127.0.0.1:{peer}", "--slots", str(GAMES), "--max-batch", "8",
        "--fixed-batch", "--detach-window-s", "4", "--drain-grace-s", "60",
    )  # fmt: skip


async def play_on(game: Game, over: asyncio.Event) -> None:
    while not over.is_set():
        await game.play(1)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), PERIOD_S)


async def steps_later(games: list[Game], steps: int, playing: asyncio.Future[Any]) -> None:
    """Wait until every game has gone on by so many steps."""
    wanted = [len(game.answers) + steps for game in games]
    while any(len(game.answers) < n for game, n in zip(games, wanted, strict=True)):
        if playing.done():
            playing.result()
        await asyncio.sleep(0.02)


async def drain(server: ServerProcess) -> int:
    """Ask a server to go; return how many sessions it handed over."""
    server.terminate()
    assert await asyncio.to_thread(server.wait) == 0, server.log()
    return sum(int(n) for n in re.findall(r"handed over (\d+) of", server.log()))


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_rolling_restart_loses_no_session_and_no_step() -> None:
    ports = [free_port(), free_port()]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    with ExitStack() as stack:
        first = await asyncio.to_thread(stack.enter_context, start(*ports))
        second = await asyncio.to_thread(stack.enter_context, start(*reversed(ports)))
        async with contextlib.AsyncExitStack() as players:
            clients = [await players.enter_async_context(PolicyClient(a, timeout_s=20.0)) for a in addresses]
            games = [
                await players.enter_async_context(Game(clients[n % 2], POLICIES[n // 2 % 2], Pace.LIVE, seed=n))
                for n in range(GAMES)
            ]
            over = asyncio.Event()
            playing = asyncio.gather(*(play_on(game, over) for game in games))
            await steps_later(games, 5, playing)
            assert await drain(first) == GAMES // 2
            await steps_later(games, 3, playing)
            await asyncio.to_thread(stack.enter_context, start(*ports))
            assert await drain(second) == GAMES
            await steps_later(games, 5, playing)
            over.set()
            await playing
            assert {game.session.address for game in games if game.session is not None} == {addresses[0]}
            ids = {game.session.session_id for game in games if game.session is not None}
            assert len(ids) == GAMES
        # Undisturbed, on the server that was started last.
        async with PolicyClient(addresses[0], timeout_s=20.0) as client:

            async def again(n: int, steps: int) -> list[Any]:
                async with Game(client, POLICIES[n // 2 % 2], Pace.LIVE, seed=n) as game:
                    await game.play(steps)
                    return game.answers

            wanted = await asyncio.gather(*(again(n, len(game.answers)) for n, game in enumerate(games)))
            assert [game.answers for game in games] == wanted
