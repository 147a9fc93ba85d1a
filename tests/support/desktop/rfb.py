"""A viewer's hands: keys and a pointer through RFB (RFC 6143), which reach Xvnc as devices of their own."""

from __future__ import annotations

import socket
import struct
import time
from types import TracebackType
from typing import Self

__all__ = ["Hands"]


class Hands:
    """A connection to Xvnc that presses keys and moves the pointer. A context manager."""

    def __init__(self, port: int) -> None:
        self._socket = self._connected(port)
        self.x, self.y, self._buttons = 0, 0, 0
        self._read(12)
        self._socket.sendall(b"RFB 003.008\n")
        kinds = self._read(self._read(1)[0])
        if 1 not in kinds:
            raise RuntimeError(f"security types {list(kinds)}, wanted 1 (none)")
        self._socket.sendall(b"\x01")
        if self._read(4) != b"\0\0\0\0":
            raise RuntimeError("refused")
        self._socket.sendall(b"\x01")  # shared
        size = self._read(24)
        self._read(struct.unpack(">I", size[20:])[0])

    @staticmethod
    def _connected(port: int) -> socket.socket:
        deadline = time.monotonic() + 20
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), timeout=20)
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _read(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            more = self._socket.recv(n - len(data))
            if not more:
                raise RuntimeError("Xvnc hung up")
            data += more
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def key(self, keysym: int, down: bool) -> None:
        """Press or release the key of an X keysym."""
        self._socket.sendall(struct.pack(">BBxxI", 4, down, keysym))

    def move(self, x: int, y: int) -> None:
        """Put the pointer somewhere."""
        self.x, self.y = x, y
        self._socket.sendall(struct.pack(">BBHH", 5, self._buttons, x, y))

    def button(self, number: int, down: bool) -> None:
        """Press or release a button, in X's numbers."""
        bit = 1 << (number - 1)
        self._buttons = self._buttons | bit if down else self._buttons & ~bit
        self._socket.sendall(struct.pack(">BBHH", 5, self._buttons, self.x, self.y))
