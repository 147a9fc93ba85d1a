"""The expert of ``take_cover``: it foresees where fireballs will pass and steps where none will."""

from __future__ import annotations

from playserve.actions import DesktopAction
from playserve_client.doom.view import Seen, View

__all__ = ["Dodger"]

# Of a walk sideways, map units a tic, reached at once in this reckoning.
_SPEED = 6.5
# Player's radius and the ball's, with some to spare.
_CLEAR = 38.0
_HORIZON_TICS = 60
_WALL = 40.0


class Dodger:
    """Moves left or right so that the fireballs on the screen pass by."""

    def __init__(self) -> None:
        self._last = 0

    def reset(self) -> None:
        """Begin an episode."""
        self._last = 0

    def act(self, view: View) -> DesktopAction:
        """Return the key to hold."""
        balls = [thing for thing in view.seen if thing.name.endswith("Ball")]
        best = max((-1, 0, 1), key=lambda way: self._worth(view, balls, way))
        self._last = best
        return DesktopAction(frozenset({"KeyA"}) if best > 0 else frozenset({"KeyD"}) if best < 0 else frozenset())

    def _worth(self, view: View, balls: list[Seen], way: int) -> float:
        """Return how good it is to move `way` along the map's y (1: up, which is to the left)."""
        x, y = view.variables["POSITION_X"], view.variables["POSITION_Y"]
        ys = [wall[1] for wall in view.walls] + [wall[3] for wall in view.walls]
        low, high = min(ys) + _WALL, max(ys) - _WALL
        nearest = 200.0
        for ball in balls:
            for tic in range(2, _HORIZON_TICS, 2):
                own = min(high, max(low, y + way * _SPEED * tic))
                off = abs(ball.y + ball.velocity_y * tic - own)
                if abs(ball.x + ball.velocity_x * tic - x) < 30:
                    nearest = min(nearest, off + 0.3 * tic)
        middle = (low + high) / 2
        ahead = abs(y + way * 20 - middle) / (high - low)
        return min(nearest, _CLEAR * 2) - 4 * ahead + (2.0 if way == self._last else 0.0)
