"""Sessions go from one replica to another while their games go on; every answer is that of a game that stayed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from handoff_kit import FAMILIES, Game, frame_of, give, make, only, replica, replicas

from playserve.errors import (
    AccessDeniedError,
    DataLossError,
    DrainingError,
    LayoutMismatchError,
    NoFreeSlotError,
    PlayserveError,
    PolicyNotFoundError,
    SessionClosedError,
    TimeoutExceededError,
    from_rpc_error,
)
from playserve.settings import Consent, Pace, Sampling, VersionPolicy
from playserve.v1 import state_transfer_service_pb2 as st
from playserve.v1.state_transfer_service_pb2_grpc import StateTransferServiceStub
from playserve_client.aio import PolicyClient
from playserve_services.auth.keyring import KeyFile
from playserve_services.auth.keys import Quota, Scope, issue_key
from playserve_services.inference.app import InferenceServer
from playserve_services.inference.handoff import giving, receiving
from playserve_services.inference.handoff.exports import export_limit
from playserve_services.inference.sessions import SessionState

STEPS = 20


@pytest.fixture
def snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small memories go as large ones do: in a snapshot of many pieces, then what has changed."""
    monkeypatch.setattr(giving, "_AT_ONCE_BYTES", 0)
    monkeypatch.setattr(giving, "CHUNK_BYTES", 1500)


def client_of(server: InferenceServer, **options: Any) -> PolicyClient:
    return PolicyClient(f"127.0.0.1:{server.port}", timeout_s=20.0, **options)


async def until(condition: Callable[[], bool], look_s: float = 0.01) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what it waits for tells nobody
            await asyncio.sleep(look_s)


async def undisturbed(server: InferenceServer, policy: str, pace: Pace, **options: Any) -> list[Any]:
    async with client_of(server) as client, Game(client, policy, pace, **options) as game:
        await game.play(STEPS)
        return game.answers


@pytest.mark.parametrize("pace", [Pace.LOCKSTEP, Pace.LIVE])
@pytest.mark.parametrize("policy", sorted(FAMILIES))
@pytest.mark.parametrize("large", [False, True])
async def test_a_game_goes_on_bit_for_bit(policy: str, pace: Pace, large: bool, request: pytest.FixtureRequest) -> None:
    if large:
        request.getfixturevalue("snapshots")
    async with replicas(only(policy)) as (here, there):
        wanted = await undisturbed(here, policy, pace)
        async with client_of(here) as client, Game(client, policy, pace) as game:
            await game.play(3)
            assert game.session is not None
            moving = asyncio.create_task(give(here, game.session.session_id))
            await game.play(8)
            given = await moving
            assert game.session.address is None or game.session.address == f"127.0.0.1:{there.port}"
            await game.play(1)
            assert game.session.address == f"127.0.0.1:{there.port}"
            assert (len(here.core), len(there.core)) == (0, 1)
            await game.play(STEPS - len(game.answers))
            assert game.answers == wanted
            assert given.bytes_sent >= there.catalog.resolve(policy).pool.bytes_per_slot
        assert len(there.core) == 0


