"""Following a registry: a real HTTP server in place of the control plane, and real inference servers that follow it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from playserve.errors import BadSettingError, PlayserveError, UnauthenticatedError
from playserve.v1.admin_service_pb2 import GetStatusRequest
from playserve.v1.admin_service_pb2_grpc import AdminServiceStub
from playserve_client.aio import PolicyClient
from playserve_services.auth.keys import ApiKey, Scope, issue_key
from playserve_services.inference.app import InferenceServer
from playserve_services.inference.catalog import Catalog, canary_share
from playserve_services.inference.convergence import Convergence
from playserve_services.inference.registry import RegistryClient, RegistryFollower, ViewCache
from playserve_services.inference.settings import ServeSettings
from playserve_services.registry_view import PolicyView, RegistryView
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy
from playserve_trainer.store import CheckpointStore

FRAME = np.zeros((8, 8), np.uint8)
PLAY = frozenset({Scope.PLAY})


class Control:
    """Serves a view with an ETag, takes heartbeats, and can be broken in several ways."""

    def __init__(self) -> None:
        self.view = RegistryView(revision=1)
        self.broken = ""
        self.key = ""
        self.asked: list[int] = []  # statuses of views
        self.beats: list[tuple[str, dict[str, Any]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = b"{broken" if outer.broken == "json" else outer.view.model_dump_json().encode()
                tag = f'"{hashlib.sha256(body).hexdigest()}"'
                status = 304 if self.headers.get("If-None-Match") == tag else 200
                self._answer(self._refused() or status, body, tag)

            def do_PUT(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status = self._refused() or 200
                if status == 200:
                    outer.beats.append((self.path, body))
                self._answer(status, b'{"drain": false, "revision": 0}', "")

            def _refused(self) -> int:
                if outer.broken == "slow":
                    time.sleep(1.0)
                if outer.key and self.headers.get("Authorization") != f"Bearer {outer.key}":
                    return 401
                return 500 if outer.broken == "down" else 0

            def _answer(self, status: int, body: bytes, tag: str) -> None:
                if self.command == "GET":
                    outer.asked.append(status)
                body = body if status == 200 else b""
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if tag:
                    self.send_header("ETag", tag)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def show(self, **changes: Any) -> None:
        self.view = self.view.model_copy(update={"revision": self.view.revision + 1, **changes})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def control() -> Iterator[Control]:
    made = Control()
    yield made
    made.close()


@pytest.fixture
def cache(tmp_path: Path) -> ViewCache:
    return ViewCache(tmp_path / "cache" / "view.json")


class Seen:
    """What a follower did."""

    def __init__(self, url: str, cache: ViewCache, **client: Any) -> None:
        self.views: list[int] = []
        self.reached: list[bool] = []
        self.drains = 0
        self.follower = RegistryFollower(
            RegistryClient(url=url, timeout_s=5.0, **client), cache, "replica-1",
            lambda view: self.views.append(view.revision), self._drain, lambda: {"instance": "x"}, self.reached.append,
        )  # fmt: skip

    def _drain(self) -> None:
        self.drains += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.follower.run(0.01))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for knows no events
            await asyncio.sleep(0.01)


async def test_views_are_taken_in_growing_order_and_unchanged_ones_are_not_sent(
    control: Control, cache: ViewCache
) -> None:
    seen = Seen(control.url, cache)
    await seen.follower.start()
    assert (seen.views, control.asked) == ([1], [200])
    async with seen.running():
        await until(lambda: control.asked.count(304) >= 2)
        control.show()
        await until(lambda: seen.views == [1, 2])
        control.view = RegistryView(revision=1)
        asked = len(control.asked)
        await until(lambda: len(control.asked) > asked + 3)
    assert seen.views == [1, 2], "never back"
    assert cache.read() == RegistryView(revision=2)
    assert cache.path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in cache.path.parent.iterdir()] == ["view.json"]
    assert all(seen.reached)


async def test_a_server_starts_from_the_last_view_when_the_control_plane_is_down(
    control: Control, cache: ViewCache, caplog: pytest.LogCaptureFixture
) -> None:
    control.show()
    await Seen(control.url, cache).follower.start()
    control.broken = "down"
    again = Seen(control.url, cache)
    await again.follower.start()
    assert again.views == [2]
    assert again.reached == [False]
    assert again.follower.age_s() == float("inf")
    assert "does not answer; starting with revision 2" in caplog.text
    async with again.running():
        control.broken = ""
        control.show()
        await until(lambda: again.views == [2, 3])
        await until(lambda: again.follower.age_s() < 60)


@pytest.mark.parametrize("broken", ["down", "json"])
async def test_a_control_plane_that_breaks_is_one_line_in_the_log(
    control: Control, cache: ViewCache, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Seen(control.url, cache)
    await seen.follower.start()
    control.broken = broken
    async with seen.running():
        await until(lambda: seen.reached.count(False) > 3)
    assert seen.views == [1]
    assert caplog.text.count("cannot be followed") == 1


async def test_without_anything_to_start_from_it_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen = Seen("http://127.0.0.1:1", ViewCache(tmp_path / "view"))
    await seen.follower.start()
    assert (seen.views, seen.reached) == ([], [False])
    assert "starting with nothing: nobody has a key" in caplog.text


async def test_a_damaged_cache_or_a_full_disk_costs_only_the_cache(
    control: Control, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "view").write_text("{")
    seen = Seen(control.url, ViewCache(tmp_path / "view"))
    await seen.follower.start()
    assert seen.views == [1]
    assert "cannot be used" in caplog.text
    (tmp_path / "file").write_text("")
    nowhere = Seen(control.url, ViewCache(tmp_path / "file" / "view"))
    await nowhere.follower.start()
    assert nowhere.views == [1]
    assert "cannot be kept" in caplog.text


async def test_the_key_is_sent_and_read_again_and_stays_out_of_the_log(
    control: Control, cache: ViewCache, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    control.key, key = "geheim-2", "geheim-1"
    seen = Seen(control.url, cache, key=lambda: key)
    await seen.follower.start()
    assert seen.views == []
    async with seen.running():
        key = "geheim-2"
        await until(lambda: seen.views == [1])
    assert "status 401" in caplog.text
    assert "geheim" not in caplog.text


async def test_the_loop_does_not_wait_for_a_slow_control_plane(control: Control, cache: ViewCache) -> None:
    seen = Seen(control.url, cache)
    control.broken = "slow"
    start = asyncio.create_task(seen.follower.start())
    turns = 0
    while not start.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert turns > 10
    assert seen.views == [1]


async def test_it_drains_when_told_but_not_for_what_was_said_to_its_predecessor(
    control: Control, cache: ViewCache
) -> None:
    control.show(draining=["replica-1", "replica-2"])
    control.key = "nobody has it"
    cache.write(control.view)
    seen = Seen(control.url, cache)
    await seen.follower.start()
    async with seen.running():
        await until(lambda: len(control.asked) > 3)
        assert seen.drains == 0, "the control plane has not heard of us yet"
        control.key = ""
        await until(lambda: seen.drains)
    assert control.beats[0] == ("/v1/replicas/replica-1", {"instance": "x"})


def test_a_control_plane_in_plain_text_elsewhere_is_refused(cache: ViewCache) -> None:
    with pytest.raises(BadSettingError, match="wanted https"):
        Seen("http://control.test", cache)


# -- aliases and canaries ---------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**64 - 1), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_growing_canary_takes_nobody_back(seed: int, low: float, high: float) -> None:
    low, high = sorted((low, high))
    share = canary_share("pong", seed)
    assert 0 <= share < 1
    assert share < high or not share < low
    assert share == canary_share("pong", seed)


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 1.0])
def test_the_split_is_as_wide_as_its_weight(weight: float) -> None:
    hits = sum(canary_share("pong", seed) < weight for seed in range(4000))
    assert abs(hits / 4000 - weight) < 0.03
    both = sum(canary_share("pong", s) < 0.5 and canary_share("freeway", s) < 0.5 for s in range(4000))
    assert abs(both / 4000 - 0.25) < 0.03, "two policies are split apart from each other"


def test_without_a_candidate_that_is_loaded_everybody_gets_stable(rig: Any) -> None:
    catalog: Catalog = rig.catalog
    rig.load("p", TinyRecurrentPolicy(TinyRecurrentConfig(hidden=8)), "1")
    assert catalog.choose("p", "", 5) == "", "nobody knows better"
    aliases = {"stable": "1", "candidate": "2", "old": "1"}
    catalog.follow({"p": PolicyView(aliases=aliases, canary_weight=1.0)})
    assert [catalog.choose("p", v, 5) for v in ("", "stable", "candidate", "old", "7")] == [
        "1", "1", "candidate", "old", "7"
    ]  # fmt: skip
    rig.load("p", TinyRecurrentPolicy(TinyRecurrentConfig(hidden=8)), "2")
    assert [catalog.choose("p", v, 5) for v in ("", "stable", "old")] == ["2", "2", "old"]
    assert catalog.choose("p", "", None) == "1", "GetPolicy is no game"
    assert catalog.version_of("p", "candidate") == "2"
    catalog.set_aliases("p", {"mine": "2"})
    assert catalog.version_of("p", "mine") == "mine", "a policy that the registry knows has its aliases only"
    catalog.follow({})
    assert catalog.version_of("p", "mine") == "2"


# -- real servers -----------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Three versions of policy `p`."""
    made = CheckpointStore(str(tmp_path / "store"))
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        policy = TinyRecurrentPolicy(TinyRecurrentConfig(hidden=8))
        checkpoint.save(tmp_path / f"c{seed}", policy, Manifest.describe(policy))
        made.publish("p", tmp_path / f"c{seed}")
    return made


