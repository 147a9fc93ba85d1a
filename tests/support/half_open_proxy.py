"""A way to a server that can die without a word: connections stay open, and nothing comes through any more."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

__all__ = ["HalfOpenProxy", "half_open_proxy"]

_CHUNK = 1 << 16


class HalfOpenProxy:
    """Forwards TCP to a port of this machine; connections that are there at :meth:`freeze` carry nothing afterwards.

    Args:
        port: Where to forward to.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._alive = threading.Event()  # of the connections made since the last freeze
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Where to dial."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def freeze(self) -> None:
        """Let every connection die in silence; those made from now on live."""
        self._alive.set()
        self._alive = threading.Event()

    def close(self) -> None:
        """End everything."""
        self._alive.set()
        self._listener.close()
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            self._sockets += [near, far]
            frozen = self._alive
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_forward, args=(source, sink, frozen), daemon=True).start()


def _forward(source: socket.socket, sink: socket.socket, frozen: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            if frozen.is_set():
                return  # read no more: what comes fills the buffers, as on a dead wire
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def half_open_proxy(port: int) -> Iterator[HalfOpenProxy]:
    """Yield a proxy to a port."""
    proxy = HalfOpenProxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
