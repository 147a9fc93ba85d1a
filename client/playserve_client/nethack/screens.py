"""Screens as changes: what differs from the frame before, in groups of four cells, with a whole screen now and then.

Three of four frames of a game change a few cells, and the others open or close a menu. Groups of four neighbouring
cells (never across two rows) make it a third as many changes to apply as single cells, in fewer bytes.

Shape legend: T frames, B rows, S segments (stretches of one game), D changed groups, K whole screens,
C cells of a screen (1,920), G groups of a screen (480).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from playserve_client.nethack.tty import TTY_COLUMNS, TTY_ROWS

__all__ = ["CELLS", "GROUPS", "EncodedScreens", "ScreenEncoder", "Segment", "decode_segments"]

CELLS: Final = TTY_ROWS * TTY_COLUMNS
_GROUP: Final = 4
GROUPS: Final = CELLS // _GROUP
# Frames encoded at once: small enough for the cache.
_BLOCK: Final = 256


@dataclass(frozen=True, slots=True)
class EncodedScreens:
    """T frames as changes.

    Attributes:
        counts: int64 [T], changed groups of each frame; 0 in the first frame of a game.
        positions: uint16 [D], which group.
        chars: uint8 [D, 4], its new characters.
        colors: uint8 [D, 4], its new colours.
        keyframe_chars: uint8 [K, 1920], whole screens of those frames whose number is a multiple of `keyframe_every`.
        keyframe_colors: uint8 [K, 1920].
    """

    counts: NDArray[np.int64]
    positions: NDArray[np.uint16]
    chars: NDArray[np.uint8]
    colors: NDArray[np.uint8]
    keyframe_chars: NDArray[np.uint8]
    keyframe_colors: NDArray[np.uint8]


class ScreenEncoder:
    """Encodes the frames of one game, some at a time; the result does not depend on how many.

    Args:
        keyframe_every: Frames from one whole screen to the next.
    """

    def __init__(self, keyframe_every: int) -> None:
        if keyframe_every < 1:
            raise ValueError(f"keyframe_every is at least 1, not {keyframe_every}")
        self._every = keyframe_every
        self._step = 0
        self._last: tuple[NDArray[np.uint32], NDArray[np.uint32]] | None = None

    def encode(self, chars: NDArray[np.uint8], colors: NDArray[np.int8]) -> list[EncodedScreens]:
        """Return the next frames in pieces.

        Args:
            chars: uint8 [T, 24, 80].
            colors: int8 [T, 24, 80].
        """
        chars_TG = np.ascontiguousarray(chars).reshape(len(chars), CELLS).view(np.uint32)
        colors_TG = np.ascontiguousarray(colors).reshape(len(colors), CELLS).view(np.uint32)
        return [
            self._block(chars_TG[at : at + _BLOCK], colors_TG[at : at + _BLOCK]) for at in range(0, len(chars), _BLOCK)
        ]

    def _block(self, chars_TG: NDArray[np.uint32], colors_TG: NDArray[np.uint32]) -> EncodedScreens:
        changed_TG = np.zeros(chars_TG.shape, np.bool_)
        np.not_equal(chars_TG[1:], chars_TG[:-1], out=changed_TG[1:])
        changed_TG[1:] |= colors_TG[1:] != colors_TG[:-1]
        if self._last is not None:
            changed_TG[0] = (chars_TG[0] != self._last[0]) | (colors_TG[0] != self._last[1])
        at_D = np.flatnonzero(changed_TG)
        frame_D, group_D = np.divmod(at_D, GROUPS)
        keyframes = np.arange(-self._step % self._every, len(chars_TG), self._every)
        self._step += len(chars_TG)
        self._last = (chars_TG[-1].copy(), colors_TG[-1].copy())
        return EncodedScreens(
            counts=np.bincount(frame_D, minlength=len(chars_TG)),
            positions=group_D.astype(np.uint16),
            chars=chars_TG.reshape(-1)[at_D].view(np.uint8).reshape(-1, _GROUP),
            colors=colors_TG.reshape(-1)[at_D].view(np.uint8).reshape(-1, _GROUP),
            keyframe_chars=chars_TG[keyframes].view(np.uint8).reshape(-1, CELLS),
            keyframe_colors=colors_TG[keyframes].view(np.uint8).reshape(-1, CELLS),
        )


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of consecutive frames of one game, and where its frames go.

    Attributes:
        place: Index of its first frame in the output [B, T], taken flat; a segment lies within one row.
        length: Frames.
        keyframe_chars: uint32 [480], the whole screen at or before its first frame.
        keyframe_colors: uint32 [480].
        leading: Changes from that screen up to its first frame, those of the first frame included.
        ends: [length], changes up to and with each frame, counted from where the game begins.
        positions: uint16 [leading + those of the other frames], the changes in order.
        chars: uint32, the same length.
        colors: uint32, the same length.
    """

    place: int
    length: int
    keyframe_chars: NDArray[np.uint32]
    keyframe_colors: NDArray[np.uint32]
    leading: int
    ends: NDArray[Any]
    positions: NDArray[np.uint16]
    chars: NDArray[np.uint32]
    colors: NDArray[np.uint32]


