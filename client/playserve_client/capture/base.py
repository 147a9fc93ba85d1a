"""What a capture and a window system are, whatever the platform: rectangles, windows, and the two interfaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from playserve.resize import bgrx_to_rgb, resize_bgrx
from playserve_client.capture.errors import RegionError, WindowAmbiguousError, WindowNotFoundError

__all__ = ["Capture", "Image", "Picture", "Region", "Target", "Window", "WindowSystem", "choose_window", "parse_region"]

#: uint8 [H, W, 3], RGB.
Image = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Picture:
    """What was on the screen, as the screen has it.

    Attributes:
        pixels: Rows of pixels of 4 bytes: blue, green, red and one that means nothing.
        height: In physical pixels.
        width: In physical pixels.
    """

    pixels: bytes | bytearray
    height: int
    width: int

    def rgb(self) -> Image:
        """Return uint8 [H, W, 3]."""
        return bgrx_to_rgb(self.pixels, self.height, self.width)

    def resized(self, height: int, width: int, resize_id: str) -> Image:
        """Return uint8 [height, width, 3]: this picture as :func:`playserve.resize.resize` makes it."""
        return resize_bgrx(self.pixels, (self.height, self.width), height, width, resize_id)


_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of the screen, not empty, in the screen's own units: pixels, on macOS points."""

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise RegionError(f"a region of {self.width} x {self.height}, wanted at least 1 x 1")

    @property
    def right(self) -> int:
        """Return the first column to the right of it."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """Return the first row below it."""
        return self.y + self.height

    def overlaps(self, other: Region) -> bool:
        """Return whether they share a pixel."""
        return self.x < other.right and other.x < self.right and self.y < other.bottom and other.y < self.bottom

    def contains(self, other: Region) -> bool:
        """Return whether all of `other` lies in this one."""
        return self.x <= other.x and self.y <= other.y and other.right <= self.right and other.bottom <= self.bottom

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.width},{self.height}"


def parse_region(text: str) -> Region:
    """Return the region of "X,Y,W,H"; RegionError names what came instead."""
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise RegionError(f"region {text!r}, wanted X,Y,W,H in whole pixels") from None
    return Region(x, y, width, height)


@dataclass(frozen=True, slots=True)
class Window:
    """A window of somebody's.

    Attributes:
        handle: The platform's number for it.
        title: As its title bar says.
        owner: Program or process that it belongs to, where that is known.
    """

    handle: int
    title: str
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the game is now.

    Attributes:
        region: What of the screen to capture.
        in_front: Whether it has the focus and nothing lies over it: the only state in which it is looked at or played.
        reason: Why it is not in front, for people; empty where it is.
    """

    region: Region
    in_front: bool
    reason: str = ""


class WindowSystem(Protocol):
    """Finds windows and says whether the user is in one."""

    def windows(self) -> Sequence[Window]:
        """Return the visible windows that have a title."""
        ...

    def window_at(self, region: Region) -> Window:
        """Return the frontmost window over the middle of `region`; WindowNotFoundError where there is none."""
        ...

    def look(self, window: Window, region: Region | None = None) -> Target:
        """Return where a window is now, and whether it is in front.

        Args:
            window: One of :meth:`windows`.
            region: Part of the screen that is captured, where that is not the window's inside.

        Raises:
            WindowGoneError: It has been closed.
        """
        ...

    def glance(self, window: Window, region: Region | None = None) -> Target:
        """Return what :meth:`look` does, by what the system has told so far, where that saves asking it."""
        ...

    def close(self) -> None:
        """Let go of the display."""
        ...


class Capture(Protocol):
    """Reads pixels off the screen. Used by one thread."""

    def grab(self, region: Region) -> Picture:
        """Return what is on the screen now, in physical pixels."""
        ...

    def close(self) -> None:
        """Let go of the display."""
        ...


def choose_window(windows: Sequence[Window], title: str) -> Window:
    """Return the window that `title` names: its whole title, or, where no window has that, a part of it in any case.

    Raises:
        WindowNotFoundError: None fits; the message lists what there is.
        WindowAmbiguousError: Several fit.
    """
    if not title:
        raise WindowNotFoundError("an empty title names no window")
    found = [window for window in windows if window.title == title]
    if not found:
        found = [window for window in windows if title.casefold() in window.title.casefold()]
    if not found:
        there = _listed(windows) or "none"
        raise WindowNotFoundError(f"no visible window has {title!r} in its title; there are: {there}")
    if len(found) > 1:
        raise WindowAmbiguousError(f"{len(found)} windows fit {title!r}, wanted one: {_listed(found)}")
    return found[0]


def _listed(windows: Sequence[Window]) -> str:
    titles = ", ".join(repr(window.title) for window in windows[:_SHOWN])
    return titles + (f" and {len(windows) - _SHOWN} more" if len(windows) > _SHOWN else "")
