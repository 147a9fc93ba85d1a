"""Asks a server how it is, again and again, and makes rates of what changed in between."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from playserve.errors import (
    BadSettingError,
    CancelledError,
    PlayserveError,
    ServerUnavailableError,
    TimeoutExceededError,
    UnsupportedError,
    from_rpc_error,
)
from playserve.v1 import admin_service_pb2 as ad
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve.v1.admin_service_pb2_grpc import AdminServiceStub
from playserve_client.channels import ClientSettings, Tls
from playserve_client.top.prometheus import Samples, fetch, quantile

__all__ = ["Snapshot", "Watcher", "compare"]

_STATES = {number: name.removeprefix("SESSION_STATE_").lower() for name, number in ad.SessionState.items()}
_PACES = {number: name.removeprefix("PACE_").lower() for name, number in ps.Pace.items()}
#: Column of the view, counter at /metrics.
_RATES = {
    "frames_per_s": "playserve_frames_total",
    "dropped_per_s": "playserve_frames_dropped_total",
    "stale_per_s": "playserve_frames_stale_total",
    "shed_per_s": "playserve_frames_shed_total",
    "misses_per_s": "playserve_deadline_misses_total",
    "errors_per_s": "playserve_errors_total",
}
_TIMES = {
    "queue": "playserve_queue_seconds",
    "compute": "playserve_compute_seconds",
    "total": "playserve_total_seconds",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a server said at one moment.

    Attributes:
        at_s: When, monotonic.
        status: Its status.
        sessions: Its sessions, oldest first.
        metrics: Its counters; None: not asked for, or not to be had.
        metrics_error: Why not.
    """

    at_s: float
    status: ad.GetStatusResponse
    sessions: tuple[ad.SessionInfo, ...]
    metrics: Samples | None = None
    metrics_error: str = ""


class Watcher:
    """Watches one server; a context manager.

    Args:
        address: host:port of its AdminService.
        metrics_url: Its /metrics; empty: none.
        policy: Only sessions of this policy; empty: all.
        api_key: Key or token for servers that want one.
        allow_insecure_key: Send it over plain text to other machines, too.
        tls: As for a client.
        timeout_s: Longest wait for an answer.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        address: str,
        *,
        metrics_url: str = "",
        policy: str = "",
        api_key: str | None = None,
        allow_insecure_key: bool = False,
        tls: Tls = False,
        timeout_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = ClientSettings(
            address=address, api_key=api_key, allow_insecure_key=allow_insecure_key, tls=tls, timeout_s=timeout_s
        )
        self._metrics_url, self._policy, self._clock = metrics_url, policy, clock
        self._channel = self._settings.channel()
        self._before: Snapshot | None = None
        self._since: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def look(self) -> dict[str, Any]:
        """Return the view of now; of a server that does not answer, since when that is so.

        Raises:
            PlayserveError: It answers, but not to us: no AdminService, no rights.
        """
        head = {"address": self._settings.address, "at": _now()}
        try:
            snapshot = self.snapshot()
        except (ServerUnavailableError, TimeoutExceededError, CancelledError) as error:
            self._since, self._before = self._since or _now(), None
            return {**head, "reachable": False, "unreachable_since": self._since, "error": str(error)}
        self._since = None
        before, self._before = self._before, snapshot
        return {**head, "reachable": True, **compare(snapshot, before)}

    def snapshot(self) -> Snapshot:
        """Ask once."""
        stub, limit_s = AdminServiceStub(self._channel), self._settings.timeout_s
        metadata = tuple(self._settings.metadata())
        try:
            status = stub.GetStatus(ad.GetStatusRequest(), timeout=limit_s, metadata=metadata)
            listed = stub.ListSessions(ad.ListSessionsRequest(policy=self._policy), timeout=limit_s, metadata=metadata)
        except grpc.RpcError as error:
            raised = from_rpc_error(error)
            if isinstance(raised, UnsupportedError):
                raise BadSettingError(
                    f"{self._settings.address} serves no AdminService, wanted the port of "
                    "`playserve serve --admin-port`"
                ) from error
            raise raised from error
        metrics, problem = None, ""
        if self._metrics_url:
            try:
                metrics = fetch(self._metrics_url, limit_s)
            except BadSettingError:
                raise
            except PlayserveError as failure:  # the rest is worth a look without it
                problem = str(failure)
        return Snapshot(
            at_s=self._clock(),
            status=status,
            sessions=tuple(listed.sessions),
            metrics=metrics,
            metrics_error=problem,
        )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def compare(now: Snapshot, before: Snapshot | None = None) -> dict[str, Any]:
    """Return a view as JSON. Rates need a snapshot from before, of the same process; without one they are null.

    Args:
        now: The newest.
        before: The one before it.
    """
    if before is not None and now.status.uptime_us < before.status.uptime_us:
        before = None  # it was restarted: its counters began again
    seconds = None if before is None else max(1e-9, now.at_s - before.at_s)
    return {
        "server_version": now.status.server_version,
        "uptime_s": now.status.uptime_us / 1e6,
        "draining": now.status.draining,
        "sessions": now.status.sessions,
        "policies": [_policy(policy, now, before, seconds) for policy in now.status.policies],
        "session_list": _sessions(now, before, seconds),
        "metrics_error": now.metrics_error or None,
    }


def _policy(policy: pb.PolicySpec, now: Snapshot, before: Snapshot | None, seconds: float | None) -> dict[str, Any]:
    mine = [s for s in now.sessions if (s.policy, s.version) == (policy.name, policy.version)]
    facts: dict[str, Any] = {
        "name": policy.name,
        "version": policy.version,
        "family": policy.family,
        "aliases": list(policy.aliases),
        "slots_used": policy.slots_total - policy.slots_free,
        "slots_total": policy.slots_total,
        "sessions": len(mine),
    }
    if now.metrics is not None:  # counted by policy, over its versions
        facts |= _measured(policy.name, now.metrics, None if before is None else before.metrics, seconds)
    return facts


def _measured(policy: str, now: Samples, before: Samples | None, seconds: float | None) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for column, name in _RATES.items():
        count = now.total(name, policy=policy)
        earlier = None if before is None else before.total(name, policy=policy) or 0.0
        facts[column] = None if seconds is None or earlier is None else ((count or 0.0) - earlier) / seconds
    for column, name in _TIMES.items():
        earlier_buckets = [] if before is None else before.buckets(name, policy=policy)
        for share in (0.5, 0.99):
            found = quantile(share, now.buckets(name, policy=policy), earlier_buckets)
            facts[f"{column}_p{share * 100:.0f}_ms"] = None if found is None else found * 1e3
    return facts


def _sessions(now: Snapshot, before: Snapshot | None, seconds: float | None) -> list[dict[str, Any]]:
    steps: Mapping[str, int] = {} if before is None else {s.session_id: s.steps for s in before.sessions}
    return [
        {
            "session_id": session.session_id,
            "principal": session.principal,
            "policy": session.policy,
            "version": session.version,
            "state": _STATES.get(session.state, str(session.state)),
            "pace": _PACES.get(session.pace, str(session.pace)),
            "environments": session.num_envs,
            "age_s": session.age_us / 1e6,
            "idle_s": session.idle_us / 1e6,
            "steps": session.steps,
            "steps_per_s": None
            if seconds is None or session.session_id not in steps
            else (session.steps - steps[session.session_id]) / seconds,
            "dropped": session.dropped,
            "watch": session.consent.watch,
            "record": session.consent.record,
            "client": session.client.name,
        }
        for session in now.sessions
    ]
