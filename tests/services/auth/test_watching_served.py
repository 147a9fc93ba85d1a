"""Watching over real gRPC: who may, what they see, when it ends, and that the player feels nothing of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from playserve.errors import AccessDeniedError, QuotaExceededError, SessionNotFoundError, from_rpc_error
from playserve.settings import Consent, Pace
from playserve.v1 import admin_service_pb2 as ad
from playserve.v1 import admin_service_pb2_grpc
from playserve_client.aio import PolicyClient
from playserve_services.auth.keyring import KeyFile
from playserve_services.auth.keys import Scope, issue_key

FRAME = np.arange(64, dtype=np.uint8).reshape(8, 8)
WATCHABLE = Consent(watch=True)
Keys = dict[str, str]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Keys]:
    """Return a key file and the keys of a player, of another one and of an operator."""
    file, texts = KeyFile(tmp_path / "keys.json"), {}
    for name, scope in (("ann", Scope.PLAY), ("bob", Scope.PLAY), ("root", Scope.ADMIN)):
        texts[name], kept = issue_key(name, frozenset({scope}))
        file.change(lambda old, kept=kept: [*old, kept], missing_ok=True)
    return file.path, texts


@asynccontextmanager
async def operator(server: Any, key: str) -> AsyncIterator[Callable[[str], Any]]:
    """Yield what begins to watch a session."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.admin_port}") as channel:
        stub = admin_service_pb2_grpc.AdminServiceStub(channel)
        metadata = (("authorization", f"Bearer {key}"),)
        yield lambda session_id: stub.WatchSession(ad.WatchSessionRequest(session_id=session_id), metadata=metadata)


def player(server: Any, key: str) -> PolicyClient:
    return PolicyClient(f"127.0.0.1:{server.port}", api_key=key, timeout_s=20.0)


async def refusal(call: Any) -> Exception:
    with pytest.raises(grpc.RpcError) as caught:
        async for _ in call:
            pass
    return from_rpc_error(caught.value)


async def watched(server: Any, count: int = 1) -> None:
    async with asyncio.timeout(20):
        while len(server.watching) != count:  # noqa: ASYNC110 - of another task of this loop
            await asyncio.sleep(0.01)


async def test_an_operator_sees_frames_and_answers_of_who_has_consented(
    serve: Any, keys: tuple[Path, Keys], caplog: pytest.LogCaptureFixture
) -> None:
    path, key = keys
    caplog.set_level(logging.INFO, "playserve.audit")
    async with serve(keys=path, admin_port=0) as server, operator(server, key["root"]) as watch:
        async with player(server, key["ann"]) as client:
            session = await client.play("turns", consent=WATCHABLE)
            await session.step(FRAME)  # before anybody watches
            call = watch(session.session_id)
            await watched(server)
            answer = await session.step(FRAME + 1)
            event = await call.read()
            assert event.step.inputs[0].data == (FRAME + 1).tobytes()
            assert (event.step.seq, event.result.seq) == (2, 2)
            assert event.result.actions[0].index == answer
            await session.close()
        assert await call.read() == grpc.aio.EOF, "the watch ends with the session"
        await watched(server, 0)
        assert server.metrics.registry.get_sample_value("playserve_session_watchers") == 0
    audit = [record.getMessage() for record in caplog.records if record.name == "playserve.audit"]
    assert audit[0] == f"root watches session {session.session_id} of ann"
    assert audit[1].startswith(f"root no longer watches session {session.session_id} of ann; 0 events")


async def test_nobody_is_watched_without_consent_or_by_strangers(serve: Any, keys: tuple[Path, Keys]) -> None:
    path, key = keys
    async with serve(keys=path, admin_port=0) as server, player(server, key["ann"]) as client:
        shy, open_ = await client.play("turns"), await client.play("turns", consent=WATCHABLE)
        async with operator(server, key["root"]) as watch:
            error = await refusal(watch(shy.session_id))
            assert isinstance(error, AccessDeniedError)
            assert "does not consent" in str(error)
            assert isinstance(await refusal(watch("nobody")), SessionNotFoundError)
        async with operator(server, key["bob"]) as watch:
            error = await refusal(watch(open_.session_id))
            assert isinstance(error, AccessDeniedError)
            assert "somebody else" in str(error)
        async with operator(server, key["ann"]) as watch:  # her own
            call = watch(open_.session_id)
            await watched(server)
            await open_.step(FRAME)
            assert (await call.read()).step.seq == 1
        await shy.step(FRAME)


async def test_consent_that_is_taken_back_ends_the_watching(serve: Any, keys: tuple[Path, Keys]) -> None:
    path, key = keys
    async with (
        serve(keys=path, admin_port=0) as server,
        player(server, key["ann"]) as client,
        operator(server, key["root"]) as watch,
    ):
        session = await client.play("turns", consent=WATCHABLE)
        call = watch(session.session_id)
        await watched(server)
        await session.configure(consent=Consent())
        await session.step(FRAME)
        error = await refusal(call)
        assert isinstance(error, AccessDeniedError)
        await session.step(FRAME)


async def test_a_watcher_who_does_not_read_costs_the_player_nothing_and_misses_events(
    serve: Any, keys: tuple[Path, Keys]
) -> None:
    path, key = keys
    async with (
        serve(keys=path, admin_port=0) as server,
        player(server, key["ann"]) as client,
        operator(server, key["root"]) as watch,
    ):
        session = await client.play("turns", consent=WATCHABLE)
        with server.watching.watch(server.core.find(session.session_id)) as idle:
            calls = [watch(session.session_id) for _ in range(7)]
            await watched(server, 8)
            for _ in range(100):
                await session.step(FRAME)
            assert idle.left_out == 92
            assert isinstance(await refusal(watch(session.session_id)), QuotaExceededError)
        for call in calls:
            call.cancel()


async def test_live_steps_without_answers_are_shown_too(serve: Any, keys: tuple[Path, Keys]) -> None:
    path, key = keys
    async with (
        serve(keys=path, admin_port=0) as server,
        player(server, key["ann"]) as client,
        operator(server, key["root"]) as watch,
    ):
        session = await client.play("live", pace=Pace.LIVE, consent=WATCHABLE)
        call = watch(session.session_id)
        await watched(server)
        await session.send_step(FRAME, observe_only=True)
        event = await call.read()
        assert event.step.observe_only
        assert not event.HasField("result")


async def test_who_shows_nothing_is_nobodys_owner(serve: Any, keys: tuple[Path, Keys]) -> None:
    path, _ = keys
    async with serve(keys=path, anonymous=True, admin_port=0) as server:
        async with PolicyClient(f"127.0.0.1:{server.port}", timeout_s=20.0) as client:
            session = await client.play("turns", consent=WATCHABLE)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.admin_port}") as channel:
                stub = admin_service_pb2_grpc.AdminServiceStub(channel)
                assert isinstance(
                    await refusal(stub.WatchSession(ad.WatchSessionRequest(session_id=session.session_id))),
                    AccessDeniedError,
                )
