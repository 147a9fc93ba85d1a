"""Batches of clips out of recordings, in an order that is a pure function of the seed.

A clip is T frames of one recording. An epoch visits every recording from a start of its own, drawn anew, and cuts it
into clips end to end, the last one padded; clips that hold nothing to learn are left out; their order is shuffled over
all recordings. Which clip stands in which row, how it is augmented and which phrasing of its instruction it gets,
follows from (seed, place in the endless row of clips): batches are made in any order, by any number of threads, and the
same for ever.

Shape legend: B rows, T steps, H heads of an action, N frames, R recordings, S side of a frame, W text width.
"""

from __future__ import annotations

import bisect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from playserve.errors import BadSettingError, PlayserveError
from playserve_client.p2p.recording import last_shuffle_start
from playserve_trainer.data.batches import IGNORED_LABEL, Batch
from playserve_trainer.data.episodes import NoEpisodesError
from playserve_trainer.data.p2p import Recordings
from playserve_trainer.data.p2p_frames import FrameStore
from playserve_trainer.models.policy import INSTRUCTION, TARGETS, UNKNOWN_ACTION

__all__ = ["Augment", "ClipOrder", "ClipSet", "Clips", "Labels"]

#: Changes a clip uint8 [T, S, S, 3] with the draws of a generator; the result has the same shape and type.
Augment = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]

_log = logging.getLogger(__name__)

# Batches that live at once beside those that the loop has made ahead: one is trained on, one is being made.
_BATCHES_IN_USE = 2


class ClipOrder:
    """Clips of some recordings in an endless row, epoch after epoch.

    Args:
        recordings: Where they come from.
        chosen: Indices of the recordings to take.
        length: T.
        seed: Of starts and orders.
        moving: Whether starts are drawn anew each epoch; else every recording is cut from its first frame on, and all
            epochs are the same.

    Attributes:
        num_frames: Frames of the recordings taken.
    """

    def __init__(
        self, recordings: Recordings, chosen: NDArray[np.int64], length: int, seed: int, *, moving: bool
    ) -> None:
        self.num_frames = int(recordings.lengths_R[chosen].sum())
        self._chosen, self._lengths_R = chosen, recordings.lengths_R
        self._length, self._seed, self._moving = length, seed, moving
        # Recordings of which only a part is learnt: labels before each frame, to find clips without any.
        starts_R, self._labels_before = recordings.starts_R, dict[int, NDArray[np.int32]]()
        for recording in chosen:
            learnt = recordings.learnt_N[starts_R[recording] : starts_R[recording] + recordings.lengths_R[recording]]
            if not learnt.all():
                self._labels_before[int(recording)] = np.concatenate([[0], np.cumsum(learnt)]).astype(np.int32)
        self._ends: list[int] = []
        self._epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def clip(self, place: int) -> tuple[int, int]:
        """Return (recording, first frame) of the clip at a place in the row, from 0."""
        if self._moving:
            while not self._ends or place >= self._ends[-1]:
                self._ends.append((self._ends[-1] if self._ends else 0) + self._size(len(self._ends)))
            epoch = bisect.bisect_right(self._ends, place)
            within = place - (self._ends[epoch - 1] if epoch else 0)
        else:
            epoch, within = 0, place % self._size(0)
        recordings, starts = self._epoch(epoch)
        return int(recordings[within]), int(starts[within])

    def _size(self, epoch: int) -> int:
        size = len(self._epoch(epoch)[0])
        if not size:
            raise NoEpisodesError(f"{len(self._chosen)} recordings hold no clip with an action to learn")
        return size

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (recording, first frame) of each clip of an epoch, in its order."""
        if epoch not in self._epochs:
            rng = np.random.default_rng([self._seed, epoch])
            lengths = self._lengths_R[self._chosen]
            # A recording of n + 1 frames has n with a target.
            last = [last_shuffle_start(int(n) + 1, self._length) for n in lengths]
            first = rng.integers(0, np.array(last, np.int64) + 1) if self._moving else np.zeros_like(lengths)
            counts = -(-(lengths - first) // self._length)
            row = np.repeat(np.arange(len(counts)), counts)
            starts = first[row] + self._length * (np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts))
            recordings = self._chosen[row]
            kept = self._with_labels(starts, counts)
            order = rng.permutation(np.flatnonzero(kept))
            # Two are kept, for the batches between two epochs.
            self._epochs = {e: clips for e, clips in self._epochs.items() if e == epoch - 1}
            self._epochs[epoch] = recordings[order], starts[order]
        return self._epochs[epoch]

    def _with_labels(self, starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which clips hold a label; those of one recording lie together, `counts` of each."""
        kept, end = np.ones(len(starts), np.bool_), 0
        for recording, count in zip(self._chosen.tolist(), counts.tolist(), strict=True):
            its, end = slice(end, end + count), end + count
            before = self._labels_before.get(recording)
            if before is not None:
                stops = np.minimum(starts[its] + self._length, len(before) - 1)
                kept[its] = before[stops] > before[starts[its]]
        return kept


