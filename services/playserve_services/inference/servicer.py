"""PolicyService: finds the stream or the list that a call asks for. It only translates."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import grpc

from playserve.errors import PlayserveError
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import policy_service_pb2_grpc
from playserve_services.aborting import abort
from playserve_services.auth.gate import Caller
from playserve_services.inference.catalog import version_key
from playserve_services.inference.core import InferenceCore
from playserve_services.inference.keeping import SessionKeeper
from playserve_services.inference.loader import PolicyLoader
from playserve_services.inference.play import PlayStream
from playserve_services.inference.rollout import RolloutStream
from playserve_services.inference.tracing import ServerTracing
from playserve_services.inference.watching import Watching

__all__ = ["PolicyServicer"]

Context = grpc.aio.ServicerContext[Any, Any]


class PolicyServicer(policy_service_pb2_grpc.PolicyServiceServicer):
    """Serves `playserve.v1.PolicyService`.

    Args:
        core: Owns the sessions.
        loader: Finds policies.
        caller: Says who makes the call that is being served.
        decoders: Threads that unpack JPEG.
        embedders: Threads that embed instructions.
        max_message_bytes: Largest message.
        watching: Who watches sessions.
        keeper: Records sessions; None: nobody does.
        tracing: Traces steps of Play; None: nobody does.
    """

    def __init__(
        self,
        core: InferenceCore,
        loader: PolicyLoader,
        caller: Callable[[], Caller],
        decoders: Executor,
        embedders: Executor,
        max_message_bytes: int,
        watching: Watching,
        keeper: SessionKeeper | None = None,
        tracing: ServerTracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._core = core
        self._loader = loader
        self._caller = caller
        self._decoders = decoders
        self._embedders = embedders
        self._max_message_bytes = max_message_bytes
        self._watching = watching
        self._keeper = keeper

    async def Play(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]
        """Serve one session."""
        await PlayStream(
            self._core,
            self._loader,
            context,
            self._caller(),
            self._decoders,
            self._embedders,
            self._max_message_bytes,
            self._watching,
            self._keeper,
            None if self._tracing is None else self._tracing.stream(context.invocation_metadata() or ()),
        ).run()

    async def Rollout(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]
        """Serve one evaluator's environments."""
        await RolloutStream(
            self._core, self._loader, context, self._caller(), self._embedders, self._max_message_bytes
        ).run()

    async def ListPolicies(self, request: ps.ListPoliciesRequest, context: Context) -> ps.ListPoliciesResponse:
        """Return every version that can be opened, loaded ones with their slots."""
        catalog = self._core.catalog
        policies = [p.to_proto(catalog.aliases_of(p)) for p in catalog]
        policies += [spec.to_proto() for spec in self._loader.known()]
        policies = [p for p in policies if p.name.startswith(request.name_prefix)]
        policies.sort(key=lambda p: version_key(p.version), reverse=True)
        policies.sort(key=lambda p: p.name)
        return ps.ListPoliciesResponse(policies=policies)

    async def GetPolicy(self, request: ps.GetPolicyRequest, context: Context) -> ps.GetPolicyResponse:
        """Return one version."""
        try:
            # Without a version: the one that most sessions get. A canary is a matter of chance, and of Open.
            version = self._core.catalog.choose(request.policy, request.version, seed=None)
            policy = await self._loader.acquire(request.policy, version)
        except PlayserveError as error:
            self._core.metrics.error("", error.reason)  # a caller's text must not become a label
            await abort(context, error)
            raise
        return ps.GetPolicyResponse(policy=policy.to_proto(self._core.catalog.aliases_of(policy)))
