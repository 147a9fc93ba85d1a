"""Calls to the replicas' AdminService: their sessions, a session's end, a drain. Each call has a deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc

from playserve.errors import AccessError, PlayserveError, ServerUnavailableError, StateError, from_rpc_error
from playserve.v1 import admin_service_pb2 as ad
from playserve.v1.admin_service_pb2_grpc import AdminServiceStub
from playserve.v1.policy_service_pb2 import Pace
from playserve_client.channels import ClientSettings, Tls, TlsConfig
from playserve_services.control.metrics import ControlMetrics
from playserve_services.control.models import Replica
from playserve_services.control.repository.replicas import SessionFacts
from playserve_services.control.settings import ControlSettings

__all__ = ["Fleet"]

_TIMEOUT_S = 5.0
_AT_ONCE = 16
T = TypeVar("T")


class Fleet:
    """Dials replicas by the addresses of their heartbeats. Its methods block: they are called from worker threads."""

    def __init__(self, settings: ControlSettings, metrics: ControlMetrics) -> None:
        self._key = settings.replica_key.get_secret_value() or None
        own = TlsConfig(
            root_certificates=settings.replica_tls_ca, certificate=settings.replica_tls_cert,
            private_key=settings.replica_tls_key,
        )  # fmt: skip
        self._tls: Tls = settings.replica_tls if own == TlsConfig() else own
        self._insecure_key = settings.replica_insecure_key
        self._metrics = metrics

    def sessions(self, replicas: Sequence[Replica]) -> dict[str, list[SessionFacts] | PlayserveError]:
        """Return the sessions of each replica by its name, or why it did not tell them. Asks many at once."""
        if not replicas:
            return {}

        def ask(replica: Replica) -> list[SessionFacts] | PlayserveError:
            try:
                return self._call(replica, _list_sessions)
            except PlayserveError as error:
                return error

        with ThreadPoolExecutor(min(_AT_ONCE, len(replicas)), "control-fleet") as pool:
            return dict(zip((replica.name for replica in replicas), pool.map(ask, replicas), strict=True))

    def end_session(self, replica: Replica, session_id: str, reason: str) -> None:
        """End one session.

        Raises:
            SessionNotFoundError: The replica has none of that id.
            StateError: The replica gave no admin address.
            BadSettingError: The key would go to it in plain text.
            ServerUnavailableError: It does not answer.
        """
        request = ad.EndSessionRequest(session_id=session_id, reason=reason)
        self._call(replica, lambda stub: stub.EndSession(request, timeout=_TIMEOUT_S))

    def drain(self, replica: Replica, grace_s: float | None) -> int:
        """Have a replica take no new sessions; return how many still play.

        Args:
            replica: Which.
            grace_s: Seconds after which the others are ended; None: the server's own setting.

        Raises:
            StateError, ServerUnavailableError: As :meth:`end_session`.
        """
        request = ad.DrainRequest(grace_us=int((grace_s or 0) * 1e6))
        answer = self._call(replica, lambda stub: stub.Drain(request, timeout=_TIMEOUT_S))
        return int(answer.sessions)

    def settings_for(self, replica: Replica) -> ClientSettings:
        """Return how a replica's AdminService is dialled; raises StateError where it gave no admin address."""
        if not replica.admin_address:
            raise StateError(f"replica {replica.name} gave no admin address: start it with --admin-port")
        return ClientSettings(
            address=replica.admin_address, api_key=self._key, tls=self._tls, allow_insecure_key=self._insecure_key
        )

    def typed_error(self, replica: Replica, error: grpc.RpcError) -> PlayserveError:
        """Return a call's error as one of ours, and count it."""
        self._metrics.replica_errors.labels(replica.name).inc()
        typed = from_rpc_error(error)
        if isinstance(typed, AccessError):  # ours to mend, not whoever called us
            return ServerUnavailableError(f"replica {replica.name} refuses this control plane: {_hint(typed)}")
        if typed.reason:
            return typed
        text = f"replica {replica.name} at {replica.admin_address}: {typed.code.name} {str(typed)[:200]}"
        return ServerUnavailableError(text)

    def _call(self, replica: Replica, function: Callable[[Any], T]) -> T:
        settings = self.settings_for(replica)
        with settings.channel() as channel:
            try:
                return function(_Authorized(AdminServiceStub(channel), settings.metadata()))
            except grpc.RpcError as error:
                raise self.typed_error(replica, error) from error


def _hint(error: AccessError) -> str:
    return f"{error.code.name}; PLAYSERVE_CONTROL_REPLICA_KEY is to hold a key with the scope admin"


class _Authorized:
    """A stub whose calls carry the key."""

    def __init__(self, stub: Any, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub, self._metadata = stub, metadata

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._stub, name)
        return lambda request, timeout: method(request, timeout=timeout, metadata=self._metadata)


def _list_sessions(stub: Any) -> list[SessionFacts]:
    answer = stub.ListSessions(ad.ListSessionsRequest(), timeout=_TIMEOUT_S)
    return [
        SessionFacts(
            session_id=item.session_id,
            principal=item.principal,
            policy=item.policy,
            facts={
                "version": item.version,
                "state": ad.SessionState.Name(item.state).removeprefix("SESSION_STATE_").lower(),
                "pace": Pace.Name(item.pace).removeprefix("PACE_").lower(),
                "age_s": item.age_us / 1e6,
                "idle_s": item.idle_us / 1e6,
                "steps": item.steps,
                "dropped": item.dropped,
                "watch": item.consent.watch,
                "record": item.consent.record,
                "client": item.client.name,
                "num_envs": item.num_envs,
            },
        )
        for item in answer.sessions
    ]
