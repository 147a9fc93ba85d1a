"""Clips of recordings as both measures read them: image tokens, the actions taken, the instruction, episodes' starts.

Nothing here is drawn or augmented: of an instruction with several phrasings the first is shown.

Shape legend: T frames of a clip, H heads of an action, D width, W text width, N frames of all recordings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from playserve.errors import BadSettingError, NotFoundError
from playserve_trainer import checkpoint
from playserve_trainer.causality.answers import Answers
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.data.p2p import Recordings, load_recordings
from playserve_trainer.data.p2p_frames import VideoFrames
from playserve_trainer.data.p2p_texts import embed_texts
from playserve_trainer.models.p2p import P2PPolicy
from playserve_trainer.models.policy import INSTRUCTION

__all__ = ["Clip", "ClipReader", "Subject", "Window", "game_name", "open_subject"]


class Window(NamedTuple):
    """T frames of a recording, from one frame on."""

    recording: int
    first: int


@dataclass(frozen=True, slots=True)
class Clip:
    """What was seen and done in a window.

    Attributes:
        window: Where.
        image_TD: Image tokens.
        actions_TH: int64, the action taken at each step, idle where it is unknown.
        first_T: bool, steps that begin an episode; the first step always does.
        instruction_TW: Vectors of the instruction, zeros where there is none; None: the policy takes none.
    """

    window: Window
    image_TD: Tensor
    actions_TH: Tensor
    first_T: Tensor
    instruction_TW: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A checkpoint and the recordings that it is asked about.

    Attributes:
        answers: The policy.
        manifest: Of the checkpoint.
        checkpoint: Its folder.
        recordings: All that were read.
        chosen: Indices of those to ask about.
        held_out: Share that was held out; 0: all recordings are asked about.
        vectors: Of the instructions, by text; None: the policy takes none.
    """

    answers: Answers
    manifest: Manifest
    checkpoint: str
    recordings: Recordings
    chosen: NDArray[np.int64]
    held_out: float
    vectors: dict[str, NDArray[np.float32]] | None

    @property
    def history(self) -> int:
        """Past steps over which the farthest-looking layer looks back."""
        return max(self.answers.policy.config.histories)

    def to_json(self) -> dict[str, Any]:
        """Return what was measured on what, a JSON object."""
        manifest, config = self.manifest, self.answers.policy.config
        return {
            "checkpoint": {
                "folder": self.checkpoint, "size": config.size, "params": manifest.num_params,
                "params_non_embedding": manifest.num_params_without_embeddings, "samples_seen": manifest.samples_seen,
                "flops": manifest.flops, "seed": manifest.seed, "data_digest": manifest.data_digest,
                "code_version": manifest.code_version, "weights_sha256": manifest.weights_sha256,
                "metrics": dict(manifest.metrics), "past_actions": config.past_actions,
                "history": list(config.histories),
            },
            "data": {
                "folder": str(self.recordings.directory), "digest": self.recordings.report.digest,
                "held_out": self.held_out, "recordings": len(self.chosen), "frame_size": self.recordings.frame_size,
            },
        }  # fmt: skip


def open_subject(
    folder: Path,
    data: Path,
    *,
    held_out: float = 0.1,
    games: Sequence[str] = (),
    cache: Path | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Subject:
    """Read a checkpoint and recordings.

    Args:
        folder: Of the checkpoint.
        data: Recordings.
        held_out: Share that training held out; those are asked about. 0: all are.
        games: Only recordings of these, such as doom or doom/basic; none: of all.
        cache: Where what is read is kept; None: beside the data.
        device: Where the policy computes.
        progress: Called with (recordings read, recordings).

    Raises:
        BadSettingError: The checkpoint is no p2p policy.
        NotFoundError: There is no recording of a game.
    """
    policy, manifest = checkpoint.load(folder, device)
    if not isinstance(policy, P2PPolicy):
        raise BadSettingError(f"{folder} holds a policy of {manifest.family}; causality is measured for p2p only")
    if policy.config.inverse:
        raise BadSettingError(f"{folder} holds an inverse model, which sees no past actions that it could repeat")
    recordings = load_recordings(
        data,
        policy.vocabulary,
        frame_size=policy.config.frame_size,
        held_out_fraction=held_out,
        cache=cache,
        progress=progress,
    )
    chosen = recordings.select(held_out=True) if held_out else np.arange(len(recordings.folders))
    names = [{env, f"{env}/{subtype}"} for env, subtype in recordings.games]
    for game in games:
        if not any(game in names[r] for r in chosen):
            known = sorted({game_name(recordings, int(r)) for r in chosen})
            raise NotFoundError(f"{data} has no recording of {game!r} to ask about; it has {', '.join(known)}")
    if games:
        chosen = np.array([r for r in chosen if names[r] & set(games)], np.int64)
    takes_text = INSTRUCTION in policy.context_inputs()
    return Subject(
        answers=Answers(policy),
        manifest=manifest,
        checkpoint=str(folder),
        recordings=recordings,
        chosen=chosen,
        held_out=held_out,
        vectors=embed_texts(recordings, policy, cache or "") if takes_text else None,
    )


def game_name(recordings: Recordings, recording: int) -> str:
    """Return "env/subtype", or "env" where there is no subtype."""
    return "/".join(filter(None, recordings.games[recording]))


class ClipReader:
    """Reads clips of T frames.

    Args:
        subject: Whose recordings, and whose policy sees the frames.
        length: T.
    """

    def __init__(self, subject: Subject, length: int) -> None:
        self._subject, self._length = subject, length
        self._starts_R = subject.recordings.starts_R
        self._frames = VideoFrames(subject.recordings)

    def close(self) -> None:
        """Close the videos."""
        self._frames.close()

    def read(self, window: Window) -> Clip:
        """Return a clip.

        Raises:
            BrokenRecordingError: A frame cannot be decoded.
            MissingPartError: The video is gone.
        """
        recordings, size = self._subject.recordings, self._subject.recordings.frame_size
        frames_TSS3 = np.empty((self._length, size, size, 3), np.uint8)
        self._frames.read(window.recording, window.first, frames_TSS3)
        its = self.frames_of(window)
        device = self._subject.answers.policy.device()
        first_T = np.array(recordings.begins_N[its])
        first_T[0] = True
        instruction_TW = self._instruction(its)
        return Clip(
            window,
            self._subject.answers.see(frames_TSS3),
            torch.from_numpy(recordings.tokens_NH[its].astype(np.int64)).to(device),
            torch.from_numpy(first_T).to(device),
            None if instruction_TW is None else torch.from_numpy(instruction_TW).to(device),
        )

    def frames_of(self, window: Window) -> slice:
        """Return the place of a window among the frames of all recordings."""
        first = int(self._starts_R[window.recording]) + window.first
        return slice(first, first + self._length)

    def _instruction(self, its: slice) -> NDArray[np.float32] | None:
        recordings, vectors = self._subject.recordings, self._subject.vectors
        if vectors is None:
            return None
        span_T = np.asarray(recordings.span_N[its])
        found = np.zeros((self._length, self._subject.answers.policy.config.text_width), np.float32)
        for span in np.unique(span_T[span_T >= 0]):
            found[span_T == span] = vectors[recordings.texts[recordings.spans[span][0]]]
        return found
