"""Freeway's expert: looks 70 steps ahead at where every car will be and takes the soonest safe way to the top."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

__all__ = ["FreewayExpert"]

_NOOP, _UP, _DOWN = 0, 1, 2
_RAM_Y, _RAM_CARS = 14, 108
# Pixels that each lane's car moves in a step of 4 frames, from the bottom lane up.
_SPEEDS = [Fraction(s) for s in ("4/5", "1", "4/3", "2", "4", "-4", "-2", "-4/3", "-1", "-4/5")]
_WIDTH = 160
_HORIZON = 70
# The chicken moves 4 pixels a step; the crossing counts at 177.
_STEP_Y, _BOTTOM, _TOP = 4, 6, 177


class FreewayExpert:
    """Reads the chicken's height and the cars' places from RAM.

    The set of heights that the chicken can have reached at a step is one integer, a bit for each height; the cars clear
    the bits of the lanes that they fill. `car_left` to `car_right` is the range of a car's RAM place in which it would
    hit the chicken.
    """

    name = "freeway-reach"
    version = "1"

    def __init__(self, car_left: int = 40, car_right: int = 52, half_lane: int = 9) -> None:
        lanes = len(_SPEEDS)
        x = np.arange(_WIDTH)
        hits_LXT = np.zeros((lanes, _WIDTH, _HORIZON), bool)
        for lane, speed in enumerate(_SPEEDS):
            for step in range(_HORIZON):
                moved = (x + float(speed) * (step + 1)) % _WIDTH
                hits_LXT[lane, :, step] = (moved >= car_left) & (moved <= car_right)
        # Bit `lane` of an entry: the car that is at x now is in the chicken's way at that step.
        self._hits_LXT = hits_LXT * (1 << np.arange(lanes))[:, None, None]
        lane_bits = [
            sum(1 << y for y in range(_TOP + 1) if abs(y - (16 * lane + 14)) <= half_lane) for lane in range(lanes)
        ]
        self._free = [
            ~sum(bits for lane, bits in enumerate(lane_bits) if code >> lane & 1) for code in range(1 << lanes)
        ]
        self._lanes = np.arange(lanes)

    def reset(self) -> None:
        """Forget the last episode; this expert remembers nothing."""

    def serving(self, ram: NDArray[np.uint8]) -> bool:
        """Return False: the traffic never waits."""
        return False

    def act(self, ram: NDArray[np.uint8]) -> int:
        """Return the action for `ram`, uint8 [128]."""
        cars = ram[_RAM_CARS : _RAM_CARS + len(_SPEEDS)].astype(int) % _WIDTH
        codes: list[int] = self._hits_LXT[self._lanes, cars].sum(axis=0).tolist()
        y = min(max(int(ram[_RAM_Y]), _BOTTOM), _TOP)
        starts = ((_UP, min(y + _STEP_Y, _TOP)), (_NOOP, y), (_DOWN, max(y - _STEP_Y, _BOTTOM)))
        # Soonest arrival first, then greatest height at the horizon; ties go to the order above.
        return min(starts, key=lambda start: self._cost(1 << start[1], codes))[0]

    def _cost(self, reached: int, codes: list[int]) -> tuple[int, int]:
        """Return (arrival step, -height at the horizon) of the best way from the heights in `reached`."""
        floor, top, full = 1 << _BOTTOM, 1 << _TOP, (1 << (_TOP + 1)) - 1
        highest = 0
        for step, code in enumerate(codes):
            if step:
                up = reached << _STEP_Y
                if up >= top:
                    return step, -_TOP
                reached |= up | (reached >> _STEP_Y) & ~(floor - 1)
            reached &= self._free[code] & full
            if not reached:
                return _HORIZON + 1, -step
            highest = reached.bit_length()
        return _HORIZON, -highest
