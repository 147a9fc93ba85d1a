"""Linear probes of a game's inner state, fitted once on held-in real frames of a cache, and kept beside it.

What a probe reads off a dreamed frame is what a world says of the game in the game's own terms: where the ball is, how
much health is left. How well the probe reads real frames is kept with it.

Shape legend: N frames to fit, M frames, X features, P probes.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError, DataLossError
from playserve.files import replacing
from playserve_trainer.data.tokens.cache import TokenCache
from playserve_trainer.data.tokens.frames import evenly
from playserve_trainer.data.tokens.probing import Reading, fit_reading
from playserve_trainer.worlds.features import Features

__all__ = ["READABLE", "FittedProbes", "Seen", "fit_probes", "kept_probes"]

#: Returns the frames uint8 [M, H, W, C] at some places of a cache.
Seen = Callable[[NDArray[np.int64]], NDArray[np.uint8]]

#: A probe is readable whose error on frames that were left out of the fit is at most this share of its spread.
READABLE = 0.5

#: Of the kept file; counts up when the same cache and features would give other probes.
_VERSION = 1
_FOLDER = "probes"
_FRAMES = 2048


@dataclass(frozen=True, slots=True)
class FittedProbes:
    """Probes of one cache on one kind of features.

    Attributes:
        names: Of the values that change within the held-in frames.
        reading: The linear map.
        spread_P: float64, standard deviation of each value over the frames of the fit: the unit of errors.
        left_out_P: float64, error on a frame that is left out of the fit, in spreads.
        real_P: float64, root mean square error on held-out real frames, in spreads; nan where there are none.
        frames: How many frames were fitted.
        features: Name of the features.
    """

    names: tuple[str, ...]
    reading: Reading
    spread_P: NDArray[np.float64]
    left_out_P: NDArray[np.float64]
    real_P: NDArray[np.float64]
    frames: int
    features: str

    @property
    def readable_P(self) -> NDArray[np.bool_]:
        """Which probes say something; see :data:`READABLE`."""
        return self.left_out_P <= READABLE

    def squared_errors(self, features_MX: NDArray[np.floating], values_MP: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the squared error of each frame and probe, in squared spreads, float64 [M, P].

        Args:
            features_MX: Of the frames.
            values_MP: What each value should be.
        """
        errors_MP: NDArray[np.float64] = ((self.reading(features_MX) - values_MP) / self.spread_P) ** 2
        return errors_MP


def fit_probes(cache: TokenCache, features: Features, seen: Seen, *, most: int = _FRAMES) -> FittedProbes:
    """Fit the probes of a cache on frames that spread evenly over its held-in episodes.

    Args:
        cache: The games; some are held in.
        features: Of single frames.
        seen: Gives the frames.
        most: Most frames of the fit, and of the held-out ones that are read.

    Raises:
        BadSettingError: The features want frames in order, or no value changes within the held-in frames.
    """
    if features.sequential:
        raise BadSettingError(f"probes see single frames; {features.name} sees several")
    fit_N = evenly(cache.frames_of(cache.select(held_out=False)), most)
    values_NP = np.asarray(cache.probes_NP[fit_N], np.float64)
    changing = np.flatnonzero(np.ptp(values_NP, axis=0) > 0) if len(fit_N) > 1 else np.zeros(0, np.int64)
    if not len(changing):
        raise BadSettingError(
            f"no value is recorded beside the frames of {cache.folder} that changes: nothing to probe"
        )
    values_NP = values_NP[:, changing]
    spread_P = values_NP.std(0)
    reading = fit_reading(features(seen(fit_N)[:, None])[:, 0], values_NP)
    probes = FittedProbes(
        names=tuple(cache.probe_names[p] for p in changing),
        reading=reading,
        spread_P=spread_P,
        left_out_P=reading.left_out_P / spread_P,
        real_P=np.full(len(changing), np.nan),
        frames=len(fit_N),
        features=features.name,
    )
    test_M = evenly(cache.frames_of(cache.select(held_out=True)), most)
    if len(test_M):
        wanted_MP = np.asarray(cache.probes_NP[test_M], np.float64)[:, changing]
        squared_MP = probes.squared_errors(features(seen(test_M)[:, None])[:, 0], wanted_MP)
        probes.real_P[:] = np.sqrt(squared_MP.mean(0))
    return probes


def kept_probes(cache: TokenCache, features: Features, seen: Seen, *, refit: bool = False) -> FittedProbes:
    """Return the probes that are kept beside a cache; fit and keep them where there are none.

    Args:
        cache: The games.
        features: Of single frames.
        seen: Gives the frames.
        refit: Fit anew, and keep that.

    Raises:
        BadSettingError: As of :func:`fit_probes`.
        DataLossError: What is kept is damaged.
    """
    held_in = hashlib.sha256(cache.held_out_E.tobytes()).hexdigest()[:16]
    key = hashlib.sha256(json.dumps([_VERSION, cache.digest, held_in, features.key, _FRAMES]).encode()).hexdigest()
    path = cache.folder / _FOLDER / f"{key[:24]}.npz"
    if path.exists() and not refit:
        return _load(path)
    probes = fit_probes(cache, features, seen)
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary:
        reading = probes.reading
        np.savez(
            temporary, names=np.array(probes.names), weights=reading.weights_XP, centre=reading.centre_X,
            values=reading.centre_P, left_out=reading.left_out_P, spread=probes.spread_P, real=probes.real_P,
            frames=np.array(probes.frames), features=np.array(probes.features), key=np.array(key),
        )  # fmt: skip
    return probes


def _load(path: Path) -> FittedProbes:
    try:
        # Opened here: of a damaged file numpy leaves its own open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            reading = Reading(kept["weights"], kept["centre"], kept["values"], kept["left_out"])
            return FittedProbes(
                names=tuple(str(name) for name in kept["names"]),
                reading=reading,
                spread_P=kept["spread"],
                left_out_P=kept["left_out"] / kept["spread"],
                real_P=kept["real"],
                frames=int(kept["frames"]),
                features=str(kept["features"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataLossError(
            f"{path} holds no probes: {error}; `playserve worlds probe --refit` makes them anew"
        ) from error
