"""One recorded game as a viewer wants it: any frame by its number, whatever it was read from.

Shape legend: T frames.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError
from playserve_client.nethack.tty import TtyChunk
from playserve_client.terminal.screen import Screen

if TYPE_CHECKING:
    from playserve_client.nethack.shards import TtyDataset

__all__ = ["ChunkRecording", "Recording", "ShardRecording", "best_excerpt", "to_chunk"]

# Frames of a shard that are decoded at once.
_BLOCK = 128


class Recording(Protocol):
    """Frames of one game, read when they are wanted.

    Attributes:
        name: What the game is called.
        facts: What is known of it, for people: name to text.
        problem: What is damaged in its file; "" where nothing is.
    """

    name: str
    facts: dict[str, str]
    problem: str

    def __len__(self) -> int:
        """Return the number of frames; it shrinks if a file turns out to end early."""

    @property
    def ready(self) -> int:
        """How many frames from the start can be had without waiting."""

    def read_ahead(self) -> bool:
        """Make some more frames ready; return whether there were any."""

    def screen(self, index: int) -> Screen:
        """Return frame `index`, reading up to it where it must."""

    def key(self, index: int) -> int | None:
        """Return the key code sent in answer to frame `index`, None where that is not known."""

    def score(self, index: int) -> int | None:
        """Return the score in the game at frame `index`, None where that is not known."""


class ChunkRecording:
    """Frames that are in memory, as a `Recording`.

    Args:
        chunk: The frames of the game, from its first.
        name: What the game is called.
        facts: What is known of it.
        has_keys: False where the chunk's keys mean nothing (recordings without keys).
    """

    def __init__(
        self, chunk: TtyChunk, *, name: str, facts: dict[str, str] | None = None, has_keys: bool = True
    ) -> None:
        self.name, self.facts, self.problem = name, dict(facts or {}), ""
        self._chunk, self._has_keys = chunk, has_keys

    def __len__(self) -> int:
        """Return T."""
        return len(self._chunk)

    @property
    def ready(self) -> int:
        """T: all are here."""
        return len(self._chunk)

    def read_ahead(self) -> bool:
        """Return False: all are here."""
        return False

    def screen(self, index: int) -> Screen:
        """Return frame `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        row, column = self._chunk.cursor[index]
        return Screen(self._chunk.chars[index], self._chunk.colors[index], (int(row), int(column)))

    def key(self, index: int) -> int | None:
        """Return the key sent in answer to frame `index`."""
        return int(self._chunk.keys[index]) if self._has_keys else None

    def score(self, index: int) -> int | None:
        """Return the score at frame `index`."""
        return int(self._chunk.scores[index])


class ShardRecording:
    """A game of a dataset of shards, as a `Recording`.

    Args:
        dataset: The open dataset.
        game: The game's number in it.
        name: What the game is called.
        facts: What is known of it.
    """

    def __init__(self, dataset: TtyDataset, game: int, *, name: str, facts: dict[str, str] | None = None) -> None:
        self.name, self.facts, self.problem = name, dict(facts or {}), ""
        self._dataset, self._game = dataset, game
        self._has_keys = dataset.games[game].has_keys
        self._block: tuple[int, TtyChunk] | None = None

    def __len__(self) -> int:
        """Return the number of frames."""
        return int(self._dataset.lengths[self._game])

    @property
    def ready(self) -> int:
        """All: shards are decoded already."""
        return len(self)

    def read_ahead(self) -> bool:
        """Return False: all are ready."""
        return False

    def screen(self, index: int) -> Screen:
        """Return frame `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        start = index - index % _BLOCK
        if self._block is None or self._block[0] != start:
            self._block = start, self._dataset.read(self._game, start, min(start + _BLOCK, len(self)))
        chunk, inside = self._block[1], index - start
        row, column = chunk.cursor[inside]
        return Screen(chunk.chars[inside], chunk.colors[inside], (int(row), int(column)))

    def key(self, index: int) -> int | None:
        """Return the key sent in answer to frame `index`."""
        return int(self._dataset.keys(self._game)[index]) if self._has_keys else None

    def score(self, index: int) -> int | None:
        """Return the score at frame `index`."""
        return int(self._dataset.scores(self._game)[index])


def to_chunk(recording: Recording, start: int, stop: int) -> TtyChunk:
    """Return frames `start` to `stop` (exclusive) as arrays; unknown keys and scores are 0.

    Raises:
        BadSettingError: The recording has no such frames.
    """
    if not 0 <= start < stop <= len(recording):
        raise BadSettingError(f"frames {start} to {stop} of {recording.name}, which has {len(recording)}")
    screens = [recording.screen(index) for index in range(start, stop)]
    return TtyChunk(
        chars=np.stack([screen.chars for screen in screens]),
        colors=np.stack([screen.colors for screen in screens]),
        cursor=np.array([screen.cursor for screen in screens], np.uint8),
        keys=np.array([recording.key(index) or 0 for index in range(start, stop)], np.uint8),
        scores=np.array([recording.score(index) or 0 for index in range(start, stop)], np.int32),
        expert=np.ones(stop - start, np.bool_),
    )


def best_excerpt(scores: NDArray[np.int32], frames: int) -> tuple[int, int]:
    """Return the (start, stop) of `frames` consecutive frames over which the score grows most; the earliest of equals.

    Args:
        scores: int32 [T], the score at each frame. What falls (to 0 in closing screens) counts as standing still.
        frames: Most frames wanted, at least 1.
    """
    if len(scores) <= frames:
        return 0, len(scores)
    grown = np.maximum.accumulate(scores)
    start = int(np.argmax(grown[frames - 1 :] - grown[: len(grown) - frames + 1]))
    return start, start + frames