async def test_what_is_written_while_a_snapshot_goes_follows_it_while_the_game_goes_on(
    snapshots: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Telling(giving.Delta):
        def pack(self) -> tuple[bytes, str]:
            sizes.append(sum(len(data) for _, data in self.parts))
            return super().pack()

    sizes: list[int] = []
    monkeypatch.setattr(giving, "Delta", Telling)
    async with replicas(only("transformer")) as (here, _):
        wanted = await undisturbed(here, "transformer", Pace.LOCKSTEP)
        async with client_of(here) as client, Game(client, "transformer", Pace.LOCKSTEP) as game:
            await game.play(8)
            assert game.session is not None
            send = giving._Transfer._send

            async def slowly(*args: Any, **options: Any) -> None:
                if len(game.answers) - 8 < 2 + min(1, len(sizes)):  # two steps meanwhile, and then one more
                    await game.play(1)
                await send(*args, **options)

            monkeypatch.setattr(giving._Transfer, "_send", slowly)
            await give(here, game.session.session_id)
            await game.play(STEPS - len(game.answers))
            assert game.answers == wanted
    assert len(sizes) >= 2
    assert sizes == sorted(sizes, reverse=True)


async def test_there_and_back_at_every_other_step(snapshots: None) -> None:
    async with replicas(only("transformer")) as (here, there):
        wanted = await undisturbed(here, "transformer", Pace.LOCKSTEP)
        async with client_of(here) as client, Game(client, "transformer", Pace.LOCKSTEP) as game:
            assert game.session is not None
            source, target = here, there
            while len(game.answers) < STEPS:
                await game.play(2)
                await give(source, game.session.session_id, peers=f"127.0.0.1:{target.port}")
                source, target = target, source
            assert game.answers == wanted


async def test_what_a_session_is_goes_along(snapshots: None) -> None:
    async with replicas(only("p2p")) as (here, there), client_of(here) as client:
        settings = {"sampling": Sampling(temperature=0.5), "consent": Consent(watch=True), "rate_hz": 20.0}
        async with client.play("p2p", pace=Pace.LIVE, seed=3, instruction="go on", **settings) as session:
            before = here.core.find(session.session_id)
            await session.configure(instruction="stop here")
            before.steps, before.opened_ns = 41, before.opened_ns - 10**12
            was, token = before.settings, session.resume_token
            await give(here, session.session_id)
            after = there.core.find(session.session_id)
            assert after.settings == was
            assert (after.live, after.follow, after.rate_hz, after.steps) == (True, False, 20.0, 41)
            assert after.settings.watch
            assert abs(after.opened_ns - before.opened_ns) < 10**9
            assert after.resume_token != token
            await session.ping()
            assert session.opened.config_revision == 2
            assert after.state is SessionState.OPEN
        async with client.play("p2p", version_policy=VersionPolicy.FOLLOW) as follower:
            await give(here, follower.session_id)
            assert there.core.find(follower.session_id).follow


async def test_a_receiver_that_fails_leaves_the_game_where_it_is(
    monkeypatch: pytest.MonkeyPatch, snapshots: None
) -> None:
    async def lose(self: Any, commit: Any) -> None:
        raise DataLossError("as if a disk had failed")

    async def hang(self: Any, commit: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(giving, "_STILL_S", 0.2)
    async with replicas(only("p2p")) as (here, there):
        wanted = await undisturbed(here, "p2p", Pace.LIVE)
        async with client_of(here) as client, Game(client, "p2p", Pace.LIVE) as game:
            await game.play(2)
            assert game.session is not None
            for failure, error in ((lose, DataLossError), (hang, TimeoutExceededError)):
                monkeypatch.setattr(receiving._Taking, "_commit", failure)
                moving = asyncio.create_task(give(here, game.session.session_id))
                await game.play(7)
                with pytest.raises(error):
                    await moving
            await game.play(STEPS - len(game.answers))
            assert game.answers == wanted
            assert game.session.address is None
        await until(lambda: not there.catalog.resolve("p2p").pool.used)  # what was reserved is free again
        assert len(there.core) == 0


async def test_a_session_that_nobody_can_take_stays(snapshots: None) -> None:
    other = {"atari": lambda: make("lstm")}
    async with (
        replicas({"lstm": lambda: make("lstm"), "atari": lambda: make("atari")}, slots=1) as (here, full),
        replica(other) as stranger,
        client_of(here) as client,
        client_of(full) as elsewhere,
    ):
        to_stranger = {"peers": f"127.0.0.1:{stranger.port}"}
        async with client.play("lstm") as session, client.play("atari") as memoryless:
            async with elsewhere.play("lstm"):
                with pytest.raises(NoFreeSlotError):
                    await give(here, session.session_id)
            with pytest.raises(PolicyNotFoundError):
                await give(here, session.session_id, **to_stranger)
            with pytest.raises(LayoutMismatchError):
                await give(here, memoryless.session_id, **to_stranger)
            full.core.start_drain()
            with pytest.raises(DrainingError):
                await give(here, session.session_id)
            assert {s.state for s in here.core.sessions()} == {SessionState.OPEN}
            assert await session.ping() >= 0


async def test_a_stream_that_is_lost_meanwhile_is_answered_when_the_transfer_has_ended(
    monkeypatch: pytest.MonkeyPatch, snapshots: None
) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()
    commit = receiving._Taking._commit

    async def slowly(self: Any, message: Any) -> None:
        reached.set()
        await go_on.wait()
        await commit(self, message)

    monkeypatch.setattr(receiving._Taking, "_commit", slowly)
    async with replicas(only("transformer")) as (here, there), client_of(here) as client:
        game = await Game(client, "transformer", Pace.LOCKSTEP).__aenter__()
        await game.play(5)
        session = game.session
        assert session is not None
        moving = asyncio.create_task(give(here, session.session_id))
        await reached.wait()
        token = await session.detach()
        resumed = asyncio.create_task(client.resume(token).__aenter__())
        await until(lambda: here.core.find(session.session_id).on_moved is None)
        assert here.core.find(session.session_id).state is SessionState.MOVING
        assert not resumed.done()
        go_on.set()
        await moving
        game.session = await resumed
        assert game.session.address == f"127.0.0.1:{there.port}"
        await game.play(STEPS - len(game.answers))
        await game.session.close()
        assert game.answers == await undisturbed(here, "transformer", Pace.LOCKSTEP)


async def test_a_detached_session_moves_too_and_a_rollout_does_not() -> None:
    async with replicas(only("lstm")) as (here, there), client_of(here) as client, client.rollout("lstm", 2):
        session = await client.play("lstm")
        token = await session.detach()
        await give(here, session.session_id)
        assert there.core.find(session.session_id).state is SessionState.DETACHED
        async with client.resume(token) as again:
            assert again.address == f"127.0.0.1:{there.port}"
        (rollout,) = here.core.sessions()
        with pytest.raises(PlayserveError, match="a rollout and cannot move"):
            await give(here, rollout.session_id)
        assert rollout.state is SessionState.OPEN


async def test_a_session_that_is_closed_meanwhile_is_nobody_s(monkeypatch: pytest.MonkeyPatch, snapshots: None) -> None:
    async with replicas(only("p2p")) as (here, there), client_of(here) as client:
        session = await client.play("p2p")
        await session.step(frame_of(session.spec.inputs, seed=1, number=1))
        moving = asyncio.create_task(give(here, session.session_id))
        await until(lambda: here.core.find(session.session_id).state is SessionState.MOVING, 0.0)
        await session.close()
        with pytest.raises(SessionClosedError):
            await moving
        await until(lambda: not there.catalog.resolve("p2p").pool.used)
        assert (len(here.core), len(there.core)) == (0, 0)


# -- who may ----------------------------------------------------------------------------------------------------------


def _keys(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    secrets, keys = {}, []
    for name, scopes, quota in (
        ("alice", {Scope.PLAY}, Quota(sessions=1)),
        ("mallory", {Scope.PLAY, Scope.ROLLOUT, Scope.PUBLISH}, Quota()),
        ("fleet", {Scope.ADMIN}, Quota()),
    ):
        secrets[name], key = issue_key(name, frozenset(scopes), quota=quota)
        keys.append(key)
    file = KeyFile(tmp_path / "keys.json")
    file.change(lambda _: keys, missing_ok=True)
    return file.path, secrets


async def test_only_its_owner_follows_and_only_the_fleet_moves(tmp_path: Path) -> None:
    path, secrets = _keys(tmp_path)
    fleet_key = tmp_path / "fleet.key"
    fleet_key.write_text(secrets["fleet"] + "\n")
    stolen = tmp_path / "mallory.key"
    stolen.write_text(secrets["mallory"])
    async with (
        replicas(only("lstm"), keys=path) as (here, there),
        client_of(here, api_key=secrets["alice"]) as alice,
        client_of(there, api_key=secrets["alice"]) as alice_there,
        client_of(here, api_key=secrets["mallory"]) as mallory,
        client_of(there, api_key=secrets["mallory"]) as mallory_there,
        alice.play("lstm") as session,
        # Her key may have one session a server; the one that comes was let in elsewhere.
        alice_there.play("lstm"),
    ):
        token = session.resume_token
        with pytest.raises(AccessDeniedError, match="admin"):
            await give(here, session.session_id, peers_key_file=stolen)
        await give(here, session.session_id, peers_key_file=fleet_key)
        new_token = there.core.find(session.session_id).resume_token
        for thief, secret in ((mallory, token), (mallory_there, new_token)):
            with pytest.raises(AccessDeniedError):
                await thief.resume(secret)
        assert await session.ping() >= 0
        assert session.address == f"127.0.0.1:{there.port}"


# -- what is sent -----------------------------------------------------------------------------------------------------


async def _transfer(server: InferenceServer, *messages: st.TransferStateRequest) -> str:
    """Send messages; return how it ended: the last answer's kind, or the error's reason."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = StateTransferServiceStub(channel).TransferState()
        answer = None
        try:
            for message in messages:
                await call.write(message)
            await call.done_writing()
            async for response in call:
                answer = response
        except grpc.RpcError as error:
            return from_rpc_error(error).reason or "?"
        return "nothing" if answer is None else str(answer.WhichOneof("message"))


async def test_what_does_not_fit_or_is_damaged_is_refused_and_leaves_nothing() -> None:
    async with replica(only("lstm")) as server:
        policy = server.catalog.resolve("lstm")
        pool = policy.pool

        def header(**changes: Any) -> st.TransferStateRequest:
            fields = {
                "policy": "lstm", "version": "1", "state_layout": pool.digest, "state_bytes": pool.bytes_per_slot,
                "session_id": "5e5510", "principal": "anonymous",
            }  # fmt: skip
            return st.TransferStateRequest(header=st.StateHeader(**{**fields, **changes}))

        def chunk(offset: int, data: bytes, *, last: bool = False) -> st.TransferStateRequest:
            return st.TransferStateRequest(chunk=st.StateChunk(offset=offset, data=data, last=last))

        commit = st.TransferStateRequest(commit=st.StateCommit(last_seq=1, sha256=b"0" * 32))
        large = chunk(0, b"x" * (export_limit(pool) + 1))
        for messages, reason in (
            ([commit], "MALFORMED_MESSAGE"),
            ([header()], "MALFORMED_MESSAGE"),
            ([header(), header()], "MALFORMED_MESSAGE"),
            ([header(session_id="../x")], "MALFORMED_MESSAGE"),
            ([header(principal="")], "MALFORMED_MESSAGE"),
            ([header(policy="../lstm")], "POLICY_NOT_FOUND"),
            ([header(version="2")], "VERSION_NOT_FOUND"),
            ([header(state_layout="0")], "LAYOUT_MISMATCH"),
            ([header(state_bytes=1 << 60)], "LAYOUT_MISMATCH"),
            ([header(), chunk(5, b"x")], "MALFORMED_MESSAGE"),
            ([header(), large], "LAYOUT_MISMATCH"),
            ([header(), commit], "DATA_LOSS"),
            ([header(), chunk(0, b"x" * 100, last=True), commit], "DATA_LOSS"),
        ):
            assert await _transfer(server, *messages) == reason, messages
        assert pool.free == pool.capacity
        assert len(server.core) == 0
