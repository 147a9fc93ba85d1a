"""Small recordings in Open P2P's format whose frames say which frame they are, and whose actions follow from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from playserve.actions import DesktopAction
from playserve_client.p2p.recording import Source
from playserve_client.p2p.video import VideoSettings
from playserve_client.p2p.writer import RecordingWriter

#: Brightness from one frame to the next; the codec's error is far below.
STEP = 4
KEYS = ("KeyW", "KeyA", "KeyS", "KeyD")


def grey(number: int, size: int = 32) -> NDArray[np.uint8]:
    """Return the frame of a number, 0 to 60: of one brightness."""
    return np.full((size, size, 3), number * STEP, np.uint8)


def numbers_of(frames: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the numbers of frames [..., S, S, 3] as :func:`grey` made them."""
    means: NDArray[np.int64] = np.rint(frames.astype(np.float64).mean((-3, -2, -1)) / STEP).astype(np.int64)
    return means


def action_at(number: int) -> DesktopAction:
    """Return what is held when frame `number` is captured."""
    return DesktopAction(
        keys=frozenset({KEYS[number % 4]}),
        buttons=frozenset({0} if number % 3 == 0 else ()),
        mouse_dx_px=number % 5 - 2,
    )


def record(
    root: Path,
    frames: int,
    *,
    size: int = 32,
    env: str = "toy",
    subtype: str = "grey",
    source: Callable[[int], Source] = lambda number: Source.USER,
    texts: Sequence[tuple[str, int, int]] = (),
    picture: Callable[[int, int], NDArray[np.uint8]] = grey,
    encoding: str = "rgb",
    episodes: Sequence[int] = (),
) -> Path:
    """Write one recording; `texts` are (text, first frame, frames), `episodes` the first frames of episodes."""
    settings = VideoSettings(encoding=encoding, crf=6, preset="ultrafast", keyframe_every=16)
    with RecordingWriter(root, env=env, env_subtype=subtype, frame_size=(size, size), video=settings) as writer:
        for number in range(frames):
            action = action_at(number) if source(number) is not Source.UNKNOWN else None
            sidecar = {"first": number in episodes} if episodes else None
            writer.add(picture(number, size), action, source(number), sidecar=sidecar)
        for text, first, count in texts:
            writer.instruct(text, first, count)
    return writer.path
