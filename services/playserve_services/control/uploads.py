"""A checkpoint as it is uploaded: ``multipart/form-data`` with the parts `manifest` and `weights`, streamed to disk.

Parts go to files whose names are ours; what the sender calls them is not looked at. Every limit is checked as bytes
arrive, so that nothing larger ever lies in memory or on the disk.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from playserve.errors import InputMissingError, InputUnknownError, MalformedMessageError, MessageTooLargeError
from playserve_services.control.problems import StorageFullError

__all__ = ["MAX_MANIFEST_BYTES", "CheckpointReceiver", "receive", "storage_errors"]

MAX_MANIFEST_BYTES = 1024 * 1024
_MAX_HEADER_BYTES = 8192
_FILES = {"manifest": "manifest.json", "weights": "model.safetensors"}


class CheckpointReceiver:
    """Writes the parts of one upload into `folder`.

    Args:
        content_type: Header of the request.
        folder: Empty folder of this upload alone.
        max_bytes: Largest sum of all that is sent.
    """

    def __init__(self, content_type: str, folder: Path, max_bytes: int) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise MalformedMessageError(
                f"content type {content_type[:100]!r}, wanted multipart/form-data with the parts manifest and weights"
            )
        self._folder, self._max_bytes, self._received = folder, max_bytes, 0
        self._done: set[str] = set()
        self._part: str = ""
        self._file: BinaryIO | None = None
        self._room = 0
        self._header_bytes = 0
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._disposition = b""
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._grow(0, data[start:end]),
                "on_header_value": lambda data, start, end: self._grow(1, data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._open,
                "on_part_data": self._write,
                "on_part_end": self._close,
                "on_end": self._finish,
            },
        )

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            MessageTooLargeError: There are too many.
            MalformedMessageError, InputUnknownError: They are no such form.
            StorageFullError: The disk is full.
        """
        self._received += len(data)
        if self._received > self._max_bytes:
            raise MessageTooLargeError(f"the upload has more than {self._max_bytes} bytes, the most that is taken")
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise MalformedMessageError(f"not a multipart form: {error}") from error
        except OSError as error:
            raise storage_errors(error) from error

    def finish(self) -> None:
        """Check that everything is there.

        Raises:
            MalformedMessageError: The form broke off.
            InputMissingError: A part is missing.
        """
        if not self._ended:
            raise MalformedMessageError("the multipart form broke off before its end")
        if missing := sorted(set(_FILES) - self._done):
            raise InputMissingError(f"parts {missing} are missing; wanted manifest and weights")

    def close(self) -> None:
        """Close what is open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self._disposition, self._header_bytes = b"", 0

    def _grow(self, index: int, data: bytes) -> None:
        self._header_bytes += len(data)
        if self._header_bytes > _MAX_HEADER_BYTES:
            raise MalformedMessageError(f"a part has more than {_MAX_HEADER_BYTES} bytes of headers")
        self._header[index].extend(data)

    def _end_header(self) -> None:
        name, value = self._header
        if bytes(name).lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _open(self) -> None:
        _, options = parse_options_header(self._disposition)
        part = options.get(b"name", b"").decode("latin-1")
        if part not in _FILES or part in self._done:
            again = "came twice" if part in self._done else "is unknown"
            raise InputUnknownError(f"part {part[:50]!r} {again}; wanted manifest and weights, once each")
        self._part, self._room = part, MAX_MANIFEST_BYTES if part == "manifest" else self._max_bytes
        self._file = (self._folder / _FILES[part]).open("xb")

    def _write(self, data: bytes, start: int, end: int) -> None:
        self._room -= end - start
        if self._room < 0:
            raise MessageTooLargeError(f"the manifest has more than {MAX_MANIFEST_BYTES} bytes")
        assert self._file is not None  # noqa: S101 - a part was begun
        self._file.write(data[start:end])

    def _close(self) -> None:
        self.close()
        self._done.add(self._part)

    def _finish(self) -> None:
        self._ended = True


async def receive(stream: AsyncIterator[bytes], receiver: CheckpointReceiver, silence_s: float) -> None:
    """Feed a request's body to a receiver, which writes in a worker thread; raises what the receiver does.

    Args:
        stream: The body.
        receiver: Takes it.
        silence_s: A sender that is silent for so long, such as one whose connection is half open, is given up.
    """
    try:
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    chunk = await anext(stream, None)
            except TimeoutError as error:
                raise MalformedMessageError(f"the upload broke off: nothing came for {silence_s:g} s") from error
            if chunk is None:
                break
            if chunk:
                await run_in_threadpool(receiver.feed, chunk)
        receiver.finish()
    finally:
        receiver.close()


def storage_errors(error: OSError) -> Exception:
    """Return what to raise for an error of the file system: StorageFullError where it is full, else the error."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(f"no space left where checkpoints are written ({error.strerror})")
    return error
