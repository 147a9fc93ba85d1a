"""Pictures of what a world shows: frames as they are, and frames of characters as text. Text needs pillow.

Shape legend: H height, W width of a frame, h, w of a character's picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from playserve.specs import ImageFormat, PolicySpec
from playserve_client.terminal.screen import glyph
from playserve_client.worlds.view import check_world

__all__ = ["Painter"]

#: Height and width of a character, pixels.
_CELL = (14, 8)
_INK = np.array([195, 199, 207], np.float32)


class Painter:
    """Makes pictures of one world's frames.

    A frame of one channel whose `image_format` says nothing holds character codes, as NetHack's screens do.

    Args:
        spec: Of the world.

    Attributes:
        size: Height and width of a picture.

    Raises:
        UnsupportedError: It is no world that can be shown; see :func:`check_world`.
    """

    def __init__(self, spec: PolicySpec) -> None:
        height, width = check_world(spec)
        frame = next(tensor for tensor in spec.outputs if tensor.name == "frame")
        self._glyphs_Chw: NDArray[np.float32] | None = None
        self.size = height, width
        if frame.shape[2] == 1 and frame.image_format is ImageFormat.NONE:
            self._glyphs_Chw = _glyphs()
            self.size = height * _CELL[0], width * _CELL[1]

    def __call__(self, frame_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the picture uint8 [*size, 3] of a frame as `Shown` has it."""
        if self._glyphs_Chw is None:
            return frame_HW3
        cells_HWhw = self._glyphs_Chw[frame_HW3[:, :, 0]]
        shades = cells_HWhw.transpose(0, 2, 1, 3).reshape(self.size)
        picture: NDArray[np.uint8] = (shades[:, :, None] * _INK).astype(np.uint8)
        return picture


def _glyphs() -> NDArray[np.float32]:
    """Return how much ink is where in each of 256 characters, float32 [256, h, w] from 0 to 1."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=12)
    drawn = []
    for code in range(256):
        image = Image.new("L", (_CELL[1], _CELL[0]))
        ImageDraw.Draw(image).text((_CELL[1] / 2, _CELL[0] / 2), glyph(code), fill=255, font=font, anchor="mm")
        drawn.append(np.asarray(image, np.float32) / 255)
    return np.stack(drawn)
