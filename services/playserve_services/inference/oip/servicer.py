"""`inference.GRPCInferenceService`: what of it is served here. It only translates."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Executor
from typing import Any, TypeVar

import grpc
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc

from playserve.errors import EngineFailedError, NotFoundError, NotImplementedHereError, PlayserveError
from playserve.specs import PolicyKind, PolicySpec
from playserve_services.aborting import abort
from playserve_services.auth.gate import Caller
from playserve_services.inference.catalog import LoadedPolicy
from playserve_services.inference.core import InferenceCore
from playserve_services.inference.decoding import refuse_world
from playserve_services.inference.loader import PolicyLoader
from playserve_services.inference.oip import metadata
from playserve_services.inference.oip.game import Coming
from playserve_services.inference.oip.parameters import read_parameters
from playserve_services.inference.oip.sequences import Sequences
from playserve_services.inference.oip.stream import InferStream

__all__ = ["InferenceServicer"]

_log = logging.getLogger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]
_Answer = TypeVar("_Answer")

#: Methods of the protocol's extensions, and where to look instead.
_ELSEWHERE = {
    "RepositoryModelLoad": "versions are loaded out of the checkpoint store, when a sequence asks for one",
    "RepositoryModelUnload": "versions that nobody plays on are unloaded by the server itself",
    "SystemSharedMemoryStatus": "tensors travel in the request",
    "SystemSharedMemoryRegister": "tensors travel in the request",
    "SystemSharedMemoryUnregister": "tensors travel in the request",
    "CudaSharedMemoryStatus": "tensors travel in the request",
    "CudaSharedMemoryRegister": "tensors travel in the request",
    "CudaSharedMemoryUnregister": "tensors travel in the request",
    "TraceSetting": "see the settings of the server",
    "LogSettings": "see the settings of the server",
}


def _models(specs: Iterable[PolicySpec]) -> list[PolicySpec]:
    """Return what can be asked for by this protocol: agents."""
    return [spec for spec in specs if spec.kind is PolicyKind.AGENT]


class InferenceServicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc] # tritonclient has no types
    """See the module's docstring.

    Args:
        core: Owns the sessions.
        loader: Finds policies.
        caller: Says who makes the call that is being served.
        embedders: Threads that embed instructions.
        max_message_bytes: Most that the inputs of one request may hold.
    """

    def __init__(
        self,
        core: InferenceCore,
        loader: PolicyLoader,
        caller: Callable[[], Caller],
        embedders: Executor,
        max_message_bytes: int,
    ) -> None:
        self._core, self._loader, self._caller = core, loader, caller
        self.sequences = Sequences(core, loader, embedders, max_message_bytes)
        for method, instead in _ELSEWHERE.items():
            setattr(self, method, self._not_served(method, instead))

    # -- is it there? ---------------------------------------------------------------------------------------------

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:
        """Return whether batches are computed."""
        return oip.ServerLiveResponse(live=not self._core.engine_dead)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:
        """Return whether sequences can be begun."""
        core = self._core
        return oip.ServerReadyResponse(ready=self._loader.ready and not core.draining and not core.engine_dead)

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:
        """Return whether a version is loaded and warm."""
        try:
            wanted = self._core.catalog.choose(request.name, request.version, None)
            policy = self._core.catalog.resolve(request.name, wanted)
        except NotFoundError:
            return oip.ModelReadyResponse(ready=False)
        if policy.is_world:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=not self._core.engine_dead)

    # -- what is there? -------------------------------------------------------------------------------------------

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, context: Context) -> oip.ServerMetadataResponse:
        """Return what this server is."""
        return metadata.server_metadata()

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Context) -> oip.ModelMetadataResponse:
        """Return the tensors of a version, loading it if the store has it."""
        policy = await self._or_abort(context, request.name, self._policy(request.name, request.version))
        versions = [spec.version for spec in self._specs() if spec.name == policy.spec.name]
        return metadata.model_metadata(policy, self._core.limits, versions)

    async def ModelConfig(self, request: oip.ModelConfigRequest, context: Context) -> oip.ModelConfigResponse:
        """Return the configuration of a version, loading it if the store has it."""
        policy = await self._or_abort(context, request.name, self._policy(request.name, request.version))
        return oip.ModelConfigResponse(config=metadata.model_config(policy, self._core.limits))

    async def RepositoryIndex(
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        """Return every version that can be asked for."""
        if request.repository_name:
            await abort(context, NotImplementedHereError("there is one repository, and it has no name; leave it out"))
        loaded = _models(policy.spec for policy in self._core.catalog)
        return metadata.repository_index(loaded, _models(self._loader.known()), only_ready=request.ready)

    async def ModelStatistics(
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        """Return the counts of the requests that came by this protocol, of one version or of all loaded ones."""
        if request.name:
            policy = await self._or_abort(context, request.name, self._policy(request.name, request.version))
            return self.sequences.statistics.message([policy.spec])
        return self.sequences.statistics.message(_models(policy.spec for policy in self._core.catalog))

    # -- sequences ------------------------------------------------------------------------------------------------

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:
        """Advance a sequence by one frame."""
        return await self._or_abort(context, request.model_name, self._infer(request))

    async def ModelStreamInfer(self, request_iterator: AsyncIterator[oip.ModelInferRequest], context: Context) -> None:
        """Advance any sequences, a frame a request."""
        caller = self._caller()
        await InferStream(
            context, lambda request: self._enter(caller, request), self._count, self._core.metrics.outboxes
        ).run()

    async def _infer(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        coming, _ = await self._enter(self._caller(), request)
        return await coming

    async def _enter(self, caller: Caller, request: oip.ModelInferRequest) -> tuple[Coming, bool]:
        try:
            asked = read_parameters(request)
            return await self.sequences.enter(caller, request, asked), asked.marks_final
        except PlayserveError:
            raise
        except Exception as error:
            _log.exception("an inference request failed")
            raise EngineFailedError("the server failed; see its log") from error

    # -- helpers --------------------------------------------------------------------------------------------------

    def _specs(self) -> list[PolicySpec]:
        return _models([policy.spec for policy in self._core.catalog] + self._loader.known())

    async def _policy(self, name: str, version: str) -> LoadedPolicy:
        policy = await self._loader.acquire(name, self._core.catalog.choose(name, version, None))
        refuse_world(policy.spec, "no model of this protocol")
        return policy

    async def _or_abort(self, context: Context, model: str, work: Awaitable[_Answer]) -> _Answer:
        try:
            return await work
        except PlayserveError as error:
            self._count(model, error)
            await abort(context, error)
            raise

    def _count(self, model: str, error: PlayserveError) -> None:
        known = bool(self._core.catalog.versions(model))  # a caller's text must not become a label
        self._core.metrics.error(model if known else "", error.reason)

    def _not_served(self, method: str, instead: str) -> Callable[[Any, Context], Awaitable[None]]:
        async def refuse(request: Any, context: Context) -> None:
            await abort(context, NotImplementedHereError(f"{method} is not served here: {instead}"))

        return refuse
