"""Traces of steps, from client to server, through a real OTLP receiver and into OpenTelemetry's own memory."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

pytest.importorskip("opentelemetry.sdk", reason="playserve[trace]")

from contract_kit.servers import environment, playserve, serving
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from playserve.errors import StepFailedError
from playserve.settings import Pace
from playserve.tracing import SessionTrace, SpanSink
from playserve_client import PolicyClient
from playserve_client.aio import PolicyClient as AsyncPolicyClient
from playserve_client.tracing import ClientTracing, SessionTracer

FRAME = np.zeros((8, 8), np.uint8)
CLIENT = ["playserve.step", "playserve.capture", "playserve.encode", "playserve.send", "playserve.wait"]
SERVER = ["playserve.serve", "playserve.decode", "playserve.queue", "playserve.compute", "playserve.write"]


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Collects what is exported."""

    def __init__(self) -> None:
        self._spans: list[tuple[str, Any]] = []
        self._lock = threading.Lock()

    def Export(self, request: Any, context: Any) -> Any:
        with self._lock:
            for resource in request.resource_spans:
                facts = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
                self._spans += [(facts["service.name"], s) for scope in resource.scope_spans for s in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self) -> list[tuple[str, Any]]:
        """Return (service, span) so far."""
        with self._lock:
            return list(self._spans)


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    """Yield a receiver and its URL."""
    servicer = Receiver()
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield servicer, f"http://127.0.0.1:{port}"
        server.stop(0).wait()