@dataclass(frozen=True, slots=True)
class ClipSet:
    """One set of recordings behind the batches.

    Attributes:
        recordings: The recordings.
        frames: Their frames.
        order: Which clips, in which order.
        share: Share of the rows that come from here; those of all sets add up to 1.
    """

    recordings: Recordings
    frames: FrameStore
    order: ClipOrder
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Labels:
    """The actions of some rows, without their frames.

    Attributes:
        targets_BTH: int64, each step's own action, idle where it is unknown.
        before_BTH: int64, the action before, UNKNOWN_ACTION at a first step.
        labels_BTH: int64, the actions to learn, else IGNORED_LABEL.
        valid_BT: bool, steps that are no padding.
        first_BT: bool, steps that begin a clip or an episode.
    """

    targets_BTH: NDArray[np.int64]
    before_BTH: NDArray[np.int64]
    labels_BTH: NDArray[np.int64]
    valid_BT: NDArray[np.bool_]
    first_BT: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Span:
    """Frames first..first+count-1 of a recording of a set, at a place in the endless row of clips."""

    place: int
    which: int
    recording: int
    first: int
    count: int


class Clips:
    """B clips a batch; a PartSource. Frames are read by several threads at once (decoding releases Python's lock).

    Inputs: `frame` uint8 [B, T, S, S, 3], TARGETS int64 [B, T, H] and, if texts have vectors, INSTRUCTION float32
    [B, T, W]. Every clip begins with an empty past, and so does every episode in it that its recorder marked.

    Args:
        sets: Where clips come from.
        batch_size: B.
        sequence_length: T.
        seed: Of augmentations and phrasings.
        text_vectors: Vectors [W] by text, or None if the policy takes no text.
        text_width: W.
        text_dropout: Share of the clips whose instruction is withheld.
        augment: Changes the frames of a clip, or None.
        workers: Threads; 0: one for each core.
        memory_limit_bytes: Most that decoded frames may hold, those made ahead included.
        batches_ahead: How many the loop has made ahead.
        tell_episodes: Whether batches say the recording of each step, as its index in its set.

    Attributes:
        broken: What was wrong with videos that could not be decoded, by path; their clips teach nothing.

    Raises:
        BadSettingError: The batches would hold more memory than the limit.
    """

    carries_state = False

    def __init__(
        self,
        sets: Sequence[ClipSet],
        *,
        batch_size: int,
        sequence_length: int,
        seed: int,
        text_vectors: Mapping[str, NDArray[np.float32]] | None = None,
        text_width: int = 0,
        text_dropout: float = 0.0,
        augment: Augment | None = None,
        workers: int = 0,
        memory_limit_bytes: int = 4 << 30,
        batches_ahead: int = 3,
        tell_episodes: bool = False,
    ) -> None:
        self.batch_size, self.sequence_length = batch_size, sequence_length
        self.num_samples = sum(part.order.num_frames for part in sets)
        self.broken: dict[str, str] = {}
        self._sets, self._seed, self._augment = tuple(sets), seed, augment
        self._size = sets[0].recordings.frame_size
        self._heads = sets[0].recordings.tokens_NH.shape[1]
        self._text_vectors, self._text_width, self._text_dropout = text_vectors, text_width, text_dropout
        self._tell_episodes = tell_episodes
        self._starts = [part.recordings.starts_R for part in sets]
        self._pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), thread_name_prefix="clips")
        held = (batches_ahead + _BATCHES_IN_USE) * self.batch_bytes
        if held > memory_limit_bytes:
            raise BadSettingError(
                f"{batch_size} clips of {sequence_length} frames, {batches_ahead} batches ahead, hold "
                f"{held / 2**20:,.0f} MiB of frames, more than memory_limit_mib ({memory_limit_bytes / 2**20:,.0f}): "
                "lower batch_size, sequence_length or prefetch, or raise the limit"
            )

    @property
    def batch_bytes(self) -> int:
        """Bytes of the frames of one batch."""
        return self.batch_size * self.sequence_length * self._size**2 * 3

    def batch(self, index: int) -> Batch:
        """Return batch `index`; see :class:`playserve_trainer.data.batches.BatchSource`."""
        return self.part(index, 0, self.batch_size)

    def part(self, index: int, start: int, stop: int) -> Batch:
        """Return some rows of a batch; see :class:`playserve_trainer.data.batches.PartSource`."""
        spans = self._spans(index, start, stop)
        frames = np.empty((len(spans), self.sequence_length, self._size, self._size, 3), np.uint8)
        seen = list(self._pool.map(self._fill, spans, frames))
        labels = self._labels(spans)
        labels.labels_BTH[~np.array(seen, np.bool_)] = IGNORED_LABEL
        inputs = {"frame": torch.from_numpy(frames), TARGETS: torch.from_numpy(labels.targets_BTH)}
        if self._text_vectors is not None:
            inputs[INSTRUCTION] = torch.from_numpy(np.stack([self._instruction(span) for span in spans]))
        return Batch(
            inputs,
            torch.from_numpy(labels.before_BTH),
            torch.from_numpy(labels.first_BT),
            torch.from_numpy(labels.labels_BTH),
            int(labels.valid_BT.sum()),
            self._episodes(spans) if self._tell_episodes else None,
        )

    def _episodes(self, spans: Sequence[_Span]) -> torch.Tensor:
        return torch.tensor([[span.recording] * self.sequence_length for span in spans])

    def labels(self, index: int) -> Labels:
        """Return the actions of a batch; no frame is decoded."""
        return self._labels(self._spans(index, 0, self.batch_size))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _locate(self, place: int) -> tuple[int, int]:
        """Return (set, place within the set's row): each set gets its share of any stretch of places, to within one."""
        left = 1.0
        for which in range(len(self._sets) - 1, 0, -1):
            rate = self._sets[which].share / left
            taken = int(place * rate + 1e-9)
            if int((place + 1) * rate + 1e-9) > taken:
                return which, taken
            place, left = place - taken, left - self._sets[which].share
        return 0, place

    def _spans(self, index: int, start: int, stop: int) -> list[_Span]:
        spans = []
        for place in range(index * self.batch_size + start, index * self.batch_size + stop):
            which, within = self._locate(place)
            recording, first = self._sets[which].order.clip(within)
            left = int(self._sets[which].recordings.lengths_R[recording]) - first
            spans.append(_Span(place, which, recording, first, min(self.sequence_length, left)))
        return spans

    def _frames_of(self, span: _Span) -> slice:
        """Return the place of a clip's frames among those of all recordings of its set."""
        first = int(self._starts[span.which][span.recording]) + span.first
        return slice(first, first + span.count)

    def _labels(self, spans: Sequence[_Span]) -> Labels:
        shape = (len(spans), self.sequence_length)
        targets = np.zeros((*shape, self._heads), np.int64)
        labels, valid, first = (
            np.full_like(targets, IGNORED_LABEL),
            np.zeros(shape, np.bool_),
            np.zeros(shape, np.bool_),
        )
        for row, span in enumerate(spans):
            recordings, frames, count = self._sets[span.which].recordings, self._frames_of(span), span.count
            targets[row, :count] = recordings.tokens_NH[frames]
            targets[row, count:] = targets[row, count - 1]
            learnt = np.asarray(recordings.learnt_N[frames])
            labels[row, :count][learnt] = targets[row, :count][learnt]
            valid[row, :count] = True
            first[row, :count] = recordings.begins_N[frames]
        first[:, 0] = True
        before = np.concatenate([np.full_like(targets[:, :1], UNKNOWN_ACTION), targets[:, :-1]], 1)
        before[first] = UNKNOWN_ACTION
        return Labels(targets, before, labels, valid, first)

    def _fill(self, span: _Span, out_TSS3: NDArray[np.uint8]) -> bool:
        """Read and augment the frames of a clip; return whether they could be read."""
        part, count = self._sets[span.which], span.count
        try:
            part.frames.read(span.recording, span.first, out_TSS3[:count])
        except PlayserveError as error:
            path = str(part.recordings.video(span.recording))
            if path not in self.broken:
                _log.warning("clips of a video that cannot be decoded teach nothing: %s", error)
            self.broken[path] = str(error)
            out_TSS3[:] = 0
            return False
        if self._augment is not None:
            out_TSS3[:count] = self._augment(out_TSS3[:count], self._rng(span, 0))
        out_TSS3[count:] = out_TSS3[count - 1]
        return True

    def _instruction(self, span: _Span) -> NDArray[np.float32]:
        """Return the vectors [T, W] of the instruction in force at each step of a clip; zeros where there is none."""
        recordings, vectors = self._sets[span.which].recordings, self._text_vectors or {}
        numbers = np.asarray(recordings.span_N[self._frames_of(span)])
        out = np.zeros((self.sequence_length, self._text_width), np.float32)
        rng = self._rng(span, 1)
        withheld = rng.random() < self._text_dropout
        for number in np.unique(numbers[numbers >= 0]):
            text = recordings.texts[int(rng.choice(recordings.spans[number]))]
            if not withheld:
                out[: span.count][numbers == number] = vectors[text]
        out[span.count :] = out[span.count - 1]
        return out

    def _rng(self, span: _Span, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, span.place, purpose])
