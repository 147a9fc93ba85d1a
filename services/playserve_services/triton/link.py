"""The stream of one front to one Triton: requests go in order, and answers come in that order. Event loop's thread.

It uses tritonclient's messages and stub, and none of its wrapping: a step of a live game waits for every microsecond.
What a request says beside its numbers is the same for every batch of a size, and is made once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

from playserve.errors import BadSettingError, EngineFailedError, ServerUnavailableError, StepFailedError
from playserve_services.inference.staging import Array

__all__ = ["Done", "TritonLink"]

#: Takes the tensors of an answer, or a StepFailedError with what Triton said, or an EngineFailedError.
Done = Callable[[Mapping[str, Array] | Exception], None]

Coming = asyncio.Future[dict[str, Array]]

_log = logging.getLogger(__name__)
_MAX_BYTES = 1 << 30
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_BYTES),
    ("grpc.max_send_message_length", _MAX_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own: nothing else stands in its way
)
_READY_S = 10.0
_MOST_HEADS = 256


class TritonLink:
    """See the module's docstring.

    Args:
        url: HOST:PORT of Triton's gRPC.
        on_lost: Called once if the stream ends by itself: the memory of all slots may be gone with it.
    """

    def __init__(self, url: str, on_lost: Callable[[], None]) -> None:
        self.url = url
        self._on_lost = on_lost
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None
        self._heads: dict[Any, service_pb2.ModelInferRequest] = {}  # requests without numbers, by what they say
        self._outgoing: deque[service_pb2.ModelInferRequest] = deque()
        self._waker: asyncio.Future[None] | None = None
        self._waiting: deque[tuple[str, Done]] = deque()
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self.lost = False

    async def start(self) -> None:
        """Open the stream.

        Raises:
            ServerUnavailableError: Nobody answers there, or it is not ready.
        """
        self._loop = asyncio.get_running_loop()
        self._channel = grpc.aio.insecure_channel(self.url, options=_OPTIONS)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        try:
            ready = await stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=_READY_S)
        except grpc.aio.AioRpcError as error:
            raise ServerUnavailableError(f"no Triton answers at {self.url}: {error.details()}") from error
        if not ready.ready:
            raise ServerUnavailableError(f"Triton at {self.url} is not ready")
        self._call = stub.ModelStreamInfer()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]

    async def close(self) -> None:
        """End the stream; what waits for an answer fails."""
        self.lost = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail()
        if self._call is not None:
            self._call.cancel()
        if self._channel is not None:
            await self._channel.close()

    def send(self, model: str, arrays: Mapping[str, Array], done: Done, **parameters: str | bool) -> None:
        """Send a request. `done` is called with what came of it, never before this returns."""
        if self.lost:
            asyncio.get_running_loop().call_soon(done, self._gone())
            return
        request = service_pb2.ModelInferRequest()
        request.CopyFrom(self._head(model, arrays, parameters))
        request.id = number = str(next(self._numbers))
        request.raw_input_contents.extend([array.tobytes() for array in arrays.values()])
        self._waiting.append((number, done))
        self._outgoing.append(request)
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    def ask(self, model: str, arrays: Mapping[str, Array], **parameters: str | bool) -> Coming:
        """Send a request; the future has the answer's tensors, or the error of :meth:`send`."""
        future: Coming = asyncio.get_running_loop().create_future()

        def done(found: Mapping[str, Array] | Exception) -> None:
            if future.cancelled():
                return
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(dict(found))

        self.send(model, arrays, done, **parameters)
        return future

    def ask_blocking(self, model: str, arrays: Mapping[str, Array], **parameters: str | bool) -> dict[str, Array]:
        """Send a request from another thread, and wait; raises as the future of :meth:`ask` does."""
        if self._loop is None:
            raise BadSettingError("the stream to Triton was not started")

        async def ask() -> dict[str, Array]:
            return await self.ask(model, arrays, **parameters)

        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result()

    def _head(
        self, model: str, arrays: Mapping[str, Array], parameters: Mapping[str, str | bool]
    ) -> service_pb2.ModelInferRequest:
        """Return what a request says beside its numbers."""
        key = model, tuple(parameters.items()), tuple((name, a.dtype, a.shape) for name, a in arrays.items())
        head = self._heads.get(key)
        if head is not None:
            return head
        head = service_pb2.ModelInferRequest(model_name=model)
        for name, value in parameters.items():
            if isinstance(value, bool):
                head.parameters[name].bool_param = value
            else:
                head.parameters[name].string_param = value
        for name, array in arrays.items():
            head.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        self._heads[key] = head
        return head

    async def _write(self) -> None:
        assert self._loop is not None  # noqa: S101 - set at the start
        try:
            while True:
                while self._outgoing:
                    await self._call.write(self._outgoing.popleft())
                self._waker = self._loop.create_future()
                await self._waker
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the stream has ended; who reads it finds out why

    async def _read(self) -> None:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                response = message.infer_response
                number, done = self._waiting.popleft()
                if message.error_message:
                    _give(done, StepFailedError(f"Triton: {message.error_message}"))
                    continue
                if response.id != number:
                    raise RuntimeError(f"answer {response.id!r} came where {number!r} was awaited")
                _give(done, _arrays(response))
        finally:
            if not self.lost:
                self.lost = True
                self._fail()
                self._on_lost()

    def _gone(self) -> EngineFailedError:
        return EngineFailedError(f"the stream to Triton at {self.url} is lost")

    def _fail(self) -> None:
        while self._waiting:
            _, done = self._waiting.popleft()
            _give(done, self._gone())


def _give(done: Done, found: Mapping[str, Array] | Exception) -> None:
    """Hand over what came; whoever cannot take it must not cost the others the stream."""
    try:
        done(found)
    except Exception:  # noqa: BLE001 - logged
        _log.exception("an answer of Triton could not be taken")


def _arrays(response: service_pb2.ModelInferResponse) -> dict[str, Array]:
    """Return the tensors of an answer."""
    return {
        output.name: np.frombuffer(data, triton_to_np_dtype(output.datatype)).reshape(tuple(output.shape))
        for output, data in zip(response.outputs, response.raw_output_contents, strict=True)
    }
