"""When sessions come and when they go: planned from a seed, before and without any server. No I/O.

Time is in seconds since the measurement began; what warms up comes before 0. The number of sessions at once is meant
to be n(t): `first` at 0, `last` from the end of the ramp on, straight between them. For that, sessions of mean lifetime
L come at the rate n(t)/L + n'(t), by a Poisson process or evenly. The mean number is then n(t) where lifetimes are
exponential; where they are fixed it is that as long as n does not change, and follows a ramp by half a lifetime. A ramp
cannot fall faster than sessions go by themselves.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from playserve.errors import BadSettingError

__all__ = ["LoadShape", "SessionPlan", "parse_ramp", "sessions"]


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """One session.

    Attributes:
        number: 0, 1, ... in the order of the plan.
        start_s: When it is opened.
        end_s: When it sends no more.
        phase: Where in a frame period its frames are due, 0 to 1.
        seed: Of its sampling and of its first frame.
    """

    number: int
    start_s: float
    end_s: float
    phase: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadShape:
    """What load is meant.

    Attributes:
        seconds: Measured time.
        warmup_s: Time before it, in which the first sessions are opened one after another.
        first: Sessions at once when the measurement begins.
        last: Sessions at once from the end of the ramp on.
        ramp_s: Length of the ramp; 0: none, and `last` is `first`.
        lifetime_s: Mean time that a session plays; infinite: to the end.
        exponential: Whether lifetimes are exponential, else all the same.
        poisson: Whether sessions come by a Poisson process, else evenly.
        seed: Equal seeds plan equal sessions.
    """

    seconds: float
    warmup_s: float = 0.0
    first: float = 1.0
    last: float = 1.0
    ramp_s: float = 0.0
    lifetime_s: float = math.inf
    exponential: bool = True
    poisson: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.seconds < math.inf and 0 <= self.warmup_s < math.inf and 0 <= self.ramp_s <= self.seconds):
            raise BadSettingError(
                f"a load of {self.seconds:g} s, a warm-up of {self.warmup_s:g} s and a ramp of {self.ramp_s:g} s; "
                "wanted a load of more than 0 s, and a ramp that is no longer"
            )
        if not (self.lifetime_s > 0 and 0 <= self.first < math.inf and 0 <= self.last < math.inf):
            raise BadSettingError(f"{self.first:g} to {self.last:g} sessions of {self.lifetime_s:g} s each")
        if self.ramp_s == 0 and self.first != self.last:
            raise BadSettingError(f"from {self.first:g} to {self.last:g} sessions in 0 s; a ramp takes time")

    def wanted(self, at_s: float) -> float:
        """Return n(t), the number of sessions at once that is meant."""
        if self.ramp_s == 0 or at_s >= self.ramp_s:
            return self.last
        return self.first + (self.last - self.first) * max(0.0, at_s) / self.ramp_s


def parse_ramp(text: str) -> tuple[float, float, float]:
    """Return FROM, TO and SECONDS of "FROM:TO:SECONDS".

    Raises:
        BadSettingError: It is something else.
    """
    try:
        first, last, seconds = (float(part) for part in text.split(":"))
    except ValueError:
        raise BadSettingError(f"ramp {text!r}, wanted FROM:TO:SECONDS, such as 10:200:60") from None
    return first, last, seconds


def sessions(shape: LoadShape) -> Iterator[SessionPlan]:
    """Yield every session, by the time at which it starts. They need not fit into memory."""
    # Streams of their own: another law of arrival must not give the same sessions other lifetimes.
    lives = random.Random(f"{shape.seed}/lives")
    number = 0
    for number, (start_s, end_s) in enumerate(_first_ones(shape, lives), 1):
        yield _plan(shape, number - 1, start_s, end_s)
    for start_s in _arrivals(shape):
        yield _plan(shape, number, start_s, start_s + _lifetime(shape, lives))
        number += 1


def _plan(shape: LoadShape, number: int, start_s: float, end_s: float) -> SessionPlan:
    own = random.Random(f"{shape.seed}/{number}")
    return SessionPlan(number, start_s, min(end_s, shape.seconds), own.random(), own.getrandbits(31))


def _first_ones(shape: LoadShape, lives: random.Random) -> list[tuple[float, float]]:
    """Return (start, end) of the sessions that play when the measurement begins, as if it had gone on for ever."""
    count = round(shape.first)
    starts = sorted(-shape.warmup_s * lives.random() for _ in range(count))
    if math.isinf(shape.lifetime_s):
        leaving = max(0, count - round(shape.last))
        ends = [shape.ramp_s * (k + 1) / leaving if k < leaving else math.inf for k in range(count)]
    elif shape.exponential:
        ends = [lives.expovariate(1 / shape.lifetime_s) for _ in starts]
    else:
        ends = [shape.lifetime_s * lives.random() for _ in starts]
    return list(zip(starts, ends, strict=True))


def _lifetime(shape: LoadShape, lives: random.Random) -> float:
    if math.isinf(shape.lifetime_s) or not shape.exponential:
        return shape.lifetime_s
    return lives.expovariate(1 / shape.lifetime_s)


def _arrivals(shape: LoadShape) -> Iterator[float]:
    """Yield the times at which sessions come, by inverting the integral of their rate."""
    draw = random.Random(f"{shape.seed}/arrivals")
    need = draw.expovariate(1.0) if shape.poisson else draw.random()
    for start, end, rate, slope in _rates(shape):
        at = start
        while at < end:
            now = rate + slope * (at - start)
            left = now * (end - at) + slope * (end - at) ** 2 / 2
            if need >= left:
                need -= max(0.0, left)
                break
            at += 2 * need / (now + math.sqrt(max(0.0, now * now + 2 * slope * need)))
            yield at
            need = draw.expovariate(1.0) if shape.poisson else 1.0


def _rates(shape: LoadShape) -> Iterator[tuple[float, float, float, float]]:
    """Yield (start, end, rate at the start, its slope) of the parts of the load in which sessions come."""
    if shape.ramp_s > 0:
        growth = (shape.last - shape.first) / shape.ramp_s
        rate, slope = growth + shape.first / shape.lifetime_s, growth / shape.lifetime_s
        end = min(shape.ramp_s, -rate / slope) if slope < 0 else shape.ramp_s  # where it falls to nothing
        if rate > 0:
            yield 0.0, end, rate, slope
    if shape.last > 0 and not math.isinf(shape.lifetime_s):
        yield shape.ramp_s, shape.seconds, shape.last / shape.lifetime_s, 0.0
