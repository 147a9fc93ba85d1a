"""One bidirectional call of the asyncio API, and the signal that wakes those who wait for what it brings."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from playserve.errors import CancelledError, PlayserveError, ServerFault, TimeoutExceededError, from_rpc_error

__all__ = ["Signal", "Stream"]


class Signal:
    """Wakes waiters when something has changed."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Wake everybody."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, ready: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait until `ready` is true, which is asked after each change; TimeoutExceededError after `timeout_s`."""
        if ready():
            return
        try:
            async with asyncio.timeout(timeout_s):
                while not ready():
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.add(waiter)
                    try:
                        await waiter
                    finally:
                        self._waiters.discard(waiter)
        except TimeoutError:
            raise TimeoutExceededError(f"{what} was not answered in {timeout_s:g} s") from None


class Stream:
    """One call: a queue that its writer task empties, so that a waiter who is cancelled breaks no message.

    Args:
        method: Stub's method.
        metadata: Metadata of the call.
    """

    def __init__(self, method: Callable[..., Any], metadata: Any) -> None:
        self._call = method(metadata=metadata)
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()

    async def run(
        self, first: Any, timeout_s: float, on_message: Callable[[Stream, Any], None]
    ) -> PlayserveError | None:
        """Send the first request and hand over each response; return the error that ended the call, None for OK."""
        call = self._call
        self.send(first)
        writer = asyncio.create_task(self._write(), name="playserve-writer")
        try:
            async with asyncio.timeout(timeout_s):
                response = await call.read()
            while response is not grpc.aio.EOF:
                on_message(self, response)
                response = await call.read()
        except TimeoutError:
            call.cancel()
            return TimeoutExceededError(f"no answer to the first message in {timeout_s:g} s")
        except grpc.RpcError as error:
            return from_rpc_error(error)
        except asyncio.CancelledError:
            call.cancel()
            if _task_is_cancelled():
                raise
            return CancelledError("the call was cancelled")
        except Exception as failure:  # noqa: BLE001 - whoever waits must hear of it
            call.cancel()
            return ServerFault(f"a message of the server's was not understood: {type(failure).__name__}: {failure}")
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
        return None

    async def _write(self) -> None:
        call = self._call
        # Not call.write: when a write fails because the server has ended the call, it overwrites the server's status
        # with an INTERNAL of its own, and the reason is lost.
        send = getattr(getattr(call, "_cython_call", None), "send_serialized_message", None)
        with contextlib.suppress(Exception):  # of a call that has ended; `run` sees its status
            await call.wait_for_connection()
            while (request := await self._outbox.get()) is not None:
                await (call.write(request) if send is None else send(request.SerializeToString()))
            await call.done_writing()

    def send(self, request: Any) -> None:
        """Send a request, in order; without effect when the call has ended."""
        self._outbox.put_nowait(request)

    def half_close(self) -> None:
        """Say that no more requests come."""
        self._outbox.put_nowait(None)

    def cancel(self) -> None:
        """End the call now."""
        self._call.cancel()


def _task_is_cancelled() -> bool:
    """GRPC raises asyncio's CancelledError for a cancelled call, too; tell the two apart."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
