"""A recording in Open P2P's format: its annotations, which action belongs to which frame, and its cut into chunks.

``<root>/<uuid>/annotation.proto`` is one VideoAnnotation, ``<H>x<W>.mp4`` the frames that are trained on, ``video.mp4``
(optional) the original. Entry k of the annotations is what was held when frame k was captured, and the mouse's motion
since frame k-1. So what was *done upon* frame i stands in entry i+1, and of n frames n-1 have a target.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from playserve.actions import DesktopAction
from playserve.p2p import video_annotation_pb2 as pb
from playserve.p2p.keys import BUTTON_FROM_P2P, code_of
from playserve_client.p2p.problems import BrokenRecordingError, MissingPartError, Problem

__all__ = [
    "ANNOTATION", "CHUNK_LENGTH", "FULL_VIDEO", "AlignedFrames", "Chunk", "FrameAction", "Instruction", "Metadata",
    "Recording", "Source", "align", "chunks", "last_shuffle_start", "list_recordings", "read_recording", "video_path",
    "video_sizes",
]  # fmt: skip

ANNOTATION = "annotation.proto"
FULL_VIDEO = "video.mp4"
#: Frames in a chunk, as Open P2P trains.
CHUNK_LENGTH = 200

# Their frame counts are int(seconds * rate) of a float32; a count that was meant to be whole must not lose one.
_DURATION_SLACK = 1e-3


class Source(Enum):
    """Whose action it was."""

    USER = "user"
    SYSTEM = "system"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class FrameAction:
    """What entry k of the annotations says about frame k.

    Attributes:
        action: Keys and buttons held when the frame was captured, motion since the frame before; idle where unknown.
        source: Whose it was.
        time_ns: Since the start of the recording.
        unknown_keys: Names of keys and buttons that no table knows; they are not in `action`.
    """

    action: DesktopAction
    source: Source
    time_ns: int
    unknown_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Instruction:
    """A text that is in force from one frame on.

    Attributes:
        text: The instruction.
        start_frame: First frame.
        num_frames: Frames for which it is in force; never beyond the recording's last.
        provider: Who wrote it.
        version: Version of the writer; recordings carry several writers' texts side by side.
        embeddings: Stored embeddings by encoder ("gemma": float32 [1, 768]).
    """

    text: str
    start_frame: int
    num_frames: int
    provider: str = ""
    version: str = ""
    embeddings: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """Where a recording comes from.

    Attributes:
        id: Identifier, a uuid.
        env: Game or environment.
        env_subtype: Game of a platform, map, scenario.
        env_version: Version of the game.
        fps: Frames a second.
        timestamp_ms: Unix time, milliseconds.
        user: Who played.
    """

    id: str = ""
    env: str = ""
    env_subtype: str = ""
    env_version: str = ""
    fps: float = 20.0
    timestamp_ms: int = 0
    user: str = ""


@dataclass(frozen=True)
class Recording:
    """The annotations of one recording.

    Attributes:
        path: Its folder.
        metadata: Where it comes from.
        frames: One entry a frame.
        instructions: By first frame; those of one frame in the order of the file.
        version: Version of the annotations' layout.
        problems: How many frames or instructions have each problem that does not keep the recording from use.
    """

    path: Path
    metadata: Metadata
    frames: tuple[FrameAction, ...]
    instructions: tuple[Instruction, ...]
    version: int = 0
    problems: Mapping[Problem, int] = field(default_factory=dict)

    @property
    def measured_fps(self) -> float:
        """Frames a second by the frames' own times; 0 where they do not tell."""
        elapsed_ns = self.frames[-1].time_ns - self.frames[0].time_ns
        return (len(self.frames) - 1) / elapsed_ns * 1e9 if elapsed_ns > 0 else 0.0

    def instruction_index(self) -> NDArray[np.int32]:
        """Return the instruction in force at each frame, int32 [frames]; -1: none.

        Where several are, the one that began last counts, and of those the first in the file.
        """
        index = np.full(len(self.frames), -1, np.int32)
        for number in sorted(range(len(self.instructions)), key=lambda i: (self.instructions[i].start_frame, -i)):
            span = self.instructions[number]
            index[span.start_frame : span.start_frame + span.num_frames] = number
        return index


def list_recordings(root: Path) -> list[Path]:
    """Return the folders under `root` that hold an annotation.proto, sorted; unfinished ones are left out."""
    found = (path.parent for path in root.rglob(ANNOTATION))
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def video_path(folder: Path, height: int, width: int) -> Path:
    """Return where the video of one size lies."""
    return folder / f"{height}x{width}.mp4"


def video_sizes(folder: Path) -> list[tuple[int, int]]:
    """Return the sizes [H, W] of the training videos in a recording, sorted."""
    matches = (re.fullmatch(r"(\d+)x(\d+)\.mp4", path.name) for path in folder.glob("*.mp4"))
    return sorted((int(match[1]), int(match[2])) for match in matches if match)


