"""A server's half of the traces: decode, queue, compute, write, under the client's step where the client traces.

A stream that is not traced has no :class:`StreamTrace`, and pays for a comparison with None.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Self

import grpc

from playserve.tracing import STEP_SPAN, SessionTrace, SpanSink, span_id
from playserve_services.inference.sessions import Answer

__all__ = ["ServerTracing", "StreamTrace"]

_SERVE = "playserve.serve"
#: Answers that wait to be written, at most.
_MOST = 256


class ServerTracing:
    """Traces steps of Play streams. Whoever made it closes it.

    Args:
        sink: Where spans go.
        ratio: Largest share of the steps, more than 0 and at most 1; of a client that traces fewer, those.
    """

    def __init__(self, sink: SpanSink, ratio: float) -> None:
        self._sink, self._ratio = sink, ratio

    @classmethod
    def open(cls, ratio: float) -> Self | None:
        """Return one that exports as OTEL_EXPORTER_OTLP_* say; None for a ratio of 0.

        Raises:
            UnsupportedError: OpenTelemetry is not installed.
        """
        return cls(SpanSink.open("playserve-inference"), ratio) if ratio else None

    def stream(self, metadata: Iterable[tuple[str, Any]]) -> StreamTrace:
        """Return the tracer of a stream with this metadata."""
        theirs = SessionTrace.from_metadata(metadata)
        trace = SessionTrace.new(self._ratio) if theirs is None else theirs.at_most(self._ratio)
        return StreamTrace(self._sink, trace, is_root=theirs is None)

    def close(self) -> None:
        """Export what waits."""
        self._sink.close()


class StreamTrace:
    """Traces the steps of one stream. Event loop's thread only.

    Args:
        sink: Where spans go.
        trace: What the ids are derived from.
        is_root: Whether nobody traces on the client's side.
    """

    def __init__(self, sink: SpanSink, trace: SessionTrace, *, is_root: bool) -> None:
        self._sink, self._trace, self._is_root = sink, trace, is_root
        self._waiting: dict[int, tuple[int, Answer, int]] = {}

    def writing(self, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """Return what writes to the stream and notes when that is done."""
        return _Writer(context, self)

    def answered(self, answer: Answer, now_ns: int) -> None:
        """An answer was computed, and waits to be written since `now_ns`."""
        seq = answer.frame.seq
        trace_id = self._trace.step(seq)
        if trace_id is not None:
            self._waiting[seq] = trace_id, answer, now_ns
            if len(self._waiting) > _MOST:
                del self._waiting[next(iter(self._waiting))]

    def written(self, message: Any, began_ns: int) -> None:
        """A message of the stream was written since `began_ns`."""
        kind = message.WhichOneof("message")
        if kind == "result" and message.result.seq in self._waiting:
            self._finish(*self._waiting.pop(message.result.seq), time.monotonic_ns())
        elif kind == "error" and message.error.seq and (trace_id := self._trace.step(message.error.seq)) is not None:
            self._span(
                _SERVE, trace_id, began_ns, time.monotonic_ns(), {"playserve.seq": message.error.seq},
                error=message.error.status.message or "failed",
            )  # fmt: skip

    def _finish(self, trace_id: int, answer: Answer, answered_ns: int, written_ns: int) -> None:
        frame, session = answer.frame, answer.slot.session
        computing_ns = frame.arrived_ns + answer.queue_ns
        facts = {
            "playserve.session_id": session.session_id, "playserve.policy": session.policy.spec.name,
            "playserve.version": answer.version, "playserve.seq": frame.seq, "playserve.rows": answer.batch_size,
        }  # fmt: skip
        self._span(_SERVE, trace_id, frame.arrived_ns, written_ns, facts)
        decoded_ns = frame.arrived_ns + frame.decode_ns
        for name, start_ns, end_ns in (
            ("playserve.decode", frame.arrived_ns, decoded_ns),
            ("playserve.queue", decoded_ns, computing_ns),
            ("playserve.compute", computing_ns, computing_ns + answer.compute_ns),
            ("playserve.write", answered_ns, written_ns),
        ):
            self._sink.span(name, trace_id, start_ns, end_ns, parent_id=span_id(trace_id, _SERVE))

    def _span(
        self, name: str, trace_id: int, start_ns: int, end_ns: int, facts: dict[str, Any], error: str = ""
    ) -> None:
        parent_id = 0 if self._is_root else span_id(trace_id, STEP_SPAN)
        self._sink.span(
            name, trace_id, start_ns, end_ns, parent_id=parent_id, kind="server", attributes=facts, error=error,
            session=self._trace,
        )  # fmt: skip


class _Writer:
    """The part of a stream that an outbox uses."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], trace: StreamTrace) -> None:
        self._context, self._trace = context, trace

    async def write(self, message: Any) -> None:
        began_ns = time.monotonic_ns()
        await self._context.write(message)
        self._trace.written(message, began_ns)
