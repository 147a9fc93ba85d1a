"""One ModelStreamInfer call: requests of any sequences, answered in the order in which they came, as Triton does."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakSet

import grpc
from tritonclient.grpc import service_pb2 as oip

from playserve.errors import EngineFailedError, PlayserveError, to_status
from playserve_services.aborting import abort
from playserve_services.inference.inbox import next_message
from playserve_services.inference.oip.game import Coming
from playserve_services.inference.outbox import Outbox

__all__ = ["InferStream"]

_log = logging.getLogger(__name__)
_ENDS_STREAM = ("triton_grpc_error", "true")  # metadata of callers who want a gRPC error, and the end, at the first one


class _Place:
    """A request's place in the order of answers."""

    __slots__ = ("message",)

    def __init__(self) -> None:
        self.message: oip.ModelStreamInferResponse | None = None


class InferStream:
    """See the module's docstring.

    Args:
        context: The stream.
        enter: Lets a request enter its sequence; returns its answer to come, and whether that is to say that it is the
            last one of its request.
        failed: Told the model and the error of each request that fails.
        outboxes: Those of the server.
    """

    def __init__(
        self,
        context: grpc.aio.ServicerContext[Any, Any],
        enter: Callable[[oip.ModelInferRequest], Awaitable[tuple[Coming, bool]]],
        failed: Callable[[str, PlayserveError], None],
        outboxes: WeakSet[Outbox],
    ) -> None:
        self._context, self._enter, self._failed = context, enter, failed
        self._outbox = Outbox(context, outboxes)
        self._places: deque[_Place] = deque()
        self._half_closed = False
        self._ends_stream = _ENDS_STREAM in (context.invocation_metadata() or ())

    async def run(self) -> None:
        """Serve the stream to its end. Sequences outlive it."""
        reader = asyncio.create_task(self._read())
        try:
            await self._outbox.run()
        finally:
            reader.cancel()
        if self._outbox.error is not None:
            await abort(self._context, self._outbox.error)

    async def _read(self) -> None:
        try:
            while (request := await next_message(self._context)) is not None:
                await self._outbox.room()
                await self._take(request)
            self._half_closed = True
            self._flush()
        except PlayserveError as error:
            self._failed("", error)
            self._outbox.close(error)
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001 - one stream must not take others with it
            _log.exception("a ModelStreamInfer stream failed")
            self._outbox.close(EngineFailedError("the server failed; see its log"))

    async def _take(self, request: oip.ModelInferRequest) -> None:
        """Let one request enter. The next one is read when that is done: they come to a sequence in their order."""
        model, request_id, place = request.model_name, request.id, _Place()
        self._places.append(place)
        try:
            coming, marks_final = await self._enter(request)
        except PlayserveError as error:
            self._refuse(place, model, request_id, error)
            return

        def answered(done: Coming) -> None:
            if done.cancelled():
                return
            error = done.exception()
            if error is None:
                place.message = oip.ModelStreamInferResponse(infer_response=done.result())
                if marks_final:
                    place.message.infer_response.parameters["triton_final_response"].bool_param = True
                self._flush()
                return
            known = error if isinstance(error, PlayserveError) else EngineFailedError("the answer could not be made")
            self._refuse(place, model, request_id, known)

        coming.add_done_callback(answered)

    def _refuse(self, place: _Place, model: str, request_id: str, error: PlayserveError) -> None:
        self._failed(model, error)
        if self._ends_stream:
            self._outbox.close(error)
            return
        place.message = oip.ModelStreamInferResponse(
            error_message=f"[{error.reason or error.code.name}] {to_status(error).message}"
        )
        place.message.infer_response.id = request_id
        self._flush()

    def _flush(self) -> None:
        """Write what is answered up to the oldest request that is not."""
        places = self._places
        while places and places[0].message is not None:
            self._outbox.put(places.popleft().message)
        if self._half_closed and not places:
            self._outbox.close()
