"""Films of a world, made without a window: every action is waited for, so that a film is its seed and its actions.

Shape legend: H height, W width.
"""

from __future__ import annotations

import itertools
import json
import random
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.actions import Action, DesktopAction
from playserve.errors import BadSettingError, DataLossError
from playserve.specs import ActionSpec, DiscreteActionSpec
from playserve_client.evaluate.actions import unpack_actions
from playserve_client.session import Session
from playserve_client.worlds.view import Shown, idle_action, show

__all__ = ["FilmWriter", "actions_of", "film"]

#: Frames are enlarged to about so many pixels on the longer side, each pixel to a square.
_SIDE_PX = 512
#: A random player changes its mind with this chance a step: what is drawn anew each step goes nowhere.
_CHANGE = 0.2


def actions_of(source: str, spec: ActionSpec, seed: int) -> Iterator[Action]:
    """Return the actions of a film.

    Args:
        source: "random", without an end; or a file: ``.npz`` as `playserve rollout` keeps an episode's actions; else
            text, a line a step: an action's index or name, or JSON such as {"keys": ["KeyW"], "mouse_dx_px": 12}, each
            optionally followed by " x" and how often.
        spec: The world's actions.
        seed: Of the random ones.

    Raises:
        BadSettingError: A line says nothing that the world knows.
        DataLossError: The file is damaged.
        FileNotFoundError: There is none.
    """
    if source == "random":
        return _random(spec, random.Random(f"{seed}/actions"))
    path = Path(source)
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as stored:
                return iter(unpack_actions({name: stored[name] for name in stored.files}))
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataLossError(f"{path} holds no episode's actions: {error}") from error
    return iter([action for line in path.read_text(encoding="utf-8").splitlines() for action in _line(line, spec)])


def _random(spec: ActionSpec, rng: random.Random) -> Iterator[Action]:
    action = idle_action(spec)
    while True:
        if rng.random() < _CHANGE:
            if isinstance(spec, DiscreteActionSpec):
                action = rng.randrange(spec.n)
            else:
                motion = round(rng.uniform(-0.1, 0.1) * spec.max_mouse_px)
                action = DesktopAction(
                    keys=frozenset(key for key in spec.keys if rng.random() < 0.3),
                    buttons=frozenset(button for button in spec.buttons if rng.random() < 0.2),
                    mouse_dx_px=float(motion),
                )
        yield action


def _line(line: str, spec: ActionSpec) -> list[Action]:
    text = line.split("#", 1)[0].strip()
    if not text:
        return []
    body, times = text, 1
    if (parts := text.rsplit(" x", 1))[1:] and parts[1].isdigit():
        body, times = parts[0].strip(), int(parts[1])
    if isinstance(spec, DiscreteActionSpec):
        index = int(body) if body.isdigit() else spec.names.index(body) if body in spec.names else -1
        if not 0 <= index < spec.n:
            raise BadSettingError(f"action {body!r}, wanted 0 to {spec.n - 1}, or one of {list(spec.names[:18])}")
        return [index] * times
    try:
        value = json.loads(body)
        keys, buttons = (frozenset(value.pop(name, ())) for name in ("keys", "buttons"))
        return [DesktopAction(keys, buttons, **value)] * times
    except (ValueError, TypeError, AttributeError) as error:
        raise BadSettingError(f'action {body!r} is not JSON such as {{"keys": ["KeyW"]}}: {error}') from error


class FilmWriter:
    """Writes frames into an ``.mp4`` (needs PyAV) or ``.gif`` (needs pillow), enlarged; a context manager.

    Args:
        path: The film.
        size: Height and width of the frames.
        fps: Frames a second.

    Raises:
        BadSettingError: The path ends otherwise.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        if path.suffix not in (".mp4", ".gif"):
            raise BadSettingError(f"film {path}, wanted a name that ends in .mp4 or .gif")
        self._path, self._fps, self._frames = path, fps, list[NDArray[np.uint8]]()
        self._scale = max(1, _SIDE_PX // max(size))
        self._scale += self._scale % 2 if any(side * self._scale % 2 for side in size) else 0  # video has even sides
        path.parent.mkdir(parents=True, exist_ok=True)
        self._video: Any = None
        if path.suffix == ".mp4":
            from playserve_client.p2p.video import VideoWriter

            self._video = VideoWriter(path, size[1] * self._scale, size[0] * self._scale, fps)

    def __enter__(self) -> FilmWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._video is not None:
            self._video.close()
        elif self._frames:
            from playserve_client.evaluate.video import write_gif

            write_gif(self._path, self._frames, max(20, round(1000 / self._fps / 10) * 10))

    def add(self, frame_HW3: NDArray[np.uint8]) -> None:
        """Add a frame, uint8 [H, W, 3]."""
        large = frame_HW3.repeat(self._scale, 0).repeat(self._scale, 1)
        if self._video is not None:
            self._video.write(large)
        else:
            self._frames.append(large)


def film(session: Session, actions: Iterator[Action], steps: int, take: Callable[[Shown], None]) -> dict[str, Any]:
    """Play a session of a world to the end of its actions, of `steps`, or of itself; return the numbers.

    Args:
        session: Open, in LOCKSTEP; its next step begins the world.
        actions: What is done, from the step after the first on; in that nothing is done.
        steps: Most frames.
        take: Gets each.
    """
    began, rewards, unsure, seen = time.monotonic(), 0.0, list[float](), 0
    shown = None
    for action in itertools.chain([idle_action(session.spec.action)], actions):
        if seen >= steps or (shown is not None and shown.terminated):
            break
        shown = show(session.step_world(action))
        take(shown)
        seen += 1
        rewards += shown.reward
        if shown.uncertainty is not None:
            unsure.append(shown.uncertainty)
    seconds = max(time.monotonic() - began, 1e-9)
    return {
        "frames": seen,
        "reward": rewards,
        "terminated": shown is not None and shown.terminated,
        "uncertainty_nats": float(np.mean(unsure)) if unsure else None,
        "frames_per_s": round(seen / seconds, 2),
    }
