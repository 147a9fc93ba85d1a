"""What an evaluation of a tokenizer measures: PSNR, SSIM, how the codebook is used, and what probes read off the codes.

Shape legend: B rows, T steps, M = B * T frames, P pixels of a frame, K tokens, V codes, H, W, C of a frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from playserve_trainer.data.tokens.cache import TokenCache
from playserve_trainer.data.tokens.filling import tokenise
from playserve_trainer.data.tokens.frames import evenly, kept_frames
from playserve_trainer.data.tokens.probing import probe_errors
from playserve_trainer.models.tokenizer import VQTokenizer

__all__ = ["ProbeSet", "TokenizerScores", "psnr_of", "ssim_of_each"]

# The window of SSIM is 11 pixels wide.
_SSIM_SIDE = 11
# Frames on each side of the probes' fit.
_PROBE_FRAMES = 1024
# More probes than this are given as their median alone.
_NAMED_PROBES = 20


def psnr_of(mean_squared_error: float) -> float:
    """Return the peak signal to noise ratio, dB, of a mean squared error in levels of 0 to 255; inf of none."""
    return 10.0 * math.log10(255.0**2 / mean_squared_error) if mean_squared_error > 0 else math.inf


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """Frames with values beside them, some to fit probes on and others, of held-out episodes, to test them.

    Attributes:
        names: Of the values that change on both sides.
        frames: uint8 [N, H, W, C] of each side.
        values: float32 [N, values] of each side.
    """

    names: tuple[str, ...]
    frames: tuple[NDArray[np.uint8], NDArray[np.uint8]]
    values: tuple[NDArray[np.float32], NDArray[np.float32]]

    @classmethod
    def of(cls, cache: TokenCache, most: int = _PROBE_FRAMES) -> ProbeSet | None:
        """Return the set of a cache; None if nothing is held out, or no value beside the frames changes."""
        kept = kept_frames(cache)
        sides = [evenly(cache.frames_of(cache.select(held_out=side)), most) for side in (False, True)]
        if not all(len(side) > 1 for side in sides):
            return None
        values = [np.asarray(cache.probes_NP[side]) for side in sides]
        changing = [p for p in range(len(cache.probe_names)) if all(np.ptp(v[:, p]) > 0 for v in values)]
        if not changing:
            return None
        return cls(
            tuple(cache.probe_names[p] for p in changing),
            (kept[sides[0]], kept[sides[1]]),
            (values[0][:, changing], values[1][:, changing]),
        )

    def errors(self, features: Callable[[NDArray[np.uint8]], NDArray[np.float32]]) -> NDArray[np.float64]:
        """Return the error of each value read off the features of the frames; see :func:`.probing.probe_errors`."""
        fit, test = (features(frames) for frames in self.frames)
        return probe_errors(fit, self.values[0], test, self.values[1])


class TokenizerScores:
    """Adds up what held-out frames cost; a Scores.

    Scores: `psnr` (dB), `ssim`, `codes_used` (share of the codes that any held-out frame uses), `perplexity` of their
    use, `probe_error` (median over the probes of the error, 1: as bad as guessing the mean) read off the codes,
    `probe_error_pixels` read off the pixels, and `probe_<name>` of each if they are few.

    Args:
        policy: The tokenizer whose codes are probed, as it is when scores are taken.
        probes: What is probed, or None.
    """

    def __init__(self, policy: VQTokenizer, probes: ProbeSet | None) -> None:
        self._policy, self._probes = policy, probes
        self._of_pixels: float | None = None
        self._sums: Tensor | None = None
        self._used_V: Tensor | None = None

    def add(self, logits: Sequence[Tensor], labels_BTH: Tensor) -> None:
        """Take in a batch: what the tokenizer's forward gave, and the pixels [B, T, P]."""
        shape = self._policy.frame_shape
        made_MHWC = logits[0].float().round().clamp(0, 255).view(-1, *shape)
        true_MHWC = labels_BTH.float().view(-1, *shape)
        squared = (made_MHWC - true_MHWC).square().sum()
        found = torch.stack([squared, squared.new_tensor(true_MHWC.numel()), ssim_of_each(made_MHWC, true_MHWC).sum()])
        found = torch.cat([found.double(), found.new_tensor([float(len(true_MHWC))]).double()])
        used_V = torch.bincount(logits[2].flatten(), minlength=self._policy.vocabulary).double()
        self._sums = found if self._sums is None else self._sums + found
        self._used_V = used_V if self._used_V is None else self._used_V + used_V

    def take(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the scores and begin anew."""
        if self._sums is None or self._used_V is None:
            return {}
        squared, pixels, ssim, frames = total(self._sums).tolist()
        used_V = total(self._used_V)
        self._sums = self._used_V = None
        share_V = used_V / used_V.sum()
        entropy = -(share_V * share_V.clamp(min=1e-12).log()).sum()
        scores = {
            "psnr": psnr_of(squared / pixels), "ssim": ssim / frames,
            "codes_used": float((used_V > 0).double().mean()), "perplexity": float(entropy.exp()),
        }  # fmt: skip
        return scores | self._probe_scores()

    def _probe_scores(self) -> dict[str, float]:
        probes = self._probes
        if probes is None:
            return {}
        errors = probes.errors(self._codes)
        if self._of_pixels is None:  # the same at every evaluation
            self._of_pixels = float(np.nanmedian(probes.errors(lambda frames: _flat(frames) / np.float32(255))))
        scores = {"probe_error": float(np.nanmedian(errors)), "probe_error_pixels": self._of_pixels}
        if len(errors) <= _NAMED_PROBES:
            scores |= {f"probe_{name}": float(error) for name, error in zip(probes.names, errors, strict=True)}
        return scores

    def _codes(self, frames_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the codes of frames, one behind the other, float32 [N, K * D]."""
        tokens_NK = torch.from_numpy(tokenise(self._policy, frames_NHWC).astype(np.int64))
        vectors = self._policy.codebook.vectors(tokens_NK.to(self._policy.device()))
        return _flat(vectors.float().cpu().numpy())


def _flat(array: NDArray[np.generic]) -> NDArray[np.float32]:
    return array.reshape(len(array), -1).astype(np.float32)


def ssim_of_each(made_MHWC: Tensor, true_MHWC: Tensor) -> Tensor:
    """Return the structural similarity float32 [M] of frames in levels of 0 to 255; nan where they are too small.

    Args:
        made_MHWC: float32.
        true_MHWC: float32, what they should be.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(made_MHWC.shape[1:3]) < _SSIM_SIDE:
        return made_MHWC.new_full((len(made_MHWC),), math.nan)
    of_each = structural_similarity_index_measure(
        made_MHWC.permute(0, 3, 1, 2), true_MHWC.permute(0, 3, 1, 2), data_range=255.0, reduction="none"
    )
    if not isinstance(of_each, Tensor):  # with other arguments it gives pictures, too
        raise TypeError(f"structural similarity is {type(of_each).__name__}, not a tensor")
    return of_each
