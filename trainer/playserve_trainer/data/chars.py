"""Text as characters: pieces of it, learnt from or held out, and batches of clips with dense, sparse or coarse labels.

Shape legend: N characters of the text, E pieces, B rows, T characters of a clip, V characters of the alphabet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from playserve.errors import BadSettingError, NotFoundError
from playserve_trainer.data.batches import IGNORED_LABEL, Batch, ShuffledOrder
from playserve_trainer.data.episodes import DataReport
from playserve_trainer.data.split import held_out_episodes, split_hash
from playserve_trainer.models.policy import UNKNOWN_ACTION
from playserve_trainer.recipes import Baseline

__all__ = ["CharClips", "Text", "char_baselines", "load_text"]

#: Characters of a piece: what is held out, and what a held-out loss is resampled by.
PIECE = 2048

_MOST_CHARACTERS = 255  # of an alphabet: indices are uint8


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text, cut into pieces.

    Attributes:
        codes_N: uint8, index of each character in the alphabet.
        alphabet: The characters that occur, sorted.
        starts_E: int64, first character of each piece; its last one is before the next piece's first.
        lengths_E: int64, characters of each piece.
        held_out_E: bool, whether a piece is held out.
        places_E: Between 0 and 1: where each piece stands in the split.
        report: For people.
    """

    codes_N: NDArray[np.uint8]
    alphabet: str
    starts_E: NDArray[np.int64]
    lengths_E: NDArray[np.int64]
    held_out_E: NDArray[np.bool_]
    places_E: tuple[float, ...]
    report: DataReport

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each piece."""
        return tuple(f"piece-{piece}" for piece in range(len(self.starts_E)))

    def select(self, *, held_out: bool) -> NDArray[np.int64]:
        """Return the indices of the pieces of one side of the split."""
        return np.flatnonzero(self.held_out_E == held_out)


def load_text(path: Path, name: str, *, held_out_fraction: float = 0.1, piece: int = PIECE) -> Text:
    """Return the text of a file, or of ``<name>.txt`` in a folder.

    Args:
        path: The file or the folder.
        name: Of the text.
        held_out_fraction: Share of the pieces to hold out, by a hash of their numbers.
        piece: Characters of a piece.

    Raises:
        NotFoundError: There is none, or it is too short for a piece on each side of the split.
        BadSettingError: It has more different characters than an alphabet may.
    """
    file = path if path.is_file() else path / f"{name}.txt"
    if not file.is_file():
        raise NotFoundError(f"{file} is no text; make one with `playserve data text`, or give a file")
    raw = file.read_bytes()
    points_N = np.frombuffer(raw.decode("utf-8", errors="replace").encode("utf-32-le"), np.uint32)
    found, codes_N = np.unique(points_N, return_inverse=True)
    if len(found) > _MOST_CHARACTERS:
        raise BadSettingError(f"{file} has {len(found)} different characters, wanted at most {_MOST_CHARACTERS}")
    starts_E = np.arange(0, len(points_N), piece, dtype=np.int64)
    lengths_E = np.minimum(piece, len(points_N) - starts_E)
    places = tuple(split_hash("text", name, number) for number in range(len(starts_E)))
    held_out_E = np.array(held_out_episodes(places, held_out_fraction), np.bool_)
    if held_out_E.all() or (held_out_fraction > 0 and not held_out_E.any()):
        raise NotFoundError(f"{file} has {len(points_N)} characters: too few for pieces of {piece} to be held out")
    report = DataReport(
        directory=str(path),
        episodes=len(starts_E),
        held_out_episodes=int(held_out_E.sum()),
        samples=int(lengths_E[~held_out_E].sum()),
        held_out_samples=int(lengths_E[held_out_E].sum()),
        digest=hashlib.sha256(raw).hexdigest(),
        mean_score=0.0,
    )
    return Text(
        codes_N=codes_N.astype(np.uint8),
        alphabet="".join(map(chr, found)),
        starts_E=starts_E,
        lengths_E=lengths_E,
        held_out_E=held_out_E,
        places_E=places,
        report=report,
    )


class CharClips:
    """Clips of T characters in random order, each once an epoch; the label of a character is the class of the next.

    The last character of a piece has no label, since the next piece may lie on the other side of the split.

    Args:
        text: The text.
        chosen: Indices of the pieces to take from.
        classes: int64 [V], class of each character.
        batch_size: B.
        sequence_length: T, at most a piece's characters.
        seed: Of the order and of which labels are kept.
        sparse: One label in so many is kept, others of a clip each time that it comes; 1: all.
        tell_episodes: Whether batches say the piece of each character.

    Raises:
        BadSettingError: No piece holds a clip.
    """

    def __init__(
        self,
        text: Text,
        chosen: NDArray[np.int64],
        classes: NDArray[np.int64],
        *,
        batch_size: int,
        sequence_length: int,
        seed: int,
        sparse: int = 1,
        tell_episodes: bool = False,
    ) -> None:
        if sparse < 1 or sparse > sequence_length:
            raise BadSettingError(f"char: sparse is 1 to the sequence's length ({sequence_length}), not {sparse}")
        pieces = [int(p) for p in chosen]
        self._begins = _begins(text, pieces, sequence_length)
        if not len(self._begins):
            raise BadSettingError(f"no piece of {int(text.lengths_E.max())} characters holds {sequence_length}")
        self._text, self._classes, self._sparse, self._seed = text, classes, sparse, seed
        self._tell_episodes = tell_episodes
        self._order = ShuffledOrder(len(self._begins), batch_size, seed)
        self.batch_size, self.sequence_length = batch_size, sequence_length
        self.carries_state = False
        self.num_samples = len(self._begins) * sequence_length

    def batch(self, index: int) -> Batch:
        """Return batch `index`; see :class:`playserve_trainer.data.batches.BatchSource`."""
        text, shape = self._text, (self.batch_size, self.sequence_length)
        begins_B = self._begins[self._order.items(index)]
        place_BT = begins_B[:, None] + np.arange(self.sequence_length)
        piece_BT = np.searchsorted(text.starts_E, place_BT, side="right") - 1
        next_BT = place_BT + 1
        last_BT = next_BT >= text.starts_E[piece_BT] + text.lengths_E[piece_BT]
        labels_BT = self._classes[text.codes_N[np.minimum(next_BT, len(text.codes_N) - 1)]]
        labels_BT = np.where(last_BT | ~self._kept(index, shape), IGNORED_LABEL, labels_BT)
        first_BT = np.zeros(shape, np.bool_)
        first_BT[:, 0] = True
        return Batch(
            {"char": torch.from_numpy(text.codes_N[place_BT][..., None])},
            torch.full((*shape, 1), UNKNOWN_ACTION),
            torch.from_numpy(first_BT),
            torch.from_numpy(labels_BT[..., None]),
            place_BT.size,
            torch.from_numpy(piece_BT) if self._tell_episodes else None,
        )

    def _kept(self, index: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Return which labels of a batch are kept, equally many of each row."""
        if self._sparse == 1:
            return np.ones(shape, np.bool_)
        draws_BT = np.random.default_rng([self._seed, 1, index]).random(shape)
        count = shape[1] // self._sparse
        kept_BT: NDArray[np.bool_] = draws_BT <= np.partition(draws_BT, count - 1, axis=1)[:, count - 1 : count]
        return kept_BT


