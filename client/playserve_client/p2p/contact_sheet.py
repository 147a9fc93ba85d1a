"""A contact sheet: frames of recordings with what was done upon them drawn on, to see at a glance that they fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.actions import DesktopAction
from playserve.errors import PlayserveError
from playserve.p2p.keys import name_of
from playserve_client.p2p.recording import Recording, Source, align, read_recording, video_path, video_sizes
from playserve_client.p2p.video import VideoReader

__all__ = ["Cell", "draw_sheet", "sample_cells"]

_SIDE = 192
_CAPTION = 60
_MARGIN = 4
_COLOURS = {Source.USER: (60, 200, 90), Source.SYSTEM: (90, 150, 255), Source.UNKNOWN: (130, 130, 130)}
_BUTTON_NAMES = {0: "left", 1: "middle", 2: "right"}


@dataclass(frozen=True)
class Cell:
    """One frame of a sheet.

    Attributes:
        frame: uint8 [H, W, 3].
        action: What was done upon it: the target that a policy learns.
        source: Who did it.
        title: Which frame of what.
        instruction: What was asked for; empty: nothing.
    """

    frame: NDArray[np.uint8]
    action: DesktopAction
    source: Source
    title: str
    instruction: str = ""


def sample_cells(folders: Sequence[Path], count: int) -> Iterator[Cell]:
    """Yield about `count` frames, spread evenly over recordings and over each; what cannot be read is passed over."""
    if not folders or count < 1:
        return
    chosen = [folders[i * len(folders) // min(count, len(folders))] for i in range(min(count, len(folders)))]
    for place, folder in enumerate(chosen):
        share = count // len(chosen) + (place < count % len(chosen))
        with suppress(PlayserveError):
            yield from _cells_of(folder, share)


def _cells_of(folder: Path, count: int) -> Iterator[Cell]:
    recording = read_recording(folder)
    sizes = video_sizes(folder)
    if not sizes:
        return
    with VideoReader(video_path(folder, *sizes[-1])) as video:
        aligned = align(recording, video.num_frames)
        # One of each equal part, so that nothing periodic is met at the same place; the same ones each time.
        edges = np.linspace(0, len(aligned), min(count, len(aligned)) + 1).astype(int)
        drawn = np.random.default_rng(len(aligned)).integers(edges[:-1], edges[1:]).tolist()
        for number in drawn:
            span = int(aligned.instruction[number])
            yield Cell(
                frame=video.read(number, 1)[0],
                action=aligned.actions[number],
                source=recording.frames[number + 1].source,
                title=_title(recording, number),
                instruction=recording.instructions[span].text if span >= 0 else "",
            )


def _title(recording: Recording, number: int) -> str:
    about = recording.metadata
    return f"{about.env_subtype or about.env or recording.path.name[-12:]} #{number}"


def draw_sheet(cells: Sequence[Cell], columns: int = 6) -> Any:
    """Return a PIL image: frames in rows; under each its title, keys and buttons, and instruction.

    The border tells whose action it is (green a person's, blue a policy's, grey unknown), the line from the centre the
    mouse's motion, lengthened so that small motions are seen.
    """
    from PIL import Image, ImageDraw

    rows = max(1, math.ceil(len(cells) / columns))
    wide, high = _SIDE + 2 * _MARGIN, _SIDE + _CAPTION + 2 * _MARGIN
    sheet = Image.new("RGB", (columns * wide, rows * high), (24, 24, 24))
    pen = ImageDraw.Draw(sheet)
    for place, cell in enumerate(cells):
        left, top = place % columns * wide + _MARGIN, place // columns * high + _MARGIN
        picture = Image.fromarray(np.ascontiguousarray(cell.frame)).resize((_SIDE, _SIDE), Image.Resampling.HAMMING)
        sheet.paste(picture, (left, top))
        pen.rectangle((left, top, left + _SIDE - 1, top + _SIDE - 1), outline=_COLOURS[cell.source], width=3)
        _draw_motion(pen, cell.action, (left + _SIDE // 2, top + _SIDE // 2))
        lines = [cell.title, _held(cell.action), *_wrapped(pen, cell.instruction, 2)]
        for line, text in enumerate(lines):
            pen.text((left, top + _SIDE + 2 + 14 * line), _fitted(pen, text), fill=(230, 230, 230))
    return sheet


def _held(action: DesktopAction) -> str:
    keys = sorted(map(name_of, action.keys))
    buttons = [f"mouse {_BUTTON_NAMES.get(button, str(button))}" for button in sorted(action.buttons)]
    moved = [f"{action.mouse_dx_px:+.0f},{action.mouse_dy_px:+.0f}"] if _moves(action) else []
    return " ".join([*keys, *buttons, *moved]) or "-"


def _moves(action: DesktopAction) -> bool:
    return bool(action.mouse_dx_px or action.mouse_dy_px)


def _draw_motion(pen: Any, action: DesktopAction, centre: tuple[int, int]) -> None:
    if not _moves(action):
        return
    length = math.hypot(action.mouse_dx_px, action.mouse_dy_px)
    scale = min(_SIDE / 2 - 6, 8 + 12 * math.log2(1 + length)) / length
    end = (centre[0] + action.mouse_dx_px * scale, centre[1] + action.mouse_dy_px * scale)
    pen.line((*centre, *end), fill=(255, 220, 0), width=3)
    pen.ellipse((end[0] - 4, end[1] - 4, end[0] + 4, end[1] + 4), fill=(255, 220, 0))


def _wrapped(pen: Any, text: str, most: int) -> list[str]:
    """Return a text in at most so many lines; the last one takes what is left."""
    lines: list[str] = []
    words = _drawable(text).split()
    while words and len(lines) < most - 1:
        count = 1
        while count < len(words) and pen.textlength(" ".join(words[: count + 1])) <= _SIDE:
            count += 1
        lines.append(" ".join(words[:count]))
        words = words[count:]
    return [*lines, " ".join(words)]


def _drawable(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1")  # Pillow's built-in font has no more


def _fitted(pen: Any, text: str) -> str:
    """Return as much of a text as fits under a frame."""
    text = _drawable(text)
    while text and pen.textlength(text) > _SIDE:
        text = text[:-2].rstrip(".") + "." if len(text) > 2 else ""
    return text
