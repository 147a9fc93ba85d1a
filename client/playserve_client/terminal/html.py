"""A NetHack game for a web page: one piece of HTML that plays it, with nothing to fetch.

The screens travel as changes, deflated, in base64, and are inflated by the browser; a game of 5,000 steps is some
hundred kilobytes. Any number of replays fit on one page.

Shape legend: T frames, D changed cells.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from html import escape
from importlib.resources import files

import numpy as np

from playserve.errors import BadSettingError
from playserve_client.nethack.tty import TTY_COLUMNS, TTY_ROWS, TtyChunk
from playserve_client.terminal.keys import key_name, key_text
from playserve_client.terminal.recording import Recording, best_excerpt, to_chunk
from playserve_client.terminal.screen import PALETTE, Screen, glyph, look

__all__ = ["MAX_FRAMES", "render_page", "render_recording", "render_replay", "script_source"]

#: Frames that a replay shows unless it is told otherwise.
MAX_FRAMES = 5000
_SPEEDS = (2, 5, 10, 20, 50, 100, 200)
_DEFAULT_SPEED = 10
_SCORE_PLACE = '<span class="nhr-score"></span>'
_KEY_PLACE = '<span>next key <kbd class="nhr-key"></kbd> <span class="nhr-meaning"></span></span>'


def render_replay(
    chunk: TtyChunk,
    *,
    title: str,
    facts: Mapping[str, str],
    element_id: str,
    first_step: int = 0,
    total_steps: int | None = None,
    show_keys: bool = True,
    show_scores: bool = True,
) -> str:
    """Return a ``<figure>`` that plays the frames; it brings its own style and script.

    Args:
        chunk: The frames.
        title: Its heading, as text.
        facts: Shown under the screen: name to text.
        element_id: Its id in the page; one of its own for each replay.
        first_step: The game's number of the first frame, for an excerpt.
        total_steps: Frames of the whole game; by default the excerpt ends the game.
        show_keys: False where the chunk's keys are not known.
        show_scores: False where its scores are not.

    Raises:
        BadSettingError: No frames, or an id that is not letters, digits, hyphens and underscores.
    """
    if not len(chunk):
        raise BadSettingError("a replay needs at least one frame")
    if not element_id.replace("-", "").replace("_", "").isalnum() or not element_id.isascii():
        raise BadSettingError(f"an element's id is letters, digits, - and _, not {element_id!r}")
    value = {
        "first": first_step,
        "total": total_steps if total_steps is not None else first_step + len(chunk),
        "glyphs": "".join(glyph(code) for code in range(256)),
        "names": _key_names(chunk) if show_keys else None,
        "scored": show_scores,
        "data": pack(chunk),
    }
    data = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    first = Screen(chunk.chars[0], chunk.colors[0], (0, 0))
    label = escape(title)
    return (
        f'<figure class="nhr" id="{element_id}" role="group" aria-label="{label}">'
        f"<style>{_style()}</style>"
        f'<figcaption class="nhr-title">{label}</figcaption>'
        f'<div class="nhr-box"><pre class="nhr-screen" role="img" tabindex="0" aria-label="First screen of the game">'
        f"{_still(first)}</pre></div>"
        f'<div class="nhr-controls" hidden>{_controls(element_id, len(chunk))}</div>'
        f'<p class="nhr-now"><b class="nhr-step"></b>{_SCORE_PLACE * show_scores}{_KEY_PLACE * show_keys}</p>'
        '<p class="nhr-message" role="status"></p>'
        '<noscript><p class="nhr-message">The replay needs JavaScript; this is its first screen.</p></noscript>'
        f"{_facts(facts)}"
        f'<script type="application/json" class="nhr-data">{data}</script>'
        f"<script>{_script()}</script></figure>"
    )


def render_recording(
    recording: Recording,
    *,
    element_id: str,
    title: str | None = None,
    facts: Mapping[str, str] | None = None,
    start: int | None = None,
    frames: int = MAX_FRAMES,
) -> str:
    """Return a replay of a recording; of one that is longer than `frames`, an excerpt, and says so.

    Args:
        recording: The game.
        element_id: The replay's id in the page.
        title: Its heading; by default the recording's name.
        facts: Shown under the screen; by default the recording's.
        start: First frame of the excerpt; by default those `frames` frames are shown in which the score grows most.
        frames: Most frames shown, at least 1.
    """
    if frames < 1:
        raise BadSettingError(f"a replay shows at least one frame, not {frames}")
    while recording.read_ahead():
        pass
    total = len(recording)
    if start is not None:
        first, stop = start, min(total, start + frames)
    else:
        scores = np.array([recording.score(index) or 0 for index in range(total)], np.int32)
        first, stop = best_excerpt(scores, frames)
    shown = dict(recording.facts if facts is None else facts)
    if stop - first < total:
        why = "" if start is not None else ", those in which the score grew most"
        shown["shown"] = f"steps {first:,} to {stop - 1:,} of {total - 1:,}{why}"
    if recording.problem:
        shown["damaged"] = f"{recording.problem}; the first {total:,} frames are whole"
    return render_replay(
        to_chunk(recording, first, stop),
        title=recording.name if title is None else title,
        facts=shown,
        element_id=element_id,
        first_step=first,
        total_steps=total,
        show_keys=recording.key(first) is not None,
        show_scores=recording.score(first) is not None,
    )


def render_page(replay: str, title: str) -> str:
    """Return a whole page around one replay; its policy forbids the browser to fetch anything."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        f'script-src {script_source()}">\n<title>{escape(title)}</title>\n'
        "<style>body { margin: 0; background: #0b0c0f; } main { max-width: 52rem; margin: 0 auto; padding: 1rem; }"
        f"</style>\n</head>\n<body><main>{replay}</main></body>\n</html>\n"
    )


