"""The first picture of an animated GIF as a GIF of its own, for readers who want nothing to move."""

from __future__ import annotations

from playserve.errors import DataLossError

__all__ = ["still_of"]

_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B


def still_of(film: bytes) -> bytes:
    """Return the film without everything behind its first picture.

    Raises:
        DataLossError: The bytes are no whole GIF.
    """
    if film[:6] not in (b"GIF87a", b"GIF89a"):
        raise DataLossError(f"a film begins with {film[:6]!r}, wanted a GIF")
    try:
        at = 13 + _table_bytes(film[10])
        while film[at] == _EXTENSION:
            at = _after_blocks(film, at + 2)
        if film[at] != _IMAGE:
            raise DataLossError(f"a film has a block {film[at]:#04x} where its first picture should be")
        # Image descriptor (10 bytes), local colour table, the LZW code size, the data.
        end = _after_blocks(film, at + 10 + _table_bytes(film[at + 9]) + 1)
    except IndexError as error:
        raise DataLossError(f"a film of {len(film)} bytes ends inside its first picture") from error
    if end > len(film):
        raise DataLossError(f"a film of {len(film)} bytes ends inside its first picture")
    return film[:end] + bytes([_TRAILER])


def _table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(film: bytes, at: int) -> int:
    while film[at]:
        at += film[at] + 1
    return at + 1