@asynccontextmanager
async def following(control: Control, store: CheckpointStore, tmp_path: Path, **more: Any) -> AsyncIterator[Any]:
    settings = ServeSettings(
        port=0, slots=8, max_batch=1, store=str(store.url), registry=control.url, registry_poll_s=0.02, poll_s=0.1,
        registry_cache=tmp_path / "view.json", replica="replica-1", **more,
    )  # fmt: skip
    async with InferenceServer(settings) as server:
        yield server


def key_in(control: Control, principal: str = "ann", *others: ApiKey) -> str:
    text, kept = issue_key(principal, PLAY)
    control.show(keys=[*control.view.keys, kept])
    return text


def client(server: Any, key: str) -> PolicyClient:
    return PolicyClient(f"127.0.0.1:{server.port}", api_key=key, timeout_s=30.0)


async def version(c: PolicyClient, asked: str = "", seed: int | None = None) -> str:
    async with c.play("p", version=asked, seed=seed) as session:
        await session.step(FRAME)
        return str(session.spec.version)


def _told(control: Control) -> tuple[int, int] | None:
    """Return the newest heartbeat's revision and used slots."""
    return (control.beats[-1][1]["view_revision"], control.beats[-1][1]["slots_used"]) if control.beats else None


async def test_a_server_converges_to_keys_aliases_and_canaries_and_tells_how_it_is(
    control: Control, store: CheckpointStore, tmp_path: Path
) -> None:
    key = key_in(control)
    control.show(policies={"p": PolicyView(aliases={"stable": "1"})})
    async with following(control, store, tmp_path) as server, client(server, key) as c:
        assert await version(c) == "1", "published is not promoted: version 3 is the newest"
        assert await version(c, "3") == "3"
        playing = await c.play("p")
        control.show(policies={"p": PolicyView(aliases={"stable": "1", "candidate": "2"}, canary_weight=0.5)})
        await until(lambda: server.core.catalog.version_of("p", "candidate") == "2")
        inside = next(s for s in range(100) if canary_share("p", s) < 0.5)
        outside = next(s for s in range(100) if canary_share("p", s) >= 0.5)
        assert [await version(c, seed=s) for s in (inside, outside, inside)] == ["2", "1", "2"]
        assert await version(c, "stable", inside) == "2"
        control.show(policies={"p": PolicyView(aliases={"stable": "2"})})
        await until(lambda: server.core.catalog.choose("p", "", outside) == "2")
        assert await version(c, seed=outside) == "2"
        await playing.step(FRAME)
        assert playing.spec.version == "1", "nobody's game is touched"
        expected = (control.view.revision, 1)  # a session that was closed gives its slot back a moment later
        await until(lambda: _told(control) == expected)
        path, beat = control.beats[-1]
        assert path == "/v1/replicas/replica-1"
        assert beat["address"] == f"127.0.0.1:{server.port}"
        assert (beat["slots_total"], beat["draining"]) == (8, False)
        assert set(beat["versions"]["p"]) == {"1", "2", "3"}
        sample = server.metrics.registry.get_sample_value
        assert sample("playserve_registry_up") == 1
        assert sample("playserve_registry_revision") == control.view.revision
        await playing.close()


