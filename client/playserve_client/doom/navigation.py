"""The way through a maze: walls become a grid, distances from the vest are spread over it, and the player descends."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from playserve.actions import DesktopAction
from playserve_client.doom.view import View

__all__ = ["Navigator"]

_CELL = 16.0
# Of the player, with a little to spare.
_RADIUS = 22.0
# Where the vest of my_way_home lies.
_VEST = (1040.0, -352.0)
_LOOK_AHEAD = 14


class _Field:
    """Steps to the vest from every free cell; -1 where there is no way."""

    def __init__(self, walls: tuple[tuple[float, float, float, float], ...], goal: tuple[float, float]) -> None:
        lines = np.array(walls)
        self._low = lines.reshape(-1, 2).min(axis=0) - _CELL
        high = lines.reshape(-1, 2).max(axis=0) + _CELL
        size = np.ceil((high - self._low) / _CELL).astype(int) + 1
        xs, ys = (self._low[axis] + (np.arange(size[axis]) + 0.5) * _CELL for axis in (0, 1))
        grid = np.stack(np.meshgrid(xs, ys, indexing="ij"), axis=-1)
        free = np.ones(tuple(size), bool)
        for x1, y1, x2, y2 in walls:
            free &= _distance(grid, (x1, y1), (x2, y2)) > _RADIUS
        self.free = free
        self.steps = self._spread(self.cell(*goal))

    def cell(self, x: float, y: float) -> tuple[int, int]:
        return int((x - self._low[0]) // _CELL), int((y - self._low[1]) // _CELL)

    def place(self, cell: tuple[int, int]) -> tuple[float, float]:
        return float(self._low[0] + (cell[0] + 0.5) * _CELL), float(self._low[1] + (cell[1] + 0.5) * _CELL)

    def neighbours(self, cell: tuple[int, int]) -> list[tuple[int, int]]:
        around = [(cell[0] + dx, cell[1] + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy]
        return [c for c in around if 0 <= c[0] < self.free.shape[0] and 0 <= c[1] < self.free.shape[1]]

    def straight(self, start: tuple[int, int], end: tuple[int, int]) -> bool:
        """Return whether the straight line between two cells is free."""
        count = 2 * max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
        for i in range(1, count + 1):
            x = round(start[0] + (end[0] - start[0]) * i / count)
            y = round(start[1] + (end[1] - start[1]) * i / count)
            if not self.free[x, y]:
                return False
        return True

    def _spread(self, goal: tuple[int, int]) -> NDArray[np.int64]:
        steps = np.full(self.free.shape, -1)
        steps[goal] = 0
        queue = deque([goal])
        while queue:
            cell = queue.popleft()
            for near in self.neighbours(cell):
                corner = near[0] != cell[0] and near[1] != cell[1]
                if corner and not (self.free[near[0], cell[1]] and self.free[cell[0], near[1]]):
                    continue
                if self.free[near] and steps[near] < 0:
                    steps[near] = steps[cell] + 1
                    queue.append(near)
        return steps


def _distance(grid: NDArray[np.float64], start: tuple[float, float], end: tuple[float, float]) -> NDArray[np.float64]:
    """Return the distance of each point [..., 2] from a line segment."""
    a, b = np.array(start), np.array(end)
    length = max(float(((b - a) ** 2).sum()), 1e-9)
    along = np.clip(((grid - a) @ (b - a)) / length, 0.0, 1.0)
    distance: NDArray[np.float64] = np.linalg.norm(grid - (a + along[..., None] * (b - a)), axis=-1)
    return distance


class Navigator:
    """Walks the shortest way to the vest of ``my_way_home``.

    Args:
        turn: Returns the mouse motion for a bearing.
    """

    def __init__(self, turn: Callable[[float], float]) -> None:
        self._turn = turn
        self._field: _Field | None = None

    def reset(self) -> None:
        """Begin an episode; the map stays the same."""

    def act(self, view: View) -> DesktopAction:
        """Return a step towards the vest."""
        if self._field is None:
            self._field = _Field(view.walls, _VEST)
        vest = view.nearest(view.of_category("Armor"))
        place = (vest.x, vest.y) if vest is not None else self._waypoint(view)
        if vest is not None and not self._reachable(view, place):
            place = self._waypoint(view)
        bearing = view.bearing(*place)
        keys = frozenset({"KeyW"}) if abs(bearing) < 30 else frozenset()
        return DesktopAction(keys, frozenset(), self._turn(bearing))

    def _reachable(self, view: View, place: tuple[float, float]) -> bool:
        assert self._field is not None  # noqa: S101 - act() made it
        own = self._field.cell(view.variables["POSITION_X"], view.variables["POSITION_Y"])
        return self._field.straight(own, self._field.cell(*place))

    def _waypoint(self, view: View) -> tuple[float, float]:
        field = self._field
        assert field is not None  # noqa: S101 - act() made it
        own = field.cell(view.variables["POSITION_X"], view.variables["POSITION_Y"])
        if field.steps[own] < 0:  # touching a wall: the nearest free cell first
            known = np.argwhere(field.steps >= 0)
            own_ = known[np.abs(known - np.array(own)).sum(axis=1).argmin()]
            return field.place((int(own_[0]), int(own_[1])))
        cell, chosen = own, own
        for _ in range(_LOOK_AHEAD):
            cell = min((c for c in field.neighbours(cell) if field.steps[c] >= 0), key=lambda c: int(field.steps[c]))
            if field.straight(own, cell):
                chosen = cell
        if math.dist(own, chosen) < 1:
            chosen = cell
        return field.place(chosen)
