"""A client's half of the traces: capture, encode, send, wait, apply. The server's half hangs itself under it.

A client that traces is given a :class:`ClientTracing`; one that does not pays for a comparison with None.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Self

from playserve.errors import PlayserveError
from playserve.tracing import STEP_SPAN, SessionTrace, SpanSink, check_ratio, span_id

__all__ = ["ClientTracing", "SessionTracer"]

#: Steps whose answers are still expected; older ones are forgotten.
_MOST = 1024
#: A capture time that is further back than this is of another clock.
_CAPTURE_NS = 60_000_000_000


class ClientTracing:
    """Traces a share of the steps of the sessions of one client, or of several. Whoever made it closes it, last.

    Args:
        sink: Where spans go.
        ratio: Share of the steps, more than 0 and at most 1.
    """

    def __init__(self, sink: SpanSink, ratio: float) -> None:
        self._sink, self._ratio = sink, ratio

    @classmethod
    def open(cls, ratio: float) -> Self | None:
        """Return one that exports as OTEL_EXPORTER_OTLP_* say; None for a ratio of 0.

        Raises:
            BadSettingError: The ratio is none.
            UnsupportedError: OpenTelemetry is not installed.
        """
        return cls(SpanSink.open("playserve-client"), ratio) if check_ratio(ratio) else None

    def session(self) -> SessionTracer:
        """Return the tracer of a new session."""
        return SessionTracer(self._sink, SessionTrace.new(self._ratio))

    def close(self) -> None:
        """Export what waits."""
        self._sink.close()


@dataclass(slots=True)
class _Step:
    trace_id: int
    captured_ns: int
    encoding_ns: int
    encoded_ns: int
    sent_ns: int = 0
    answered_ns: int = 0


class SessionTracer:
    """Traces the steps of one session.

    Its methods may be called from several threads: each step is finished by whoever takes it out of the table.

    Args:
        sink: Where spans go.
        trace: What the ids are derived from.
    """

    def __init__(self, sink: SpanSink, trace: SessionTrace) -> None:
        self._sink, self.trace = sink, trace
        self._steps: dict[int, _Step] = {}
        self._opened_ns = time.monotonic_ns()
        self._facts: dict[str, Any] = {}
        #: Whether whoever plays says when an action was applied; else a step ends with its answer.
        self.told_of_actions = False

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of every call of the session."""
        return self.trace.to_metadata()

    def opened(self, session_id: str, policy: str, version: str) -> None:
        """The session is open."""
        self._facts = {
            "playserve.session_id": session_id, "playserve.policy": policy, "playserve.version": version,
        }  # fmt: skip

    def encoded(self, seq: int, capture_time_ns: int, encoding_ns: int) -> None:
        """A step is packed, since `encoding_ns`, of a frame of `capture_time_ns`, if that is of our clock."""
        trace_id = self.trace.step(seq)
        if trace_id is None:
            return
        known = 0 <= encoding_ns - capture_time_ns < _CAPTURE_NS
        captured_ns = capture_time_ns if known else encoding_ns
        self._steps[seq] = _Step(trace_id, captured_ns, encoding_ns, time.monotonic_ns())
        if len(self._steps) > _MOST:
            self._finish(next(iter(self._steps)), "forgotten")

    def sent(self, seq: int) -> None:
        """A step was handed to the transport."""
        step = self._steps.get(seq)
        if step is not None:
            step.sent_ns = time.monotonic_ns()

    def answered(self, seq: int, *, live: bool) -> None:
        """The answer to a step came; with it, at LIVE pace, older ones will never."""
        if live:
            for older in [other for other in list(self._steps) if other < seq]:
                if not self._steps[older].answered_ns:
                    self._finish(older, "superseded")
        step = self._steps.get(seq)
        if step is None:
            return
        step.answered_ns = time.monotonic_ns()
        if not self.told_of_actions:
            self._finish(seq, "answered")

    def applied(self, seq: int, began_ns: int, *, in_time: bool) -> None:
        """The action of a step was applied since `began_ns`, or was too old to be."""
        if seq in self._steps:
            ended_ns = time.monotonic_ns()
            self._finish(seq, "applied" if in_time else "stale", began_ns, ended_ns)

    def failed(self, seq: int, error: PlayserveError) -> None:
        """A step was refused, or could not be computed."""
        self._finish(seq, "failed", error=error.reason or type(error).__name__)

    def closed(self) -> None:
        """The session is over."""
        for seq in list(self._steps):
            self._finish(seq, "unanswered")
        trace = self.trace
        self._sink.span(
            "playserve.session", trace.trace_id, self._opened_ns, time.monotonic_ns(), own_id=trace.parent_id,
            kind="client", attributes=self._facts,
        )  # fmt: skip

    def _finish(self, seq: int, outcome: str, applying_ns: int = 0, applied_ns: int = 0, error: str = "") -> None:
        step = self._steps.pop(seq, None)
        if step is None:
            return
        now_ns = applied_ns or step.answered_ns or time.monotonic_ns()
        sent_ns = step.sent_ns or step.encoded_ns
        root_id = span_id(step.trace_id, STEP_SPAN)
        self._sink.span(
            STEP_SPAN, step.trace_id, step.captured_ns, now_ns, kind="client", error=error, session=self.trace,
            attributes={**self._facts, "playserve.seq": seq, "playserve.outcome": outcome},
        )  # fmt: skip
        phases = [
            ("playserve.capture", step.captured_ns, step.encoding_ns),
            ("playserve.encode", step.encoding_ns, step.encoded_ns),
            ("playserve.send", step.encoded_ns, sent_ns),
            ("playserve.wait", sent_ns, step.answered_ns or now_ns),
        ]
        if applying_ns:
            phases.append(("playserve.apply", applying_ns, applied_ns))
        for name, start_ns, end_ns in phases:
            self._sink.span(name, step.trace_id, start_ns, end_ns, parent_id=root_id)
