"""Frames of recordings: decoded from their videos when they are asked for, or once for all into a mapped file.

Decoding a clip starts at the key frame before it, so that short clips in random order decode several times what they
use. Where the decoded frames fit a file of a stated size, they are decoded once; the rest is decoded anew each time.

Shape legend: N frames of all recordings, S side of a frame.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from playserve.errors import PlayserveError
from playserve.files import replacing, write_json
from playserve_client.p2p.video import VideoReader
from playserve_trainer.data.p2p import Recordings

__all__ = ["CachedFrames", "FrameStore", "VideoFrames", "cache_bytes", "cache_frames"]


class FrameStore(Protocol):
    """Frames by recording and index; safe to ask from several threads."""

    def read(self, recording: int, start: int, out_TSS3: NDArray[np.uint8]) -> None:
        """Fill the array with frames from `start` on, uint8 RGB.

        Raises:
            BrokenRecordingError: A frame cannot be decoded.
            MissingPartError: The video is gone.
        """


class VideoFrames:
    """Frames out of the videos; a few readers stay open, so that what follows what was read last costs no seek.

    Args:
        recordings: Whose frames.
        open_videos: Most videos that are open at once.
    """

    def __init__(self, recordings: Recordings, open_videos: int = 8) -> None:
        self._recordings = recordings
        self._open_videos = open_videos
        self._idle: OrderedDict[int, VideoReader] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, recording: int, start: int, out_TSS3: NDArray[np.uint8]) -> None:
        """See :class:`FrameStore`."""
        with self._reader(recording) as reader:
            for place, frame in zip(out_TSS3, reader.frames(start, start + len(out_TSS3)), strict=True):
                place[:] = frame

    def close(self) -> None:
        """Close the videos that are open and not being read."""
        with self._lock:
            while self._idle:
                self._idle.popitem()[1].close()

    @contextmanager
    def _reader(self, recording: int) -> Iterator[VideoReader]:
        """Lend a reader to one thread; it is kept afterwards, unless it failed."""
        with self._lock:
            reader = self._idle.pop(recording, None)
        reader = reader or VideoReader(self._recordings.video(recording), threads=1)
        try:
            yield reader
        except BaseException:
            reader.close()
            raise
        with self._lock:
            dropped = [self._idle.pop(recording, None)]
            self._idle[recording] = reader
            while len(self._idle) > self._open_videos:
                dropped.append(self._idle.popitem(last=False)[1])
        for other in dropped:
            if other is not None:
                other.close()


class CachedFrames:
    """Frames that were decoded before, mapped from a file: the system keeps in memory what fits.

    Args:
        recordings: Whose frames.
        frames_NSS3: All of them.
    """

    def __init__(self, recordings: Recordings, frames_NSS3: NDArray[np.uint8]) -> None:
        self._starts_R = recordings.starts_R
        self._frames_NSS3 = frames_NSS3

    def read(self, recording: int, start: int, out_TSS3: NDArray[np.uint8]) -> None:
        """See :class:`FrameStore`."""
        first = self._starts_R[recording] + start
        out_TSS3[:] = self._frames_NSS3[first : first + len(out_TSS3)]


def cache_bytes(recordings: Recordings) -> int:
    """Return the length of the file of all decoded frames."""
    return int(recordings.lengths_R.sum()) * recordings.frame_size**2 * 3


def cache_frames(
    recordings: Recordings, cache: Path, workers: int, progress: Callable[[int, int], None] | None = None
) -> tuple[CachedFrames, dict[int, str]]:
    """Decode every frame into a file in `cache`, or map the one that an earlier call made.

    Args:
        recordings: Whose frames.
        cache: Folder of the file.
        workers: Videos that are decoded at once.
        progress: Called with (frames decoded, frames).

    Returns:
        The frames, and what is wrong with those recordings that cannot be decoded: their frames are black.
    """
    size = recordings.frame_size
    total = int(recordings.lengths_R.sum())
    name = f"frames-{recordings.report.digest[:16]}-{size}"
    path, notes = cache / f"{name}.u8", cache / f"{name}.json"
    shape = (total, size, size, 3)
    if not (notes.exists() and path.exists() and path.stat().st_size == cache_bytes(recordings)):
        cache.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            frames_NSS3 = np.memmap(part, np.uint8, "w+", shape=shape)
            broken = _decode_all(recordings, frames_NSS3, workers, progress)
            frames_NSS3.flush()
            del frames_NSS3
        write_json(notes, broken)
    broken = {int(recording): str(error) for recording, error in json.loads(notes.read_text()).items()}
    return CachedFrames(recordings, np.memmap(path, np.uint8, "r", shape=shape)), broken


def _decode_all(
    recordings: Recordings,
    frames_NSS3: NDArray[np.uint8],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[int, str]:
    store, starts_R, lock = VideoFrames(recordings, open_videos=0), recordings.starts_R, threading.Lock()
    broken: dict[int, str] = {}
    done = 0

    def decode(recording: int) -> None:
        nonlocal done
        length = int(recordings.lengths_R[recording])
        span = frames_NSS3[starts_R[recording] : starts_R[recording] + length]
        try:
            store.read(recording, 0, span)
        except PlayserveError as error:
            broken[recording] = str(error)
        with lock:
            done += length
            if progress is not None:
                progress(done, len(frames_NSS3))

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        for _ in pool.map(decode, range(len(recordings.folders))):
            pass
    return broken
