"""One lane is one session on one bidirectional stream, whatever the server: playserve, the echo, or Triton.

A lane has two halves, `send` and `receive`, so that the same loops drive lockstep and paced loads. The lanes are as
lean as each protocol allows: raw stubs, request messages reused and only renumbered, one serialisation a step.
`TritonClientLane` is the exception: it goes through tritonclient's own API, as a Triton user's program would.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np

from playserve.v1 import policy_service_pb2 as pb
from playserve.v1 import policy_service_pb2_grpc, types_pb2

__all__ = ["CHANNEL_OPTIONS", "Answer", "Lane", "LaneError", "PlayLane", "RawLane", "TritonClientLane", "TritonLane"]

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),  # else two channels to one address share a connection
)

_ITEM_BYTES = {
    types_pb2.DTYPE_UINT8: 1, types_pb2.DTYPE_INT8: 1, types_pb2.DTYPE_BOOL: 1, types_pb2.DTYPE_INT16: 2,
    types_pb2.DTYPE_FLOAT16: 2, types_pb2.DTYPE_INT32: 4, types_pb2.DTYPE_FLOAT32: 4, types_pb2.DTYPE_INT64: 8,
}  # fmt: skip


class LaneError(RuntimeError):
    """The server answered a step with an error, or ended the stream."""


@dataclass(slots=True)
class Answer:
    """What one answer says.

    Attributes:
        seq: The step that it answers.
        dropped: Earlier steps that the server says it will not answer.
        compute_us: Reported model time.
        total_us: Reported time on the server.
    """

    seq: int
    dropped: tuple[int, ...] = ()
    compute_us: int = 0
    total_us: int = 0


class Lane(Protocol):
    """One session."""

    async def open(self) -> None:
        """Open the session."""

    async def send(self, seq: int) -> None:
        """Send step `seq`, 1, 2, 3, ..."""

    async def receive(self) -> Answer:
        """Return the next answer."""

    async def close(self) -> None:
        """End the session and its stream."""


def _noise(n: int) -> bytes:
    return np.random.default_rng(0).integers(0, 256, n, dtype=np.uint8).tobytes()


def fill_inputs(specs: Any, rows: int | None = None) -> list[types_pb2.Tensor]:
    """Return one tensor for each input spec: noise for uint8, zeros otherwise, open dimensions 1.

    Args:
        specs: ``PolicySpec.inputs`` of the wire.
        rows: Leading dimension, or None for a single step.
    """
    tensors = []
    for spec in specs:
        shape = [*([] if rows is None else [rows]), *(1 if dim == -1 else dim for dim in spec.shape)]
        size = int(np.prod(shape)) * _ITEM_BYTES[spec.dtype]
        noisy = spec.dtype == types_pb2.DTYPE_UINT8 and not spec.HasField("maximum")
        tensors.append(
            types_pb2.Tensor(
                name=spec.name,
                dtype=spec.dtype,
                shape=shape,
                codec=types_pb2.CODEC_RAW,
                data=_noise(size) if noisy else bytes(size),
            )
        )
    return tensors


class PlayLane:
    """A `Play` stream: our server, or the bare echo.

    Args:
        channel: Channel to open it on.
        policy: Policy name.
        pace: PACE_LIVE or PACE_LOCKSTEP.
        rate_hz: Rate announced at open; 0: none.
    """

    def __init__(
        self, channel: grpc.aio.Channel, policy: str, pace: pb.Pace = pb.PACE_LOCKSTEP, rate_hz: float = 0.0
    ) -> None:
        self._stub = policy_service_pb2_grpc.PolicyServiceStub(channel)
        self._open = pb.Open(policy=policy, pace=pace, rate_hz=rate_hz, seed=1)
        self._open.client.name = "playserve-bench"
        self._call: Any = None
        self._request = pb.PlayRequest()
        self.opened: pb.Opened | None = None

    async def open(self) -> None:
        """Open the session and make the step message by the policy's specs."""
        self._call = self._stub.Play()
        await self._call.write(pb.PlayRequest(open=self._open))
        response = await self._read()
        if response.WhichOneof("message") != "opened":
            raise LaneError(f"Open was answered with {response}")
        self.opened = response.opened
        self._request.step.inputs.extend(fill_inputs(response.opened.policy.inputs))

    async def _read(self) -> pb.PlayResponse:
        response: pb.PlayResponse = await self._call.read()
        if response is grpc.aio.EOF:
            raise LaneError(f"the stream ended: {await self._call.code()}: {await self._call.details()}")
        return response

    async def send(self, seq: int) -> None:
        """Send one step. The message is serialised before the first await, so it can be reused."""
        self._request.step.seq = seq
        await self._call.write(self._request)

    async def receive(self) -> Answer:
        """Return the next result."""
        response = await self._read()
        if not response.HasField("result"):
            raise LaneError(f"a step was answered with {response}")
        result = response.result
        times = result.times
        dropped = tuple(d.seq for d in result.dropped) if result.dropped else ()
        return Answer(result.seq, dropped, times.compute_us, times.total_us)

    async def close(self) -> None:
        """Send Close and read to the end."""
        if self._call is None:
            return
        try:
            await self._call.write(pb.PlayRequest(close=pb.Close(reason="bench")))
            await self._call.done_writing()
            async with asyncio.timeout(5):
                while await self._call.read() is not grpc.aio.EOF:
                    pass
        except (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError):
            self._call.cancel()