def read_recording(folder: Path) -> Recording:
    """Return the annotations of the recording in `folder`.

    Raises:
        MissingPartError: There is no annotation.proto.
        BrokenRecordingError: It is no VideoAnnotation, or annotates no frame.
    """
    path = folder / ANNOTATION
    try:
        message = pb.VideoAnnotation.FromString(path.read_bytes())
    except FileNotFoundError:
        raise MissingPartError(path, Problem.NO_ANNOTATION, "there is no such file") from None
    except DecodeError as error:
        raise BrokenRecordingError(path, Problem.BAD_ANNOTATION, f"not a VideoAnnotation: {error}") from error
    if not message.frame_annotations:
        raise BrokenRecordingError(path, Problem.NO_FRAMES, "it annotates no frame")
    metadata = _metadata(message.metadata, folder)
    reader = _FrameReader()
    frames = tuple(reader.read(entry) for entry in message.frame_annotations)
    instructions = tuple(_instructions(message, metadata.fps, reader.problems))
    return Recording(folder, metadata, frames, instructions, message.version, reader.problems)


def _metadata(message: pb.VideoAnnotationMetadata, folder: Path) -> Metadata:
    fps = message.frames_per_second
    return Metadata(
        id=message.id or folder.name,
        env=message.env.env,
        env_subtype=message.env.env_subtype,
        env_version=message.env.env_version,
        fps=fps if math.isfinite(fps) and fps > 0 else 20.0,  # their loader takes 20 whatever stands here
        timestamp_ms=message.timestamp,
        user=message.user,
    )


class _FrameReader:
    """Reads frame after frame; keeps the sets of held keys, of which a recording has few."""

    def __init__(self) -> None:
        self.problems: dict[Problem, int] = {}
        self._held: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[frozenset[str], frozenset[int], Any]] = {}
        self._last_ns = -1

    def count(self, problem: Problem) -> None:
        self.problems[problem] = self.problems.get(problem, 0) + 1

    def read(self, entry: pb.FrameAnnotation) -> FrameAction:
        if entry.frame_time <= self._last_ns:
            self.count(Problem.BAD_TIMES)
        self._last_ns = entry.frame_time
        user, system = entry.user_action.is_known, entry.system_action.is_known
        if user and system:
            self.count(Problem.BOTH_KNOWN)
        if not user and not system:
            return FrameAction(DesktopAction(), Source.UNKNOWN, entry.frame_time)
        action, unknown = self._action(entry.system_action if system else entry.user_action)
        if unknown:
            self.count(Problem.UNKNOWN_KEYS)
        return FrameAction(action, Source.SYSTEM if system else Source.USER, entry.frame_time, unknown)

    def _action(self, message: pb.LowLevelAction) -> tuple[DesktopAction, tuple[str, ...]]:
        what = (tuple(message.keyboard.keys), tuple(message.mouse.buttons_down))
        if what not in self._held:
            codes = {name: code_of(name) for name in what[0]}
            buttons = {name: BUTTON_FROM_P2P.get(name) for name in what[1]}
            unknown = [name for name, code in codes.items() if code is None]
            unknown += [f"button {name}" for name, button in buttons.items() if button is None]
            self._held[what] = (
                frozenset(code for code in codes.values() if code is not None),
                frozenset(button for button in buttons.values() if button is not None),
                tuple(sorted(unknown)),
            )
        keys, held_buttons, names = self._held[what]
        mouse = message.mouse
        action = DesktopAction(
            keys=keys,
            buttons=held_buttons,
            mouse_dx_px=float(mouse.mouse_delta_px.x),
            mouse_dy_px=float(mouse.mouse_delta_px.y),
            scroll=float(mouse.scroll_delta_px.y),
        )
        return action, names


def _instructions(message: pb.VideoAnnotation, fps: float, problems: dict[Problem, int]) -> Iterator[Instruction]:
    total = len(message.frame_annotations)
    for start, entry in enumerate(message.frame_annotations):
        for text in entry.frame_text_annotation:
            seconds = text.duration
            count = int(seconds * fps + _DURATION_SLACK) if math.isfinite(seconds) else 0
            if count < 1 or not text.instruction:
                problems[Problem.BAD_INSTRUCTION] = problems.get(Problem.BAD_INSTRUCTION, 0) + 1
                continue
            annotator = text.frame_text_annotator
            yield Instruction(
                text=text.instruction,
                start_frame=start,
                num_frames=min(count, total - start),
                provider=annotator.provider,
                version=annotator.version,
                embeddings=_embeddings(text, problems),
            )


