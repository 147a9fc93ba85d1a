"""The sync client of a policy server. The async twin is `playserve_client.aio`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from playserve.errors import (
    NotFoundError,
    PlayserveError,
    ServerUnavailableError,
    TimeoutExceededError,
    from_rpc_error,
)
from playserve.settings import Consent, Extras, Pace, Sampling, VersionPolicy
from playserve.specs import Codec
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1.policy_service_pb2_grpc import PolicyServiceStub
from playserve_client.channels import DEFAULT_MAX_MESSAGE_BYTES, DEFAULT_TIMEOUT_S, ClientSettings, Tls, new_route
from playserve_client.results import PolicyInfo
from playserve_client.rollout import Rollout
from playserve_client.rollout_core import RolloutCore
from playserve_client.routing import ASK_S, free_slots, ranked, split_addresses, try_elsewhere
from playserve_client.session import Session
from playserve_client.session_core import SessionCore, open_message
from playserve_client.tracing import ClientTracing

__all__ = ["PolicyClient"]

_READY_POLL_S = 0.1
_Opened = TypeVar("_Opened", Session, Rollout)


class PolicyClient:
    """Talks to one policy server; a context manager. Thread-safe.

    Args:
        address: "host:port", or several, by commas or as a list: a session is opened on the one with most free slots.
        api_key: Key or token for servers that want one.
        tls: False for plain text, True for the system's roots, or a `TlsConfig` (or gRPC's own credentials).
        timeout_s: Longest wait for any answer, unless the call says otherwise.
        codecs: Packings to offer besides raw, best first; used where server and policy take them. JPEG is lossy.
        max_message_bytes: Largest message to take.
        allow_insecure_key: Send the key over plain text to other machines, too, where others can read it.
        tracing: Traces steps of its sessions; None: nobody does.

    Raises:
        BadSettingError: The key would be sent over plain text to another machine.
    """

    def __init__(
        self,
        address: str | Sequence[str],
        *,
        api_key: str | None = None,
        tls: Tls = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        codecs: Sequence[Codec] = (),
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        allow_insecure_key: bool = False,
        tracing: ClientTracing | None = None,
    ) -> None:
        self._tracing = tracing
        self._settings = ClientSettings(
            address=",".join(split_addresses(address)),
            api_key=api_key,
            tls=tls,
            timeout_s=timeout_s,
            codecs=tuple(codecs),
            max_message_bytes=max_message_bytes,
            allow_insecure_key=allow_insecure_key,
        )
        self._channels: dict[str, grpc.Channel] = {}
        self._open: set[Session | Rollout] = set()
        for target in self._settings.targets:
            self._dial(target)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Return "host:port", several by commas."""
        return self._settings.address

    def close(self) -> None:
        """Close what is open, then the connection."""
        for item in list(self._open):
            item.close()
        for channel in self._channels.values():
            channel.close()

    def wait_ready(self, timeout_s: float = 60.0, *, policy: str = "", version: str = "") -> None:
        """Wait until the server answers and, where `policy` is given, until that version can be opened."""
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.05, min(self._settings.timeout_s, deadline - time.monotonic()))
            try:
                if policy:
                    self._unary("GetPolicy", ps.GetPolicyRequest(policy=policy, version=version), left_s)
                else:
                    self._unary("ListPolicies", ps.ListPoliciesRequest(), left_s)
            except (ServerUnavailableError, TimeoutExceededError, NotFoundError) as error:
                if time.monotonic() + _READY_POLL_S > deadline:
                    raise TimeoutExceededError(f"{self.address} is not ready after {timeout_s:g} s: {error}") from error
                time.sleep(_READY_POLL_S)
            else:
                return

    def list_policies(self, name_prefix: str = "", *, timeout_s: float | None = None) -> list[PolicyInfo]:
        """Return every policy version that is ready to open, by name, newest first."""
        response = self._unary("ListPolicies", ps.ListPoliciesRequest(name_prefix=name_prefix), timeout_s)
        return [PolicyInfo.from_proto(policy) for policy in response.policies]

    def get_policy(self, name: str, version: str = "", *, timeout_s: float | None = None) -> PolicyInfo:
        """Return one policy version; without a version or an alias, the newest."""
        request = ps.GetPolicyRequest(policy=name, version=version)
        return PolicyInfo.from_proto(self._unary("GetPolicy", request, timeout_s).policy)

    def play(
        self,
        policy: str,
        *,
        version: str = "",
        version_policy: VersionPolicy = VersionPolicy.PINNED,
        pace: Pace = Pace.LOCKSTEP,
        seed: int | None = None,
        sampling: Sampling | None = None,
        instruction: str = "",
        extras: Extras | None = None,
        rate_hz: float = 0.0,
        episode_id: int = 0,
        consent: Consent | None = None,
        resume: bool = True,
        timeout_s: float | None = None,
    ) -> Session:
        """Open a session.

        Args:
            policy: Its name.
            version: Version or alias; empty: the newest.
            version_policy: Whether newer weights may be taken during the session.
            pace: Whether the game waits for the answer.
            seed: Seed of the sampling; None: the server draws one.
            sampling: How actions are drawn; None: sampled at temperature 1.
            instruction: For policies that take one.
            extras: What is wanted besides the action.
            rate_hz: Steps a second that will be sent; 0: the policy's rate.
            episode_id: Id of the first episode.
            consent: What operators may see; None: nothing.
            resume: Whether to resume by itself after a lost stream.
            timeout_s: Longest wait for any answer of this session; None: the client's own.
        """
        opening = open_message(
            policy,
            version=version,
            version_policy=version_policy,
            pace=pace,
            seed=seed,
            sampling=sampling,
            instruction=instruction,
            extras=extras,
            rate_hz=rate_hz,
            episode_id=episode_id,
            consent=consent,
        )
        return self._session(opening, resume, timeout_s, new_route())

    def resume(
        self,
        token: bytes,
        *,
        pace: Pace = Pace.LOCKSTEP,
        resume: bool = True,
        timeout_s: float | None = None,
        route: str = "",
    ) -> Session:
        """Go on with a session whose stream was lost or detached, perhaps by another process of the same caller.

        Args:
            token: `Session.resume_token`.
            pace: The session's pace; the server knows it, this side has to be told.
            resume: Whether to resume by itself when the stream is lost again.
            timeout_s: Longest wait for any answer of this session; None: the client's own.
            route: `Session.route`, where a load balancer stands in between.
        """
        return self._session(ps.Open(resume_token=token, pace=pace.value), resume, timeout_s, route)

    def rollout(
        self,
        policy: str,
        num_envs: int,
        *,
        version: str = "",
        seed: int | None = None,
        sampling: Sampling | None = None,
        extras: Extras | None = None,
        timeout_s: float | None = None,
    ) -> Rollout:
        """Open a rollout of `num_envs` environments, all in lockstep on one version; see :meth:`play`."""
        metadata = self._settings.metadata(policy, new_route())

        def opened(address: str | None) -> Rollout:
            return Rollout(
                self._dial(address).Rollout,
                RolloutCore(
                    policy,
                    num_envs,
                    version=version,
                    seed=seed,
                    sampling=sampling,
                    extras=extras,
                    codecs=self._settings.codecs,
                    client=self._settings.client_info(),
                ),
                metadata=metadata,
                timeout_s=self._settings.timeout_s if timeout_s is None else timeout_s,
                on_close=self._open.discard,
            )

        rollout = self._somewhere(opened, policy, version)
        self._open.add(rollout)
        return rollout

    def _session(self, opening: ps.Open, resume: bool, timeout_s: float | None, route: str) -> Session:
        metadata = self._settings.metadata(opening.policy, route)

        def opened(address: str | None) -> Session:
            tracer = None if self._tracing is None else self._tracing.session()
            traced = () if tracer is None else tracer.metadata()
            own = ps.Open()
            own.CopyFrom(opening)
            core = SessionCore(own, self._settings.codecs, self._settings.client_info(), route, tracer)
            core.dial_elsewhere(address)
            return Session(
                lambda address: self._dial(address).Play,
                core,
                metadata=(*metadata, *traced),
                timeout_s=self._settings.timeout_s if timeout_s is None else timeout_s,
                resume=resume,
                on_close=self._open.discard,
            )

        session = self._somewhere(opened, opening.policy, opening.version, resuming=bool(opening.resume_token))
        self._open.add(session)
        return session

    def _somewhere(
        self, opened: Callable[[str | None], _Opened], policy: str, version: str, *, resuming: bool = False
    ) -> _Opened:
        """Open something on the best of the servers that does not refuse it."""
        if len(self._settings.targets) == 1:
            return opened(None)
        *others, last = self._places(policy, version)
        for address in others:
            try:
                return opened(address)
            except PlayserveError as error:
                if not try_elsewhere(error, resuming=resuming):
                    raise
        return opened(last)

    def _places(self, policy: str, version: str) -> list[str]:
        """Return the servers, those with most free slots first."""
        metadata, limit = self._settings.metadata(policy), min(ASK_S, self._settings.timeout_s)
        request = ps.ListPoliciesRequest(name_prefix=policy)
        stubs: dict[str, Any] = {target: self._dial(target) for target in self._settings.targets}
        calls = {
            target: stub.ListPolicies.future(request, timeout=limit, metadata=metadata)
            for target, stub in stubs.items()
        }
        free: dict[str, int | None] = {}
        for target, call in calls.items():
            try:
                free[target] = free_slots(call.result().policies, policy, version)
            except grpc.RpcError:
                free[target] = None
        return ranked(free, random.Random())

    def _dial(self, address: str | None) -> PolicyServiceStub:
        target = address or self._settings.targets[0]
        if target not in self._channels:
            self._channels[target] = self._settings.channel(target)
        return PolicyServiceStub(self._channels[target])

    def _unary(self, method: str, request: Any, timeout_s: float | None) -> Any:
        """Call the first server that answers."""
        limit = self._settings.timeout_s if timeout_s is None else timeout_s
        metadata = self._settings.metadata(getattr(request, "policy", ""))
        targets = self._settings.targets
        for target in targets:
            try:
                return getattr(self._dial(target), method)(request, timeout=limit, metadata=metadata)
            except grpc.RpcError as failure:
                error = from_rpc_error(failure)
                if target == targets[-1] or not try_elsewhere(error, resuming=False):
                    raise error from failure
        raise AssertionError("there is a server")  # pragma: no cover - split_addresses saw to it
