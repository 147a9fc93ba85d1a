"""Traces of single steps, from a client's capture to the applied action; OpenTelemetry is imported when one is opened.

Each step is a trace of its own, so that sampling picks steps and not hours of play. Its ids are derived from the
session's trace and the step's number: client and server name the same spans without a byte on the wire of a step. Only
the session's W3C `traceparent` and `tracestate` travel, in the metadata of its calls; the latter with OpenTelemetry's
threshold (`ot=th:...`), by which both sides sample the same steps.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from playserve.errors import BadSettingError, UnsupportedError

__all__ = ["STEP_SPAN", "TRACEPARENT", "TRACESTATE", "SessionTrace", "SpanSink", "check_ratio", "span_id"]

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
#: Name of the span that holds all others of a step, on the client's side.
STEP_SPAN = "playserve.step"

_PARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
_THRESHOLD = re.compile(r"(?:^|,)\s*ot=(?:[^,]*;)?th:([0-9a-f]{1,14})(?:[;,]|$)", re.ASCII)
_RANDOM_BITS = 56  # of a trace id, by which OpenTelemetry samples
_MAX_TRACESTATE = 512
_CLOCK_SET_NS = 2_000_000


def check_ratio(ratio: float) -> float:
    """Return a share of steps; raises BadSettingError where it is not between 0 and 1."""
    if not 0.0 <= ratio <= 1.0:
        raise BadSettingError(f"trace {ratio:g}, wanted a share of the steps between 0 (none) and 1 (all)")
    return ratio


def span_id(trace_id: int, name: str) -> int:
    """Return the id of a span of a step's trace: everybody who knows the step can name it."""
    digest = hashlib.blake2b(trace_id.to_bytes(16, "big") + name.encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") or 1


@dataclass(frozen=True, slots=True)
class SessionTrace:
    """What the traces of a session's steps are derived from.

    Attributes:
        trace_id: Of the session's own trace; 128 bits, not 0.
        parent_id: Its span; 64 bits, not 0.
        threshold: Steps whose trace ids have less than this in their lower 56 bits are not sampled.
    """

    trace_id: int
    parent_id: int
    threshold: int = 0

    @classmethod
    def new(cls, ratio: float) -> Self:
        """Return a new one that samples a share of the steps, more than 0."""
        return cls(secrets.randbits(128) or 1, secrets.randbits(64) or 1, _threshold(ratio))

    @classmethod
    def from_metadata(cls, metadata: Iterable[tuple[str, Any]]) -> Self | None:
        """Return what a call brought; None: nothing, something that is none, or a trace that is not sampled."""
        found = {key: value for key, value in metadata if key in (TRACEPARENT, TRACESTATE) and isinstance(value, str)}
        match = _PARENT.fullmatch(found.get(TRACEPARENT, ""))
        if match is None:
            return None
        trace_id, parent_id, flags = (int(part, 16) for part in match.groups())
        if not (trace_id and parent_id and flags & 1):
            return None
        state = _THRESHOLD.search(found.get(TRACESTATE, "")[:_MAX_TRACESTATE])
        return cls(trace_id, parent_id, int(state[1].ljust(14, "0"), 16) if state else 0)

    def to_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of every call of the session."""
        shown = f"{self.threshold:014x}".rstrip("0") or "0"
        return (
            (TRACEPARENT, f"00-{self.trace_id:032x}-{self.parent_id:016x}-01"),
            (TRACESTATE, f"ot=th:{shown}"),
        )

    def at_most(self, ratio: float) -> Self:
        """Return the same, of which at most a share of the steps is sampled, more than 0."""
        return replace(self, threshold=max(self.threshold, _threshold(ratio)))

    def step(self, seq: int) -> int | None:
        """Return the trace id of a step; None: it is not sampled."""
        key = self.trace_id.to_bytes(16, "big")
        trace_id = int.from_bytes(hashlib.blake2b(seq.to_bytes(8, "big"), key=key, digest_size=16).digest(), "big")
        return trace_id if trace_id & ((1 << _RANDOM_BITS) - 1) >= self.threshold else None


def _threshold(ratio: float) -> int:
    return min(round((1.0 - ratio) * (1 << _RANDOM_BITS)), (1 << _RANDOM_BITS) - 1)


class SpanSink:
    """Where finished spans go. Thread-safe.

    Args:
        processor: OpenTelemetry's, which takes them.
        service: Name of this program, where OTEL_SERVICE_NAME says none.
    """

    def __init__(self, processor: Any, service: str) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk import trace as sdk
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._processor, self._api, self._span = processor, trace, sdk.ReadableSpan
        self._apart_ns = 0
        named = Resource.create()  # of OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
        unnamed = str(named.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service")
        self._resource = named.merge(Resource({SERVICE_NAME: service})) if unnamed else named
        self._scope = InstrumentationScope("playserve")
        self._kinds = {"": trace.SpanKind.INTERNAL, "client": trace.SpanKind.CLIENT, "server": trace.SpanKind.SERVER}

    @classmethod
    def open(cls, service: str) -> Self:
        """Return a sink that exports by OTLP over gRPC, as the OTEL_EXPORTER_OTLP_* variables say.

        Raises:
            UnsupportedError: OpenTelemetry is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            raise UnsupportedError(
                f"traces need the package {error.name!r}, which is not installed: pip install 'playserve[trace]'"
            ) from error
        return cls(BatchSpanProcessor(OTLPSpanExporter()), service)

    def span(
        self,
        name: str,
        trace_id: int,
        start_ns: int,
        end_ns: int,
        *,
        own_id: int = 0,
        parent_id: int = 0,
        kind: str = "",
        attributes: Mapping[str, Any] | None = None,
        error: str = "",
        session: SessionTrace | None = None,
    ) -> None:
        """Take a finished span.

        Args:
            name: Of the span.
            trace_id: Of its trace.
            start_ns: Beginning, on the monotonic clock.
            end_ns: End, likewise.
            own_id: Its id; 0: by its name, see :func:`span_id`.
            parent_id: Id of the span around it; 0: none.
            kind: "client", "server" or "".
            attributes: Facts.
            error: What failed; empty: nothing.
            session: The session whose step this is, to be linked.
        """
        api = self._api
        apart_ns = self._apart()
        parent = self._context(trace_id, parent_id) if parent_id else None
        status = api.Status(api.StatusCode.ERROR, error) if error else api.Status(api.StatusCode.UNSET)
        links = (api.Link(self._context(session.trace_id, session.parent_id)),) if session is not None else ()
        self._processor.on_end(
            self._span(
                name=name,
                context=self._context(trace_id, own_id or span_id(trace_id, name)),
                parent=parent,
                resource=self._resource,
                attributes=dict(attributes or {}),
                links=links,
                kind=self._kinds[kind],
                status=status,
                start_time=start_ns + apart_ns,
                end_time=max(start_ns, end_ns) + apart_ns,
                instrumentation_scope=self._scope,
            )
        )

    def _apart(self) -> int:
        """Return what the wall clock is ahead of the monotonic one, which nobody else can read.

        The same for all spans, so that those that touch do, until the wall clock is set.
        """
        apart_ns = time.time_ns() - time.monotonic_ns()
        if abs(apart_ns - self._apart_ns) > _CLOCK_SET_NS:
            self._apart_ns = apart_ns
        return self._apart_ns

    def _context(self, trace_id: int, own_id: int) -> Any:
        return self._api.SpanContext(trace_id, own_id, is_remote=False, trace_flags=self._api.TraceFlags(1))

    def close(self) -> None:
        """Export what waits, and stop; takes as long as the collector, or its time-out."""
        self._processor.shutdown()
