"""What is fuzzed: each target takes bytes that anybody may send, and fails only where our code does.

A refusal is a typed error with a documented reason; everything else that is raised is a finding.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from playserve.codec import Decoder, negotiate
from playserve.errors import REASONS, PlayserveError, from_status, to_status
from playserve.specs import (
    Codec,
    DesktopActionSpec,
    DiscreteActionSpec,
    ImageFormat,
    PolicySpec,
    TensorSpec,
)
from playserve.tracing import SessionTrace
from playserve.v1 import policy_service_pb2 as ps
from playserve_client.recap.framing import read_message
from playserve_client.recap.messages import Eye, parse_frame
from playserve_client.results import StepResult
from playserve_services.auth.gate import Caller
from playserve_services.auth.principal import Credentials, OpenDoor
from playserve_services.auth.quotas import Accounts
from playserve_services.inference import convert
from playserve_services.inference.catalog import Catalog
from playserve_services.inference.core import InferenceCore
from playserve_services.inference.engine import InlineEngine
from playserve_services.inference.loader import RuntimeFactory
from playserve_services.inference.metrics import Metrics
from playserve_services.inference.opening import CoreLimits
from playserve_services.inference.play import PlayStream, _changes
from playserve_services.inference.watching import Watching
from playserve_trainer.models.tiny_recurrent import TinyRecurrentConfig, TinyRecurrentPolicy

__all__ = ["SPECS", "TARGETS"]

MAX_BYTES = 1 << 20
_BOTH = (Codec.LZ4, Codec.JPEG)
#: Inputs of every kind that a policy may have.
SPECS = (
    TensorSpec(name="frame", dtype="uint8", shape=(8, 8, 3), image_format=ImageFormat.RGB8, codecs=_BOTH),
    TensorSpec(name="open", dtype="uint8", shape=(-1, -1, 3), image_format=ImageFormat.RGB8, codecs=_BOTH,
               optional=True),
    TensorSpec(name="bounded", dtype="float32", shape=(4,), minimum=-1.0, maximum=1.0, codecs=(Codec.LZ4,),
               optional=True),
    TensorSpec(name="flags", dtype="bool", shape=(3,), optional=True),
    TensorSpec(name="count", dtype="int64", shape=(), minimum=0, optional=True),
)  # fmt: skip
_DESKTOP = DesktopActionSpec(keys=("KeyW", "KeyA", "Space"), buttons=(0, 2), max_mouse_px=60.0)
_POLICIES = [
    SimpleNamespace(spec=PolicySpec(name="p", family="f", inputs=SPECS, action=action, rate_hz=rate_hz))
    for action, rate_hz in ((DiscreteActionSpec(n=4), 0.0), (_DESKTOP, 20.0))
]


def _check_refusal(error: PlayserveError) -> None:
    assert error.reason in REASONS, f"{type(error).__name__} has no documented reason"
    assert len(to_status(error).message) < 4096, "an answer longer than what was sent"


def _check_inputs(arrays: dict[str, Any], rows: tuple[int, ...]) -> None:
    assert set(arrays) == {spec.name for spec in SPECS}
    assert sum(array.nbytes for array in arrays.values() if array.base is not None) <= 4 * MAX_BYTES
    for spec in SPECS:
        array = arrays[spec.name]
        shape = (*rows, *spec.shape)
        assert array.dtype == spec.numpy_dtype
        assert all(a == b or b == -1 for a, b in zip(array.shape, shape, strict=True))
        if array.size and spec.minimum is not None:
            assert array.min() >= spec.minimum
        if spec.dtype == "bool":
            assert array.view(np.uint8).max(initial=0) <= 1


def _play_request(data: bytes) -> None:
    """One message of a Play stream, up to what the core takes."""
    try:
        message = ps.PlayRequest.FromString(data)
    except DecodeError:
        return
    kind = message.WhichOneof("message")
    for policy in _POLICIES:
        try:
            if kind == "step":
                decoder = Decoder(policy.spec.inputs, frozenset(Codec), MAX_BYTES)
                _check_inputs(decoder.decode_step(message.step.inputs), ())
                convert.world_action(policy, message.step.action)  # what a step of a world brings beside its inputs
            elif kind == "executed":
                convert.executed_action(policy, message.executed.action, message.executed.source)
            elif kind == "configure":
                _changes(message.configure)
            elif kind == "open":
                opening = message.open
                convert.open_settings(opening.sampling, opening.extras, opening.instruction, opening.consent)
                convert.live_rate(policy, opening.rate_hz, live=True)
                negotiate(opening.codecs, policy.spec.inputs)
        except PlayserveError as error:
            _check_refusal(error)


def _rollout_request(data: bytes) -> None:
    """One message of a Rollout stream."""
    try:
        message = ps.RolloutRequest.FromString(data)
    except DecodeError:
        return
    if message.WhichOneof("message") != "step":
        return
    rows = len(message.step.env_ids)
    try:
        _check_inputs(Decoder(SPECS, frozenset(Codec), MAX_BYTES).decode_rows(message.step.inputs, rows), (rows,))
    except PlayserveError as error:
        _check_refusal(error)


def _play_response(data: bytes) -> None:
    """What a server tells a client."""
    try:
        message = ps.PlayResponse.FromString(data)
    except DecodeError:
        return
    for policy in _POLICIES:
        try:
            if message.HasField("opened"):
                with contextlib.suppress(ValueError):  # what a server may not say ends the stream with a ServerFault
                    PolicySpec.from_proto(message.opened.policy)
            elif message.HasField("result"):
                StepResult.from_proto(message.result, policy.spec)
            elif message.HasField("error"):
                assert isinstance(from_status(message.error.status), PlayserveError)
        except PlayserveError:
            pass


def _status(data: bytes) -> None:
    """A rich status of anybody's."""
    try:
        status = status_pb2.Status.FromString(data)
    except DecodeError:
        return
    assert isinstance(from_status(status), PlayserveError)


