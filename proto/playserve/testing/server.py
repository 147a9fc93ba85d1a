"""The fake server itself: a real gRPC server on a loopback port, and the knobs that tests turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc

from playserve.codec import DEFAULT_MAX_BYTES, Action
from playserve.errors import (
    NotImplementedHereError,
    PlayserveError,
    SessionClosedError,
    SessionNotFoundError,
    UnauthenticatedError,
    to_status,
)
from playserve.testing.faults import Settings
from playserve.testing.play import PlayStream
from playserve.testing.policies import FakePolicy, Handler, default_spec, script
from playserve.testing.rollouts import RolloutStream
from playserve.testing.sessions import Session, Table
from playserve.v1 import admin_service_pb2_grpc, state_transfer_service_pb2_grpc
from playserve.v1 import policy_service_pb2 as ps

__all__ = ["FakePolicyServer"]

Playable = FakePolicy | Handler | Sequence[Action]


def _abort(context: grpc.ServicerContext, error: PlayserveError) -> NoReturn:
    """End the call with the documented status of `error`."""
    status = to_status(error)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(error.code, status.message)
    raise AssertionError("abort raises")


def _as_policy(name: str, playable: Playable, slots: int) -> FakePolicy:
    if isinstance(playable, FakePolicy):
        spec = replace(playable.spec, version=playable.spec.version or "1")
        return replace(playable, spec=replace(spec, name=name) if name else spec)
    handler = playable if callable(playable) else script(playable)
    return FakePolicy(spec=default_spec(name or "fake"), handler=handler, slots=slots)


class FakePolicyServer:
    """Serves fake policies on a loopback port; a context manager.

    Args:
        policies: Policies by name, or one, which is named "fake" unless its spec has a name. A policy is a
            :class:`FakePolicy`, a handler, or a list of actions to play in each episode.
        slots: Sessions and environments that a policy given by its handler alone holds at once.
        port: Port; 0: a free one.
        api_keys: Keys of which a caller must send one; empty: anybody may call.
        max_message_bytes: Largest message.
        max_steps_in_flight: Steps that may wait unanswered.
        idle_timeout_s: Time without a message after which a session expires.
        detach_window_s: How long a session outlives its stream.
        delay_s: Time that each step takes.
        max_streams: Streams served at once.
        credentials: To serve with TLS; None: plain text.
    """

    def __init__(
        self,
        policies: Mapping[str, Playable] | Playable,
        *,
        slots: int = 16,
        port: int = 0,
        api_keys: Collection[str] = (),
        max_message_bytes: int = DEFAULT_MAX_BYTES,
        max_steps_in_flight: int = 16,
        idle_timeout_s: float = 60.0,
        detach_window_s: float = 30.0,
        delay_s: float = 0.0,
        max_streams: int = 64,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        named = policies if isinstance(policies, Mapping) else {"": policies}
        self.settings = Settings(
            max_message_bytes=max_message_bytes,
            max_steps_in_flight=max_steps_in_flight,
            idle_timeout_s=idle_timeout_s,
            detach_window_s=detach_window_s,
            delay_s=delay_s,
        )
        self._table = Table([_as_policy(name, value, slots) for name, value in named.items()], detach_window_s)
        self._api_keys = frozenset(api_keys)
        self._port = port
        self._max_streams = max_streams
        self._credentials = credentials
        self._calls: deque[tuple[str, dict[str, str]]] = deque(maxlen=1000)
        self._server: grpc.Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """Return "host:port"; the port stays the same over restarts."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Begin to serve."""
        options = [
            ("grpc.max_receive_message_length", self.settings.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            # Clients ask every 15 s whether the connection still stands.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
        ]
        server = grpc.server(futures.ThreadPoolExecutor(self._max_streams, "fake-policy-server"), options=options)
        servicer = _PolicyServicer(self._table, self.settings, self._api_keys, self._calls)
        server.add_generic_rpc_handlers((servicer.handlers(),))
        admin_service_pb2_grpc.add_AdminServiceServicer_to_server(_admin_servicer(), server)
        state_transfer_service_pb2_grpc.add_StateTransferServiceServicer_to_server(_transfer_servicer(), server)
        _add_health(server, self._table)
        self._port = (
            server.add_insecure_port(self.address)
            if self._credentials is None
            else server.add_secure_port(self.address, self._credentials)
        )
        server.start()
        self._server = server

    def stop(self) -> None:
        """Stop serving and drop every stream; sessions are kept for as long as the detach window."""
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None

    def restart(self) -> None:
        """Stop, forget every session as a new process would, and serve again on the same port."""
        self.stop()
        self._table.clear()
        self.start()

    def publish(self, policy: FakePolicy) -> None:
        """Add a policy, or a version of one: the newest from now on."""
        self._table.publish(policy)

    def drain(self) -> None:
        """Take no new sessions from now on."""
        self.settings.draining = True

    def sessions(self) -> list[str]:
        """Return the public ids of all sessions, detached ones included."""
        return list(self._table.sessions())

    def calls(self) -> list[tuple[str, dict[str, str]]]:
        """Return the newest calls, oldest first: the method's name and the metadata that the client sent."""
        return list(self._calls)

    def begin_move(self, session_id: str) -> HandOff:
        """Begin to hand a session to another server: nothing of it is handled until the hand-off ends."""
        session = self._table.sessions().get(session_id)
        if session is None:
            raise SessionNotFoundError(f"no session {session_id!r}")
        with session.lock:
            session.at_rest.clear()
        return HandOff(self._table, session)

    def move_session(self, session_id: str, to: FakePolicyServer) -> None:
        """Hand a session to another server; its player is told, now or when it tries to resume here."""
        self.begin_move(session_id).commit(to)

    def end_session(self, session_id: str, reason: str = "ended by the test") -> None:
        """End a session as an operator would."""
        session: Session | None = self._table.sessions().get(session_id)
        if session is None:
            raise SessionNotFoundError(f"no session {session_id!r}")
        with session.lock:
            if session.stream is not None:
                session.stream.end(SessionClosedError(reason))
            else:
                self._table.end(session)

    def drop_stream_after(self, results: int, *, lose_answer: bool = False) -> None:
        """Drop the Play stream that sends the `results`-th result from now, after it or, to lose it, before."""
        self.settings.drop_stream_after(results, lose_answer=lose_answer)

    def fail_step(self, seq: int, error: PlayserveError) -> None:
        """Make the next step with this seq fail, once; its session's memory stays as it was."""
        self.settings.fail_step(seq, error)

    def fail_row(self, env_id: int, error: PlayserveError) -> None:
        """Make the next row of this environment of a rollout fail, once."""
        self.settings.fail_row(env_id, error)

    def set_delay(self, delay_s: float) -> None:
        """Let each step take this long from now on."""
        self.settings.delay_s = delay_s


class HandOff:
    """A session between two servers. End it with :meth:`commit` or :meth:`fail`.

    Args:
        table: Of the server that gives.
        session: The session.
    """

    def __init__(self, table: Table, session: Session) -> None:
        self._table, self._session = table, session

    def commit(self, to: FakePolicyServer) -> None:
        """Let the session live at `to` from now on; where that cannot take it, it stays."""
        session, token = self._session, self._session.token
        try:
            with session.lock:
                stream = session.stream
                to._table.take(session)
                moved = ps.Moved(address=to.address, resume_token=session.token)
                self._table.forward(token, session, moved)
                if stream is not None:
                    stream.move(moved)
        finally:
            session.at_rest.set()

    def fail(self) -> None:
        """Let the session stay where it is."""
        self._session.at_rest.set()


class _PolicyServicer:
    """Translates between gRPC and the streams.

    Streams parse their requests themselves: where gRPC's sync server does it, bytes that are no message leave a call
    behind that never finishes when a second thread reads it, and the server never stops.
    """

    def __init__(
        self, table: Table, settings: Settings, api_keys: frozenset[str], calls: deque[tuple[str, dict[str, str]]]
    ) -> None:
        self._table, self._settings, self._api_keys, self._calls = table, settings, api_keys, calls

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the service's methods."""
        return grpc.method_handlers_generic_handler(
            "playserve.v1.PolicyService",
            {
                "Play": grpc.stream_stream_rpc_method_handler(
                    self.play, response_serializer=ps.PlayResponse.SerializeToString
                ),
                "Rollout": grpc.stream_stream_rpc_method_handler(
                    self.rollout, response_serializer=ps.RolloutResponse.SerializeToString
                ),
                "ListPolicies": grpc.unary_unary_rpc_method_handler(
                    self.list_policies,
                    request_deserializer=ps.ListPoliciesRequest.FromString,
                    response_serializer=ps.ListPoliciesResponse.SerializeToString,
                ),
                "GetPolicy": grpc.unary_unary_rpc_method_handler(
                    self.get_policy,
                    request_deserializer=ps.GetPolicyRequest.FromString,
                    response_serializer=ps.GetPolicyResponse.SerializeToString,
                ),
            },
        )

    def _principal(self, method: str, context: grpc.ServicerContext) -> str:
        metadata: Any = context.invocation_metadata()
        self._calls.append((method, {key: str(value) for key, value in metadata}))
        sent = next((str(value) for key, value in metadata if key == "authorization"), "")
        if self._api_keys and sent.removeprefix("Bearer ") not in self._api_keys:
            raise UnauthenticatedError("no valid key; wanted metadata 'authorization: Bearer KEY'")
        return sent

    def _stream(self, method: str, context: grpc.ServicerContext, make: Callable[[str], Any]) -> Iterator[Any]:
        try:
            yield from make(self._principal(method, context)).responses()
        except PlayserveError as error:
            _abort(context, error)

    def play(self, request_iterator: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[ps.PlayResponse]:
        """Serve one session."""
        return self._stream(
            "Play", context, lambda caller: PlayStream(self._table, self._settings, caller, request_iterator, context)
        )

    def rollout(self, request_iterator: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[ps.RolloutResponse]:
        """Serve one rollout."""
        return self._stream(
            "Rollout", context, lambda _caller: RolloutStream(self._table, self._settings, request_iterator, context)
        )

    def list_policies(self, request: ps.ListPoliciesRequest, context: grpc.ServicerContext) -> ps.ListPoliciesResponse:
        """List every version."""
        try:
            self._principal("ListPolicies", context)
            return ps.ListPoliciesResponse(policies=self._table.all(request.name_prefix))
        except PlayserveError as error:
            _abort(context, error)

    def get_policy(self, request: ps.GetPolicyRequest, context: grpc.ServicerContext) -> ps.GetPolicyResponse:
        """Describe one version."""
        try:
            self._principal("GetPolicy", context)
            policy = self._table.find(request.policy, request.version)
            return ps.GetPolicyResponse(policy=self._table.describe(policy))
        except PlayserveError as error:
            _abort(context, error)


def _refuse(_self: Any, _request: Any, context: grpc.ServicerContext) -> NoReturn:
    _abort(context, NotImplementedHereError("the fake server has no such method"))


def _admin_servicer() -> admin_service_pb2_grpc.AdminServiceServicer:
    methods = ("GetStatus", "ListSessions", "WatchSession", "EndSession", "Drain")
    base = admin_service_pb2_grpc.AdminServiceServicer
    servicer: admin_service_pb2_grpc.AdminServiceServicer = type("_Admin", (base,), dict.fromkeys(methods, _refuse))()
    return servicer


def _transfer_servicer() -> state_transfer_service_pb2_grpc.StateTransferServiceServicer:
    base = state_transfer_service_pb2_grpc.StateTransferServiceServicer
    servicer: state_transfer_service_pb2_grpc.StateTransferServiceServicer = type(
        "_Transfer", (base,), {"TransferState": _refuse}
    )()
    return servicer


def _add_health(server: grpc.Server, table: Table) -> None:
    """Add grpc.health.v1 where its package is installed."""
    try:
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    except ModuleNotFoundError:
        return
    servicer = health.HealthServicer()
    for service in ("", "liveness", "readiness", *(f"policy/{name}" for name in table.names())):
        servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
