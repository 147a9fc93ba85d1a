"""The store of recordings: uploads that arrive in pieces, then whole files by digest, below any fsspec URL.

::

    <folder>/<owner>/<sha256>.part     what has come of an upload, on this machine; <owner> is a digest of the principal
    <url>/<sha256><ending>             a whole recording, its digest checked: a file, or a tar of a folder

No name of a sender's is ever a path, and what is stored is never unpacked here.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from playserve.errors import ExhaustedError, MessageTooLargeError, NotFoundError, StateError
from playserve.files import replacing
from playserve_services.control.problems import UploadDamagedError
from playserve_services.control.uploads import storage_errors

__all__ = ["ENDINGS", "OffsetError", "RecordingStore", "ending_of"]

_log = logging.getLogger(__name__)
#: Uploads that one principal may have begun and not ended.
_MOST_UNFINISHED = 16
#: An upload of which nothing came for so long has been given up.
_STALE_S = 24 * 3600.0
_CHUNK = 1 << 20
#: Endings of names in the store. They are ours: a sender's name is never a path.
ENDINGS = ("", ".npz", ".tar", ".ttyrec", ".ttyrec.bz2", ".ttyrec.gz")
_BY_FORMAT = {"episode": ".npz", "p2p": ".tar", "nethack-shard": ".tar"}


def ending_of(kind: str, name: str) -> str:
    """Return the ending of a recording's name in the store, by its format and what its owner calls it."""
    if kind == "ttyrec":
        return next((f".ttyrec{packed}" for packed in (".bz2", ".gz") if name.lower().endswith(packed)), ".ttyrec")
    return _BY_FORMAT.get(kind, "")


class OffsetError(StateError):
    """A piece does not begin where the last one ended."""

    reason = "UPLOAD_OFFSET"


class RecordingStore:
    """See the module's docstring. Its methods block.

    Args:
        url: Folder or fsspec URL of whole recordings.
        folder: For uploads while they come.
        max_bytes: Largest recording.
    """

    def __init__(self, url: str, folder: Path, max_bytes: int) -> None:
        self._fs, root = fsspec.core.url_to_fs(url)
        self._url, self._root = url.rstrip("/"), root.rstrip("/")
        self._local = isinstance(self._fs, LocalFileSystem)
        self._folder, self._max_bytes = folder, max_bytes

    def remove_stale(self) -> None:
        """Remove uploads that were given up."""
        for part in self._folder.glob("*/*.part"):
            if _age_s(part) > _STALE_S:
                part.unlink(missing_ok=True)

    def received(self, principal: str, sha256: str) -> int:
        """Return how many bytes of an upload have come; 0: it has not begun."""
        try:
            return self._part(principal, sha256).stat().st_size
        except FileNotFoundError:
            return 0

    def append(self, principal: str, sha256: str, offset: int, data: bytes) -> int:
        """Take the next piece of an upload; return how many bytes have come now.

        Raises:
            OffsetError: It does not begin where the last one ended, or another one is being written.
            MessageTooLargeError: The recording would be too large.
            ExhaustedError: Too many of the principal's uploads have begun and not ended.
            StorageFullError: The disk is full.
        """
        if offset + len(data) > self._max_bytes:
            raise MessageTooLargeError(f"the recording has more than {self._max_bytes} bytes, the most that is taken")
        part = self._part(principal, sha256)
        try:
            part.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._check_room(part)
            with _locked(part) as file:
                at = file.seek(0, os.SEEK_END)
                if offset != at:
                    raise OffsetError(f"the piece begins at {offset}; {at} bytes have come, so that was wanted")
                file.write(data)
                file.flush()
        except OSError as error:
            raise storage_errors(error) from error
        return offset + len(data)

    def finish(self, principal: str, sha256: str, size: int, ending: str) -> str:
        """Check a whole upload, put it into the store, and return its URL.

        Args:
            principal: Who has sent it.
            sha256: Its digest.
            size: Its bytes.
            ending: One of :data:`ENDINGS`, by which others see what it is.

        Raises:
            StateError: Some of it is missing.
            UploadDamagedError: It has not that digest; it is forgotten, and can be sent again.
            StorageFullError: The store is full.
        """
        part = self._part(principal, sha256)
        came = self.received(principal, sha256)
        if came != size:
            raise OffsetError(f"{came} of {size} bytes have come")
        try:
            with _locked(part) as file:
                found = _digest(file)
                if found != sha256:
                    part.unlink(missing_ok=True)
                    raise UploadDamagedError(f"what came has sha256 {found}, not {sha256}")
                self._put(part, f"{self._root}/{sha256}{ending}")
                part.unlink(missing_ok=True)
        except OSError as error:
            raise storage_errors(error) from error
        return self.url_of(sha256, ending)

    def url_of(self, sha256: str, ending: str) -> str:
        """Return where the recording with this digest lies, or would."""
        return f"{self._url}/{sha256}{ending}"

    def holds(self, url: str, sha256: str) -> bool:
        """Whether a recording's URL is one of this store's."""
        return url in [self.url_of(sha256, ending) for ending in ENDINGS]

    def read(self, url: str) -> Iterator[bytes]:
        """Return the bytes of a recording that this store :meth:`holds`, in pieces.

        Raises:
            NotFoundError: It is not there any more.
        """
        try:
            file: BinaryIO = self._fs.open(self._path(url), "rb")
        except FileNotFoundError as error:
            raise NotFoundError("the recording is not in the store any more") from error
        return _pieces(file)

    def remove(self, url: str) -> None:
        """Remove a recording that this store :meth:`holds`; none is fine."""
        try:
            self._fs.rm_file(self._path(url))
        except FileNotFoundError:
            _log.info("recording %s was gone already", url)

    def _path(self, url: str) -> str:
        return f"{self._root}/{url.removeprefix(self._url).lstrip('/')}"

    def _part(self, principal: str, sha256: str) -> Path:
        return self._folder / hashlib.sha256(principal.encode()).hexdigest()[:32] / f"{sha256}.part"

    def _check_room(self, part: Path) -> None:
        others = [path for path in part.parent.glob("*.part") if path != part]
        if part.exists() or len(others) < _MOST_UNFINISHED:
            return
        self.remove_stale()
        if len(list(part.parent.glob("*.part"))) >= _MOST_UNFINISHED:
            raise ExhaustedError(f"{_MOST_UNFINISHED} uploads have begun and not ended; end one of them first")

    def _put(self, source: Path, target: str) -> None:
        if not self._local:
            self._fs.put_file(str(source), target)  # objects in buckets appear whole
            return
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(target), durable=True) as temporary:
            shutil.copyfile(source, temporary)


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read and append, for one writer at a time."""
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OffsetError("another piece of this upload is being written") from error
        yield file


def _digest(file: BinaryIO) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(_CHUNK):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(_CHUNK):
            yield piece


def _age_s(path: Path) -> float:
    try:
        # By the wall clock, as the file's: what is asked is whether a day has gone.
        return datetime.datetime.now(datetime.UTC).timestamp() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
