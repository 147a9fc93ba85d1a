"""A session that is handed to another server: both clients follow, whatever becomes of the stream meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from twins import client, opened, settle

from playserve.codec import Action
from playserve.errors import (
    AccessDeniedError,
    NoFreeSlotError,
    PolicyNotFoundError,
    SessionNotFoundError,
    StateError,
)
from playserve.testing import FakePolicyServer, StepContext
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve_client.session_core import SessionCore

FRAME = np.zeros((2, 2, 3), np.uint8)


def count(inputs: dict[str, Any], context: StepContext) -> Action:
    """The number of steps in the memory."""
    context.state["n"] = context.state.get("n", 0) + 1
    return int(context.state["n"])


@pytest.fixture(params=["sync", "aio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def servers() -> Iterator[tuple[FakePolicyServer, FakePolicyServer]]:
    with FakePolicyServer({"count": count}, slots=2) as here, FakePolicyServer({"count": count}, slots=2) as there:
        yield here, there


async def until(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to pass")


async def test_a_player_follows_its_session_and_stays_there(kind: str, servers: Any) -> None:
    here, there = servers
    async with client(kind, here.address) as c, opened(c.play("count")) as session:
        assert session.address is None
        assert [await settle(session.step(FRAME)) for _ in range(2)] == [1, 2]
        here.move_session(session.session_id, there)
        assert [await settle(session.step(FRAME)) for _ in range(2)] == [3, 4], "its memory went along"
        assert session.address == there.address
        assert (here.sessions(), there.sessions()) == ([], [session.session_id])
        # A stream that is lost now is resumed where the session lives, not where it began.
        there.drop_stream_after(1)
        assert [await settle(session.step(FRAME)) for _ in range(2)] == [5, 6]
        assert [name for name, _ in here.calls()].count("Play") == 1
        here.stop()
        assert await settle(session.step(FRAME)) == 7
    assert there.sessions() == []


async def test_steps_in_flight_go_along(kind: str, servers: Any) -> None:
    here, there = servers
    here.set_delay(0.1)
    async with client(kind, here.address) as c, opened(c.play("count")) as session:
        for _ in range(5):
            await settle(session.send_step(FRAME))
        await settle(session.recv())
        here.move_session(session.session_id, there)
        results = [await settle(session.recv()) for _ in range(4)]
        assert [(r.seq, r.action) for r in results] == [(2, 2), (3, 3), (4, 4), (5, 5)]


async def test_there_and_back_again(kind: str, servers: Any) -> None:
    here, there = servers
    async with client(kind, here.address) as c, opened(c.play("count")) as session:
        for n in range(1, 6):
            assert await settle(session.step(FRAME)) == n
            source, target = (here, there) if n % 2 else (there, here)
            source.move_session(session.session_id, target)
        assert await settle(session.step(FRAME)) == 6
        assert session.address == there.address


async def test_a_stream_that_is_lost_while_its_session_moves(kind: str, servers: Any) -> None:
    here, there = servers
    async with client(kind, here.address) as c, opened(c.play("count")) as session:
        await settle(session.step(FRAME))
        here.drop_stream_after(1)
        await settle(session.send_step(FRAME))
        assert (await settle(session.recv())).action == 2
        hand_off = here.begin_move(session.session_id)
        # It is resumed here, where it waits for the outcome, and is sent on.
        timer = threading.Timer(0.3, hand_off.commit, [there])
        timer.start()
        assert await settle(session.step(FRAME)) == 3
        timer.join()
        assert session.address == there.address


async def test_a_hand_off_that_fails_leaves_the_session_where_it_is(kind: str, servers: Any) -> None:
    here, there = servers
    async with client(kind, here.address) as c, opened(c.play("count")) as session:
        hand_off = here.begin_move(session.session_id)
        await settle(session.send_step(FRAME))
        hand_off.fail()
        assert (await settle(session.recv())).action == 1
        # The receiver may refuse, too.
        async with client(kind, there.address) as other:
            async with opened(other.play("count")), opened(other.play("count")):
                with pytest.raises(NoFreeSlotError):
                    here.move_session(session.session_id, there)
        with FakePolicyServer({"other": count}) as stranger, pytest.raises(PolicyNotFoundError):
            here.move_session(session.session_id, stranger)
        assert await settle(session.step(FRAME)) == 2
        assert session.address is None


async def test_a_token_of_before_the_move_leads_to_the_session(kind: str, servers: Any) -> None:
    here, there = servers
    async with client(kind, here.address) as c:
        session = await settle(c.play("count"))
        await settle(session.step(FRAME))
        token = await settle(session.detach())
        await until(lambda: here.sessions() == [session.session_id])
        here.move_session(session.session_id, there)
        async with opened(c.resume(token)) as again:
            assert again.opened.resumed
            assert again.address == there.address
            assert await settle(again.step(FRAME)) == 2
        # Who does not want to be resumed is not sent on either.
        with pytest.raises((StateError, SessionNotFoundError)):
            await settle(c.resume(token, resume=False))


async def test_only_its_owner_learns_where_a_session_lives(kind: str) -> None:
    with (
        FakePolicyServer({"count": count}, api_keys=["a", "b"]) as here,
        FakePolicyServer({"count": count}, api_keys=["a", "b"]) as there,
    ):
        async with client(kind, here.address, api_key="a") as alice, opened(alice.play("count")) as session:
            token = session.resume_token
            here.move_session(session.session_id, there)
            assert await settle(session.step(FRAME)) == 1
            async with client(kind, here.address, api_key="b") as bob:
                with pytest.raises(AccessDeniedError):
                    await settle(bob.resume(token))


async def test_a_session_that_has_ended_there_is_not_found(kind: str, servers: Any) -> None:
    here, there = servers
    async with client(kind, here.address) as c, opened(c.play("count")) as session:
        there.stop()
        hand_off = here.begin_move(session.session_id)
        hand_off.commit(there)
        there.restart()
        with pytest.raises(SessionNotFoundError):
            await settle(session.step(FRAME))


async def test_a_name_that_no_header_can_hold_is_the_server_s_to_refuse(kind: str, servers: Any) -> None:
    async with client(kind, servers[0].address) as c:
        for name in ("größe", "a\nb", "\x00"):
            with pytest.raises(PolicyNotFoundError):
                await settle(c.play(name))
            with pytest.raises(PolicyNotFoundError):
                await settle(c.get_policy(name))


def test_servers_that_send_a_player_round_in_circles() -> None:
    core = SessionCore(ps.Open(resume_token=b"1"), (), pb.ClientInfo())
    for n in range(8):
        core.on_response(ps.PlayResponse(moved=ps.Moved(address=f"host:{n}", resume_token=b"%d" % n)))
        assert (core.moved, core.address) == (True, f"host:{n}")
        assert core.open_request().open.resume_token == b"%d" % n
    with pytest.raises(StateError, match="moved 9 times"):
        core.on_response(ps.PlayResponse(moved=ps.Moved(address="host:9", resume_token=b"9")))


async def test_what_balancers_need_is_in_the_metadata_of_every_stream(kind: str, servers: Any) -> None:
    here, _ = servers
    async with client(kind, here.address) as c:
        async with opened(c.play("count")) as session, opened(c.play("count")) as other:
            here.drop_stream_after(1)
            await settle(session.step(FRAME))
            await settle(session.step(FRAME))
            await settle(c.get_policy("count"))
            route, other_route = session.route, other.route
        token = session.resume_token
        with pytest.raises(SessionNotFoundError):
            await settle(c.resume(token, route=route))
        async with opened(c.rollout("count", 1)):
            pass
    plays = [metadata for name, metadata in here.calls() if name == "Play"]
    assert [m.get("playserve-policy") for m in plays] == ["count", "count", "count", None]
    assert [m.get("playserve-route") for m in plays] == [route, other_route, route, route]
    assert len({route, other_route}) == 2
    (rollout,) = (metadata for name, metadata in here.calls() if name == "Rollout")
    assert rollout["playserve-policy"] == "count"
    assert rollout["playserve-route"] not in (route, other_route, "")
    (get,) = (metadata for name, metadata in here.calls() if name == "GetPolicy")
    assert get["playserve-policy"] == "count"
