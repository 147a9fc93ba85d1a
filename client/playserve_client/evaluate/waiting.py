"""Waits for pipes that are registered once: `multiprocessing.connection.wait` builds a selector at each call."""

from __future__ import annotations

import selectors
import sys
from multiprocessing.connection import Connection, wait

__all__ = ["Waiter"]


class Waiter:
    """A set of connections to wait for. Not thread-safe."""

    def __init__(self) -> None:
        # Windows has no selectors for pipes.
        self._selector = selectors.DefaultSelector() if sys.platform != "win32" else None
        self._connections: set[Connection] = set()

    def add(self, connection: Connection) -> None:
        """Wait for `connection` from now on."""
        self._connections.add(connection)
        if self._selector is not None:
            self._selector.register(connection, selectors.EVENT_READ)

    def remove(self, connection: Connection) -> None:
        """Wait for it no more; to be called before it is closed."""
        self._connections.discard(connection)
        if self._selector is not None:
            self._selector.unregister(connection)

    def wait(self, timeout_s: float | None) -> list[Connection]:
        """Return the connections that can be read, after at most `timeout_s` (None: for ever)."""
        if self._selector is None:
            return [item for item in wait(self._connections, timeout_s) if isinstance(item, Connection)]
        found = [key.fileobj for key, _ in self._selector.select(timeout_s)]
        return [item for item in found if isinstance(item, Connection)]

    def close(self) -> None:
        """Release what the operating system gave."""
        if self._selector is not None:
            self._selector.close()