def _begins(text: Text, pieces: Sequence[int], length: int) -> NDArray[np.int64]:
    """Return the first character of each clip."""
    found = [
        np.arange(text.starts_E[p], text.starts_E[p] + text.lengths_E[p] - length + 1, length, dtype=np.int64)
        for p in pieces
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def char_baselines(text: Text, classes: NDArray[np.int64]) -> tuple[Baseline, ...]:
    """Return what two guesses get on the held-out pieces: classes by frequency, and given the character before.

    Args:
        text: The text.
        classes: int64 [V], class of each character.
    """
    num_classes, size = int(classes.max()) + 1, len(text.alphabet)
    learnt_VA, held_VA = (_pairs(text, classes, text.select(held_out=side)) for side in (False, True))
    frequency_A = (learnt_VA.sum(0) + 1.0) / (learnt_VA.sum() + num_classes)
    bigram_VA = learnt_VA + frequency_A
    bigram_VA = bigram_VA / bigram_VA.sum(1, keepdims=True)
    found = []
    for name, belief_VA in (("frequencies", np.tile(frequency_A, (size, 1))), ("bigram", bigram_VA)):
        labels = int(held_VA.sum())
        hits = held_VA[np.arange(size), belief_VA.argmax(1)].sum()
        loss = float(-(held_VA * np.log(belief_VA)).sum() / max(1, labels))
        found.append(Baseline(name=name, loss=loss, accuracy=float(hits / max(1, labels)), labels=labels))
    return tuple(found)


def _pairs(text: Text, classes: NDArray[np.int64], pieces: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often each class follows each character within some pieces, int64 [V, A]."""
    num_classes, size = int(classes.max()) + 1, len(text.alphabet)
    counts = np.zeros(size * num_classes, np.int64)
    for piece in pieces:
        codes = text.codes_N[text.starts_E[piece] : text.starts_E[piece] + text.lengths_E[piece]].astype(np.int64)
        counts += np.bincount(codes[:-1] * num_classes + classes[codes[1:]], minlength=len(counts))
    return counts.reshape(size, num_classes)
