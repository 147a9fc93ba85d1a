"""One recorded game as a viewer wants it: any frame by its number, whatever it was read from.

Shape legend: T frames.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError, DataLossError
from playserve_client.nethack.tty import TtyChunk
from playserve_client.terminal.frames import BLOCK, FrameStore
from playserve_client.terminal.screen import Screen

if TYPE_CHECKING:
    from playserve_client.nethack.games import GameRecord
    from playserve_client.nethack.shards import TtyDataset

__all__ = [
    "ChunkRecording",
    "Recording",
    "ReplayedRecording",
    "ShardRecording",
    "StoredRecording",
    "best_excerpt",
    "to_chunk",
]


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


class StoredRecording(ABC):
    """Frames that come in order from somewhere, and are kept as changes; any frame that came is at hand.

    Args:
        name: What the game is called.
        facts: What is known of it.
        total: How many frames will come.
        has_keys: Whether their keys mean something.
        has_scores: Whether their scores do.
    """

    def __init__(
        self, *, name: str, facts: dict[str, str] | None, total: int, has_keys: bool = True, has_scores: bool = True
    ) -> None:
        self.name, self.facts, self.problem = name, dict(facts or {}), ""
        self._total, self._has_keys, self._has_scores = total, has_keys, has_scores
        self._store = FrameStore()
        self._keys: list[NDArray[np.uint8]] = []
        self._scores: list[NDArray[np.int32]] = []

    @abstractmethod
    def _more(self) -> TtyChunk | None:
        """Return the next `BLOCK` frames, fewer at the end, None behind it."""

    def __len__(self) -> int:
        """Return the number of frames."""
        return self._total

    @property
    def ready(self) -> int:
        """How many frames from the start are at hand."""
        return len(self._store)

    def read_ahead(self) -> bool:
        """Take one more block of frames; return whether there was one.

        Raises:
            DataLossError: Not even the first came.
        """
        if self.ready >= self._total:
            return False
        chunk = self._more()
        if chunk is not None:
            self._store.append(chunk.chars, chunk.colors, chunk.cursor)
            self._keys.append(chunk.keys)
            self._scores.append(chunk.scores)
        if chunk is None or len(chunk) < BLOCK:
            if self.ready < self._total:
                self.problem = self.problem or f"it ends after {self.ready:,} of {self._total:,} frames"
            self._total = self.ready
            if not self.ready:
                raise DataLossError(f"{self.name} has not one whole frame: {self.problem}")
        return chunk is not None

    def screen(self, index: int) -> Screen:
        """Return frame `index`."""
        self._reach(index)
        return self._store.screen(index)

    def key(self, index: int) -> int | None:
        """Return the key that was sent in answer to frame `index`, None where keys are not recorded."""
        self._reach(index)
        return int(self._keys[index // BLOCK][index % BLOCK]) if self._has_keys else None

    def score(self, index: int) -> int | None:
        """Return the score in the game at frame `index`, None where it is not recorded."""
        self._reach(index)
        return int(self._scores[index // BLOCK][index % BLOCK]) if self._has_scores else None

    def _reach(self, index: int) -> None:
        while self.ready <= index < self._total and self.read_ahead():
            pass
        if not 0 <= index < self._total:
            raise IndexError(f"frame {index} of {self._total}")


class ReplayedRecording(StoredRecording):
    """A game that is played again from its seed and its keys while somebody watches.

    Args:
        game: The game.
    """

    def __init__(self, game: GameRecord) -> None:
        from playserve_client.nethack.replay import replay_game

        values = {"score": game.score, "turns": game.turns, "deepest": game.max_depth, "end": game.end}
        facts = {name: str(value) for name, value in values.items()} | ({"player": game.player} if game.player else {})
        super().__init__(name=game.name, facts=facts, total=game.steps)
        self._chunks = replay_game(game, chunk=BLOCK)

    def _more(self) -> TtyChunk | None:
        try:
            return next(self._chunks, None)
        except DataLossError as error:  # it does not come out as it was recorded
            self.problem = str(error)
            return None


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
        start = index - index % BLOCK
        if self._block is None or self._block[0] != start:
            self._block = start, self._dataset.read(self._game, start, min(start + BLOCK, len(self)))
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