async def test_a_promoted_version_that_is_damaged_changes_nothing_for_anybody(
    control: Control, store: CheckpointStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = next((tmp_path / "store" / "p" / "2").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    key = key_in(control)
    control.show(policies={"p": PolicyView(aliases={"stable": "1"})})
    async with following(control, store, tmp_path) as server, client(server, key) as c:
        sample = server.metrics.registry.get_sample_value
        control.show(policies={"p": PolicyView(aliases={"stable": "2", "candidate": "3"})})
        await until(lambda: sample("playserve_registry_versions_failed_total", {"policy": "p"}))
        await until(lambda: server.core.catalog.version_of("p", "candidate") == "3")
        assert await version(c) == "1"
        assert "policy p version 2, which the registry names, cannot be served" in caplog.text


async def test_keys_of_the_registry_hold_while_it_is_down_and_are_revoked_when_it_is_back(
    control: Control, store: CheckpointStore, tmp_path: Path
) -> None:
    key, other = key_in(control), key_in(control, "bob")
    async with following(control, store, tmp_path):
        pass
    control.broken = "down"
    async with following(control, store, tmp_path) as server, client(server, key) as c, client(server, other) as d:
        session, unharmed = await c.play("p"), await d.play("p")
        await session.step(FRAME)
        assert server.metrics.registry.get_sample_value("playserve_registry_up") == 0
        control.broken = ""
        control.show(keys=[k for k in control.view.keys if k.principal == "bob"])

        async def until_it_ends() -> PlayserveError:
            while True:
                try:
                    await session.step(FRAME)
                except PlayserveError as error:
                    return error
                await asyncio.sleep(0.02)

        async with asyncio.timeout(30):
            error = await until_it_ends()
        assert error.reason == "ACCESS_ENDED"
        with pytest.raises(UnauthenticatedError):
            await c.play("p")
        await unharmed.step(FRAME)
        await unharmed.close()


async def test_a_replica_that_is_told_to_drain_takes_no_new_sessions(
    control: Control, store: CheckpointStore, tmp_path: Path
) -> None:
    key = key_in(control)
    async with following(control, store, tmp_path) as server, client(server, key) as c:
        session = await c.play("p")
        control.show(draining=["another"])
        await until(lambda: control.beats and control.beats[-1][1]["view_revision"] == control.view.revision)
        assert not server.core.draining
        control.show(draining=["replica-1"])
        await until(lambda: server.core.draining)
        with pytest.raises(PlayserveError) as refused:
            await c.play("p")
        assert refused.value.reason == "DRAINING"
        await session.step(FRAME)
        await session.close()


async def test_on_a_laptop_the_registrys_dashboard_steers_a_server_without_keys(
    control: Control, store: CheckpointStore, tmp_path: Path
) -> None:
    more = {"anonymous": True, "admin_port": 0}
    async with following(control, store, tmp_path, **more) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.admin_port}") as channel:
            await AdminServiceStub(channel).GetStatus(GetStatusRequest(), timeout=30)
        async with PolicyClient(f"127.0.0.1:{server.port}", timeout_s=30.0) as c:
            assert await version(c) == "3", "the registry does not know this policy: the newest"


async def test_a_rollback_does_not_wait_for_a_version_that_still_loads(rig: Any) -> None:
    for number in ("1", "2"):
        rig.load("p", TinyRecurrentPolicy(TinyRecurrentConfig(hidden=8)), number)
    loading = asyncio.Event()

    class SlowLoader:
        async def acquire(self, name: str, version: str) -> None:
            loading.set()
            await asyncio.sleep(3600)

    convergence = Convergence(rig.catalog, SlowLoader())  # type: ignore[arg-type] # the one thing that it does
    convergence.take({"p": PolicyView(aliases={"stable": "2", "candidate": "9"})})
    task = asyncio.create_task(convergence.run())
    await until(lambda: loading.is_set() and rig.catalog.choose("p", "", 1) == "2")
    convergence.take({"p": PolicyView(aliases={"stable": "1", "candidate": "9"})})
    await until(lambda: rig.catalog.choose("p", "", 1) == "1")
    assert rig.catalog.version_of("p", "candidate") == "candidate", "it was nowhere before"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
