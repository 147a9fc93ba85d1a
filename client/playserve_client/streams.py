"""One bidirectional call of the sync API: an outbox that gRPC empties, and a reader thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import grpc

from playserve.errors import PlayserveError, ServerFault, TimeoutExceededError, from_rpc_error

__all__ = ["Stream"]


class Stream:
    """One call. `on_message` and `on_end` run in its reader thread.

    Args:
        method: Stub's method, which takes an iterator of requests.
        first: First request.
        metadata: Metadata of the call.
        first_timeout_s: Longest wait for the first response; the call is given up after it.
        on_message: Takes each response.
        on_end: Takes the error that ended the call, or None where it ended with OK; called once, last.
    """

    def __init__(
        self,
        method: Callable[..., Any],
        first: Any,
        metadata: Any,
        first_timeout_s: float,
        on_message: Callable[[Stream, Any], None],
        on_end: Callable[[Stream, PlayserveError | None], None],
    ) -> None:
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outbox.put(first)
        self._on_message, self._on_end = on_message, on_end
        self._first_timeout_s = first_timeout_s
        self._given_up = False
        self._call = method(iter(self._outbox.get, None), metadata=metadata)
        self._thread = threading.Thread(target=self._read, name="playserve-stream", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def send(self, request: Any) -> None:
        """Send a request, in order; without effect when the call has ended."""
        self._outbox.put(request)

    def half_close(self) -> None:
        """Say that no more requests come."""
        self._outbox.put(None)

    def cancel(self) -> None:
        """End the call now."""
        self._call.cancel()

    def join(self, timeout_s: float) -> bool:
        """Wait for the reader thread; return whether it has ended."""
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _give_up(self) -> None:
        self._given_up = True
        self._call.cancel()

    def _read(self) -> None:
        watchdog = threading.Timer(self._first_timeout_s, self._give_up)
        watchdog.daemon = True
        watchdog.start()
        error: PlayserveError | None = None
        try:
            for response in self._call:
                watchdog.cancel()
                self._on_message(self, response)
        except grpc.RpcError as failure:
            error = from_rpc_error(failure)
        except Exception as failure:  # noqa: BLE001 - whoever waits must hear of it
            self._call.cancel()
            error = ServerFault(f"a message of the server's was not understood: {type(failure).__name__}: {failure}")
        finally:
            watchdog.cancel()
            # gRPC's own thread still waits for the next request; let it go.
            self._outbox.put(None)
        if self._given_up:
            error = TimeoutExceededError(f"no answer to the first message in {self._first_timeout_s} s")
        self._on_end(self, error)
