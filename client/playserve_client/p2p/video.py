"""Videos of recordings: frames of any mp4 from any frame on, exactly; and mp4s as Open P2P writes them.

A reader lists the packets first, without decoding (some 10 us a frame), so that it knows how many frames there really
are, in which order they are shown, and which can be decoded from where. Reading frame i then starts at the last key
frame before it; with B-frames, too, the frame that comes is frame i and no neighbour of it.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError, OutOfBoundsError, ShapeMismatchError, StateError
from playserve_client.p2p.problems import BrokenRecordingError, MissingPartError, Problem

if TYPE_CHECKING:
    import av

__all__ = ["VideoReader", "VideoSettings", "VideoWriter"]

Frame = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSettings:
    """How a video is compressed (x264).

    Attributes:
        encoding: "yuv" (4:2:0, as most of Open P2P's) or "rgb" (no colour is lost to subsampling).
        crf: Quality, 0 lossless to 51; theirs are drawn from 6 to 17.
        preset: Speed of the encoder; theirs is "medium".
        fastdecode: Whether decoding is made cheaper.
        keyframe_every: Most frames between key frames; a reader decodes up to so many before the one it wants.
        threads: Threads of the encoder; 0: as many as it likes.
    """

    encoding: str = "yuv"
    crf: int = 12
    preset: str = "medium"
    fastdecode: bool = False
    keyframe_every: int = 100
    threads: int = 1

    def __post_init__(self) -> None:
        if self.encoding not in ("yuv", "rgb"):
            raise BadSettingError(f"video encoding {self.encoding!r}, wanted yuv or rgb")
        if not 0 <= self.crf <= 51 or self.keyframe_every < 1:
            raise BadSettingError(
                f"crf {self.crf}, key frame every {self.keyframe_every}, wanted 0 to 51 and 1 or more"
            )

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> VideoSettings:
        """Return settings drawn as Open P2P draws its software encodings, so that a policy meets many."""
        return cls(
            encoding=str(rng.choice(["yuv", "rgb"])),
            crf=int(rng.integers(6, 18)),
            fastdecode=bool(rng.integers(2)),
        )


class VideoWriter:
    """Writes one mp4, frame by frame; a context manager. The file is whole after :meth:`close` only.

    Args:
        path: The file; written over if it exists.
        width: Pixels; even for "yuv".
        height: Pixels; even for "yuv".
        fps: Frames a second; frames lie exactly so far apart.
        settings: How it is compressed.
    """

    def __init__(
        self, path: Path, width: int, height: int, fps: float = 20.0, settings: VideoSettings | None = None
    ) -> None:
        import av

        settings = settings or VideoSettings()
        if settings.encoding == "yuv" and (width % 2 or height % 2):
            raise ShapeMismatchError(f"video of {height} x {width}, wanted even sides for yuv, or rgb")
        self.path, self.num_frames = path, 0
        self._shape = (height, width, 3)
        rate = Fraction(fps).limit_denominator(1000)
        self._time_base = 1 / rate
        options = {"crf": str(settings.crf), "preset": settings.preset, "g": str(settings.keyframe_every)}
        if settings.fastdecode:
            options["tune"] = "fastdecode"
        if _has_avx512():
            # x264's AVX-512 code for mbtree reads memory that nobody wrote: equal frames gave other bytes each time.
            options["x264-params"] = "asm=AVX2"
        self._container: av.container.OutputContainer | None = av.open(str(path), "w", format="mp4")
        codec = "libx264rgb" if settings.encoding == "rgb" else "libx264"
        stream: Any = self._container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = "rgb24" if settings.encoding == "rgb" else "yuv420p"
        stream.codec_context.thread_count = settings.threads
        stream.codec_context.time_base = self._time_base
        self._stream = stream

    def write(self, frame: Frame) -> None:
        """Add one frame, uint8 [H, W, 3] RGB."""
        import av

        if self._container is None:
            raise StateError(f"video {self.path} is closed")
        if frame.dtype != np.uint8 or frame.shape != self._shape:
            raise ShapeMismatchError(f"frame of {frame.dtype} {list(frame.shape)}, wanted uint8 {list(self._shape)}")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts, picture.time_base = self.num_frames, self._time_base
        self._container.mux(self._stream.encode(picture))
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file; nothing happens the second time."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            if self.num_frames:
                container.mux(self._stream.encode(None))
        finally:
            container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class VideoReader:
    """Frames of one video, from any frame on; a context manager. Not for several threads at once.

    Args:
        path: The file.
        threads: Threads of the decoder; loaders that run one reader a core want 1.

    Attributes:
        num_frames: Frames that can be decoded.
        declared_frames: Frames that the file claims to have; more than `num_frames` where it was cut short.
        height: Pixels.
        width: Pixels.
        fps: Frames a second, as the file says.

    Raises:
        MissingPartError: There is no such file (NO_VIDEO).
        BrokenRecordingError: UNINDEXED_VIDEO: an mp4 without its index, as a killed writer leaves it; BAD_VIDEO.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self.path = path
        try:
            container = av.open(str(path))
        except FileNotFoundError:
            raise MissingPartError(path, Problem.NO_VIDEO, "there is no such file") from None
        except (av.FFmpegError, OSError, ValueError) as error:
            raise BrokenRecordingError(path, _unopenable(path), f"cannot be opened: {error}") from error
        self._container: av.container.InputContainer | None = container
        try:
            self._open(container, threads)
        except BaseException:
            self.close()
            raise
        self._to_rgb = VideoReformatter()

    def _open(self, container: av.container.InputContainer, threads: int) -> None:
        if not container.streams.video:
            raise BrokenRecordingError(self.path, Problem.BAD_VIDEO, "it has no video stream")
        stream = container.streams.video[0]
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "SLICE" if threads == 1 else "AUTO"
        self._stream = stream
        self.height, self.width = stream.codec_context.height, stream.codec_context.width
        self.fps = float(stream.average_rate or stream.guessed_rate or 0.0)
        shown, keys, self._cut = _packets(container, stream, self.path.stat().st_size)
        self._index = {pts: number for number, pts in enumerate(sorted(shown))}
        # (first frame, decode time) of each key frame, by frame
        self._keys = sorted((self._index[pts], dts) for pts, dts in keys if pts in self._index)
        self.num_frames = len(self._index)
        self.declared_frames = stream.frames or self.num_frames
        if not self.num_frames or not self._keys:
            detail = f"none of {self.declared_frames} frames can be decoded"
            raise BrokenRecordingError(self.path, Problem.BAD_VIDEO, detail)
        self._next = -1  # the frame that _decoded gives next; -1: nothing is being decoded
        self._decoded: Iterator[tuple[int, Any]] = iter(())

    @property
    def truncated(self) -> bool:
        """Whether the file ends before its last frame."""
        return self.num_frames < self.declared_frames

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        """Yield frames start..stop-1, uint8 [H, W, 3] RGB; reading on where the last read ended costs no seek.

        Raises:
            OutOfBoundsError: There are no such frames.
            BrokenRecordingError: A frame cannot be decoded (BAD_VIDEO).
        """
        stop = self.num_frames if stop is None else stop
        if not 0 <= start <= stop <= self.num_frames:
            raise OutOfBoundsError(f"frames {start} to {stop} of {self.path}, which has {self.num_frames}")
        for number in range(start, stop):
            yield self._frame(number)

    def read(self, start: int, count: int) -> Frame:
        """Return `count` frames from `start` on, uint8 [count, H, W, 3] RGB; raises as :meth:`frames` does."""
        out = np.empty((count, self.height, self.width, 3), np.uint8)
        for place, frame in zip(out, self.frames(start, start + count), strict=True):
            place[:] = frame
        return out

    def close(self) -> None:
        """Close the file; nothing happens the second time."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.num_frames

    def _frame(self, number: int) -> Frame:
        key = bisect_right(self._keys, (number, float("inf"))) - 1
        if not 0 <= self._next <= number or (key >= 0 and self._keys[key][0] > self._next):
            self._seek(key)
        while True:
            # Seeking may end behind the frame (the demuxer decides): then from one key frame earlier.
            picture = self._decode_to(number)
            if picture is not None:
                self._next = number + 1
                rgb = self._to_rgb.reformat(picture, format="rgb24").to_ndarray()
                return np.ascontiguousarray(rgb, np.uint8)
            key -= 1
            if key < -1:
                raise BrokenRecordingError(self.path, Problem.BAD_VIDEO, f"frame {number} cannot be decoded")
            self._seek(key)

    def _decode_to(self, number: int) -> Any | None:
        import av

        try:
            for found, picture in self._decoded:
                if found == number:
                    return picture
                if found > number:
                    break
        except av.FFmpegError as error:
            self._next = -1
            detail = f"frame {number} cannot be decoded: {error}"
            raise BrokenRecordingError(self.path, Problem.BAD_VIDEO, detail) from error
        self._next = -1
        return None

    def _seek(self, key: int) -> None:
        if self._container is None:
            raise StateError(f"video {self.path} is closed")
        decode_time = self._keys[key][1] if key >= 0 else self._keys[0][1]
        self._container.seek(decode_time, stream=self._stream, backward=True)
        self._next = self._keys[max(key, 0)][0]
        self._decoded = self._decode(self._container)

    def _decode(self, container: av.container.InputContainer) -> Iterator[tuple[int, Any]]:
        for packet in container.demux(self._stream):
            cut = packet.dts is not None and packet.dts >= self._cut
            # Half a packet would be an error, and keep back the whole frames before it that the decoder still holds.
            for picture in self._stream.decode(None) if cut else packet.decode():
                number = self._index.get(-1 if picture.pts is None else picture.pts)
                if number is not None:
                    yield number, picture
            if cut:
                return


@functools.cache
def _has_avx512() -> bool:
    with suppress(OSError):
        return "avx512f" in Path("/proc/cpuinfo").read_text()
    return False


def _packets(
    container: av.container.InputContainer, stream: Any, file_bytes: int
) -> tuple[list[int], list[tuple[int, int]], float]:
    """List the packets of the file's whole part, without decoding them.

    Returns:
        Presentation time of each frame that can be decoded; (presentation, decode time) of each key frame; decode time
        of the first packet that is not there. Packets come in the order of decoding, so a frame that is shown before
        that time is there; of later ones some may be, with gaps between them, and those are left out.
    """
    import av

    index = getattr(stream, "index_entries", ())  # PyAV 16 has none
    missing = [entry for entry in index if entry.pos + entry.size > file_bytes]
    cut = min((entry.timestamp for entry in missing), default=math.inf)
    packets: list[tuple[int, int, bool]] = []
    try:
        for packet in container.demux(stream):
            if packet.pts is None or packet.dts is None:
                continue
            if packet.is_corrupt or packet.dts >= cut:
                cut = min(cut, packet.dts)
                break
            if not packet.is_discard:
                packets.append((packet.pts, packet.dts, packet.is_keyframe))
    except av.FFmpegError:
        cut = min(cut, packets[-1][1] + 1 if packets else -math.inf)
    shown = [pts for pts, _, _ in packets if pts < cut]
    return shown, [(pts, dts) for pts, dts, key in packets if key], cut


def _unopenable(path: Path) -> Problem:
    """Return what is wrong with a file that no demuxer takes: an mp4 that was cut short, or no video."""
    with suppress(OSError), path.open("rb") as file:
        if file.read(8)[4:] == b"ftyp":
            return Problem.UNINDEXED_VIDEO
    return Problem.BAD_VIDEO
