"""Reading ttyrec files: what NLE writes (versions 2 and 3), NLD's files, and plain recordings of terminals.

NLE's own converter turns bytes into screens. It prints to the terminal when a file is damaged, and stops without a
word on how much was lost; so the file is read through once before: its whole frames are counted, and of a damaged
file (and of one that is not packed as the converter wants it) a sound copy of its whole part is converted.

Shape legend: T frames.
"""

from __future__ import annotations

import bz2
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from playserve.errors import DataLossError, NotFoundError
from playserve_client.nethack.tty import TTY_COLUMNS, TTY_ROWS, TtyChunk
from playserve_client.terminal.frames import BLOCK
from playserve_client.terminal.recording import StoredRecording

__all__ = ["Survey", "Ttyrec", "survey_ttyrec"]

_MAX_RECORD = 1 << 24
_SECOND_US = 1_000_000
_SCREEN, _KEY, _SCORE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Survey:
    """What a ttyrec file holds.

    Attributes:
        version: 1 has screens only, 2 keys too, 3 scores too.
        frames: Frames that are whole; one a key, in version 1 one a record.
        whole_bytes: Unpacked bytes up to the end of the last whole record.
        problem: What is damaged, "" where nothing is.
        convertible: NLE's converter reads it whole as it is: one undamaged bz2 stream, and the last record is no frame
            (of such a file the converter of nle 1.3.0 leaves the last frame out).
    """

    version: int
    frames: int
    whole_bytes: int
    problem: str
    convertible: bool


class _DamagedError(Exception):
    """Unpacking cannot go on."""


class _Unpacker:
    """The unpacked bytes of a file, piece by piece, as many as can be had before damage.

    Args:
        path: bz2 (of any number of streams), gzip, or not packed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.streams = 0
        with path.open("rb") as file:
            magic = file.read(3)
        self.kind = "bz2" if magic == b"BZh" else "gzip" if magic[:2] == b"\x1f\x8b" else "none"

    def __iter__(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            engine: Any = self._engine()
            while packed := file.read(4096):
                if engine is None:
                    yield packed
                    continue
                while packed:
                    if engine.eof:
                        engine = self._engine()
                    try:
                        piece = engine.decompress(packed)
                    except (OSError, zlib.error) as error:
                        raise _DamagedError(f"{self.kind} damaged at byte {file.tell() - len(packed)}") from error
                    yield piece
                    packed = engine.unused_data if engine.eof else b""
            if engine is not None and not engine.eof:
                raise _DamagedError(f"the {self.kind} stream ends early")

    def _engine(self) -> Any:
        self.streams += 1
        if self.kind == "none":
            return None
        return bz2.BZ2Decompressor() if self.kind == "bz2" else zlib.decompressobj(wbits=31)


def survey_ttyrec(path: Path) -> Survey:
    """Read a ttyrec file through and count what is whole in it.

    Raises:
        NotFoundError: No such file.
        DataLossError: Not one frame is whole, or it is no ttyrec.
    """
    if not path.is_file():
        raise NotFoundError(f"no file {path}")
    unpacker = _Unpacker(path)
    named = re.search(r"\.ttyrec([123]?)(?:\.|$)", path.name)
    version = int(named[1] or 1) if named else 0
    counter = _RecordCounter(version)
    problem = ""
    try:
        for piece in unpacker:
            counter.feed(piece)
        counter.finish()
    except _DamagedError as error:
        problem = str(error)
    if not counter.frames:
        raise DataLossError(f"{path} holds no whole frame of a ttyrec" + (f": {problem}" if problem else ""))
    convertible = unpacker.kind == "bz2" and unpacker.streams == 1 and not problem and not counter.ends_in_frame
    return Survey(counter.version, counter.frames, counter.whole, problem, convertible)


class _RecordCounter:
    """Walks over records: seconds, microseconds, length, from version 2 on a channel byte, then the bytes.

    Args:
        version: 1, 2 or 3; 0 to tell by the first record.
    """

    def __init__(self, version: int) -> None:
        self.version = version
        self.frames = self.whole = 0
        self.ends_in_frame = False
        self._rest = b""

    def feed(self, piece: bytes) -> None:
        if not piece:
            return
        data = self._rest + piece
        if not self.version and len(data) >= 13:
            # A recording without channels begins with text or with an escape, never with a byte this small.
            self.version = 3 if data[12] == _SCREEN else 1
        head = struct.Struct("<iii" if self.version == 1 else "<iiiB")
        position = 0
        while self.version and len(data) - position >= head.size:
            _, microseconds, length, *channel = head.unpack_from(data, position)
            if not 0 < length <= _MAX_RECORD or not 0 <= microseconds < _SECOND_US or channel > [_SCORE]:
                self._rest = b""
                raise _DamagedError(f"no record at unpacked byte {self.whole}")
            end = position + head.size + length
            if end > len(data):
                break
            self.ends_in_frame = not channel or channel[0] == _KEY
            self.frames += self.ends_in_frame
            position = end
            self.whole += head.size + length
        self._rest = data[position:]

    def finish(self) -> None:
        if self._rest:
            raise _DamagedError("the last record is cut off")


class Ttyrec(StoredRecording):
    """One ttyrec file as a recording. Frames are converted as far as somebody wants them, about 20,000 a second.

    Args:
        path: The file.
        name: What to call it; by default the file's name.
        facts: What is known of the game, to show to people.
    """

    def __init__(self, path: Path, *, name: str | None = None, facts: dict[str, str] | None = None) -> None:
        from nle._pyconverter import Converter

        self._survey = survey = survey_ttyrec(path)
        super().__init__(
            name=name or path.name,
            facts=facts,
            total=survey.frames,
            has_keys=survey.version >= 2,
            has_scores=survey.version >= 3,
        )
        self.problem = survey.problem
        self._converter = Converter(TTY_ROWS, TTY_COLUMNS, survey.version)
        self._load(path)

    def _load(self, path: Path) -> None:
        if self._survey.convertible:
            self._converter.load_ttyrec(str(path), 1, 0)
            return
        with tempfile.NamedTemporaryFile(suffix=".bz2") as sound:
            left = self._survey.whole_bytes
            packer = bz2.BZ2Compressor(1)
            for piece in _Unpacker(path):
                sound.write(packer.compress(piece[:left]))
                left -= min(left, len(piece))
                if not left:
                    break
            # A record after the last frame, so that the converter gives that one too; it is never asked for this one.
            head = struct.pack("<iii", 0, 0, 1) + (b"" if self._survey.version == 1 else bytes([_SCREEN]))
            sound.write(packer.compress(head + b" ") + packer.flush())
            sound.flush()
            self._converter.load_ttyrec(sound.name, 1, 0)  # it keeps the file open, so the name may go

    def _more(self) -> TtyChunk | None:
        wanted = min(BLOCK, self._total - self.ready)
        chars = np.zeros((wanted, TTY_ROWS, TTY_COLUMNS), np.uint8)
        colors = np.zeros((wanted, TTY_ROWS, TTY_COLUMNS), np.int8)
        cursor, times = np.zeros((wanted, 2), np.int16), np.zeros(wanted, np.int64)
        keys, scores = np.zeros(wanted, np.uint8), np.zeros(wanted, np.int32)
        got = wanted - int(self._converter.convert(chars, colors, cursor, times, keys, scores))
        if not got:
            return None
        return TtyChunk(
            chars[:got], colors[:got], cursor[:got].astype(np.uint8), keys[:got], scores[:got], np.ones(got, np.bool_)
        )