def _recap(data: bytes) -> None:
    """A byte stream of a client of Open P2P's."""
    asyncio.run(_read_recap(data))


async def _read_recap(data: bytes) -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    eye = Eye(PolicySpec(name="p", family="f", inputs=SPECS[:1], action=_DESKTOP))
    try:
        while (message := await read_message(reader, 1 << 16)) is not None:
            assert len(message) <= 1 << 16
            frame = parse_frame(message)
            assert eye.see(frame).shape == (8, 8, 3)
    except PlayserveError as error:
        _check_refusal(error)


def _traceparent(data: bytes) -> None:
    """Metadata of a traced call."""
    parent, _, state = data.decode("latin-1").partition("\n")
    found = SessionTrace.from_metadata([("traceparent", parent), ("tracestate", state)])
    assert found is None or SessionTrace.from_metadata(found.to_metadata()) == found


class _Raise(logging.Handler):
    """What is logged with a traceback is a bug of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            raise record.exc_info[1]


class _Stream:
    """The bytes of one stream, as gRPC's servicer context gives them; it is lost when they are over."""

    def __init__(self, messages: Iterator[bytes]) -> None:
        self._messages = messages
        self.lost = asyncio.Event()
        self.written = 0

    async def read(self) -> Any:
        for data in self._messages:
            return ps.PlayRequest.FromString(data)
        self.lost.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def write(self, message: Any) -> None:
        self.written += 1
        assert self.written < 10_000
        message.SerializeToString()

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> None:
        assert len(details) < 4096


class _Sessions:
    """A real core with a real policy, and one stream after another."""

    def __init__(self) -> None:
        self._catalog = Catalog()
        self._metrics = Metrics(lambda: self._catalog)
        factory = RuntimeFactory(slots=2, max_batch=2)
        policy = TinyRecurrentPolicy(TinyRecurrentConfig(hidden=4, rate_hz=20.0))
        spec = policy.spec()
        import dataclasses

        self._policy = factory.make(dataclasses.replace(spec, name="p", version="1"), policy, factory.pool(policy))
        self._catalog.add(self._policy)
        self._threads = ThreadPoolExecutor(1)
        self._loop = asyncio.new_event_loop()
        self._handler = _Raise()

    def play(self, data: bytes) -> None:
        """Feed a stream: messages, each with two bytes of length before it."""
        log = logging.getLogger("playserve_services")
        log.addHandler(self._handler)  # for so long only: other tests of this process log what they mean to
        try:
            self._loop.run_until_complete(self._play(_messages(data)))
        finally:
            log.removeHandler(self._handler)

    async def acquire(self, name: str, version: str = "") -> Any:
        """Stand in for the loader: everything that there is, is loaded."""
        return self._catalog.resolve(name, version)

    async def _play(self, messages: Iterator[bytes]) -> None:
        ticks = iter(range(10**9, 10**18, 10**6))
        core = InferenceCore(self._catalog, CoreLimits(max_batch=2), self._metrics, lambda: next(ticks))
        core.attach_engine(InlineEngine(core.on_result))
        door = OpenDoor()
        principal = await door.authenticate(Credentials(bearer=None, certificate=None, subject=""))
        context: Any = _Stream(messages)
        stream = PlayStream(
            core, self, context, Caller(principal, Accounts(), door), self._threads, self._threads, MAX_BYTES,  # type: ignore[arg-type]
            Watching(),
        )  # fmt: skip
        running = asyncio.create_task(stream.run())
        lost = asyncio.create_task(context.lost.wait())
        await asyncio.wait((running, lost), timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert running.done() or lost.done(), "the stream hangs"
        running.cancel()
        lost.cancel()
        for outcome in await asyncio.gather(running, lost, return_exceptions=True):
            if isinstance(outcome, Exception) and not isinstance(outcome, PlayserveError):
                raise outcome
        core.end_all()
        assert len(core) == 0
        assert self._policy.pool.free == self._policy.pool.capacity, "a slot is left in use"
        assert self._policy.sessions == 0
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.sleep(0)
        assert not {task for task in others if not task.done()}, "a task is left"


def _messages(data: bytes) -> Iterator[bytes]:
    """Yield what is a message; a stream's own end at bytes that are none is gRPC's affair and tested elsewhere."""
    at = 0
    while at + 2 <= len(data):
        (length,) = struct.unpack_from("<H", data, at)
        message = data[at + 2 : at + 2 + length]
        at += 2 + length
        try:
            ps.PlayRequest.FromString(message)
        except DecodeError:
            continue
        yield message


class _Lazily:
    """Makes the sessions when they are first played: loading a policy takes a while."""

    def __init__(self) -> None:
        self._sessions: _Sessions | None = None

    def __call__(self, data: bytes) -> None:
        if self._sessions is None:
            self._sessions = _Sessions()
        self._sessions.play(data)


#: By name. Each takes any bytes.
TARGETS: dict[str, Callable[[bytes], None]] = {
    "play_request": _play_request,
    "rollout_request": _rollout_request,
    "play_response": _play_response,
    "status": _status,
    "recap": _recap,
    "traceparent": _traceparent,
    "session": _Lazily(),
}
