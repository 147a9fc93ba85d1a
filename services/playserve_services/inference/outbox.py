"""What waits to be written to one stream: filled by the core without waiting, emptied by one writer."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any
from weakref import WeakSet

import grpc

from playserve.errors import PlayserveError

__all__ = ["Outbox"]


class Outbox:
    """Messages for one stream, written in their order by one writer at a time.

    Two tasks may write: :meth:`run`, which sleeps until something is put, and the stream's reader, which calls
    :meth:`flush` for what it has just caused, and so spares the switch to the other task.

    Args:
        context: The stream.
        all_of_them: Those of the server, for :meth:`stalled`; it adds itself.
        limit: Messages that may wait before the reader must pause, so that a client that does not read is not read.
    """

    def __init__(
        self, context: grpc.aio.ServicerContext[Any, Any], all_of_them: WeakSet[Outbox] | None = None, limit: int = 64
    ) -> None:
        if all_of_them is not None:
            all_of_them.add(self)
        self._context = context
        self._limit = limit
        self._queue: deque[Any] = deque()
        self._closed = False
        self._held = False  # the reader will flush, or is at it
        self._writing = False
        self._written = self._seen = 0  # messages: by now, and when somebody last asked
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
            if error is not None:
                # Its frames hold the stream that holds it. Only the collector would undo that ring, and until then the
                # connection would stay open.
                error.__traceback__ = error.__cause__ = error.__context__ = None
            self._wake()

    def stalled(self) -> bool:
        """Whether something waits of which nothing was written since the last time that this was asked."""
        same, self._seen = self._written == self._seen, self._written
        return self._writing and same

    def _wake(self) -> None:
        if not self._held and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def full(self) -> bool:
        """Whether the reader must pause, see :meth:`room`."""
        return len(self._queue) >= self._limit and not self._closed

    async def room(self) -> None:
        """Wait while too much waits to be written."""
        while self.full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def hold(self) -> None:
        """Announce a :meth:`flush`: what is put until then does not wake the writer."""
        self._held = True

    async def flush(self) -> None:
        """Write what was put since :meth:`hold`, unless the writer is at work, which will then do it."""
        try:
            if self._queue and not self._writing:
                await self._drain()
        finally:
            self._held = False
            if self._queue or self._closed:
                self._wake()

    async def _drain(self) -> None:
        write, queue = self._context.write, self._queue
        self._writing = True
        try:
            while queue:
                try:
                    await write(queue.popleft())
                except grpc.aio.InternalError:  # the client has gone, and gRPC will say so
                    queue.clear()
                    self.close()
                    return
                self._written += 1
                if self._room is not None and len(queue) < self._limit:
                    if not self._room.done():
                        self._room.set_result(None)
                    self._room = None
        finally:
            self._writing = False

    async def run(self) -> None:
        """Write until the outbox is closed and empty."""
        while True:
            if self._queue and not self._writing:
                await self._drain()
            if self._closed and not self._queue and not self._writing:
                return
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
