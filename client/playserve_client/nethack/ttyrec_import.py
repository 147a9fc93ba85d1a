"""Decodes a game from its ttyrecs into a shard: once, and for good. Damage is an error, never a shorter game."""

from __future__ import annotations

import bz2
import re
import struct
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from playserve.errors import DataLossError
from playserve_client.nethack.nld_layouts import NldGame, foreign_keys
from playserve_client.nethack.shard_writer import ShardWriter
from playserve_client.nethack.tty import TTY_COLUMNS, TTY_ROWS, TtyChunk

__all__ = ["FrameDecoder", "ImportedGame", "check_stream", "import_game"]

_END_OF_BZ2: Final = 0x177245385090
_LEVEL: Final = re.compile(rb"(?:Xp|Exp|HD):(\d+)")
# Chunks among which the last status line is looked for.
_LAST_CHUNKS: Final = 3


class _Buffers:
    """Memory that a converter writes frames to, again and again."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.chars = np.zeros((frames, TTY_ROWS, TTY_COLUMNS), np.uint8)
        self.colors = np.zeros((frames, TTY_ROWS, TTY_COLUMNS), np.int8)
        self.cursor = np.zeros((frames, 2), np.int16)
        self.times = np.zeros(frames, np.int64)
        self.keys = np.zeros(frames, np.uint8)
        self.scores = np.zeros(frames, np.int32)

    def fill(self, converter: Any) -> int:
        """Decode on; return how many frames there were, fewer than `frames` at the end of the file."""
        left = converter.convert(self.chars, self.colors, self.cursor, self.times, self.keys, self.scores)
        return self.frames - int(left)

    def chunk(self, count: int, *, expert: bool) -> TtyChunk:
        return TtyChunk(
            chars=self.chars[:count],
            colors=self.colors[:count],
            cursor=np.clip(self.cursor[:count], 0, 255).astype(np.uint8),
            keys=self.keys[:count],
            scores=self.scores[:count],
            expert=np.full(count, expert),
        )


class FrameDecoder:
    """Decodes ttyrecs in a thread of its own, some pieces ahead of who takes the frames; a context manager.

    nle's converter lets go of the interpreter's lock, so that packing and writing cost no time where a core is free,
    and the thread never waits for another to wake up.

    Args:
        frames: Frames of a piece; few, so that they stay in the cache.
        pieces: How many there are.
    """

    def __init__(self, frames: int = 128, pieces: int = 4) -> None:
        self._buffers = tuple(_Buffers(frames) for _ in range(pieces))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ttyrec")

    def __enter__(self) -> FrameDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def chunks(self, game: NldGame) -> Iterator[TtyChunk]:
        """Yield the frames of a game; each chunk is valid until the next is asked for.

        Raises:
            DataLossError: A file is missing or cut off.
        """
        from nle import _pyconverter

        for part, path in enumerate(game.paths):
            _check_end(Path(path))
            converter = _pyconverter.Converter(TTY_ROWS, TTY_COLUMNS, game.version)
            converter.load_ttyrec(path, gameid=1, part=part)
            free: SimpleQueue[_Buffers | None] = SimpleQueue()
            ready: SimpleQueue[tuple[_Buffers, int] | None] = SimpleQueue()
            for buffers in self._buffers:
                free.put(buffers)
            work = self._pool.submit(_decode, converter, free, ready)
            try:
                while (piece := ready.get()) is not None:
                    buffers, count = piece
                    if count:
                        yield buffers.chunk(count, expert=game.meta.has_keys)
                    free.put(buffers)
                work.result()
            finally:
                free.put(None)
                wait([work])  # nobody writes to the buffers when another file begins


def _decode(
    converter: Any, free: SimpleQueue[_Buffers | None], ready: SimpleQueue[tuple[_Buffers, int] | None]
) -> None:
    """Fill buffers until the file ends, or None comes; say None when done."""
    try:
        while (buffers := free.get()) is not None:
            count = buffers.fill(converter)
            ready.put((buffers, count))
            if count < buffers.frames:
                return
    finally:
        ready.put(None)


@dataclass(frozen=True, slots=True)
class ImportedGame:
    """What became of a game.

    Attributes:
        frames: All.
        masked: Frames whose keys are not to be learnt.
    """

    frames: int
    masked: int


def import_game(
    game: NldGame, writer: ShardWriter, decoder: FrameDecoder, on_frames: Callable[[int], None] = lambda _: None
) -> ImportedGame:
    """Decode a game and write it.

    Args:
        game: Which.
        writer: Where to; no game is begun in it.
        decoder: Of the frames.
        on_frames: Called with frames decoded, now and then.

    Raises:
        DataLossError: A ttyrec is missing, damaged or cut off; nothing of the game is written.
    """
    writer.begin(game.meta)
    try:
        return _import(game, writer, decoder, on_frames)
    except BaseException:
        writer.abort()
        raise


def _import(
    game: NldGame, writer: ShardWriter, decoder: FrameDecoder, on_frames: Callable[[int], None]
) -> ImportedGame:
    keys: list[NDArray[np.uint8]] = []
    status: deque[NDArray[np.uint8]] = deque(maxlen=_LAST_CHUNKS)
    last_score = 1
    for chunk in decoder.chunks(game):
        writer.append(chunk)
        keys.append(chunk.keys.copy())
        status.append(chunk.chars[:, 22:].copy())
        last_score = int(chunk.scores[-1])
        on_frames(len(chunk))
    frames = sum(len(piece) for piece in keys)
    if not frames:
        raise DataLossError(f"{game.paths[0]} holds no frame")
    # The last screens of a game that NLE closed have no score. A game that ends otherwise was perhaps cut off: the
    # converter only prints when it meets damage. So its files are read again, with all checksums.
    if game.version < 3 or last_score != 0:
        for path in game.paths:
            check_stream(Path(path), game.version)
    masked = foreign_keys(np.concatenate(keys), quit_game=game.quit) if game.meta.has_keys else frames
    level = _experience_level(np.concatenate(status), masked if game.meta.has_keys else 0)
    writer.end(replace(game.meta, steps=frames - masked, experience_level=level), mask_last=masked)
    return ImportedGame(frames, masked)


def _check_end(path: Path) -> None:
    """See that a file is there and ends as a bz2 stream does."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 16))
            tail = int.from_bytes(file.read(), "big")
    except OSError as error:
        raise DataLossError(f"{path} cannot be read: {error}") from error
    # The mark is followed by 32 bits of checksum and up to 7 bits that fill the last byte.
    if not any((tail >> (32 + fill)) & (2**48 - 1) == _END_OF_BZ2 for fill in range(8)):
        raise DataLossError(f"{path} is cut off: it does not end as a bz2 stream does")


def check_stream(path: Path, version: int) -> None:
    """Read a ttyrec whole: its checksums hold, and its last record is complete.

    Args:
        path: The file.
        version: Of the ttyrec format, 1 to 3.

    Raises:
        DataLossError: It is damaged.
    """
    header = struct.Struct("<iii" if version == 1 else "<iiiB")
    rest = b""
    skip = 0
    try:
        with bz2.open(path) as file:
            while block := file.read(1 << 20):
                data = rest + block
                at = skip
                while at + header.size <= len(data):
                    length = header.unpack_from(data, at)[2]
                    if length < 0:
                        raise DataLossError(f"{path} is damaged: a record of {length} bytes")
                    at += header.size + length
                rest, skip = data[at:], max(0, at - len(data))
    except (OSError, EOFError, ValueError) as error:
        raise DataLossError(f"{path} is damaged: {error}") from error
    if rest or skip:
        raise DataLossError(f"{path} is cut off within a record")


def _experience_level(status_TRX: NDArray[np.uint8], closing: int) -> int | None:
    """Return the level in the last status line before the closing screens."""
    for rows in status_TRX[: len(status_TRX) - closing][::-1]:
        found = _LEVEL.search(rows.tobytes())
        if found:
            return int(found[1])
    return None
