"""One bidirectional call of the asyncio API, and the signal that wakes those who wait for what it brings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from playserve.errors import CancelledError, PlayserveError, TimeoutExceededError, from_rpc_error

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
    """One call.

    Args:
        method: Stub's method.
        metadata: Metadata of the call.
    """

    def __init__(self, method: Callable[..., Any], metadata: Any) -> None:
        self._call = method(metadata=metadata)

    async def run(
        self, first: Any, timeout_s: float, on_message: Callable[[Stream, Any], Awaitable[None]]
    ) -> PlayserveError | None:
        """Send the first request and hand over each response; return the error that ended the call, None for OK."""
        call = self._call
        try:
            async with asyncio.timeout(timeout_s):
                await call.write(first)
                response = await call.read()
            while response is not grpc.aio.EOF:
                await on_message(self, response)
                response = await call.read()
        except TimeoutError:
            call.cancel()
            return TimeoutExceededError(f"no answer to the first message in {timeout_s:g} s")
        except grpc.RpcError as error:
            return from_rpc_error(error)
        except asyncio.InvalidStateError:  # it ended before the first write
            return await self._status()
        except asyncio.CancelledError:
            call.cancel()
            if _task_is_cancelled():
                raise
            return CancelledError("the call was cancelled")
        return None

    async def _status(self) -> PlayserveError | None:
        call = self._call
        code = await call.code()
        if code is grpc.StatusCode.OK:
            return None
        initial, trailing = await call.initial_metadata(), await call.trailing_metadata()
        return from_rpc_error(grpc.aio.AioRpcError(code, initial, trailing, await call.details()))

    async def send(self, request: Any) -> None:
        """Send a request, in order; without effect when the call has ended."""
        try:
            await self._call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            pass  # `run` sees the end, too, and says why
        except asyncio.CancelledError:
            if _task_is_cancelled():
                raise

    async def half_close(self) -> None:
        """Say that no more requests come."""
        try:
            await self._call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            pass
        except asyncio.CancelledError:
            if _task_is_cancelled():
                raise

    def cancel(self) -> None:
        """End the call now."""
        self._call.cancel()


def _task_is_cancelled() -> bool:
    """GRPC raises asyncio's CancelledError for a cancelled call, too; tell the two apart."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
