"""Lengths and messages on a byte stream: any way of cutting it is the same, and garbage is a typed error."""

from __future__ import annotations

import asyncio
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playserve.errors import MalformedMessageError, MessageTooLargeError, PlayserveError
from playserve_client.recap.framing import pack, read_message

LIMIT = 64


def read_all(chunks: list[bytes], limit: int = LIMIT) -> list[bytes]:
    async def main() -> list[bytes]:
        reader = asyncio.StreamReader()
        for chunk in chunks:
            reader.feed_data(chunk)
        reader.feed_eof()
        found = []
        while (message := await read_message(reader, limit)) is not None:
            found.append(message)
        return found

    return asyncio.run(main())


@given(st.lists(st.binary(max_size=LIMIT), max_size=6), st.integers(1, 20))
def test_messages_come_as_they_were_packed_however_the_stream_is_cut(messages: list[bytes], size: int) -> None:
    stream = b"".join(map(pack, messages))
    assert read_all([stream[i : i + size] for i in range(0, len(stream), size)]) == messages


@given(st.binary(max_size=200))
def test_garbage_is_messages_or_a_typed_error(stream: bytes) -> None:
    try:
        messages = read_all([stream])
    except PlayserveError:
        return
    assert b"".join(map(pack, messages)) == stream


def test_the_length_is_little_endian_and_unsigned_and_its_limit_is_inclusive() -> None:
    assert pack(b"ab") == b"\x02\x00\x00\x00ab"
    assert read_all([pack(bytes(LIMIT))]) == [bytes(LIMIT)]
    for length in (LIMIT + 1, 1 << 31, (1 << 32) - 1):
        with pytest.raises(MessageTooLargeError, match=f"{length} bytes, wanted at most {LIMIT}"):
            read_all([struct.pack("<I", length)])
    for cut in (pack(b"abc")[:2], pack(b"abc")[:5]):
        with pytest.raises(MalformedMessageError, match="ended after"):
            read_all([cut])
