"""Pong's expert: catches every ball where its bounce is hardest to return, and presses fire, which makes it fast.

Where the ball meets the paddle decides how steeply it leaves; the other paddle follows the ball at 1.75 pixels a frame.
So each bounce can be played forward to the other side, and the taps are planned for the best of those that are safe.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

__all__ = ["PongExpert"]

# Minimal actions; right is up. Pressing fire while the ball is hit doubles its speed.
_NOOP, _FIRE, _UP, _DOWN, _UP_FIRE, _DOWN_FIRE = 0, 1, 2, 3, 4, 5
_SKIP = 4
_BALL_X, _BALL_Y, _VELOCITY_Y, _VELOCITY_X = 49, 54, 56, 58
# The drawn paddle is a copy, a frame late, of a place that moves half-way to the knob every second frame.
_PADDLE, _READING, _ENEMY, _SCORE = 51, 60, 50, (13, 14)
_TOP_WALL, _BOTTOM_WALL = 45, 206
_HIT_X, _LAST_X, _ENEMY_X = 188, 192, 68
_HIT_LOW, _HIT_HIGH = -2, 16
_ENEMY_LOW, _ENEMY_HIGH, _ENEMY_SPEED = -4, 16, 1.75
_KNOB_SPEED, _KNOB_MIN, _KNOB_MAX = 5.63, 38.0, 203.5
_PLANNED_STEPS = 5
_HORIZON_FRAMES = 400
_MIDDLE = 118.0
_DRY_STEPS = 300
# Bounces (by index of their velocity, -2 to 2) that are tried in turn while nobody scores.
_VARIATIONS = (4, 0, 1, 3, 2)


class PongExpert:
    """Plays by RAM; remembers the paddle's knob and on which frames the paddle moves, which RAM does not show."""

    name = "pong-planner"
    version = "1"

    def __init__(self) -> None:
        index_PS = np.array(list(itertools.product(range(3), repeat=_PLANNED_STEPS)))
        self._plans_PS = np.array([0.0, 1.0, -1.0])[index_PS]
        taps = np.abs(self._plans_PS)
        self._plan_cost = taps.sum(axis=1) + (taps * np.arange(_PLANNED_STEPS)).sum(axis=1) * 0.01
        self.reset()

    def reset(self) -> None:
        """Forget the last episode."""
        self._reading: float | None = None
        self._drawn = 0.0
        self._knob = 0.0
        self._reads_on_even = True
        self._score = (0, 0)
        self._dry = 0

    def serving(self, ram: NDArray[np.uint8]) -> bool:
        """Return False: the game serves by itself."""
        return False

    def act(self, ram: NDArray[np.uint8]) -> int:
        """Return the action for `ram`, uint8 [128]."""
        self._observe_paddle(float(ram[_PADDLE]), float(ram[_READING]))
        score = (int(ram[_SCORE[0]]), int(ram[_SCORE[1]]))
        self._dry = self._dry + 1 if score == self._score else 0
        self._score = score
        velocity_x = -_signed(ram[_VELOCITY_X])
        if ram[_BALL_Y] == 0 or velocity_x <= 0:
            return self._approach(_MIDDLE, slack=24.0)
        arrival = self._arrival(ram)
        if not arrival:
            return _NOOP
        first_frame, first_y = arrival[0]
        if first_frame > _SKIP * _PLANNED_STEPS:
            return self._approach(first_y - 7.0, slack=12.0)
        move = self._planned(arrival, self._misses(first_y, float(ram[_ENEMY])))
        if first_frame <= _SKIP:
            return {_NOOP: _FIRE, _UP: _UP_FIRE, _DOWN: _DOWN_FIRE}[move]
        return move

    def _observe_paddle(self, drawn: float, reading: float) -> None:
        """Follow the knob: which of the three moves, in the model, would have put the paddle where it is."""
        if self._reading is None:
            self._reading, self._knob, self._drawn = reading, reading, drawn
            return
        if drawn != reading:
            self._reads_on_even = True
        elif drawn != self._drawn:
            self._reads_on_even = False
        options = []
        for direction in (0, 1, -1):
            place, knob = self._reading, self._knob
            for frame in range(1, _SKIP + 1):
                knob = min(max(knob + direction * _KNOB_SPEED, _KNOB_MIN), _KNOB_MAX)
                if (frame % 2 == 0) == self._reads_on_even:
                    place = (place + knob) / 2
            options.append((place, knob))
        best, knob = min(options, key=lambda option: abs(option[0] - reading - 0.5))
        self._knob = min(max(knob + 0.5 * (reading + 0.5 - best), _KNOB_MIN), _KNOB_MAX)
        self._reading, self._drawn = reading + 0.5, drawn

    def _arrival(self, ram: NDArray[np.uint8]) -> list[tuple[int, float]]:
        """Return (frame from now, ball y) of each frame in which the paddle can hit."""
        x, y = int(ram[_BALL_X]), float(ram[_BALL_Y])
        velocity_x, velocity_y = -_signed(ram[_VELOCITY_X]), float(_signed(ram[_VELOCITY_Y]))
        frames = []
        for frame in range(_HORIZON_FRAMES):
            if x > _LAST_X:
                break
            if x >= _HIT_X:
                frames.append((frame, y))
            x += velocity_x
            y, velocity_y = _fly(y, velocity_y)
        return frames

    def _misses(self, ball_y: float, enemy: float) -> list[float]:
        """Return by how many pixels the other side misses the ball if it leaves with vertical velocity -2 to 2."""
        misses = []
        for velocity in range(-2, 3):
            y, velocity_y, other = ball_y, float(velocity), enemy
            for _ in range((_HIT_X - _ENEMY_X) // 2):
                y, velocity_y = _fly(y, velocity_y)
                other += min(max(y - other, -_ENEMY_SPEED), _ENEMY_SPEED)
            misses.append(max(_ENEMY_LOW - (y - other), y - other - _ENEMY_HIGH))
        if self._dry >= _DRY_STEPS:
            # The rally is a cycle: leave it by another bounce.
            misses[_VARIATIONS[self._dry // _DRY_STEPS % len(_VARIATIONS)]] += 20.0
        return misses

    def _approach(self, wanted: float, slack: float) -> int:
        distance = wanted - self._knob
        if abs(distance) <= slack:
            return _NOOP
        return _DOWN if distance > 0 else _UP

    def _planned(self, arrival: list[tuple[int, float]], misses: list[float]) -> int:
        knob_P = np.full(len(self._plans_PS), self._knob)
        place_P = np.full(len(self._plans_PS), self._reading)
        drawn_P = np.full(len(self._plans_PS), self._drawn)
        track_FP = [drawn_P]
        for frame in range(1, arrival[-1][0] + 2):
            step = min((frame - 1) // _SKIP, _PLANNED_STEPS - 1)
            knob_P = np.clip(knob_P + _KNOB_SPEED * self._plans_PS[:, step], _KNOB_MIN, _KNOB_MAX)
            if (frame % 2 == 0) == self._reads_on_even:
                place_P = (place_P + knob_P) / 2
            else:
                drawn_P = place_P
            track_FP.append(drawn_P)
        value_P = np.full(len(self._plans_PS), -np.inf)
        for late, (frame, y) in enumerate(arrival[:3]):
            offset_P = y - track_FP[frame]
            around = [y - track_FP[f] for f in (max(frame - 1, 0), frame, frame + 1)]
            margin_P = np.min([np.minimum(o - _HIT_LOW, _HIT_HIGH - o) for o in around], axis=0)
            leaves_P = np.digitize(offset_P, [0.5, 4.5, 8.5, 12.5])
            gain_P = np.clip(np.array(misses)[leaves_P], -20.0, 20.0)
            hit_P = np.minimum(margin_P, 1.0) * 30.0 + np.where(margin_P > 0, gain_P, 0.0) - late
            # The first frame in which the paddle is there is the one that counts.
            value_P = np.where((value_P > 0) | (value_P > hit_P), value_P, hit_P)
        best = int(np.argmax(value_P - self._plan_cost * 0.3))
        move = self._plans_PS[best, 0]
        return _NOOP if move == 0 else _DOWN if move > 0 else _UP


def _fly(y: float, velocity: float) -> tuple[float, float]:
    """Return a ball's y and vertical velocity one frame later."""
    if velocity < 0 and y <= _TOP_WALL:
        return y - velocity + 1, -velocity
    if velocity > 0 and y >= _BOTTOM_WALL:
        return y - velocity - 1, -velocity
    return y + velocity, velocity


def _signed(byte: np.uint8) -> int:
    value = int(byte)
    return value - 256 if value > 127 else value
