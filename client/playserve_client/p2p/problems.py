"""What can be wrong with a recording, by name: the errors that say so, and the counts of `playserve data check`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from playserve.errors import DataLossError, NotFoundError

__all__ = ["BrokenRecordingError", "MissingPartError", "Problem", "problem_of"]


class Problem(Enum):
    """One way in which a recording is not as it should be.

    Attributes:
        NO_ANNOTATION: annotation.proto is missing.
        BAD_ANNOTATION: annotation.proto is no VideoAnnotation.
        NO_FRAMES: It annotates no frame.
        NO_VIDEO: The video of the wanted size is missing.
        BAD_VIDEO: The video is no video, or a frame of it cannot be decoded.
        UNINDEXED_VIDEO: The file ends before its index, as a killed writer leaves it; nothing of it can be read.
        TRUNCATED_VIDEO: The file ends before its last frame; the frames before that can be read.
        FULL_VIDEO: Something of the above is wrong with video.mp4, from which nothing is learnt.
        FRAME_COUNT: Video and annotations differ in length; what both have can be read.
        NO_ACTIONS: No frame has a known action.
        BOTH_KNOWN: A frame has a user's and a system's action; the system's counts.
        BAD_TIMES: Frame times do not ascend.
        OFF_RATE: By their times, frames came at another rate than the recording says (5% or more off).
        BAD_INSTRUCTION: An instruction has no text or no duration; it is left out.
        BAD_EMBEDDING: An instruction's embedding has not the shape that it says; it is left out.
        UNKNOWN_KEYS: A frame names keys or buttons that no table knows; they are left out of its action.
        BAD_SIDECAR: The sidecar is damaged or has another length than the annotations.
        UNFINISHED: A recording that was never closed.
    """

    NO_ANNOTATION = "no_annotation"
    BAD_ANNOTATION = "bad_annotation"
    NO_FRAMES = "no_frames"
    NO_VIDEO = "no_video"
    BAD_VIDEO = "bad_video"
    UNINDEXED_VIDEO = "unindexed_video"
    TRUNCATED_VIDEO = "truncated_video"
    FULL_VIDEO = "full_video"
    FRAME_COUNT = "frame_count"
    NO_ACTIONS = "no_actions"
    BOTH_KNOWN = "both_known"
    BAD_TIMES = "bad_times"
    OFF_RATE = "off_rate"
    BAD_INSTRUCTION = "bad_instruction"
    BAD_EMBEDDING = "bad_embedding"
    UNKNOWN_KEYS = "unknown_keys"
    BAD_SIDECAR = "bad_sidecar"
    UNFINISHED = "unfinished"

    @property
    def breaks(self) -> bool:
        """Whether nothing can be learnt from a recording that has it."""
        return self in _BREAKING


_BREAKING = frozenset(
    {
        Problem.NO_ANNOTATION, Problem.BAD_ANNOTATION, Problem.NO_FRAMES, Problem.NO_VIDEO, Problem.BAD_VIDEO,
        Problem.UNINDEXED_VIDEO, Problem.NO_ACTIONS, Problem.UNFINISHED,
    }
)  # fmt: skip


class BrokenRecordingError(DataLossError):
    """A part of a recording is damaged.

    Attributes:
        path: The file.
        problem: What is wrong with it.
    """

    def __init__(self, path: Path, problem: Problem, detail: str) -> None:
        super().__init__(f"{path}: {problem.value}: {detail}")
        self.path, self.problem = path, problem


class MissingPartError(NotFoundError):
    """A part of a recording is not there.

    Attributes:
        path: The file.
        problem: Which part.
    """

    def __init__(self, path: Path, problem: Problem, detail: str) -> None:
        super().__init__(f"{path}: {problem.value}: {detail}")
        self.path, self.problem = path, problem


def problem_of(error: BaseException) -> Problem | None:
    """Return what is wrong by an error of reading a recording; None: another error."""
    return error.problem if isinstance(error, BrokenRecordingError | MissingPartError) else None
