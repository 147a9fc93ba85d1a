"""A client of Open P2P as its documents have it: raw sockets, 4-byte lengths, hand-made bytes. None of our code."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from p2p_bytes import number, part


def frame(width: int, height: int, pixels: bytes, frame_id: int) -> bytes:
    """Return a serialized Frame."""
    return number(1, width) + number(2, height) + part(3, pixels) + number(4, frame_id)


def fields(message: bytes) -> dict[int, list[int | bytes]]:
    """Return the fields of a serialized message by number."""
    found: dict[int, list[int | bytes]] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            found.setdefault(key >> 3, []).append(varint())
        elif key & 7 == 2:
            length = varint()
            found.setdefault(key >> 3, []).append(message[at : at + length])
            at += length
        else:
            raise ValueError(f"wire type {key & 7} is in none of their messages")
    return found


def _signed(value: int | bytes) -> int:
    assert isinstance(value, int)
    return value - (1 << 64) if value >> 63 else value


@dataclass(frozen=True)
class Told:
    """One Action."""

    id: int
    keys: tuple[str, ...]
    buttons: tuple[str, ...]
    dx: int
    dy: int


def action(message: bytes) -> Told:
    """Return a parsed Action."""
    top = fields(message)
    mouse = fields(_bytes(top.get(3, [b""])[0]))
    delta = fields(_bytes(mouse.get(1, [b""])[0]))
    return Told(
        id=_signed(top.get(2, [0])[0]),
        keys=tuple(_bytes(key).decode() for key in top.get(1, [])),
        buttons=tuple(_bytes(button).decode() for button in mouse.get(4, [])),
        dx=_signed(delta.get(1, [0])[0]),
        dy=_signed(delta.get(2, [0])[0]),
    )


def _bytes(value: int | bytes) -> bytes:
    assert isinstance(value, bytes)
    return value


class RecapClient:
    """One connection: to a Unix socket, or to a TCP port of this machine."""

    def __init__(self, where: Path | int) -> None:
        family = socket.AF_UNIX if isinstance(where, Path) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(60)
        self.socket.connect(str(where) if isinstance(where, Path) else ("127.0.0.1", where))

    def __enter__(self) -> RecapClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send_raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send(self, message: bytes) -> None:
        self.socket.sendall(struct.pack("<I", len(message)) + message)

    def show(self, frame_id: int, *, side: int = 192, pixels: bytes | None = None) -> None:
        self.send(frame(side, side, bytes(side * side * 3) if pixels is None else pixels, frame_id))

    def receive(self) -> Told | None:
        """Return the next answer, or None where the server has hung up."""
        head = self._exactly(4)
        if head is None:
            return None
        body = self._exactly(struct.unpack("<I", head)[0])
        return None if body is None else action(body)

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            try:
                more = self.socket.recv(count - len(data))
            except ConnectionError:
                return None
            if not more:
                return None
            data += more
        return data
