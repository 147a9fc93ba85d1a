"""What a world dreams beside what really happened, for the eye: a film strip, and a film.

Shape legend: B starts, T steps, H, W, C of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError, UnsupportedError
from playserve.files import replacing
from playserve_client.worlds.view import as_rgb
from playserve_trainer.worlds.dreams import Dreamer
from playserve_trainer.worlds.starts import Start, choose_starts, trail_of
from playserve_trainer.worlds.subject import Subject

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["STEPS", "Beside", "dream_beside", "write_film", "write_strip"]

STEPS = (0, 1, 5, 20, 50, 100)

_TILE_PX, _GAP_PX, _LINE_PX = 96, 6, 14
_INK, _PAPER, _BLANK = (20, 20, 20), (255, 255, 255), (225, 225, 225)
# So many starts are drawn for each that is shown, to find some with enough steps in different episodes.
_DRAWN = 32
# Of films of games that have no rate.
_FPS = 10.0


@dataclass(frozen=True, slots=True)
class Beside:
    """A dream and what really happened.

    Attributes:
        title: Episode and frame of the start.
        real_THWC: uint8 [T + 1, H, W, C], from the start on, as far as the episode goes.
        dream_THWC: uint8 [T + 1, H, W, C]; the first is what the tokenizer makes of the start.
        uncertainty_T: float32, nats a token; of the frames after the start.
    """

    title: str
    real_THWC: NDArray[np.uint8]
    dream_THWC: NDArray[np.uint8]
    uncertainty_T: NDArray[np.float32]


def dream_beside(
    subject: Subject, *, starts: int, steps: int, seed: int = 0, given: int = 0, temperature: float = 1.0
) -> list[Beside]:
    """Return dreams from some held-out starts, of different episodes where there are enough.

    Args:
        subject: The world and the games.
        starts: How many.
        steps: T at most.
        seed: Of starts and draws.
        given: Real frames that the world is given; 0: as when it is served.
        temperature: Of the draws.

    Raises:
        UnsupportedError: The frames are no pictures.
        BadSettingError: No held-out episode is long enough.
    """
    if not subject.pictures:
        raise UnsupportedError("the frames of this world are no pictures: there is nothing to draw")
    given = given or subject.world.config.start_frames
    drawn = choose_starts(subject.cache, _DRAWN * starts, given=given, seed=seed)
    drawn = [drawn[i] for i in np.random.default_rng([seed, 0x737472]).permutation(len(drawn))]
    chosen = _varied(drawn, starts, steps)
    dreamer = Dreamer(subject.world, given=given, seed=seed, temperature=temperature)
    trail = trail_of(subject.cache, chosen, given=given, steps=min(steps, max(start.steps for start in chosen)))
    tokens_BCK = np.asarray(subject.cache.tokens_NK[trail.given_BC])
    dream = dreamer.dream(chosen, trail, tokens_BCK)
    first_BHWC = subject.decoded(tokens_BCK[:, -1])
    found = []
    for row, start in enumerate(chosen):
        count = int(trail.there_BT[row].sum())
        places = np.append(trail.given_BC[row, -1], trail.place_BT[row, :count])
        shown = np.concatenate([first_BHWC[row : row + 1], dream.frames_BTHWC[row, :count]])
        title = f"{subject.cache.names_E[start.episode]}, frame {start.frame}"
        found.append(Beside(title, subject.real(places), shown, dream.uncertainty_BT[row, :count]))
    return found


def _varied(drawn: Sequence[Start], count: int, steps: int) -> list[Start]:
    """Return starts with enough steps, else those with the most, each of another episode as far as there are any."""
    chosen, seen = list[Start](), set[int]()
    for again in (False, True):
        for start in sorted(drawn, key=lambda start: -min(start.steps, steps)):
            if len(chosen) < count and start not in chosen and (again or start.episode not in seen):
                chosen.append(start)
                seen.add(start.episode)
    return chosen


def write_strip(path: Path, dreams: Sequence[Beside], steps: Sequence[int]) -> None:
    """Write a picture: for each start the real frames above those of the world, and how unsure it was of each.

    Args:
        path: Of the picture; its ending says the format.
        dreams: What to show.
        steps: Which frames, 0 is the start.

    Raises:
        BadSettingError: The ending is of no format that can be written.
    """
    from PIL import Image, ImageDraw

    if path.suffix.lower() not in (".png", ".webp", ".jpg", ".gif"):
        raise BadSettingError(f"film strip {path}, wanted a name that ends in .png, .webp, .jpg or .gif")
    height, width, _ = dreams[0].real_THWC.shape[1:]
    scale = max(1, -(-_TILE_PX // max(height, width)))
    tile = (width * scale, height * scale)
    block = 2 * tile[1] + 3 * _LINE_PX + 2 * _GAP_PX
    size = (_GAP_PX + len(steps) * (tile[0] + _GAP_PX), len(dreams) * block + _GAP_PX)
    sheet = Image.new("RGB", (max(size[0], 200), size[1]), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for row, beside in enumerate(dreams):
        top = _GAP_PX + row * block
        pen.text((_GAP_PX, top), f"{beside.title}: real above, dreamed below", fill=_INK)
        for column, step in enumerate(steps):
            left = _GAP_PX + column * (tile[0] + _GAP_PX)
            pen.text((left, top + _LINE_PX), f"+{step}" if step else "start", fill=_INK)
            for line, frames in enumerate((beside.real_THWC, beside.dream_THWC)):
                at = (left, top + 2 * _LINE_PX + line * (tile[1] + 2))
                sheet.paste(_tile(frames, step, tile), at)
            said = _said(beside, step)
            pen.text((left, top + 2 * _LINE_PX + 2 * (tile[1] + 2)), said, fill=_INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        sheet.save(temporary)


def _tile(frames_THWC: NDArray[np.uint8], step: int, size: tuple[int, int]) -> Image:
    from PIL import Image

    if step >= len(frames_THWC):
        return Image.new("RGB", size, _BLANK)
    return Image.fromarray(as_rgb(frames_THWC[step])).resize(size, Image.Resampling.NEAREST)


def _said(beside: Beside, step: int) -> str:
    if step >= len(beside.real_THWC):
        return "over"
    return f"{beside.uncertainty_T[step - 1]:.2f} nats" if step else ""


def write_film(path: Path, beside: Beside, rate_hz: float) -> dict[str, Any]:
    """Write a film, .mp4 or .gif, of the real game on the left and the dream on the right; return what it shows.

    Args:
        path: Of the film.
        beside: What to show.
        rate_hz: Of the game; 0: it has none.

    Raises:
        BadSettingError: The path ends otherwise.
    """
    from playserve_client.worlds.film import FilmWriter

    height, width, _ = beside.real_THWC.shape[1:]
    gap = np.full((height, 2, 3), 255, np.uint8)
    rate_hz = rate_hz or _FPS
    with FilmWriter(path, (height, 2 * width + 2), rate_hz) as writer:
        for real, dreamed in zip(beside.real_THWC, beside.dream_THWC, strict=True):
            writer.add(np.concatenate([as_rgb(real), gap, as_rgb(dreamed)], axis=1))
    return {"film": str(path), "start": beside.title, "frames": len(beside.real_THWC), "frames_per_s": rate_hz}
