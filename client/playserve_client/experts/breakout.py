"""Breakout's expert: knows where the ball will land, and plans the paddle's taps so that it is there.

A tap of one step (4 frames) moves the paddle by 22.5 pixels, which is more than the 16 pixels in which the ball is
hit: often no place where the paddle can rest will do and it has to be hit on the move. So the last steps before a
landing are planned over every sequence of taps, in exact models of the ball and of the paddle.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["BreakoutExpert"]

_NOOP, _FIRE, _RIGHT, _LEFT = 0, 1, 2, 3
_SKIP = 4
# RAM: whole and fraction of the ball's place and velocity, the paddle's place, the score's two lower BCD bytes.
_BALL_X, _BALL_Y, _VELOCITY_Y, _VELOCITY_X, _PADDLE, _SCORE = 99, 101, 103, 105, 72, (76, 77)
_LEFT_WALL, _RIGHT_WALL = 57, 200
# The paddle hits a ball whose y is in this range and whose x is 1 to 17 right of the paddle's.
_HIT_TOP, _HIT_BOTTOM, _HIT_LEFT, _HIT_RIGHT = 177, 183, 1, 17
_CENTER = 9.0
_CENTERS = (_CENTER, 3.0, 15.0, 5.0, 12.0)
# The knob moves by this much a frame; the drawn paddle is the mean of itself and the knob, a frame late.
_KNOB_SPEED, _KNOB_MIN, _KNOB_MAX = 5.63, 55.0, 191.5
_PLANNED_STEPS = 5
_HORIZON_FRAMES = 200
_DRY_STEPS = 150


class BreakoutExpert:
    """Plays by RAM; remembers the paddle's knob, which RAM does not show, and how long no brick has fallen."""

    name = "breakout-planner"
    version = "1"

    def __init__(self) -> None:
        moves = np.array([0.0, 1.0, -1.0])
        index_PS = np.array(list(itertools.product(range(3), repeat=_PLANNED_STEPS)))
        self._plans_PS = moves[index_PS]
        # Ties go to the plan that taps least, then to the one that taps soonest.
        taps = np.abs(self._plans_PS)
        self._plan_cost = taps.sum(axis=1) + (taps * np.arange(_PLANNED_STEPS)).sum(axis=1) * 0.01
        self.reset()

    def reset(self) -> None:
        """Forget the last episode."""
        self._paddle: float | None = None
        self._knob = 0.0
        self._score = (0, 0)
        self._dry = 0

    def serving(self, ram: NDArray[np.uint8]) -> bool:
        """Return whether there is no ball."""
        return bool(ram[_BALL_Y] == 0)

    def act(self, ram: NDArray[np.uint8]) -> int:
        """Return the action for `ram`, uint8 [128]."""
        self._observe_paddle(float(ram[_PADDLE]))
        score = (int(ram[_SCORE[0]]), int(ram[_SCORE[1]]))
        self._dry = self._dry + 1 if score == self._score else 0
        self._score = score
        if self.serving(ram):
            return _FIRE
        # A ball that falls into a cycle is broken out of it by being hit elsewhere on the paddle.
        center = _CENTERS[self._dry // _DRY_STEPS % len(_CENTERS)]
        landing = self._landing(ram)
        if not landing:
            return self._approach(float(ram[_BALL_X]) - center, slack=16.0)
        first_frame = landing[0][0]
        if first_frame > _SKIP * _PLANNED_STEPS:
            return self._approach(landing[0][1] - center, slack=12.0)
        return self._planned(landing, center)

    def _observe_paddle(self, paddle: float) -> None:
        """Follow the knob: which of the three moves, in the model, would have put the paddle where it is."""
        if self._paddle is None:
            self._paddle, self._knob = paddle, paddle + 0.5
            return
        options = [_moved(self._paddle, self._knob, direction) for direction in (0, 1, -1)]
        best, knob = min(options, key=lambda option: abs(option[0] - paddle - 0.5))
        self._knob = min(max(knob + 0.5 * (paddle + 0.5 - best), _KNOB_MIN), _KNOB_MAX)
        self._paddle = paddle + 0.5

    def _landing(self, ram: NDArray[np.uint8]) -> list[tuple[int, float]]:
        """Return (frame from now, ball x) of each frame in which the paddle can hit; empty while the ball rises."""
        x, y = _fixed(ram, _BALL_X, signed=False), _fixed(ram, _BALL_Y, signed=False)
        velocity_x, velocity_y = -_fixed(ram, _VELOCITY_X), _fixed(ram, _VELOCITY_Y)
        if velocity_y <= 0:
            return []
        hits = []
        for frame in range(_HORIZON_FRAMES):
            if math.floor(y) >= _HIT_TOP:
                if math.floor(y) > _HIT_BOTTOM:
                    break
                hits.append((frame, math.floor(x)))
            if (velocity_x < 0 and math.floor(x) < _LEFT_WALL) or (velocity_x > 0 and math.floor(x) >= _RIGHT_WALL):
                velocity_x = -velocity_x
            x, y = x + velocity_x, y + velocity_y
        return [(frame, float(x)) for frame, x in hits]

    def _approach(self, wanted: float, slack: float) -> int:
        distance = wanted - self._knob
        if abs(distance) <= slack:
            return _NOOP
        return _RIGHT if distance > 0 else _LEFT

    def _planned(self, landing: list[tuple[int, float]], center: float) -> int:
        frames = landing[-1][0] + 1
        knob_P = np.full(len(self._plans_PS), self._knob)
        paddle_P = np.full(len(self._plans_PS), self._paddle)
        track_FP = [paddle_P]
        for frame in range(frames):
            paddle_P = (paddle_P + knob_P) / 2
            step = min(frame // _SKIP, _PLANNED_STEPS - 1)
            knob_P = np.clip(knob_P + _KNOB_SPEED * self._plans_PS[:, step], _KNOB_MIN, _KNOB_MAX)
            track_FP.append(paddle_P)
        # How far inside its limits the best hit is, even if the models are off by one frame either way; only to leave a
        # cycle does it trust them.
        bold = center != _CENTER
        margin_P = np.full(len(self._plans_PS), -np.inf)
        offset_P = np.zeros(len(self._plans_PS))
        for frame, x in landing[:2]:
            checked = (frame,) if bold else (max(frame - 1, 0), frame, frame + 1)
            worst = np.min([_inside(x - track_FP[f]) for f in checked], axis=0)
            better = worst > margin_P
            offset_P[better] = (x - track_FP[frame])[better]
            margin_P[better] = worst[better]
        safe, aim = (2.0, 2.0) if bold else (3.0, 0.1)
        value = np.minimum(margin_P, safe) * 10.0 - self._plan_cost - aim * np.abs(offset_P - center)
        best = int(np.argmax(value))
        move = self._plans_PS[best, 0]
        return _NOOP if move == 0 else _RIGHT if move > 0 else _LEFT


def _inside(offset: NDArray[np.float64]) -> NDArray[np.float64]:
    inside: NDArray[np.float64] = np.minimum(offset - _HIT_LEFT, _HIT_RIGHT - offset)
    return inside


def _moved(paddle: float, knob: float, direction: int) -> tuple[float, float]:
    for _ in range(_SKIP):
        paddle = (paddle + knob) / 2
        knob = min(max(knob + direction * _KNOB_SPEED, _KNOB_MIN), _KNOB_MAX)
    return paddle, knob


def _fixed(ram: NDArray[np.uint8], address: int, *, signed: bool = True) -> float:
    whole = int(ram[address])
    if signed and whole > 127:
        whole -= 256
    return whole + int(ram[address + 1]) / 256
