"""What is drawn beside the game in a film: keys, mouse, instruction, latency, and what the policy sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.actions import DesktopAction

__all__ = ["HEIGHT", "WIDTH", "Moment", "Panel"]

#: Of a film's picture, pixels: the game at 640x480 and a strip below.
WIDTH, HEIGHT = 640, 624

_GAME = (640, 480)
_SEEN = 112  # side of the inset
_INK, _MUTED, _DARK, _LIT, _PAPER = (236, 235, 230), (150, 156, 166), (38, 41, 48), (84, 205, 181), (18, 19, 23)
_KEYS = (("KeyW", "W", 1, 0), ("KeyA", "A", 0, 1), ("KeyS", "S", 1, 1), ("KeyD", "D", 2, 1))
_KEY_PX, _GAP_PX = 38, 4
_FULL_TURN_PX = 61.0  # the bar of the mouse is full there: 15 degrees in a frame

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One frame of a film.

    Attributes:
        screen: What the game shows, uint8 [H, W, 3] RGB.
        seen: What the policy sees of it, uint8 [S, S, 3] RGB.
        action: What is held from here on.
        instruction: In force.
        title: Scenario and goal.
        seconds: Since the episode began.
        counters: The game's, for people.
        round_trip_ms: From sending the frame to having the action.
        model_ms: Of it, the model.
    """

    screen: Picture
    seen: Picture
    action: DesktopAction
    instruction: str
    title: str
    seconds: float
    counters: str
    round_trip_ms: float
    model_ms: float


class Panel:
    """Draws; keeps nothing but fonts."""

    def __init__(self) -> None:
        from PIL import ImageFont

        self._large, self._small = ImageFont.load_default(19), ImageFont.load_default(13)

    def draw(self, moment: Moment) -> Picture:
        """Return the picture of a moment, uint8 [HEIGHT, WIDTH, 3]."""
        from PIL import Image, ImageDraw

        picture = Image.new("RGB", (WIDTH, HEIGHT), _PAPER)
        game = Image.fromarray(moment.screen).resize(_GAME, Image.Resampling.NEAREST)
        picture.paste(game, (0, 0))
        top = _GAME[1] + 16
        seen = Image.fromarray(moment.seen).resize((_SEEN, _SEEN), Image.Resampling.NEAREST)
        picture.paste(seen, (WIDTH - _SEEN - 16, top))
        draw = ImageDraw.Draw(picture)
        self._keys(draw, moment.action, 16, top)
        self._mouse(draw, moment.action, 160, top)
        self._words(draw, moment, 246, top)
        return np.asarray(picture)

    def _keys(self, draw: Any, action: DesktopAction, left: int, top: int) -> None:
        for code, name, column, row in _KEYS:
            x, y = left + column * (_KEY_PX + _GAP_PX), top + row * (_KEY_PX + _GAP_PX)
            held = code in action.keys
            draw.rounded_rectangle((x, y, x + _KEY_PX, y + _KEY_PX), 6, fill=_LIT if held else _DARK)
            draw.text((x + _KEY_PX / 2, y + _KEY_PX / 2), name, _PAPER if held else _MUTED, self._large, anchor="mm")
        draw.text((left, top + 2 * (_KEY_PX + _GAP_PX) + 8), "keys held", _MUTED, self._small)

    def _mouse(self, draw: Any, action: DesktopAction, left: int, top: int) -> None:
        """Draw a mouse whose left button lights, and a bar for its motion sideways."""
        width, height = 44, 60
        draw.rounded_rectangle((left, top, left + width, top + height), 20, fill=_DARK)
        if 0 in action.buttons:
            draw.pieslice((left, top, left + width, top + 52), 180, 270, fill=_LIT)
        draw.line((left + width / 2, top, left + width / 2, top + 26), fill=_PAPER, width=2)
        draw.line((left, top + 26, left + width, top + 26), fill=_PAPER, width=2)
        middle, y = left + width / 2, top + height + 10
        reach = max(-1.0, min(1.0, action.mouse_dx_px / _FULL_TURN_PX)) * (width / 2)
        draw.rectangle((left, y, left + width, y + 8), fill=_DARK)
        if reach:
            draw.rectangle((min(middle, middle + reach), y, max(middle, middle + reach), y + 8), fill=_LIT)
        draw.text((middle, y + 16), f"dx {action.mouse_dx_px:+.0f}", _MUTED, self._small, anchor="mt")

    def _words(self, draw: Any, moment: Moment, left: int, top: int) -> None:
        said = f"“{moment.instruction}”" if moment.instruction else "(no instruction)"
        lines = _wrapped(draw, said, self._large, WIDTH - _SEEN - 32 - left)
        for number, line in enumerate(lines[:2]):
            draw.text((left, top - 2 + 23 * number), line, _INK, self._large)
        rest = (
            f"{moment.title}, {moment.seconds:.1f} s",
            moment.counters,
            f"round trip {moment.round_trip_ms:.1f} ms, model {moment.model_ms:.1f} ms",
        )
        for number, line in enumerate(rest):
            draw.text((left, top + 52 + 20 * number), line, _MUTED, self._small)


def _wrapped(draw: Any, text: str, font: Any, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer, font) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
