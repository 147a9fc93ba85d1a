"""The stream of one front to one Triton: requests go in order, and answers come in that order. Event loop's thread."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import tritonclient.grpc.aio as triton
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from playserve.errors import BadSettingError, EngineFailedError, ServerUnavailableError, StepFailedError
from playserve_services.inference.staging import Array

__all__ = ["TritonLink"]

_MAX_BYTES = 1 << 30
_KEEPALIVE = triton.KeepAliveOptions(keepalive_time_ms=10_000, keepalive_timeout_ms=5_000)


class TritonLink:
    """See the module's docstring.

    Args:
        url: HOST:PORT of Triton's gRPC.
        on_lost: Called once if the stream ends by itself: the memory of all slots may be gone with it.
    """

    def __init__(self, url: str, on_lost: Callable[[], None]) -> None:
        self._client = triton.InferenceServerClient(
            url, keepalive_options=_KEEPALIVE,
            channel_args=[(f"grpc.max_{way}_message_length", _MAX_BYTES) for way in ("receive", "send")],
        )  # fmt: skip
        self.url = url
        self._on_lost = on_lost
        self._requests: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._waiting: deque[tuple[str, asyncio.Future[dict[str, Array]]]] = deque()
        self._numbers = itertools.count(1)
        self._reader: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.lost = False

    async def start(self) -> None:
        """Open the stream.

        Raises:
            ServerUnavailableError: Nobody answers there, or it is not ready.
        """
        self._loop = asyncio.get_running_loop()
        try:
            ready = await self._client.is_server_ready(client_timeout=10)
        except InferenceServerException as error:
            raise ServerUnavailableError(f"no Triton answers at {self.url}: {error.message()}") from error
        if not ready:
            raise ServerUnavailableError(f"Triton at {self.url} is not ready")
        self._reader = asyncio.create_task(self._read())

    async def close(self) -> None:
        """End the stream; what waits for an answer fails."""
        self.lost = True
        self._requests.put_nowait(None)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._fail()
        await self._client.close()

    def ask(self, model: str, arrays: Mapping[str, Array], **parameters: Any) -> asyncio.Future[dict[str, Array]]:
        """Send a request; the future has the answer's tensors, or a StepFailedError with what Triton said."""
        future: asyncio.Future[dict[str, Array]] = asyncio.get_running_loop().create_future()
        if self.lost:
            future.set_exception(EngineFailedError(f"the stream to Triton at {self.url} is lost"))
            return future
        inputs = []
        for name, array in arrays.items():
            tensor = InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        number = str(next(self._numbers))
        self._waiting.append((number, future))
        self._requests.put_nowait(
            {"model_name": model, "inputs": inputs, "request_id": number, "parameters": parameters or None}
        )
        return future

    def ask_blocking(self, model: str, arrays: Mapping[str, Array], **parameters: Any) -> dict[str, Array]:
        """Send a request from another thread, and wait; raises as the future of :meth:`ask` does."""
        if self._loop is None:
            raise BadSettingError("the stream to Triton was not started")

        async def ask() -> dict[str, Array]:
            return await self.ask(model, arrays, **parameters)

        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result()

    async def _outgoing(self) -> AsyncIterator[dict[str, Any]]:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _read(self) -> None:
        try:
            async for result, error in self._client.stream_infer(self._outgoing()):
                number, future = self._waiting.popleft()
                if future.cancelled():
                    continue
                if error is not None:
                    future.set_exception(StepFailedError(f"Triton: {error.message()}"))
                    continue
                response = result.get_response()
                if response.id != number:
                    raise RuntimeError(f"answer {response.id!r} came where {number!r} was awaited")
                future.set_result({output.name: result.as_numpy(output.name) for output in response.outputs})
        finally:
            if not self.lost:
                self.lost = True
                self._fail()
                self._on_lost()

    def _fail(self) -> None:
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(EngineFailedError(f"the stream to Triton at {self.url} is lost"))