@pytest.fixture
def otlp(receiver: tuple[Receiver, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Export to the receiver, soon; return the same for another process."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver[1], "OTEL_BSP_SCHEDULE_DELAY": "100"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


class Memory:
    """A client's tracing into memory."""

    def __init__(self, ratio: float = 1.0) -> None:
        self._exporter = InMemorySpanExporter()
        self.sink = SpanSink(SimpleSpanProcessor(self._exporter), "test")
        self.tracing = ClientTracing(self.sink, ratio)

    def spans(self, name: str) -> list[Any]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]


def test_a_step_is_one_trace_from_capture_to_answer_on_both_sides(
    receiver: tuple[Receiver, str], otlp: dict[str, str], eventually: Callable[..., Any]
) -> None:
    seen = receiver[0]
    with serving(["memory"], "--trace", "1", **otlp) as server:
        tracing = ClientTracing.open(1.0)
        assert tracing is not None
        with PolicyClient(server.address, tracing=tracing) as client, client.play("memory") as session:
            for _ in range(3):
                session.step(FRAME)
            session_id = session.session_id
        tracing.close()
        eventually(lambda: len(seen.spans()) >= 3 * 10 + 1, "the spans of three steps and the session's")
    spans = seen.spans()
    traces: dict[bytes, dict[str, tuple[str, Any]]] = {}
    for service, span in spans:
        traces.setdefault(span.trace_id, {})[span.name] = service, span
    (own,) = [spans for spans in traces.values() if set(spans) == {"playserve.session"}]
    steps = [spans for spans in traces.values() if spans is not own]
    assert len(steps) == 3
    for step in steps:
        assert set(step) == {*CLIENT, *SERVER}
        assert {step[name][0] for name in CLIENT} == {"playserve-client"}
        assert {step[name][0] for name in SERVER} == {"playserve-inference"}
        root, serve = step["playserve.step"][1], step["playserve.serve"][1]
        assert root.parent_span_id == b""
        assert root.links[0].span_id == own["playserve.session"][1].span_id
        assert {step[name][1].parent_span_id for name in [*CLIENT[1:], "playserve.serve"]} == {root.span_id}
        assert {step[name][1].parent_span_id for name in SERVER[1:]} == {serve.span_id}
        for _, span in step.values():  # one machine, one clock: what is inside lies inside
            assert root.start_time_unix_nano <= span.start_time_unix_nano + 1_000_000
            assert span.start_time_unix_nano <= span.end_time_unix_nano
        facts = {pair.key: pair.value for pair in serve.attributes}
        assert facts["playserve.session_id"].string_value == session_id
        assert facts["playserve.rows"].int_value == 1
    numbers = {pair.value.int_value for step in steps for pair in step["playserve.step"][1].attributes
               if pair.key == "playserve.seq"}  # fmt: skip
    assert numbers == {1, 2, 3}


def test_a_server_traces_clients_that_do_not(
    receiver: tuple[Receiver, str], otlp: dict[str, str], eventually: Callable[..., Any]
) -> None:
    seen = receiver[0]
    with serving(["memory"], **otlp, PLAYSERVE_TRACE="1") as server:
        with PolicyClient(server.address) as client, client.play("memory") as session:
            session.step(FRAME)
        eventually(lambda: len(seen.spans()) >= 5, "the spans")
    roots = [span for _, span in seen.spans() if span.name == "playserve.serve"]
    assert [root.parent_span_id for root in roots] == [b""]
    assert {span.name for _, span in seen.spans()} == set(SERVER)


def test_a_collector_that_is_down_costs_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with serving(["memory"], "--trace", "1", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
                 OTEL_EXPORTER_OTLP_TIMEOUT="1", OTEL_BSP_SCHEDULE_DELAY="50") as server:  # fmt: skip
        with PolicyClient(server.address) as client, client.play("memory") as session:
            for _ in range(20):
                session.step(FRAME)
        server.terminate()
        assert server.wait() == 0
        assert "Traceback" not in server.log()


@pytest.fixture(scope="module")
def plain() -> Iterator[Any]:
    """Yield a server that does not trace."""
    with serving(["memory", "live"]) as server:
        yield server


def test_the_sync_client_alone(plain: Any) -> None:
    memory = Memory()
    with PolicyClient(plain.address, tracing=memory.tracing) as client:
        with client.play("memory") as session:
            for _ in range(4):
                session.step(FRAME)
    steps = memory.spans("playserve.step")
    assert [step.attributes["playserve.outcome"] for step in steps] == ["answered"] * 4
    assert [step.attributes["playserve.policy"] for step in steps] == ["memory"] * 4
    assert len(memory.spans("playserve.session")) == 1
    for name in CLIENT[1:]:
        assert [s.parent.span_id for s in memory.spans(name)] == [s.context.span_id for s in steps]


async def test_the_async_client_alone_and_frames_that_a_newer_one_displaced(plain: Any) -> None:
    memory = Memory()
    async with AsyncPolicyClient(plain.address, tracing=memory.tracing) as client:
        async with client.play("live", pace=Pace.LIVE) as session:
            for _ in range(12):
                last = await session.send_step(FRAME, budget_us=60_000_000)
            while (await session.recv()).seq != last:
                pass
    outcomes = [step.attributes["playserve.outcome"] for step in memory.spans("playserve.step")]
    assert len(outcomes) == 12
    assert set(outcomes) == {"answered", "superseded"}


def test_a_share_of_the_steps_is_traced(plain: Any) -> None:
    memory = Memory(ratio=0.3)
    with PolicyClient(plain.address, tracing=memory.tracing) as client, client.play("memory") as session:
        for _ in range(100):
            session.step(FRAME)
    assert 5 <= len(memory.spans("playserve.step")) <= 60


def test_actions_that_were_applied_end_their_steps() -> None:
    memory = Memory()
    tracer = SessionTracer(memory.sink, SessionTrace.new(1.0))
    tracer.told_of_actions = True
    for seq in (1, 2, 3):
        tracer.encoded(seq, 0, time.monotonic_ns())
        tracer.sent(seq)
    tracer.answered(1, live=True)
    tracer.answered(2, live=True)  # both were answered, and nobody applied the first
    tracer.applied(2, time.monotonic_ns(), in_time=True)
    tracer.applied(1, time.monotonic_ns(), in_time=False)
    tracer.failed(3, StepFailedError())
    tracer.closed()
    found = {step.attributes["playserve.seq"]: step for step in memory.spans("playserve.step")}
    outcomes = {seq: step.attributes["playserve.outcome"] for seq, step in found.items()}
    assert outcomes == {1: "stale", 2: "applied", 3: "failed"}
    assert found[3].status.description == "STEP_FAILED"
    (applied,) = [s for s in memory.spans("playserve.apply") if s.context.trace_id == found[2].context.trace_id]
    (waited,) = [s for s in memory.spans("playserve.wait") if s.context.trace_id == found[2].context.trace_id]
    assert waited.end_time <= applied.start_time <= applied.end_time == found[2].end_time


def test_without_opentelemetry_the_command_says_what_to_install() -> None:
    block = "import sys; sys.modules['opentelemetry'] = None\n"
    program = block + "from playserve.cli import main\nsys.exit(main())"
    line = playserve("serve", "--policy", "memory=contract_kit.served:memory", "--port", "0", "--trace", "0.1")
    done = subprocess.run([line[0], "-c", program, *line[3:]], capture_output=True, text=True, env=environment(),
                          check=False, timeout=100)  # fmt: skip
    assert done.returncode == 1 or done.returncode == 2
    assert "pip install 'playserve[trace]'" in done.stderr
    assert "Traceback" not in done.stderr
