"""The composition root of `playserve serve`: builds every part, starts and stops them in a fixed order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server
from tritonclient.grpc import service_pb2_grpc

from playserve.errors import ServerUnavailableError
from playserve.v1 import admin_service_pb2_grpc, policy_service_pb2_grpc, state_transfer_service_pb2_grpc
from playserve_services.inference.access import end_revoked
from playserve_services.inference.admin import AdminServicer
from playserve_services.inference.catalog import Catalog, LoadedPolicy
from playserve_services.inference.computing import make_computing
from playserve_services.inference.core import InferenceCore
from playserve_services.inference.embedding import EmbedSoon
from playserve_services.inference.handoff.draining import Evacuation
from playserve_services.inference.handoff.metrics import HandoffMetrics
from playserve_services.inference.handoff.peers import Peers
from playserve_services.inference.handoff.receiving import StateTransferServicer
from playserve_services.inference.handoff.redirect import Redirect
from playserve_services.inference.keeping import KeeperMetrics, SessionKeeper
from playserve_services.inference.loader import PolicyLoader
from playserve_services.inference.lookout import Lookout
from playserve_services.inference.metrics import Metrics
from playserve_services.inference.oip.servicer import InferenceServicer
from playserve_services.inference.replica import Replica
from playserve_services.inference.security import (
    ADMIN_SERVICE,
    INFERENCE_SERVICE,
    POLICY_SERVICE,
    TRANSFER_SERVICE,
    Security,
    SecurityMetrics,
)
from playserve_services.inference.servicer import PolicyServicer
from playserve_services.inference.settings import ServeSettings
from playserve_services.inference.tracing import ServerTracing
from playserve_services.inference.watching import Watching
from playserve_trainer.models.policy import Policy
from playserve_trainer.store import CheckpointStore

__all__ = ["InferenceServer"]

_log = logging.getLogger(__name__)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_FIRST_TEXT = "Go on."
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class InferenceServer:
    """One inference server; use it as an async context manager, or call :meth:`run`.

    Args:
        settings: All settings.
        policies: Policy objects to serve beside the store's, by name.
    """

    def __init__(self, settings: ServeSettings, policies: Mapping[str, Callable[[], Policy]] | None = None) -> None:
        self._settings = settings
        self._policies = dict(policies or {})
        self.catalog = Catalog()
        self.metrics = Metrics(lambda: self.catalog)
        self._security_metrics = SecurityMetrics(self.metrics.registry, follows=bool(settings.registry))
        self.core = InferenceCore(self.catalog, settings.limits(), self.metrics, time.monotonic_ns, self._defer)
        self.watching = Watching()
        self._keeper: SessionKeeper | None = None
        self.metrics.show_watchers(lambda: len(self.watching))
        self._handoffs = HandoffMetrics(self.metrics.registry)
        self._peers = Peers(settings)
        self.port = 0
        self.admin_port = 0
        self.metrics_port = 0
        self.health_port = 0
        self._health = health.aio.HealthServicer()
        self._drained = asyncio.Event()
        self._grace_s: float | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self._exit = contextlib.AsyncExitStack()

    # -- start and stop -------------------------------------------------------------------------------------------

    async def __aenter__(self) -> InferenceServer:
        """Start; returns when every policy is warm and the ports listen."""
        try:
            await self._start()
        except BaseException:
            await self._cancel_tasks()
            await self._exit.aclose()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop at once: sessions that still play are ended."""
        await self.stop()

    async def _start(self) -> None:
        settings = self._settings
        torch.set_num_threads(settings.threads)
        engine, factory = await make_computing(settings, self.core.on_result, self._engine_died, self._exit)
        self.core.attach_engine(engine)
        decoders = self._threads(2, "playserve-decode")
        embedders = self._threads(1, "playserve-embed")  # embedding a text takes every core that there is
        self.loader = PolicyLoader(
            self.catalog,
            factory,
            CheckpointStore(settings.store) if settings.store else None,
            settings.keep_versions,
            self._policy_ready,
            lambda policy: self.metrics.versions_refused.labels(policy).inc(),
        )
        self._exit.callback(self.loader.close)
        self.core.embed_soon = EmbedSoon(embedders)
        self.security = Security(settings, self._security_metrics)
        replica = None
        if settings.registry:
            replica = Replica(
                settings, self.core, self.loader, self.security.ring, self._security_metrics, self.start_drain
            )
            await replica.start()  # its keys are needed before anybody calls
        servicer = PolicyServicer(
            self.core,
            self.loader,
            self.security.gate.caller,
            decoders,
            embedders,
            settings.max_message_bytes,
            self.watching,
            self._open_keeper(),
            self._open_tracing(),
        )
        sequences = InferenceServicer(
            self.core, self.loader, self.security.gate.caller, embedders, settings.max_message_bytes
        )
        taker = StateTransferServicer(self.core, self.loader, embedders, self._address, self._handoffs)
        self._exit.push_async_callback(self._peers.close)
        if settings.redirect:
            self.core.elsewhere = Redirect(self._peers, self._handoffs)
        await self._listen(servicer, sequences, taker)
        # From now on somebody may play, though not everything is loaded yet.
        self._tasks = [asyncio.create_task(self.security.watch(lambda: end_revoked(self.core)))]
        await self._set_health("liveness", serving=True)
        await self._set_health("readiness", serving=False)
        for name, make in self._policies.items():
            await self.loader.add_policy(name, make())
        await self.loader.refresh()
        self.loader.ready = True
        if replica is not None:
            await replica.settle()
            self._tasks += replica.run(self.port, self.admin_port)
        self._tasks += [
            asyncio.create_task(self.loader.watch(settings.poll_s)),
            asyncio.create_task(self._ticker()),
        ]
        await self._set_health("readiness", serving=True)
        await self._set_health("", serving=True)

    def _open_keeper(self) -> SessionKeeper | None:
        if self._settings.record_sessions is None:
            return None
        self._keeper = SessionKeeper(self._settings.record_sessions, KeeperMetrics(self.metrics.registry))
        self._exit.push_async_callback(asyncio.to_thread, self._keeper.close)  # it waits for the disk
        return self._keeper

    def _threads(self, count: int, name: str) -> ThreadPoolExecutor:
        threads = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._exit.callback(threads.shutdown, cancel_futures=True)
        return threads

    def _open_tracing(self) -> ServerTracing | None:
        tracing = ServerTracing.open(self._settings.trace)
        if tracing is not None:
            self._exit.push_async_callback(asyncio.to_thread, tracing.close)  # it waits for the collector
        return tracing

    def _address(self) -> str:
        """Return where players reach this server."""
        return self._settings.advertise or self._settings.address(self.port)

    async def _listen(
        self, servicer: PolicyServicer, sequences: InferenceServicer, taker: StateTransferServicer
    ) -> None:
        settings = self._settings
        main = self._server()
        policy_service_pb2_grpc.add_PolicyServiceServicer_to_server(servicer, main)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(sequences, main)
        state_transfer_service_pb2_grpc.add_StateTransferServiceServicer_to_server(taker, main)
        self.port = await self._serve(main, settings.port, (POLICY_SERVICE, TRANSFER_SERVICE, INFERENCE_SERVICE))
        if settings.admin_port is not None:
            admin = self._server()
            operating = AdminServicer(self.core, self.start_drain, self.security.gate.caller, self.watching)
            admin_service_pb2_grpc.add_AdminServiceServicer_to_server(operating, admin)
            self.admin_port = await self._serve(admin, settings.admin_port, (ADMIN_SERVICE,))
        if settings.health_port is not None:
            # Kubelets have no certificates and no keys; there is nothing here but health.
            self.health_port = await self._serve(self._server(guarded=False), settings.health_port, (), guarded=False)
        if settings.metrics_port is not None:
            try:
                http, thread = start_http_server(settings.metrics_port, settings.host, self.metrics.registry)
            except OSError as error:
                raise ServerUnavailableError(
                    f"cannot serve metrics on {settings.host}:{settings.metrics_port}: {error}"
                ) from error
            self.metrics_port = http.server_port
            self._exit.callback(thread.join)
            self._exit.callback(http.server_close)
            self._exit.callback(http.shutdown)

    def _server(self, *, guarded: bool = True) -> grpc.aio.Server:
        size = self._settings.max_message_bytes
        return grpc.aio.server(
            interceptors=[self.security.gate] if guarded else [],
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", size),
                ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
                # Clients ping every 15 s or so; C-core would call that abuse below 300 s.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                # Without it, newer versions of gRPC wait a minute for the answer to their ping.
                ("grpc.http2.ping_timeout_ms", 10_000),
            ],
        )

    async def _serve(
        self, server: grpc.aio.Server, port: int, services: tuple[str, ...], *, guarded: bool = True
    ) -> int:
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        address = self._settings.address(port)
        try:
            if guarded and self.security.tls is not None:
                bound = server.add_secure_port(address, self.security.tls.credentials())
            else:
                bound = server.add_insecure_port(address)
        except RuntimeError as error:
            raise ServerUnavailableError(f"cannot listen on {address}: {error}") from error
        await server.start()
        self._exit.push_async_callback(server.stop, 0.5)
        return bound

    async def stop(self) -> None:
        """End every session, then stop the ports, then the engine."""
        if self._tasks:
            await self._set_health("readiness", serving=False)
        self.core.start_drain()
        self.core.end_all()
        await self._cancel_tasks()
        await asyncio.sleep(0)  # let the streams write their last words
        await self._exit.aclose()

    async def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def start_drain(self, grace_s: float | None = None) -> None:
        """Take no new sessions; :meth:`run` returns when the last one has ended or the grace is over."""
        if not self.core.draining:
            self.core.start_drain()
            self._grace_s = self._settings.drain_grace_s if grace_s is None else grace_s
            self._drained.set()

    async def run(self, on_started: Callable[[InferenceServer], None] = lambda server: None) -> None:
        """Serve until SIGTERM or SIGINT, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        async with self:
            on_started(self)
            await self._drained.wait()
            for name in ("readiness", "", *(f"policy/{p.spec.name}" for p in self.catalog)):
                await self._set_health(name, serving=False)
            await self.drain()

    async def drain(self) -> None:
        """After :meth:`start_drain`: hand sessions over, and return when none is left, or the grace is over.

        Where sessions have gone, their players may ask for the detach window: without that, it returns no sooner.
        """
        began, moves = time.monotonic(), self.core.moves
        _log.info("draining: %d sessions, %.0f s of grace", len(self.core), self._grace_s or 0.0)
        handing_over = None
        if self._settings.peers or self._settings.peers_dns:
            evacuation = Evacuation(self.core, self._peers, self._handoffs, self._settings.handoff_sessions)
            handing_over = asyncio.create_task(evacuation.run())
        try:
            while (len(self.core) or len(moves)) and time.monotonic() - began < (self._grace_s or 0.0):  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # a drain is rare, and slow; a second signal ends its grace
        finally:
            if handing_over is not None:
                handing_over.cancel()
                await asyncio.gather(handing_over, return_exceptions=True)
        _log.info("drained: %d sessions are ended now", len(self.core))

    def _on_signal(self, number: int) -> None:
        if self.core.draining:
            self._grace_s = 0.0
            self.core.end_all()  # asked twice: at once
        self.start_drain()

    # -- while it runs --------------------------------------------------------------------------------------------

    @staticmethod
    def _defer(function: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(function)

    async def _ticker(self) -> None:
        lookout = Lookout(self.metrics)
        while True:
            await asyncio.sleep(0.25)
            self.core.tick()
            lookout.look()
            if self._keeper is not None:
                self._keeper.sweep()

    async def _set_health(self, name: str, *, serving: bool) -> None:
        await self._health.set(name, _SERVING if serving else _NOT_SERVING)

    def _policy_ready(self, policy: LoadedPolicy) -> None:
        if policy.spec.takes_instruction:
            self.core.embed_soon(policy, _FIRST_TEXT)  # its encoder is loaded now, and not when somebody waits for it
        task = asyncio.ensure_future(self._set_health(f"policy/{policy.spec.name}", serving=True))
        task.add_done_callback(lambda done: done.exception())

    def _engine_died(self) -> None:
        self.core.on_engine_death()
        self._tasks.append(asyncio.ensure_future(self._set_health("liveness", serving=False)))
        self._tasks.append(asyncio.ensure_future(self._set_health("readiness", serving=False)))
