"""What waits to be written to one stream: filled by the core without waiting, emptied by one writer."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import grpc

from playserve.errors import PlayserveError, to_status

__all__ = ["Outbox", "abort"]


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: PlayserveError) -> None:
    """End a call with the documented status of `error`; never returns normally."""
    status = to_status(error)
    trailers = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(error.code, status.message, trailing_metadata=trailers)


class Outbox:
    """Messages for one stream.

    Args:
        context: The stream.
        limit: Messages that may wait before the reader must pause, so that a client that does not read is not read.
    """

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], limit: int = 64) -> None:
        self._context = context
        self._limit = limit
        self._queue: deque[Any] = deque()
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self.error: PlayserveError | None = None

    def put(self, message: Any) -> None:
        """Add a message; after :meth:`close` it is thrown away."""
        if not self._closed:
            self._queue.append(message)
            self._wake()

    def close(self, error: PlayserveError | None = None) -> None:
        """Let :meth:`run` return once everything is written; `error` is for whoever awaits it."""
        if not self._closed:
            self._closed = True
            self.error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def room(self) -> None:
        """Wait while too much waits to be written."""
        while len(self._queue) >= self._limit and not self._closed:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    async def run(self) -> None:
        """Write until the outbox is closed and empty."""
        write, queue = self._context.write, self._queue
        while True:
            while queue:
                await write(queue.popleft())
                if self._room is not None and len(queue) < self._limit:
                    if not self._room.done():
                        self._room.set_result(None)
                    self._room = None
            if self._closed:
                return
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