def script_source() -> str:
    """Return what a page's Content-Security-Policy must allow in ``script-src`` for replays: their script's hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()}'"


def pack(chunk: TtyChunk) -> str:
    """Return the frames as the script reads them: columns, little-endian, deflated (zlib), in base64.

    uint32 T and D; int32 [T] score minus that of the frame before; uint16 [T] changed cells; uint16 [T] cursor as
    row * 80 + column; uint16 [D] cells that changed, as the distance from the one before in that frame; uint8 [T] keys;
    uint8 [D] characters; uint8 [D] colours. The first frame's changes are from a screen of zeros.
    """
    frames = len(chunk)
    chars = chunk.chars.reshape(frames, -1)
    colors = chunk.colors.reshape(frames, -1).view(np.uint8)
    changed = np.ones(chars.shape, np.bool_)
    changed[1:] = (chars[1:] != chars[:-1]) | (colors[1:] != colors[:-1])
    frame_D, cell_D = np.nonzero(changed)
    gap_D = np.diff(cell_D, prepend=0)
    first_D = np.concatenate(([True], frame_D[1:] != frame_D[:-1]))
    gap_D[first_D] = cell_D[first_D]
    row_T = np.minimum(chunk.cursor[:, 0].astype(np.uint16), TTY_ROWS - 1)
    column_T = np.minimum(chunk.cursor[:, 1].astype(np.uint16), TTY_COLUMNS - 1)
    columns = (
        np.array([frames, len(cell_D)], "<u4"),
        np.diff(chunk.scores, prepend=np.int32(0)).astype("<i4"),
        np.count_nonzero(changed, axis=1).astype("<u2"),
        (row_T * TTY_COLUMNS + column_T).astype("<u2"),
        gap_D.astype("<u2"),
        chunk.keys.astype(np.uint8),
        chars[frame_D, cell_D],
        colors[frame_D, cell_D],
    )
    return base64.b64encode(zlib.compress(b"".join(column.tobytes() for column in columns), 9)).decode()


def _key_names(chunk: TtyChunk) -> dict[int, tuple[str, str]]:
    """Return key code to (key, meaning) of the keys in the chunk."""
    names = {}
    for code in np.unique(chunk.keys).tolist():
        key = key_text(code)
        names[code] = (key, key_name(code)[len(key) :].strip())
    return names


def _still(screen: Screen) -> str:
    """Return the screen as the script draws it, without the cursor: what is seen before, or without, the script."""
    rows = []
    for row in range(TTY_ROWS):
        runs = "".join(f'<i class="{_classes(color)}">{escape(text)}</i>' for text, color in screen.runs(row))
        rows.append(f"<span>{runs}</span>")
    return "".join(rows)


def _classes(color: int) -> str:
    shown, reverse = look(color)
    return f"nhr-c{shown}" + (" nhr-r" if reverse else "")


def _controls(element_id: str, frames: int) -> str:
    options = "".join(
        f'<option value="{speed}"{" selected" if speed == _DEFAULT_SPEED else ""}>{speed} steps/s</option>'
        for speed in _SPEEDS
    )
    return (
        '<button type="button" class="nhr-play">Play</button>'
        '<button type="button" class="nhr-back" aria-label="One step back">&#8722;1</button>'
        '<button type="button" class="nhr-next" aria-label="One step forward">+1</button>'
        f'<input type="range" class="nhr-seek" aria-label="Step" min="0" max="{frames - 1}" value="0" '
        'autocomplete="off">'
        f'<span class="nhr-rate"><label for="{element_id}-speed">Speed</label> '
        f'<select class="nhr-speed" id="{element_id}-speed" autocomplete="off">{options}</select></span>'
    )


def _facts(facts: Mapping[str, str]) -> str:
    text = " · ".join(f"{escape(name)} {escape(value)}" for name, value in facts.items())
    help_text = (
        "Keys: <kbd>space</kbd> play or pause, <kbd>&#8592;</kbd> <kbd>&#8594;</kbd> a step, <kbd>&#8593;</kbd> "
        "<kbd>&#8595;</kbd> speed, <kbd>Home</kbd> <kbd>End</kbd>."
    )
    return (f'<p class="nhr-facts">{text}</p>' if text else "") + f'<p class="nhr-help">{help_text}</p>'


def _style() -> str:
    css = files(__package__).joinpath("replay.css").read_text(encoding="utf-8")
    return css + "".join(f".nhr-c{index} {{ --nhr-c: {color}; }}\n" for index, color in enumerate(PALETTE))


def _script() -> str:
    return files(__package__).joinpath("replay.js").read_text(encoding="utf-8")