class RawLane:
    """The echo without protobuf: `size` bytes up, 64 down. Its seq is counted here, not on the wire."""

    def __init__(self, channel: grpc.aio.Channel, size: int = 84 * 84 * 3 + 60) -> None:
        self._start = channel.stream_stream("/bench.Raw/Echo")
        self._data = _noise(size)
        self._call: Any = None
        self._received = 0

    async def open(self) -> None:
        """Start the stream."""
        self._call = self._start()

    async def send(self, seq: int) -> None:
        """Send the bytes."""
        await self._call.write(self._data)

    async def receive(self) -> Answer:
        """Read the answer."""
        if await self._call.read() is grpc.aio.EOF:
            raise LaneError(f"the stream ended: {await self._call.code()}")
        self._received += 1
        return Answer(self._received)

    async def close(self) -> None:
        """End the stream."""
        await self._call.done_writing()
        while await self._call.read() is not grpc.aio.EOF:
            pass


class TritonLane:
    """`ModelStreamInfer` with tritonclient's own stub and messages, but none of its Python wrapping.

    Args:
        channel: Channel to open it on.
        model: Model name.
        sequence_id: Non-zero and unique.
        shape: Shape of FRAME without batch.
    """

    def __init__(
        self, channel: grpc.aio.Channel, model: str, sequence_id: int, shape: tuple[int, ...] = (84, 84, 3)
    ) -> None:
        from tritonclient.grpc import service_pb2, service_pb2_grpc

        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name=model)
        tensor = request.inputs.add(name="FRAME", datatype="UINT8", shape=[1, *shape])
        assert tensor.name == "FRAME"
        request.raw_input_contents.append(_noise(int(np.prod(shape))))
        request.parameters["sequence_id"].int64_param = sequence_id
        request.parameters["sequence_start"].bool_param = False
        request.parameters["sequence_end"].bool_param = False
        self._request = request
        self._call: Any = None

    async def open(self) -> None:
        """Start the stream; Triton's sequence starts with its first step."""
        self._call = self._stub.ModelStreamInfer()

    async def send(self, seq: int) -> None:
        """Send one step; the first carries START."""
        if seq <= 2:
            self._request.parameters["sequence_start"].bool_param = seq == 1
        self._request.id = str(seq)
        await self._call.write(self._request)

    async def receive(self) -> Answer:
        """Return the next answer."""
        response = await self._call.read()
        if response is grpc.aio.EOF:
            raise LaneError(f"the stream ended: {await self._call.code()}: {await self._call.details()}")
        if response.error_message:
            raise LaneError(response.error_message)
        return Answer(int(response.infer_response.id))

    async def close(self) -> None:
        """End the sequence with one more step, then the stream."""
        self._request.parameters["sequence_start"].bool_param = False
        self._request.parameters["sequence_end"].bool_param = True
        await self._call.write(self._request)
        await self._call.done_writing()
        while await self._call.read() is not grpc.aio.EOF:
            pass


class TritonClientLane:
    """`tritonclient.grpc.aio.InferenceServerClient.stream_infer`, as its documentation shows it."""

    def __init__(self, client: Any, model: str, sequence_id: int, shape: tuple[int, ...] = (84, 84, 3)) -> None:
        from tritonclient.grpc import InferInput

        self._client = client
        self._model = model
        self._sequence_id = sequence_id
        self._frame = np.frombuffer(_noise(int(np.prod(shape))), np.uint8).reshape(1, *shape)
        self._input = InferInput("FRAME", [1, *shape], "UINT8")
        self._queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._responses: Any = None

    async def _requests(self) -> AsyncIterator[dict[str, Any]]:
        while (request := await self._queue.get()) is not None:
            yield request

    async def open(self) -> None:
        """Start the stream."""
        self._responses = self._client.stream_infer(self._requests()).__aiter__()

    def _step(self, seq: int, *, end: bool) -> dict[str, Any]:
        self._input.set_data_from_numpy(self._frame)
        return {
            "model_name": self._model,
            "inputs": [self._input],
            "request_id": str(seq),
            "sequence_id": self._sequence_id,
            "sequence_start": seq == 1,
            "sequence_end": end,
        }

    async def send(self, seq: int) -> None:
        """Send one step."""
        self._queue.put_nowait(self._step(seq, end=False))

    async def receive(self) -> Answer:
        """Return the next answer."""
        result, error = await anext(self._responses)
        if error is not None:
            raise LaneError(str(error))
        return Answer(int(result.get_response().id))

    async def close(self) -> None:
        """End the sequence and the stream."""
        self._queue.put_nowait(self._step(0, end=True))
        self._queue.put_nowait(None)
        async for _, error in self._responses:
            if error is not None:
                raise LaneError(str(error))
