"""Messages on a byte stream as Open P2P has them: 4 bytes of length, little-endian, then the message.

The length is looked at before anything is read for it.
"""

from __future__ import annotations

import asyncio
import struct

from playserve.errors import MalformedMessageError, MessageTooLargeError

__all__ = ["pack", "read_message"]

_LENGTH = struct.Struct("<I")


def pack(message: bytes) -> bytes:
    """Return a message with its length before it."""
    return _LENGTH.pack(len(message)) + message


async def read_message(reader: asyncio.StreamReader, max_bytes: int) -> bytes | None:
    """Return the next message, or None where the stream ends between two.

    Args:
        reader: The stream.
        max_bytes: Longest message to take.

    Raises:
        MessageTooLargeError: A longer one was announced.
        MalformedMessageError: The stream ends inside a message.
    """
    try:
        head = await reader.readexactly(_LENGTH.size)
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise MalformedMessageError(
            f"the stream ended after {len(error.partial)} of the {_LENGTH.size} bytes of a length"
        ) from None
    (length,) = _LENGTH.unpack(head)
    if length > max_bytes:
        raise MessageTooLargeError(
            f"a message of {length} bytes, wanted at most {max_bytes}; or this is no length at all"
        )
    try:
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise MalformedMessageError(
            f"the stream ended after {len(error.partial)} of the {length} bytes of a message"
        ) from None
