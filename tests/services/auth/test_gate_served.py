"""A real server behind its gate: who is let in, for what, how much, and until when."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from jwt.algorithms import ECAlgorithm

from playserve.errors import (
    AccessDeniedError,
    AccessEndedError,
    PlayserveError,
    QuotaExceededError,
    UnauthenticatedError,
    from_rpc_error,
)
from playserve.settings import DropReason, Pace
from playserve.v1 import admin_service_pb2 as ad
from playserve.v1 import admin_service_pb2_grpc
from playserve_client.aio import PolicyClient
from playserve_services.auth.keyring import KeyFile
from playserve_services.auth.keys import ApiKey, Quota, Scope, issue_key

FRAME = np.zeros((8, 8), np.uint8)
EVERYTHING = frozenset(Scope)
Give = Callable[..., str]


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    made = KeyFile(tmp_path / "keys.json")
    made.change(lambda keys: keys, missing_ok=True)
    return made


@pytest.fixture
def give(file: KeyFile) -> Give:
    """Issue a key; call it before the server starts, or wait for the server to see it."""

    def issue(principal: str, *scopes: str, quota: Quota | None = None) -> str:
        text, kept = issue_key(principal, frozenset(map(Scope, scopes)), quota)
        file.change(lambda keys: [*keys, kept])
        return text

    return issue


def client(server: Any, key: str | None = None) -> PolicyClient:
    return PolicyClient(f"127.0.0.1:{server.port}", api_key=key, timeout_s=20.0)


def revoke(file: KeyFile, text: str) -> None:
    def without(keys: list[ApiKey]) -> list[ApiKey]:
        return [key for key in keys if key.id != text.split("_")[1]]

    file.change(without)


async def metric(server: Any, name: str, **labels: str) -> float:
    return float(server.metrics.registry.get_sample_value(f"playserve_{name}", labels) or 0.0)


async def test_without_keys_everybody_is_anonymous_and_a_key_is_not_looked_at(serve: Any) -> None:
    async with serve() as server, client(server, "whatever") as c, c.play("turns") as session:
        await session.step(FRAME)
        assert [s.principal for s in server.core.sessions()] == ["anonymous"]
        assert server.metrics.registry.get_sample_value("playserve_registry_up") is None, "no alert about no registry"


async def test_a_key_lets_in_and_its_principal_owns_the_session(serve: Any, file: KeyFile, give: Give) -> None:
    ann = give("ann", "play")
    async with serve(keys=file.path) as server:
        async with client(server, ann) as c, c.play("turns") as session:
            await session.step(FRAME)
            assert [s.principal for s in server.core.sessions()] == ["ann"]
        for key in (None, ann[:-2] + "xx", "hello", "a.b.c"):
            async with client(server, key) as c:
                with pytest.raises(UnauthenticatedError):
                    await c.list_policies()
                with pytest.raises(UnauthenticatedError):
                    await c.play("turns")
                with pytest.raises(UnauthenticatedError):
                    await c.rollout("turns", 1)
        assert await metric(server, "calls_refused_total", reason="UNAUTHENTICATED") == 12
        assert len(server.core) == 0


async def test_each_scope_opens_its_own_door(serve: Any, file: KeyFile, give: Give) -> None:
    player, evaluator, nobody = give("ann", "play"), give("eve", "rollout"), give("nil", "publish")
    async with serve(keys=file.path) as server:
        async with client(server, player) as c:
            with pytest.raises(AccessDeniedError, match=r"Rollout needs the scope 'rollout'"):
                await c.rollout("turns", 1)
        async with client(server, evaluator) as c:
            async with c.rollout("turns", 2):
                assert [s.principal for s in server.core.sessions()] == ["eve"]
            with pytest.raises(AccessDeniedError, match=r"Play needs the scope 'play'"):
                await c.play("turns")
        async with client(server, nobody) as c:
            assert {p.spec.name for p in await c.list_policies()} == {"turns", "live"}
            with pytest.raises(AccessDeniedError):
                await c.play("turns")


async def _status(port: int, key: str | None) -> ad.GetStatusResponse:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = admin_service_pb2_grpc.AdminServiceStub(channel)
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        try:
            return await stub.GetStatus(ad.GetStatusRequest(), metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


async def test_only_an_admin_steers_the_server(serve: Any, file: KeyFile, give: Give) -> None:
    ann, root = give("ann", "play", "rollout"), give("root", "admin")
    async with serve(keys=file.path, admin_port=0) as server:
        assert (await _status(server.admin_port, root)).sessions == 0
        with pytest.raises(AccessDeniedError, match="needs the scope 'admin'"):
            await _status(server.admin_port, ann)
        with pytest.raises(UnauthenticatedError):
            await _status(server.admin_port, None)


async def _reflect(port: int, key: str | None) -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(metadata=metadata, timeout=20)
        try:
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            return len((await call.read()).list_services_response.service)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


async def test_health_needs_no_key_and_reflection_does(serve: Any, file: KeyFile, give: Give) -> None:
    ann = give("ann", "play")
    async with serve(keys=file.path, health_port=0) as server:
        for port in (server.port, server.health_port):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = await stub.Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=20)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert await _reflect(server.port, ann) == 5
        with pytest.raises(UnauthenticatedError):
            await _reflect(server.port, None)
    async with serve() as server:
        assert await _reflect(server.port, None) == 5


async def test_odd_metadata_is_refused(serve: Any, file: KeyFile, give: Give) -> None:
    ann = give("ann", "admin")
    good = ("authorization", f"Bearer {ann}")
    async with serve(keys=file.path, admin_port=0) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.admin_port}") as channel:
            ask = admin_service_pb2_grpc.AdminServiceStub(channel).GetStatus
            for metadata in ((good, good), (("authorization", ann),), (("authorization", "Basic YW5uOng="),)):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await ask(ad.GetStatusRequest(), metadata=metadata, timeout=20)
                error = from_rpc_error(refused.value)
                assert isinstance(error, UnauthenticatedError)
                assert "of another form" in str(error)
            with pytest.raises(grpc.aio.AioRpcError):  # gRPC itself stops such long ones
                await ask(ad.GetStatusRequest(), metadata=(("authorization", "Bearer " + "x" * 17_000),), timeout=20)
            await ask(ad.GetStatusRequest(), metadata=(("authorization", f"bearer {ann}"),), timeout=20)
    async with serve(admin_port=0) as server:  # without keys nobody looks at it
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.admin_port}") as channel:
            ask = admin_service_pb2_grpc.AdminServiceStub(channel).GetStatus
            await ask(ad.GetStatusRequest(), metadata=(("authorization", "Basic YW5uOng="),), timeout=20)


async def test_a_session_is_resumed_by_its_principal_only_by_whichever_key(
    serve: Any, file: KeyFile, give: Give
) -> None:
    first, second, other = give("ann", "play"), give("ann", "play"), give("bob", "play", "admin")
    async with serve(keys=file.path) as server, client(server, first) as c:
        session = await c.play("turns")
        await session.step(FRAME)
        async with client(server, other) as stranger:
            with pytest.raises(AccessDeniedError, match="belongs to somebody else"):
                await stranger.resume(session.resume_token)
        async with client(server, second) as again, again.resume(session.resume_token) as resumed:
            await resumed.step(FRAME)
            (held,) = server.core.sessions()
            assert held.caller.principal.key_id == second.split("_")[1]
            accounts = server.security.gate.caller.__self__._accounts
            assert accounts.of(held.caller.principal).sessions == 1
        await session.close()


async def _until_it_ends(play: Callable[[], Any]) -> PlayserveError:
    """Play until that fails."""
    async with asyncio.timeout(30):
        while True:
            try:
                await play()
            except PlayserveError as error:
                return error
            await asyncio.sleep(0.02)


async def test_a_revoked_key_ends_what_runs_and_others_play_on(
    serve: Any, file: KeyFile, give: Give, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ann, bob = give("ann", "play", "rollout"), give("bob", "play")
    async with serve(keys=file.path) as server:
        async with client(server, ann) as c, client(server, bob) as d, d.play("turns") as unharmed:
            session, detached, rollout = await c.play("turns"), await c.play("turns"), await c.rollout("turns", 1)
            await detached.detach()
            revoke(file, ann)

            async def row() -> None:
                await rollout.send([0], [0], FRAME[None])
                await rollout.recv()

            ended = await asyncio.gather(_until_it_ends(lambda: session.step(FRAME)), _until_it_ends(row))
            assert [type(error) for error in ended] == [AccessEndedError, AccessEndedError]
            assert ann.split("_")[1] in str(ended[0]), "it says which key"
            await unharmed.step(FRAME)
            assert [s.principal for s in server.core.sessions()] == ["bob"], "the detached one has ended, too"
            with pytest.raises(UnauthenticatedError):
                await c.play("turns")
        assert await metric(server, "sessions_access_ended_total") == 3
        assert await metric(server, "sessions_ended_total", policy="turns", reason="access_ended") == 3
    for text in (ann, bob):
        assert text.split("_", 2)[2] not in caplog.text


async def test_a_stream_without_a_session_ends_with_its_key_too(serve: Any, file: KeyFile, give: Give) -> None:
    ann = give("ann", "play")
    async with serve(keys=file.path) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            metadata = (("authorization", f"Bearer {ann}"),)
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(metadata=metadata)
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            await call.read()
            revoke(file, ann)
            async with asyncio.timeout(30):
                with pytest.raises(grpc.aio.AioRpcError) as ended:
                    await call.read()
            assert isinstance(from_rpc_error(ended.value), AccessEndedError)


async def test_more_sessions_or_environments_than_the_key_may_have_are_refused_at_open(
    serve: Any, file: KeyFile, give: Give
) -> None:
    ann = give("ann", "play", "rollout", quota=Quota(sessions=1, environments=2))
    async with serve(keys=file.path) as server, client(server, ann) as c:
        async with c.play("turns") as session:
            with pytest.raises(QuotaExceededError, match="may have 1 at once") as refused:
                await c.play("turns")
            assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.value.retry_after_s
            await session.step(FRAME)
        async with c.play("turns"), c.rollout("turns", 2):
            with pytest.raises(QuotaExceededError):
                await c.rollout("turns", 1)
        async with c.rollout("turns", 2):
            pass
        assert await metric(server, "opens_refused_total", policy="turns", reason="QUOTA_EXCEEDED") == 2
        free = [p.slots_free for p in await c.list_policies()]
        assert free == [4, 4]


async def test_live_frames_over_the_quota_are_left_out_and_counted(serve: Any, file: KeyFile, give: Give) -> None:
    ann = give("ann", "play", quota=Quota(frames_per_s=1.0))
    async with serve(keys=file.path) as server, client(server, ann) as c:
        async with c.play("live", pace=Pace.LIVE) as session:
            await session.send_step(FRAME)
            await session.recv()
            for _ in range(5):
                await session.send_step(FRAME)
            await asyncio.sleep(1.1)
            await session.send_step(FRAME)
            result = await session.recv()
            assert result.seq == 7
            assert [d.seq for d in result.dropped] == [2, 3, 4, 5, 6]
            assert result.gap_ticks == 5
            assert all(d.reason is DropReason.QUOTA and not d.in_memory for d in result.dropped)
        assert await metric(server, "frames_shed_total", policy="live") == 5
        async with c.play("turns") as session:
            for _ in range(5):  # who waits for the game needs no limit
                await session.step(FRAME)


async def test_a_new_key_is_taken_without_a_restart(serve: Any, file: KeyFile, give: Give) -> None:
    async with serve(keys=file.path) as server:
        ann = give("ann", "play")
        async with client(server, ann) as c, asyncio.timeout(30):
            while True:
                try:
                    await c.list_policies()
                    return
                except UnauthenticatedError:
                    await asyncio.sleep(0.1)


async def test_where_there_are_keys_the_anonymous_may_only_play(serve: Any, file: KeyFile, give: Give) -> None:
    ann = give("ann", "play")
    async with serve(keys=file.path, anonymous=True, admin_port=0) as server:
        async with client(server) as c, c.play("turns") as session, c.rollout("turns", 1):
            await session.step(FRAME)
        async with client(server, ann) as c, c.play("turns"):
            assert [s.principal for s in server.core.sessions()] == ["ann"]
        async with client(server, ann + "x") as c:
            with pytest.raises(UnauthenticatedError):
                await c.play("turns")
        with pytest.raises(AccessDeniedError):
            await _status(server.admin_port, None)


async def test_an_admin_may_do_everything(serve: Any, file: KeyFile, give: Give) -> None:
    root = give("root", "admin")
    async with serve(keys=file.path) as server, client(server, root) as c, c.play("turns") as session:
        await session.step(FRAME)
        async with c.rollout("turns", 1):
            pass


async def test_tokens_let_in_until_they_expire(serve: Any, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    jwks = tmp_path / "jwks.json"
    public = {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": "k"}
    await asyncio.to_thread(jwks.write_text, json.dumps({"keys": [public]}))

    def token(seconds: float, scope: str = "play") -> str:
        expires = datetime.now(UTC) + timedelta(seconds=seconds)
        claims = {"iss": "i", "aud": "playserve", "sub": "ann", "scope": scope, "exp": expires}
        return jwt.encode(claims, key, algorithm="ES256", headers={"kid": "k"})

    rules = {"jwt_issuer": "i", "jwt_audience": "playserve", "jwt_jwks": str(jwks), "jwt_leeway_s": 0.0}
    async with serve(**rules) as server:
        async with client(server, token(300, "rollout")) as c:
            with pytest.raises(AccessDeniedError):
                await c.play("turns")
        async with client(server, token(8)) as c:
            session = await c.play("turns")
            await session.step(FRAME)
            assert [s.principal for s in server.core.sessions()] == ["ann"]
            error = await _until_it_ends(lambda: session.step(FRAME))
            assert isinstance(error, AccessEndedError)
            with pytest.raises(UnauthenticatedError, match="ExpiredSignatureError"):
                await c.list_policies()
