"""What scripted players see: labels of the things on the screen, depth, walls, game variables. No policy sees it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Seen", "View"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A thing on the screen.

    Attributes:
        name: Its class in the game.
        category: "Monster", "Projectile", "Health", ... as ViZDoom names it.
        number: The same for the same thing from frame to frame.
        left_px: Of its box.
        top_px: Of its box.
        width_px: Of its box.
        height_px: Of its box.
        x: In the map.
        y: In the map.
        velocity_x: Map units a tic.
        velocity_y: Map units a tic.
    """

    name: str
    category: str
    number: int
    left_px: int
    top_px: int
    width_px: int
    height_px: int
    x: float
    y: float
    velocity_x: float
    velocity_y: float

    @property
    def middle_px(self) -> float:
        """Return the column of its middle."""
        return self.left_px + self.width_px / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One frame as a scripted player sees it.

    Attributes:
        seen: What is on the screen, without the player.
        variables: Game variables by name.
        width_px: Of the screen.
        depth: uint8 [H, W], or None.
        walls: Lines that block, (x1, y1, x2, y2), where asked for.
        tic: Of the episode.
    """

    seen: tuple[Seen, ...]
    variables: Mapping[str, float]
    width_px: int
    depth: NDArray[np.uint8] | None
    walls: tuple[tuple[float, float, float, float], ...]
    tic: int

    def bearing(self, x: float, y: float) -> float:
        """Return how far to the right of the player's look a place is, degrees from -180 to 180."""
        own = self.variables
        towards = math.degrees(math.atan2(y - own["POSITION_Y"], x - own["POSITION_X"]))
        return (own["ANGLE"] - towards + 180.0) % 360.0 - 180.0

    def column_bearing(self, column_px: float) -> float:
        """Return how far to the right of the player's look a column of the screen is, degrees; 90 are in view."""
        half = self.width_px / 2
        return math.degrees(math.atan((column_px - half) / half))

    def shown(self, thing: Seen, width: float = 40.0) -> float:
        """Return which part of a thing that is `width` map units wide is on the screen, across: about 0 to 1."""
        whole_px = width * self.width_px / 2 / max(self.distance(thing.x, thing.y), 1.0)
        return thing.width_px / whole_px

    def distance(self, x: float, y: float) -> float:
        """Return how far a place is, map units."""
        return math.hypot(x - self.variables["POSITION_X"], y - self.variables["POSITION_Y"])

    def nearest(self, things: Iterable[Seen]) -> Seen | None:
        """Return the nearest of some things, or None."""
        return min(things, key=lambda thing: self.distance(thing.x, thing.y), default=None)

    def of_category(self, *categories: str) -> list[Seen]:
        """Return the things of these categories."""
        return [thing for thing in self.seen if thing.category in categories]
