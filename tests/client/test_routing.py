"""A client that is given several servers: it opens on the one with most free slots, then on the next."""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twins import client, opened, settle

from playserve.errors import (
    BadSettingError,
    DrainingError,
    NoFreeSlotError,
    NotReadyError,
    PlayserveError,
    PolicyNotFoundError,
    ServerUnavailableError,
    SessionNotFoundError,
)
from playserve.testing import FakePolicyServer
from playserve.v1 import types_pb2 as pb
from playserve_client.routing import free_slots, ranked, split_addresses, try_elsewhere

FRAME = np.zeros((2, 2, 3), np.uint8)


@pytest.fixture(params=["sync", "aio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def servers() -> Iterator[tuple[FakePolicyServer, FakePolicyServer]]:
    with (
        FakePolicyServer({"one": lambda inputs, context: 1}, slots=3) as small,
        FakePolicyServer({"one": lambda inputs, context: 2}, slots=5) as large,
    ):
        yield small, large


def nobody() -> str:
    """Return an address at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{sock.getsockname()[1]}"


def both(servers: Any) -> str:
    return ",".join(server.address for server in servers)


async def test_sessions_go_where_most_slots_are_free(kind: str, servers: Any) -> None:
    small, large = servers
    async with client(kind, both(servers)) as c:
        sessions = [await settle(c.play("one")) for _ in range(4)]
        assert [s.address for s in sessions[:2]] == [large.address] * 2, "5 and 4 are more than 3"
        assert {s.address for s in sessions[2:]} == {small.address, large.address}, "3 and 3, then the other one"
        for session in sessions:
            wanted = 1 if session.address == small.address else 2
            assert await settle(session.step(FRAME)) == wanted
            # Where its stream is lost, the session is resumed where it lives.
            (small if wanted == 1 else large).drop_stream_after(1)
            assert [await settle(session.step(FRAME)) for _ in range(2)] == [wanted] * 2


async def test_a_server_that_is_full_or_away_is_passed_over(kind: str, servers: Any) -> None:
    small, large = servers
    async with client(kind, [nobody(), small.address, large.address]) as c:
        sessions = [await settle(c.play("one")) for _ in range(8)]
        assert Counter(s.address for s in sessions) == {small.address: 3, large.address: 5}
        with pytest.raises(PlayserveError) as refused:
            await settle(c.play("one"))
        assert isinstance(refused.value, NoFreeSlotError | ServerUnavailableError)
        large.stop()
        await settle(sessions[-1].close())
        for session in sessions:
            if session.address == small.address:
                await settle(session.close())
                break
        async with opened(c.play("one")) as session:
            assert session.address == small.address
        assert [p.spec.name for p in await settle(c.list_policies())] == ["one"]
        await settle(c.wait_ready(5.0, policy="one"))


async def test_what_no_other_server_would_take_is_said_at_once(kind: str, servers: Any) -> None:
    async with client(kind, both(servers)) as c:
        with pytest.raises(PolicyNotFoundError):
            await settle(c.play("two"))
        assert [name for server in servers for name, _ in server.calls()].count("Play") == 1


async def test_rollouts_too(kind: str, servers: Any) -> None:
    async with client(kind, both(servers)) as c:
        async with opened(c.rollout("one", 4)) as rollout:
            await settle(rollout.send([0], [0], FRAME[None]))
            assert (await settle(rollout.recv())).actions.tolist() == [2]
            async with opened(c.rollout("one", 3)) as other:
                await settle(other.send([0], [0], FRAME[None]))
                assert (await settle(other.recv())).actions.tolist() == [1]
            with pytest.raises(NoFreeSlotError):
                await settle(c.rollout("one", 4))


async def test_a_token_finds_its_session_on_any_of_them(kind: str, servers: Any) -> None:
    small, _ = servers
    async with client(kind, both(servers)) as c, client(kind, small.address) as direct:
        session = await settle(direct.play("one"))
        await settle(session.step(FRAME))
        token = await settle(session.detach())
        async with opened(c.resume(token)) as again:
            assert again.address == small.address
            assert await settle(again.step(FRAME)) == 1
        with pytest.raises(SessionNotFoundError):
            await settle(c.resume(token))


def test_addresses() -> None:
    assert split_addresses("a:1") == ("a:1",)
    assert split_addresses("a:1, b:2,a:1") == ("a:1", "b:2")
    assert split_addresses(["a:1", "b:2"]) == ("a:1", "b:2")
    assert split_addresses("ipv4:1.2.3.4:5,1.2.3.5:5") == ("ipv4:1.2.3.4:5,1.2.3.5:5",), "gRPC's own list"
    for wrong in ("", "a:1,", ",", []):
        with pytest.raises(BadSettingError):
            split_addresses(wrong)


def test_the_free_slots_that_count_are_those_of_what_is_opened() -> None:
    listed = [
        pb.PolicySpec(name="one", version="3", slots_free=2),
        pb.PolicySpec(name="one", version="2", slots_free=7, aliases=["stable"]),
        pb.PolicySpec(name="one-more", version="9", slots_free=99),
    ]
    assert [free_slots(listed, "one", v) for v in ("", "3", "stable", "4")] == [7, 2, 7, 0]
    assert free_slots(listed, "other", "") == 0


@given(free=st.dictionaries(st.text(min_size=1), st.none() | st.integers(0, 5), min_size=1), seed=st.integers())
def test_most_free_slots_come_first_and_the_silent_last(free: dict[str, int | None], seed: int) -> None:
    order = ranked(free, random.Random(seed))
    assert sorted(order) == sorted(free)
    told = [free[target] for target in order if free[target] is not None]
    assert told == sorted(told, key=lambda slots: -(slots or 0))
    assert all(free[target] is None for target in order[len(told) :])


def test_equal_servers_share_the_players() -> None:
    chance = random.Random(1)
    first = Counter(ranked({"a": 3, "b": 3, "c": 1}, chance)[0] for _ in range(400))
    assert set(first) == {"a", "b"}
    assert min(first.values()) > 140


def test_which_refusals_are_worth_another_server() -> None:
    for error in (NoFreeSlotError("x"), DrainingError("x"), NotReadyError("x"), ServerUnavailableError("x")):
        assert try_elsewhere(error, resuming=False)
    assert not try_elsewhere(PolicyNotFoundError("x"), resuming=True)
    assert not try_elsewhere(SessionNotFoundError("x"), resuming=False)
    assert try_elsewhere(SessionNotFoundError("x"), resuming=True)
