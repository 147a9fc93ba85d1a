"""What a terminal showed during a stretch of one NetHack game, and the keys that answered.

Shape legend: T consecutive frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["TTY_COLUMNS", "TTY_ROWS", "TtyChunk"]

#: Size of the terminal.
TTY_ROWS, TTY_COLUMNS = 24, 80


@dataclass(frozen=True, slots=True)
class TtyChunk:
    """T consecutive frames of one game.

    Attributes:
        chars: uint8 [T, 24, 80], what stands in each cell.
        colors: int8 [T, 24, 80], 0 to 15.
        cursor: uint8 [T, 2], row and column.
        keys: uint8 [T], the key sent in answer to frame t.
        scores: int32 [T], the score in the game at frame t.
        expert: bool [T], False: the key is not the expert's (closing screens, keys that quit): masked, never learnt.
        blstats: int64 [T, 27], only of replayed games.
        inv_glyphs: int16 [T, 55], only of replayed games.
    """

    chars: NDArray[np.uint8]
    colors: NDArray[np.int8]
    cursor: NDArray[np.uint8]
    keys: NDArray[np.uint8]
    scores: NDArray[np.int32]
    expert: NDArray[np.bool_]
    blstats: NDArray[np.int64] | None = None
    inv_glyphs: NDArray[np.int16] | None = None

    def __len__(self) -> int:
        """Return T."""
        return len(self.keys)