def _embeddings(text: pb.FrameTextAnnotation, problems: dict[Problem, int]) -> dict[str, NDArray[np.float32]]:
    """Return the embeddings that the text's own annotator version has, by encoder."""
    version = text.frame_text_annotator.version
    if version not in text.text_embedding_dict:
        return {}
    found = {}
    for encoder, tensor in text.text_embedding_dict[version].text_embeddings.items():
        shape = tuple(tensor.shape)
        if not shape or any(side < 1 for side in shape) or math.prod(shape) != len(tensor.values):
            problems[Problem.BAD_EMBEDDING] = problems.get(Problem.BAD_EMBEDDING, 0) + 1
            continue
        found[encoder] = np.array(tensor.values, np.float32).reshape(shape)
    return found


@dataclass(frozen=True)
class AlignedFrames:
    """What training reads for each frame i that has a target; N = frames of both video and annotations - 1.

    Attributes:
        actions: Target of frame i: entry i+1 of the annotations. Unknown: idle. [N]
        executed: What was held and moved when frame i was captured: entry i; ``executed[i + 1] == actions[i]``. [N]
        user_mask: Whether the target is a person's; only these are learnt. bool [N]
        system_mask: Whether the target is a policy's; it is seen as history and never learnt. bool [N]
        valid: All true here; what pads a chunk is not. bool [N]
        instruction: Index into the recording's instructions in force at frame i, -1 none, int32 [N]; it runs on over
            any cut into chunks. (Open P2P's loader shows a text one frame, 50 ms, earlier, since it shifts texts with
            the actions; it loses one that begins at the recording's first frame, which here counts from there on.)
    """

    actions: list[DesktopAction]
    executed: list[DesktopAction]
    user_mask: NDArray[np.bool_]
    system_mask: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    instruction: NDArray[np.int32]

    @property
    def loss_mask(self) -> NDArray[np.bool_]:
        """Whether frame i is learnt from, bool [N]."""
        return self.valid & self.user_mask

    def __len__(self) -> int:
        return len(self.actions)


def align(recording: Recording, num_video_frames: int) -> AlignedFrames:
    """Return what training reads of a recording whose video has so many frames.

    Where video and annotations differ in length, the frames that both have are used; the difference itself is a
    FRAME_COUNT problem, which `playserve data check` counts.
    """
    frames = recording.frames[: max(num_video_frames, 0)]
    targets = frames[1:]
    return AlignedFrames(
        actions=[frame.action for frame in targets],
        executed=[frame.action for frame in frames[:-1]],
        user_mask=np.array([frame.source is Source.USER for frame in targets], np.bool_),
        system_mask=np.array([frame.source is Source.SYSTEM for frame in targets], np.bool_),
        valid=np.ones(len(targets), np.bool_),
        instruction=recording.instruction_index()[: len(targets)],
    )


@dataclass(frozen=True, slots=True)
class Chunk:
    """Entries start..start+valid-1 of an AlignedFrames, padded to `length`."""

    start: int
    valid: int
    length: int

    def frame_index(self) -> NDArray[np.int64]:
        """Return the video's frame at each place, int64 [length]; padding repeats the last one, which has no target."""
        return np.minimum(np.arange(self.start, self.start + self.length), self.start + self.valid)

    def entry_index(self) -> NDArray[np.int64]:
        """Return the aligned entry at each place, int64 [length]; padding repeats the last one, and means nothing."""
        return np.minimum(np.arange(self.start, self.start + self.length), self.start + self.valid - 1)

    def valid_mask(self) -> NDArray[np.bool_]:
        """Return which places are frames and not padding, bool [length]."""
        return np.arange(self.length) < self.valid


def chunks(
    num_aligned: int,
    length: int = CHUNK_LENGTH,
    stride: int = CHUNK_LENGTH,
    *,
    start: int = 0,
    system_mask: Sequence[bool] | NDArray[np.bool_] | None = None,
) -> list[Chunk]:
    """Return the chunks of a recording.

    Args:
        num_aligned: Frames that have a target: ``len(align(...))``.
        length: Frames in a chunk.
        stride: Frames from one chunk to the next.
        start: First frame of the first chunk; a shuffled visit draws it from 0..:func:`last_shuffle_start`.
        system_mask: Given, chunks of nothing but a policy's actions are left out (:attr:`AlignedFrames.system_mask`).
    """
    if length < 1 or stride < 1 or start < 0:
        raise ValueError(f"chunks of {length} frames, every {stride}, from {start}, wanted 1+, 1+ and 0+")
    cut = [Chunk(first, min(length, num_aligned - first), length) for first in range(start, num_aligned, stride)]
    if system_mask is None:
        return cut
    mask = np.asarray(system_mask)
    return [chunk for chunk in cut if not mask[chunk.start : chunk.start + chunk.valid].all()]


def last_shuffle_start(num_frames: int, length: int = CHUNK_LENGTH) -> int:
    """Return the last first frame of a shuffled visit to a recording of `num_frames`; the first is 0."""
    return max(0, min(length - 1, num_frames - length - 1))
