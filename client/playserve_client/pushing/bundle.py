"""The bytes of a recording as they are sent: a file as it is, a folder as a tar that is always the same.

Nothing is written for that: any piece can be read again at any time, which is what lets an upload be taken up.
"""

from __future__ import annotations

import bisect
import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from playserve.errors import BadSettingError, DataLossError

__all__ = ["Bundle"]

_BLOCK = 512
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class _Part:
    """Bytes that follow one another: some that are known, or those of a file."""

    start: int
    size: int
    source: bytes | Path


class Bundle:
    """See the module's docstring.

    Args:
        path: A file, or a folder. Hidden files are left out.

    Raises:
        BadSettingError: The folder holds a link, or something that is no file; or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._parts: list[_Part] = []
        self.size = 0
        try:
            if path.is_file():
                self._add(path, path.stat().st_size)
            else:
                for file in _files(path):
                    self._add_member(file, file.relative_to(path).as_posix())
                self._add(bytes(2 * _BLOCK), 2 * _BLOCK)  # how a tar ends
        except OSError as error:
            raise BadSettingError(f"cannot read {path}: {error.strerror}") from error
        self._starts = [part.start for part in self._parts]

    def read(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes from `offset` on; fewer only at the end.

        Raises:
            DataLossError: A file has become shorter, or is gone.
        """
        pieces: list[bytes] = []
        index = bisect.bisect_right(self._starts, offset) - 1
        while count > 0 and 0 <= index < len(self._parts):
            part = self._parts[index]
            skip = offset - part.start
            piece = _read(part.source, skip, min(count, part.size - skip))
            pieces.append(piece)
            offset, count, index = offset + len(piece), count - len(piece), index + 1
        return b"".join(pieces)

    def sha256(self) -> str:
        """Return the digest of all bytes."""
        digest, offset = hashlib.sha256(), 0
        while offset < self.size:
            piece = self.read(offset, _PIECE)
            digest.update(piece)
            offset += len(piece)
        return digest.hexdigest()

    def _add(self, source: bytes | Path, size: int) -> None:
        if size:
            self._parts.append(_Part(self.size, size, source))
            self.size += size

    def _add_member(self, file: Path, name: str) -> None:
        # No times, owners or modes: the same recording is the same bytes.
        info = tarfile.TarInfo(name)
        info.size, info.mode = file.stat().st_size, 0o644
        header = info.tobuf(tarfile.PAX_FORMAT)
        self._add(header, len(header))
        self._add(file, info.size)
        padding = -info.size % _BLOCK
        self._add(bytes(padding), padding)


def _read(source: bytes | Path, skip: int, count: int) -> bytes:
    if isinstance(source, bytes):
        return source[skip : skip + count]
    try:
        with source.open("rb") as file:
            file.seek(skip)
            data = file.read(count)
    except OSError as error:
        raise DataLossError(f"{source} cannot be read any more: {error.strerror}") from error
    if len(data) < count:
        raise DataLossError(f"{source} has become shorter while it was sent")
    return data


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and those below it, by name."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise BadSettingError(f"{path} is a link or no file; a recording is files alone")
        if entry.is_dir():
            yield from _files(path)
        else:
            yield path
