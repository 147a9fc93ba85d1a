"""Writes recordings in Open P2P's format, each whole or not at all.

A recording grows in ``<root>/.<uuid>.part`` and is renamed to ``<root>/<uuid>`` when it is closed; no reader looks into
a folder whose name begins with a dot. What a killed process leaves there `playserve data check` counts as unfinished.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from playserve.actions import DesktopAction
from playserve.errors import BadActionError, BadSettingError, ShapeMismatchError, StateError
from playserve.p2p import video_annotation_pb2 as pb
from playserve.p2p.keys import BUTTON_TO_P2P, name_of
from playserve.resize import HAMMING_V1, resize
from playserve_client.p2p.recording import ANNOTATION, FULL_VIDEO, Source, video_path
from playserve_client.p2p.sidecar import Sidecar, columns, write_sidecar
from playserve_client.p2p.video import VideoSettings, VideoWriter

__all__ = ["FORMAT_VERSION", "PART_SUFFIX", "RecordingWriter", "sync", "uuid7", "write_action"]

#: Version of the annotations' layout, as Open P2P's recordings of 2025 have it.
FORMAT_VERSION = 5
PART_SUFFIX = ".part"

_FULL_HEIGHT = 480
_INT32_MAX = 2**31 - 1


def uuid7(now: datetime | None = None) -> UUID:
    """Return a UUID of version 7: by its first 48 bits, milliseconds, recordings sort by when they began."""
    moment = now or datetime.now(UTC)
    milliseconds = int(moment.timestamp() * 1000)
    bits = milliseconds << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return UUID(int=bits)


class RecordingWriter:
    """Writes one recording; a context manager, which discards the recording where its block raises.

    Args:
        root: Folder that gets ``<uuid>/``.
        env: Game or environment.
        env_subtype: Map, scenario, game of a platform.
        env_version: Version of the game.
        fps: Frames a second.
        frame_size: [H, W] of the frames that are trained on; their file is ``<H>x<W>.mp4``.
        full_video: Whether the original goes to ``video.mp4`` too, 480 pixels high at most.
        video: How the training video is compressed.
        full: How video.mp4 is compressed.
        episode: What it is an episode of, for the sidecar: seed, scenario, goal, expert ...
        metadata: Whatever else Open P2P's metadata shall say; the arguments above win.
    """

    def __init__(
        self,
        root: Path,
        *,
        env: str,
        env_subtype: str = "",
        env_version: str = "",
        fps: float = 20.0,
        frame_size: tuple[int, int] = (192, 192),
        full_video: bool = False,
        video: VideoSettings | None = None,
        full: VideoSettings | None = None,
        episode: Mapping[str, Any] | None = None,
        metadata: pb.VideoAnnotationMetadata | None = None,
    ) -> None:
        if not (math.isfinite(fps) and fps > 0):
            raise BadSettingError(f"{fps} frames a second, wanted a number above 0")
        now = datetime.now(UTC)
        self.id = str(uuid7(now))
        self.path = root / self.id
        self.fps, self.frame_size, self.full_video = fps, frame_size, full_video
        self._part = root / f".{self.id}{PART_SUFFIX}"
        self._full_settings = full
        self._full: VideoWriter | None = None
        self._episode: dict[str, Any] = dict(episode or {})
        self._rows: list[Mapping[str, float | int | bool]] = []
        self._texts: list[tuple[int, int | None, pb.FrameTextAnnotation]] = []
        self._last_ns = -1
        self._open = True
        self._message = pb.VideoAnnotation(version=FORMAT_VERSION)
        if metadata is not None:
            self._message.metadata.CopyFrom(metadata)
        about = self._message.metadata
        about.id, about.timestamp, about.frames_per_second = self.id, int(now.timestamp() * 1000), fps
        about.env.env, about.env.env_subtype, about.env.env_version = env, env_subtype, env_version
        self._part.mkdir(parents=True)
        try:
            height, width = frame_size
            self._video = VideoWriter(video_path(self._part, height, width), width, height, fps, video)
        except BaseException:
            shutil.rmtree(self._part, ignore_errors=True)
            raise

    @property
    def num_frames(self) -> int:
        """Frames added so far."""
        return len(self._message.frame_annotations)

    def add(
        self,
        frame: NDArray[np.uint8],
        action: DesktopAction | None,
        source: Source,
        *,
        time_ns: int | None = None,
        full_frame: NDArray[np.uint8] | None = None,
        sidecar: Mapping[str, float | int | bool] | None = None,
    ) -> None:
        """Add one frame and what was held when it was captured.

        What is done *upon* this frame belongs to the next call: there, as what was held when that frame came.

        Args:
            frame: uint8 [H, W, 3] RGB of `frame_size`.
            action: Keys and buttons held when `frame` was captured, motion since the frame before, in whole pixels
                (rounded). None, or the source UNKNOWN: nobody knows.
            source: Whose action it was.
            time_ns: Since the start of the recording, ascending; None: frames are evenly spaced.
            full_frame: uint8 [h, w, 3] of the original, where the recording has a full video.
            sidecar: Values of this frame for the sidecar, by name.
        """
        if not self._open:
            raise StateError(f"recording {self.id} is closed")
        if self.full_video:
            _check_full(full_frame)
        if time_ns is None:
            time_ns = max(round(self.num_frames / self.fps * 1e9), self._last_ns + 1)
        if time_ns <= self._last_ns:
            raise BadSettingError(f"frame time {time_ns} ns, wanted more than the last one's {self._last_ns}")
        entry = pb.FrameAnnotation(frame_time=time_ns)
        if action is not None and source is not Source.UNKNOWN:
            known = entry.user_action if source is Source.USER else entry.system_action
            write_action(action, known)
        self._video.write(frame)
        if self.full_video and full_frame is not None:
            self._write_full(full_frame)
        self._message.frame_annotations.append(entry)
        self._rows.append(dict(sidecar or {}))
        self._last_ns = time_ns

    def instruct(
        self,
        text: str,
        start_frame: int,
        num_frames: int | None,
        *,
        provider: str = "playserve",
        version: str = "playserve",
        embeddings: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        """Say that a text is in force from `start_frame` on; several texts at one frame are phrasings of it.

        Args:
            text: The instruction.
            start_frame: First frame; may lie ahead.
            num_frames: How long; None: to the end of the recording.
            provider: Who wrote it.
            version: Version of the writer.
            embeddings: By encoder, [1, 768] for "gemma"; without, a trainer embeds the text itself.
        """
        if not text or start_frame < 0 or (num_frames is not None and num_frames < 1):
            raise BadSettingError(f"instruction {text!r} from {start_frame} for {num_frames}, wanted a text, 0+ and 1+")
        message = pb.FrameTextAnnotation(instruction=text)
        message.frame_text_annotator.provider, message.frame_text_annotator.version = provider, version
        for encoder, values in (embeddings or {}).items():
            tensor = message.text_embedding_dict[version].text_embeddings[encoder]
            tensor.shape.extend(values.shape)
            tensor.values.extend(np.asarray(values, np.float32).reshape(-1).tolist())
        self._texts.append((start_frame, num_frames, message))

    def describe(self, **episode: Any) -> None:
        """Add to the sidecar's episode object; JSON values only."""
        self._episode.update(episode)

    def close(self) -> Path:
        """Finish the recording and return its folder; a recording without frames is an error and leaves nothing."""
        if not self._open:
            return self.path
        try:
            if not self.num_frames:
                raise StateError(f"recording {self.id} has no frame")
            self._place_texts()
            self._video.close()
            if self._full is not None:
                self._full.close()
            if self._episode or any(self._rows):
                write_sidecar(self._part, Sidecar(self._episode, columns(self._rows)))
            (self._part / ANNOTATION).write_bytes(self._message.SerializeToString(deterministic=True))
            for path in self._part.iterdir():
                sync(path)
            os.rename(self._part, self.path)
            sync(self.path.parent)
        except BaseException:
            self.abort()
            raise
        self._open = False
        return self.path

    def abort(self) -> None:
        """Discard the recording; nothing happens once it is closed."""
        if not self._open:
            return
        self._open = False
        try:
            self._video.close()
            if self._full is not None:
                self._full.close()
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _write_full(self, frame: NDArray[np.uint8]) -> None:
        if self._full is None:
            height = min(_FULL_HEIGHT, frame.shape[0])
            height -= height % 2
            width = -(-frame.shape[1] * height // frame.shape[0] // 4) * 4
            self._full = VideoWriter(self._part / FULL_VIDEO, width, height, self.fps, self._full_settings)
            self._full_size = (height, width)
        self._full.write(resize(frame, *self._full_size, HAMMING_V1))

    def _place_texts(self) -> None:
        for start, count, message in self._texts:
            if start >= self.num_frames:
                continue  # it never came into force
            frames = min(self.num_frames - start, count or self.num_frames)
            message.duration = _seconds(frames, self.fps)
            self._message.frame_annotations[start].frame_text_annotation.append(message)


def _check_full(frame: NDArray[np.uint8] | None) -> None:
    """Refuse what cannot become a frame of video.mp4, before anything of the frame is written."""
    if frame is None:
        raise ShapeMismatchError("a recording with a full video wants every full_frame")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or min(frame.shape) < 2:
        raise ShapeMismatchError(f"full frame of {frame.dtype} {list(frame.shape)}, wanted uint8 [h, w, 3]")


def write_action(action: DesktopAction, message: pb.LowLevelAction) -> None:
    """Write a known action into an annotation; motion is rounded to whole pixels.

    Raises:
        BadActionError: A number is not finite or too large, or Open P2P has no name for a button.
    """
    numbers = (action.mouse_dx_px, action.mouse_dy_px, action.scroll)
    if not all(math.isfinite(number) and abs(number) <= _INT32_MAX for number in numbers):
        raise BadActionError(f"mouse motion and scroll of {numbers}, wanted finite numbers of 32 bits")
    unknown = action.buttons - BUTTON_TO_P2P.keys()
    if unknown:
        raise BadActionError(f"buttons {sorted(unknown)}, wanted some of {sorted(BUTTON_TO_P2P)}")
    message.is_known = True
    message.keyboard.keys.extend(sorted(map(name_of, action.keys)))
    message.mouse.mouse_delta_px.x = round(action.mouse_dx_px)
    message.mouse.mouse_delta_px.y = round(action.mouse_dy_px)
    message.mouse.buttons_down.extend(sorted(BUTTON_TO_P2P[button] for button in action.buttons))
    if action.scroll:
        message.mouse.scroll_delta_px.y = round(action.scroll)


def _seconds(frames: int, fps: float) -> float:
    """Return the shortest float32 of seconds whose whole frames, as Open P2P counts them, are `frames`."""
    seconds = np.float32(frames / fps)
    while int(float(seconds) * fps) < frames:
        seconds = np.nextafter(seconds, np.float32(np.inf))
    return float(seconds)


def sync(path: Path) -> None:
    """Have a file or folder written to its disk, where the system can."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if os.name != "nt":  # and syncs no file that is open for reading
            raise
    finally:
        os.close(descriptor)
