"""What is measured of each start and step: shown frames against what really was there.

Shape legend: B starts of a batch, S starts of all, T steps, L of them that are looked at, P probes, X features,
K tokens, H, W, C of a frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from playserve_trainer.data.tokens.scores import ssim_of_each
from playserve_trainer.worlds.dreams import Dream
from playserve_trainer.worlds.features import Features
from playserve_trainer.worlds.probes import FittedProbes
from playserve_trainer.worlds.starts import Start, Trail
from playserve_trainer.worlds.subject import Subject

__all__ = ["DREAM", "OTHER", "REAL", "RECONSTRUCTION", "REPEAT", "SHOWN", "Measured", "Measurer", "joined"]

#: What is compared with the real frame: what the world shows; what the tokenizer makes of the real frame, the best that
#: the world could show; the start, as if nothing changed; a real frame of another episode at the same age.
DREAM, RECONSTRUCTION, REPEAT, OTHER = "dream", "reconstruction", "repeat", "other"
SHOWN = (DREAM, RECONSTRUCTION, REPEAT, OTHER)
REAL = "real"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measured:
    """Of some starts, at the steps that are looked at; nan where a frame is not there.

    Attributes:
        squared: Mean squared error of each of :data:`SHOWN`, levels of 0 to 255 squared, float64 [S, L].
        ssim: Structural similarity [S, L].
        tokens: Share of tokens that are the real frame's [S, L]; not of the reconstruction, whose tokens they are.
        probes: Squared error of what is read off each, and off the real frame, in squared spreads [S, L, P].
        features: Of the real frame and of each, float32 [S, L, X].
        present: bool [S, L], whether there is a frame of each to compare with a real one.
        uncertainty: Of the world, nats [S, L].
        dreamed_reward: float32 [S, T], of every step.
        dreamed_end: bool [S, T].
    """

    squared: Mapping[str, Floats]
    ssim: Mapping[str, Floats]
    tokens: Mapping[str, Floats]
    probes: Mapping[str, Floats]
    features: Mapping[str, NDArray[np.float32]]
    present: Mapping[str, NDArray[np.bool_]]
    uncertainty: Floats
    dreamed_reward: NDArray[np.float32]
    dreamed_end: NDArray[np.bool_]


def joined(parts: Sequence[Measured]) -> Measured:
    """Return the measurements of all starts, in their order; there is at least one part."""

    def join(name: str) -> dict[str, NDArray[Any]]:
        return {key: np.concatenate([getattr(part, name)[key] for part in parts]) for key in getattr(parts[0], name)}

    return Measured(
        squared=join("squared"),
        ssim=join("ssim"),
        tokens=join("tokens"),
        probes=join("probes"),
        features=join("features"),
        present=join("present"),
        uncertainty=np.concatenate([part.uncertainty for part in parts]),
        dreamed_reward=np.concatenate([part.dreamed_reward for part in parts]),
        dreamed_end=np.concatenate([part.dreamed_end for part in parts]),
    )


class Measurer:
    """Measures batches of starts.

    Args:
        subject: The world and the games.
        looked_L: int64, the steps after the start that are looked at, from 1 on.
        probes: To be read, or None.
        of_probes: Features that the probes read.
        of_clouds: Features whose distributions are compared.
    """

    def __init__(
        self,
        subject: Subject,
        looked_L: NDArray[np.int64],
        probes: FittedProbes | None,
        of_probes: Features,
        of_clouds: Features,
    ) -> None:
        self._subject, self._looked_L, self._probes = subject, looked_L, probes
        self._of_probes, self._of_clouds = of_probes, of_clouds
        cache = subject.cache
        names = probes.names if probes is not None else ()
        self._columns = [cache.probe_names.index(name) for name in names]

    def measure(self, starts: Sequence[Start], trail: Trail, dream: Dream) -> Measured:
        """Return what is measured of some starts."""
        places_BT = np.concatenate([trail.given_BC[:, -1:], trail.place_BT], axis=1)
        real_BTHWC = self._subject.real(places_BT)
        shown = self._shown(trail, places_BT, real_BTHWC, dream)
        there_BL = trail.there_BT[:, self._looked_L - 1]
        there = dict.fromkeys((REAL, *SHOWN), there_BL)
        there[OTHER] = there_BL & trail.other_there_BT[:, self._looked_L]
        looked = {name: frames[:, self._looked_L] for name, frames in shown.items()}
        of_real = real_BTHWC[:, self._looked_L]
        squared, ssim = {}, {}
        for name in SHOWN:
            squared[name], ssim[name] = (
                np.where(there[name], of, np.nan) for of in self._compared(looked[name], of_real)
            )
        every = {REAL: real_BTHWC, **shown}
        read = self._read(every, trail.place_BT[:, self._looked_L - 1], there)
        return Measured(
            squared=squared,
            ssim=ssim,
            tokens=self._tokens(trail, places_BT, dream, there),
            probes=read,
            features={name: self._features(self._of_clouds, frames) for name, frames in every.items()},
            present=there,
            uncertainty=np.where(there_BL, dream.uncertainty_BT[:, self._looked_L - 1], np.nan).astype(np.float64),
            dreamed_reward=dream.reward_BT,
            dreamed_end=dream.ended_BT,
        )

    def _shown(
        self, trail: Trail, places_BT: NDArray[np.int64], real_BTHWC: NDArray[np.uint8], dream: Dream
    ) -> dict[str, NDArray[np.uint8]]:
        """Return the frames uint8 [B, T + 1, H, W, C] of each, from the start on."""
        subject = self._subject
        made_BTHWC = subject.decoded(np.asarray(subject.cache.tokens_NK[places_BT]))
        return {
            DREAM: np.concatenate([made_BTHWC[:, :1], dream.frames_BTHWC], axis=1),
            RECONSTRUCTION: made_BTHWC,
            REPEAT: np.broadcast_to(real_BTHWC[:, :1], real_BTHWC.shape),
            OTHER: subject.real(trail.other_BT),
        }

    def _compared(self, shown_BLHWC: NDArray[np.uint8], real_BLHWC: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Return mean squared error and structural similarity, float64 [B, L]; nan where frames are no pictures."""
        shape = shown_BLHWC.shape[:2]
        if not self._subject.pictures:
            return np.full(shape, np.nan), np.full(shape, np.nan)
        shown, real = (
            torch.from_numpy(np.ascontiguousarray(frames)).flatten(0, 1).float() for frames in (shown_BLHWC, real_BLHWC)
        )
        squared_M = (shown - real).square().mean((1, 2, 3))
        ssim_M = torch.cat(
            [ssim_of_each(a, b) for a, b in zip(torch.split(shown, 64), torch.split(real, 64), strict=True)]
        )
        return squared_M.double().numpy().reshape(shape), ssim_M.double().numpy().reshape(shape)

    def _tokens(
        self, trail: Trail, places_BT: NDArray[np.int64], dream: Dream, there: Mapping[str, NDArray[np.bool_]]
    ) -> dict[str, Floats]:
        tokens_NK, looked_L = self._subject.cache.tokens_NK, self._looked_L
        real_BLK = np.asarray(tokens_NK[places_BT[:, looked_L]]).astype(np.int64)
        shown = {
            DREAM: dream.tokens_BTK[:, looked_L - 1],
            REPEAT: np.asarray(tokens_NK[places_BT[:, :1]]),
            OTHER: np.asarray(tokens_NK[trail.other_BT[:, looked_L]]),
        }
        return {
            name: np.where(there[name], (tokens == real_BLK).mean(-1), np.nan).astype(np.float64)
            for name, tokens in shown.items()
        }

    def _read(
        self,
        frames: Mapping[str, NDArray[np.uint8]],
        place_BL: NDArray[np.int64],
        there: Mapping[str, NDArray[np.bool_]],
    ) -> dict[str, Floats]:
        probes = self._probes
        if probes is None:
            return {}
        wanted_MP = np.asarray(self._subject.cache.probes_NP[place_BL.reshape(-1)], np.float64)[:, self._columns]
        found = {}
        for name, of in frames.items():
            features_MX = self._features(self._of_probes, of).reshape(len(wanted_MP), -1)
            squared = probes.squared_errors(features_MX, wanted_MP).reshape(*place_BL.shape, -1)
            found[name] = np.where(there[name][..., None], squared, np.nan)
        return found

    def _features(self, of: Features, frames_BTHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the features float32 [B, L, X] of the frames that are looked at, of T + 1."""
        if of.sequential:
            return of(frames_BTHWC)[:, self._looked_L]
        return of(frames_BTHWC[:, self._looked_L])
