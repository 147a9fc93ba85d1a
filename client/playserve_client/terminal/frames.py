"""Frames of one game in little memory: whole screens now and then, and between them only what changed.

A game of 100,000 steps has 384 MB of screens; kept like this it has about 15 MB, and any frame is at hand.

Shape legend: T frames, E entries (changed cells), K frames a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from playserve_client.nethack.tty import TTY_COLUMNS, TTY_ROWS
from playserve_client.terminal.screen import Screen

__all__ = ["BLOCK", "FrameStore"]

#: Frames from one whole screen to the next.
BLOCK = 128
_CELLS = TTY_ROWS * TTY_COLUMNS


@dataclass(frozen=True, slots=True)
class _Block:
    """K frames: the first one whole, of the others the cells that changed."""

    chars: NDArray[np.uint8]  # [1920] of the first frame
    colors: NDArray[np.int8]  # [1920]
    ends: NDArray[np.int64]  # [K], entries up to and with frame k
    cells: NDArray[np.uint16]  # [E]
    new_chars: NDArray[np.uint8]  # [E]
    new_colors: NDArray[np.int8]  # [E]
    cursor: NDArray[np.uint8]  # [K, 2]


class FrameStore:
    """Frames that are appended in order and read in any."""

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._length = 0

    def __len__(self) -> int:
        """Return the number of frames."""
        return self._length

    def append(self, chars: NDArray[np.uint8], colors: NDArray[np.int8], cursor: NDArray[np.integer]) -> None:
        """Append frames.

        Args:
            chars: uint8 [T, 24, 80]; copied.
            colors: int8 [T, 24, 80]; copied.
            cursor: [T, 2], row and column.

        Raises:
            ValueError: The frames before did not fill their last block (only the last call may end inside one).
        """
        if self._length % BLOCK:
            raise ValueError(f"append after a block of {self._length % BLOCK} of {BLOCK} frames")
        for start in range(0, len(chars), BLOCK):
            stop = min(start + BLOCK, len(chars))
            flat_chars = chars[start:stop].reshape(-1, _CELLS)
            flat_colors = colors[start:stop].reshape(-1, _CELLS)
            changed = (flat_chars[1:] != flat_chars[:-1]) | (flat_colors[1:] != flat_colors[:-1])
            frames, cells = np.nonzero(changed)
            counts = np.concatenate(([0], np.count_nonzero(changed, axis=1)))
            self._blocks.append(
                _Block(
                    chars=flat_chars[0].copy(),
                    colors=flat_colors[0].copy(),
                    ends=np.cumsum(counts),
                    cells=cells.astype(np.uint16),
                    new_chars=flat_chars[frames + 1, cells],
                    new_colors=flat_colors[frames + 1, cells],
                    cursor=cursor[start:stop].astype(np.uint8),
                )
            )
        self._length += len(chars)

    def screen(self, index: int) -> Screen:
        """Return frame `index`, as arrays of its own.

        Raises:
            IndexError: No such frame.
        """
        if not 0 <= index < self._length:
            raise IndexError(f"frame {index} of {self._length}")
        block, inside = self._blocks[index // BLOCK], index % BLOCK
        end = int(block.ends[inside])
        chars, colors = block.chars.copy(), block.colors.copy()
        # Of a cell that changed more than once the last entry stays, as numpy assigns in order.
        chars[block.cells[:end]] = block.new_chars[:end]
        colors[block.cells[:end]] = block.new_colors[:end]
        row, column = block.cursor[inside]
        return Screen(chars.reshape(TTY_ROWS, -1), colors.reshape(TTY_ROWS, -1), (int(row), int(column)))
