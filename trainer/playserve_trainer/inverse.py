"""Labels recordings by an inverse model: which action led from each frame to the next, and how sure the model is.

Frames become image tokens once each; windows of them pass through the net, each step labelled in the window in which it
lies farthest from an edge. Entry k of a recording's annotations is what was done upon frame k - 1, so the first entry,
and that of a frame that begins an episode, stay unknown.

Shape legend: N frames, S side of a frame, H heads of an action, D width, B windows, T steps of a window, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError
from playserve.p2p.vocabulary import MouseDecode
from playserve_client.p2p.recording import Recording, Source, read_recording, video_path
from playserve_client.p2p.sidecar import read_sidecar
from playserve_client.p2p.video import VideoReader
from playserve_trainer import checkpoint
from playserve_trainer.causality.answers import Answers
from playserve_trainer.data.p2p import episode_begins
from playserve_trainer.models.p2p import P2PPolicy
from playserve_trainer.models.p2p.tokens import groups

__all__ = ["PROBABILITY", "GroupAccuracy", "Labeller", "Labels", "Tally", "known_actions", "labelled_by"]

#: Column of the sidecar: probability of each entry's label, nan where there is none.
PROBABILITY = "label_probability"
#: Key of the sidecar's episode object: which model made the labels.
LABELLED_BY = "labelled_by"

_FRAMES_AT_ONCE = 256
_STEPS_AT_ONCE = 512


class Labels(NamedTuple):
    """What a model says of a recording.

    Attributes:
        tokens_NH: int64, entry k of the annotations; of no meaning where the probability is nan.
        probability_N: float64, of the whole action; nan: the entry has no label.
    """

    tokens_NH: NDArray[np.int64]
    probability_N: NDArray[np.float64]


class Labeller:
    """Labels recordings.

    Args:
        directory: Checkpoint of an inverse p2p model.
        length: Frames of a window.
        device: Where it computes.

    Attributes:
        policy: The model.
        about: What is said of it beside its labels.

    Raises:
        BadSettingError: The checkpoint holds no inverse model, or a window is too short to have a middle.
    """

    def __init__(self, directory: Path, *, length: int = 64, device: str = "cpu") -> None:
        policy, manifest = checkpoint.load(directory, device)
        if not isinstance(policy, P2PPolicy) or not policy.config.inverse:
            raise BadSettingError(
                f"{directory} holds a policy of {manifest.family} that sees no future; wanted an inverse model, as "
                "`playserve train p2p --inverse` makes it"
            )
        if length < 4:
            raise BadSettingError(f"windows of {length} frames, wanted 4 or more")
        self.policy, self._length, self._answers = policy, length, Answers(policy)
        self.about: dict[str, Any] = {
            "weights_sha256": manifest.weights_sha256, "size": policy.config.size, "params": manifest.num_params,
            "samples_seen": manifest.samples_seen, "data_digest": manifest.data_digest, "length": length,
            "code_version": manifest.code_version,
        }  # fmt: skip

    def label(self, folder: Path) -> Labels:
        """Return the labels of a recording.

        Raises:
            MissingPartError: It has no annotations, or no video of the model's frame size.
            BrokenRecordingError: One of them is damaged.
        """
        recording, size = read_recording(folder), self.policy.config.frame_size
        entries = len(recording.frames)
        with VideoReader(video_path(folder, size, size)) as reader:
            count = min(entries, reader.num_frames)
            image_ND = self._see(reader, count)
        first_N = episode_begins(recording)
        out_ND = self._out(image_ND, torch.from_numpy(first_N[:count]))
        chosen_NH, log_N = self._choose(out_ND)
        tokens_NH = np.tile(np.array(self.policy.vocabulary.idle(), np.int64), (entries, 1))
        probability_N = np.full(entries, np.nan)
        # The last frame leads nowhere.
        tokens_NH[1:count], probability_N[1:count] = chosen_NH[:-1], np.exp(log_N[:-1])
        probability_N[first_N] = np.nan
        return Labels(tokens_NH, probability_N)

    def read(self, frames_NSS3: NDArray[np.uint8], first_N: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return what the net makes of frames before it says an action, float32 [N, D].

        Args:
            frames_NSS3: Of the model's frame size, in order.
            first_N: Frames that begin an episode.
        """
        out_ND: NDArray[np.float32] = self._out(self._answers.see(frames_NSS3), torch.from_numpy(first_N)).cpu().numpy()
        return out_ND

    def actions(self, labels: Labels, *, at_least: float = 0.0) -> list[DesktopAction | None]:
        """Return each entry's action; None where there is no label, or one of a lower probability."""
        vocabulary = self.policy.vocabulary
        return [
            vocabulary.decode(row.tolist(), MouseDecode.MEAN) if probability >= at_least else None
            for row, probability in zip(*labels, strict=True)
        ]

    def _see(self, reader: VideoReader, count: int) -> Tensor:
        size, parts = self.policy.config.frame_size, []
        for start in range(0, count, _FRAMES_AT_ONCE):
            stop = min(count, start + _FRAMES_AT_ONCE)
            frames = np.stack(list(reader.frames(start, stop))).reshape(-1, size, size, 3)
            parts.append(self._answers.see(frames))
        return torch.cat(parts)

    def _out(self, image_ND: Tensor, first_N: Tensor) -> Tensor:
        """Return the backbone's answer to every frame [N, D]."""
        count, device = len(image_ND), image_ND.device
        length, out_ND = min(self._length, count), torch.empty_like(image_ND)
        starts, margin = windows(count, length)
        at = torch.tensor(starts, device=device).unsqueeze(1) + torch.arange(length, device=device)
        idle_BTH = torch.zeros(*at.shape, len(self.policy.heads()), dtype=torch.int64, device=device)
        out_BTD = self._answers.out(image_ND[at], None, idle_BTH, first_N.to(device)[at], range(length))
        for row, start in enumerate(starts):
            own = margin if row else 0
            out_ND[start + own : start + length] = out_BTD[row, own:]
        return out_ND

    def _choose(self, out_ND: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the likeliest action of each frame [N, H], head by head, and the log of its probability [N]."""
        tokens, logs = [], []
        for start in range(0, len(out_ND), _STEPS_AT_ONCE):
            out_MD = out_ND[start : start + _STEPS_AT_ONCE]
            chosen_MH = self._answers.choose(out_MD)
            taken = torch.from_numpy(chosen_MH)
            log_probs = self._answers.log_probs(out_MD, taken.to(out_MD.device))
            each = [head.gather(1, taken[:, h : h + 1])[:, 0] for h, head in enumerate(log_probs)]
            tokens.append(chosen_MH)
            logs.append(torch.stack(each).sum(0).numpy())
        return np.concatenate(tokens), np.concatenate(logs)


def windows(count: int, length: int) -> tuple[list[int], int]:
    """Return where windows over `count` frames begin, and how many frames at a window's begin an earlier one labels.

    A window labels what lies behind that margin; of its last frames the next window labels as many anew.
    """
    margin = length // 4
    starts = list(range(0, max(1, count - length + 1), length - 2 * margin))
    if starts[-1] + length < count:
        starts.append(count - length)
    return starts, margin


def labelled_by(folder: Path) -> dict[str, Any] | None:
    """Return what a recording says of the model that labelled it; None: nobody did.

    Raises:
        BrokenRecordingError: Its sidecar is damaged.
    """
    sidecar = read_sidecar(folder)
    found = sidecar.episode.get(LABELLED_BY) if sidecar else None
    return dict(found) if found else None


def known_actions(recording: Recording, policy: P2PPolicy) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the tokens of each entry [N, H], and where they are what somebody or something did [N]."""
    tokens_NH = policy.vocabulary.encode_arrays([frame.action for frame in recording.frames])
    known_N = np.array([frame.source is not Source.UNKNOWN for frame in recording.frames], np.bool_)
    return tokens_NH, known_N & ~episode_begins(recording)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAccuracy:
    """How often labels agree with what is known, for a group of heads, all of which must agree.

    Attributes:
        group: Its name; "all" for whole actions.
        labels: How many are compared.
        accuracy: Share that agrees.
        copy: Share with which the known action before agrees: what a policy gets that repeats itself.
        changed: How many differ from the known action before.
        accuracy_changed: Share of those that agrees; copying gets none of them. None where there are none.
    """

    group: str
    labels: int
    accuracy: float
    copy: float
    changed: int
    accuracy_changed: float | None


@dataclass(slots=True)
class Tally:
    """Compares labels with known actions, recording by recording.

    Attributes:
        policy: The model.
        counts: (labels, hits, hits of a copy, changed, hits where changed) by group.
        labelled: Entries with a label so far.
        entries: Entries so far.
    """

    policy: P2PPolicy
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    labelled: int = 0
    entries: int = 0

    def add(self, recording: Recording, tokens_NH: NDArray[np.int64], labelled_N: NDArray[np.bool_]) -> None:
        """Take in a recording with its own actions, and the labels that it got."""
        self.labelled += int(labelled_N.sum())
        self.entries += len(labelled_N)
        truth_NH, known_N = known_actions(recording, self.policy)
        both_N = known_N & labelled_N
        both_N[1:] &= known_N[:-1]
        for name, its in self._groups().items():
            same_N = (tokens_NH[:, its] == truth_NH[:, its]).all(1)
            kept_N = np.ones_like(both_N)
            kept_N[1:] = (truth_NH[1:, its] == truth_NH[:-1, its]).all(1)
            found = [both_N, both_N & same_N, both_N & kept_N, both_N & ~kept_N, both_N & ~kept_N & same_N]
            before = self.counts.get(name, np.zeros(len(found), np.int64))
            self.counts[name] = before + np.array([part.sum() for part in found], np.int64)

    def accuracies(self) -> list[GroupAccuracy]:
        """Return the accuracy of whole actions and of each group; empty where nothing was known."""
        rows = {name: [int(n) for n in counts] for name, counts in self.counts.items() if counts[0]}
        return [
            GroupAccuracy(
                group=name, labels=labels, accuracy=hits / labels, copy=copied / labels, changed=changed,
                accuracy_changed=changed_hits / changed if changed else None,
            )
            for name, (labels, hits, copied, changed, changed_hits) in rows.items()
        ]  # fmt: skip

    def _groups(self) -> dict[str, slice]:
        found, first = {"all": slice(None)}, 0
        for name, _, heads in groups(self.policy.vocabulary):
            found[name] = slice(first, first + heads)
            first += heads
        return found
