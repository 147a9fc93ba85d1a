"""What a terminal showed at one moment, and how its colours look.

NLE's terminal has the sixteen colours of curses in `colors`: 0 to 7, plus 8 where the text is bold. It adds
`REVERSE` (16) where text and background are swapped, as in titles of menus. Line drawing (DEC graphics) is already
turned into ASCII by NLE, and so are most bytes of IBMgraphics; what is left of those is read as code page 437.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from playserve_client.nethack.tty import TTY_COLUMNS, TTY_ROWS

__all__ = ["BOLD", "PALETTE", "REVERSE", "Screen", "glyph", "look"]

#: Added to a colour where the text is bold, which terminals show as the bright colour.
BOLD = 8
#: Added to a colour where text and background are swapped.
REVERSE = 16
#: The sixteen colours as #rrggbb, for a dark background. Each has a contrast of 4.5 and more against #101216, except
#: black, which only stands under spaces.
PALETTE = (
    "#101216", "#e5605f", "#4caf60", "#c19a3e", "#6c91f0", "#c678cd", "#3fa9b8", "#c3c7cf",
    "#7f8792", "#ff8a5c", "#7ee787", "#ffe066", "#8fb4ff", "#f29bf0", "#79e4ee", "#ffffff",
)  # fmt: skip

_GLYPHS = "".join(
    " " if code < 32 or code in (127, 255) else bytes([code]).decode("ascii" if code < 127 else "cp437")
    for code in range(256)
)
_TABLE = dict(enumerate(_GLYPHS))


def glyph(code: int) -> str:
    """Return the one printable character that a cell with this byte shows."""
    return _GLYPHS[code & 255]


def look(color: int) -> tuple[int, bool]:
    """Return (colour 0 to 15, whether it is reversed) that a cell of this colour is shown in.

    Black would hide what it writes: it becomes dark grey, and under `REVERSE`, where it stands for a space in the
    terminal's own colours, light grey.
    """
    reverse = bool(color & REVERSE)
    return (color & (REVERSE - 1)) or (7 if reverse else BOLD), reverse


@dataclass(frozen=True, slots=True)
class Screen:
    """One frame.

    Attributes:
        chars: uint8 [24, 80].
        colors: int8 [24, 80], 0 to 15, plus `REVERSE` where text and background are swapped.
        cursor: Row and column; a column of 80 is possible after text that fills its row.
    """

    chars: NDArray[np.uint8]
    colors: NDArray[np.int8]
    cursor: tuple[int, int]

    @classmethod
    def blank(cls) -> Screen:
        """Return an empty screen."""
        return cls(np.full((TTY_ROWS, TTY_COLUMNS), 32, np.uint8), np.zeros((TTY_ROWS, TTY_COLUMNS), np.int8), (0, 0))

    def lines(self) -> list[str]:
        """Return the 24 rows as text of 80 characters each."""
        return [row.tobytes().decode("latin-1").translate(_TABLE) for row in self.chars]

    def text(self) -> str:
        """Return the rows without the spaces at their ends, a line each."""
        return "\n".join(line.rstrip() for line in self.lines())

    def runs(self, row: int) -> list[tuple[str, int]]:
        """Return row `row` as (text, colour) of neighbours of one colour, 80 characters in all.

        A space takes the colour of what stands before it, unless one of both is reversed, so that a row is few runs.
        """
        text = self.lines()[row]
        colors = self.colors[row]
        found: list[tuple[str, int]] = []
        for column in range(TTY_COLUMNS):
            color = int(colors[column])
            if found and (color == found[-1][1] or (text[column] == " " and color < REVERSE > found[-1][1])):
                found[-1] = (found[-1][0] + text[column], found[-1][1])
            else:
                found.append((text[column], color))
        return found