def decode_segments(segments: Sequence[Segment], chars_BTG: NDArray[np.uint32], colors_BTG: NDArray[np.uint32]) -> None:
    """Write the screens of segments that together cover the output.

    One step in time is one copy and one scatter over all rows, so that the cost a frame is that of moving its bytes.

    Args:
        segments: In the order of their places.
        chars_BTG: uint32 [B, T, 480], C-contiguous: four characters each.
        colors_BTG: uint32 [B, T, 480], C-contiguous: four colours each.
    """
    rows, steps, _ = chars_BTG.shape
    starts_S = np.array([segment.place for segment in segments], np.int64)
    first_SG = _first_screens(segments)
    ends_N = np.concatenate([segment.ends for segment in segments]).astype(np.int64)
    counts_N = np.diff(ends_N, prepend=0)
    counts_N[starts_S] = 0
    counts_TB = counts_N.reshape(rows, steps).T
    positions_D = np.concatenate([segment.positions[segment.leading :] for segment in segments])
    # The changes come row by row and are wanted step by step.
    counts_M = counts_TB.ravel()
    stops_M = np.cumsum(counts_M)
    begins_M = (np.cumsum(counts_N) - counts_N).reshape(rows, steps).T.ravel()
    take_D = np.repeat(begins_M - (stops_M - counts_M), counts_M) + np.arange(len(positions_D))
    base_M = (np.arange(rows * steps) * GROUPS).reshape(rows, steps).T.ravel()
    target_D = np.repeat(base_M, counts_M) + positions_D[take_D]
    new_chars_D = np.concatenate([segment.chars[segment.leading :] for segment in segments])[take_D]
    new_colors_D = np.concatenate([segment.colors[segment.leading :] for segment in segments])[take_D]
    stop_T = stops_M[rows - 1 :: rows].tolist()
    begun_row_S, begun_step_S = np.divmod(starts_S, steps)
    begun = {int(t): np.flatnonzero(begun_step_S == t) for t in np.unique(begun_step_S)}
    chars_N, colors_N = chars_BTG.reshape(-1), colors_BTG.reshape(-1)
    low = 0
    for t in range(steps):
        if t:
            chars_BTG[:, t] = chars_BTG[:, t - 1]
            colors_BTG[:, t] = colors_BTG[:, t - 1]
        if t in begun:
            which = begun[t]
            chars_BTG[begun_row_S[which], t] = first_SG[0][which]
            colors_BTG[begun_row_S[which], t] = first_SG[1][which]
        high = stop_T[t]
        if high > low:
            target = target_D[low:high]
            chars_N[target] = new_chars_D[low:high]
            colors_N[target] = new_colors_D[low:high]
        low = high


def _first_screens(segments: Sequence[Segment]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return the first screen of each segment, [S, 480] of characters and of colours."""
    chars_SG = np.stack([segment.keyframe_chars for segment in segments])
    colors_SG = np.stack([segment.keyframe_colors for segment in segments])
    leading_S = np.array([segment.leading for segment in segments], np.int64)
    target_D = np.repeat(np.arange(len(segments)) * GROUPS, leading_S)
    target_D += np.concatenate([segment.positions[: segment.leading] for segment in segments])
    # Of several changes of one group the last stays: numpy assigns them in order.
    chars_SG.reshape(-1)[target_D] = np.concatenate([segment.chars[: segment.leading] for segment in segments])
    colors_SG.reshape(-1)[target_D] = np.concatenate([segment.colors[: segment.leading] for segment in segments])
    return chars_SG, colors_SG
