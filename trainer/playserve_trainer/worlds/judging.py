"""Judges a world: open-loop roll-outs from held-out starts on the recorded actions, against what really happened.

Every number is a mean over starts, with a percentile interval of 95% from drawing the episodes of the starts anew. What
the world shows ("dream") stands beside what its tokenizer makes of the real frames ("reconstruction", the best that it
could show), the start repeated ("repeat"), and a real frame of another held-out episode at the same age ("other"). A
difference from "repeat" is taken start by start, and resampled together. A number that cannot be had is null.

Shape legend: S starts, T steps, L steps that are looked at, P probes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError
from playserve_trainer.worlds.dreams import Dreamer
from playserve_trainer.worlds.features import Features, InverseFeatures, TokenizerFeatures
from playserve_trainer.worlds.judged import Judged
from playserve_trainer.worlds.measures import Measured, Measurer, joined
from playserve_trainer.worlds.probes import FittedProbes, kept_probes
from playserve_trainer.worlds.report import report
from playserve_trainer.worlds.starts import choose_starts, trail_of
from playserve_trainer.worlds.subject import Subject

__all__ = ["HORIZONS", "JudgeSettings", "judge"]

HORIZONS = (1, 5, 20, 100)
# Frames that are looked at between a horizon and the one before it, for distributions of features.
_LOOKED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """How a world is judged.

    Attributes:
        starts: Roll-outs.
        horizons: Steps after which is compared, rising.
        given: Real frames that the world is given; 0: as many as it keeps of a start, as when it is served.
        seed: Of starts, and of everything that is drawn.
        temperature: Of the world's draws.
        batch: Roll-outs at a time.
        resamples: Draws of an interval.
    """

    starts: int = 64
    horizons: tuple[int, ...] = HORIZONS
    given: int = 0
    seed: int = 0
    temperature: float = 1.0
    batch: int = 16
    resamples: int = 2000

    def __post_init__(self) -> None:
        rising = list(self.horizons) == sorted(set(self.horizons))
        if not self.horizons or self.horizons[0] < 1 or not rising:
            raise BadSettingError(f"horizons are numbers of steps from 1 on, rising, not {list(self.horizons)}")
        if min(self.starts, self.batch) < 1 or min(self.given, self.resamples, self.seed) < 0:
            raise BadSettingError(
                f"starts and batch are at least 1, given, resamples and seed at least 0, not {self.starts}, "
                f"{self.batch}, {self.given}, {self.resamples}, {self.seed}"
            )


def judge(
    subject: Subject,
    settings: JudgeSettings,
    *,
    inverse: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Return everything that is measured, as a JSON value; see :func:`.report.report`.

    Args:
        subject: The world and the games.
        settings: How.
        inverse: Checkpoint of an inverse p2p model whose features are compared; None: the tokenizer's.
        progress: Called with (roll-outs done, roll-outs).

    Raises:
        BadSettingError: No held-out episode is long enough, or the inverse model does not fit.
    """
    world, cache = subject.world, subject.cache
    given = settings.given or world.config.start_frames
    dreamer = Dreamer(world, given=given, seed=settings.seed, temperature=settings.temperature)
    starts = choose_starts(cache, settings.starts, given=given, seed=settings.seed)
    steps = min(settings.horizons[-1], starts[0].steps)
    looked_L = _looked(settings.horizons, steps)
    of_probes = TokenizerFeatures(subject.tokenizer)
    of_clouds: Features = of_probes
    if inverse is not None:
        device = str(world.device())
        of_clouds = InverseFeatures(inverse, channels=cache.frame_shape[2], device=device)
    probes = _probes(subject, of_probes)
    measurer = Measurer(subject, looked_L, probes, of_probes, of_clouds)
    parts: list[Measured] = []
    for at in range(0, len(starts), settings.batch):
        some = starts[at : at + settings.batch]
        trail = trail_of(cache, some, given=given, steps=steps)
        dream = dreamer.dream(some, trail, np.asarray(cache.tokens_NK[trail.given_BC]))
        parts.append(measurer.measure(some, trail, dream))
        if progress is not None:
            progress(min(len(starts), at + settings.batch), len(starts))
    judged = Judged.of(
        subject, starts, looked_L, joined(parts), probes, of_clouds, seed=settings.seed, resamples=settings.resamples
    )
    return {"settings": {**asdict(settings), "given": given}, **report(judged, settings.horizons)}


def _looked(horizons: Sequence[int], steps: int) -> NDArray[np.int64]:
    """Return the steps to look at, up to `steps`: each horizon, and some between it and the one before."""
    looked: set[int] = set()
    for before, horizon in itertools.pairwise((0, *horizons)):
        count = min(_LOOKED, horizon - before)
        looked |= set(np.linspace(before + 1, horizon, count).round().astype(int).tolist()) | {horizon}
    return np.array(sorted(step for step in looked if step <= steps), np.int64)


def _probes(subject: Subject, features: Features) -> FittedProbes | None:
    """Return the probes of the games, or None where nothing is recorded beside the frames, or nothing held in."""
    cache = subject.cache
    held_in = cache.frames_of(cache.select(held_out=False))
    if not cache.probe_names or len(held_in) < 2 or not np.ptp(cache.probes_NP[held_in], axis=0).any():
        return None
    return kept_probes(cache, features, subject.real)
