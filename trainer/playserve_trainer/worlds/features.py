"""What frames are compared by, beside their pixels: numbers that a net, or a tokenizer, makes of them.

Shape legend: B rows, T frames in order, M frames, X features, K tokens, V codes, H, W, C of a frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from playserve.errors import BadSettingError
from playserve.resize import resize
from playserve_trainer.inverse import Labeller
from playserve_trainer.models.tokenizer import Tokenizer, VQTokenizer

__all__ = ["Features", "InverseFeatures", "TokenizerFeatures"]

_FRAMES_AT_ONCE = 128


class Features(Protocol):
    """Makes features of frames.

    Attributes:
        name: For people.
        key: Digest of all that decides the features.
        sequential: Whether those of a frame hang on the frames around it: then T frames are to follow each other.
    """

    @property
    def name(self) -> str:
        """For people."""

    @property
    def key(self) -> str:
        """Digest of all that decides the features."""

    @property
    def sequential(self) -> bool:
        """Whether the features of a frame hang on the frames around it."""

    def __call__(self, frames_BTHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 [B, T, X] of frames uint8 [B, T, H, W, C]."""


class TokenizerFeatures:
    """What a tokenizer's encoder makes of each frame; of a tokenizer that learns nothing, which token is where.

    Args:
        tokenizer: On its device.
    """

    sequential = False

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._encodes = isinstance(tokenizer, VQTokenizer)
        self.name = "encoder of the tokenizer" if self._encodes else "tokens of the frame, one of V each"
        self.key = tokenizer.digest()

    def __call__(self, frames_BTHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :class:`Features`."""
        flat_MHWC = frames_BTHWC.reshape(-1, *frames_BTHWC.shape[2:])
        parts = [self._of(flat_MHWC[i : i + _FRAMES_AT_ONCE]) for i in range(0, len(flat_MHWC), _FRAMES_AT_ONCE)]
        features: NDArray[np.float32] = np.concatenate(parts).reshape(*frames_BTHWC.shape[:2], -1)
        return features

    @torch.no_grad()
    def _of(self, frames_MHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        tokenizer = self._tokenizer
        frames = torch.from_numpy(np.require(frames_MHWC, requirements=["C", "W"])).to(tokenizer.device())
        if isinstance(tokenizer, VQTokenizer):
            features = tokenizer.features(frames)
        else:
            features = F.one_hot(tokenizer.encode(frames), tokenizer.vocabulary)
        found: NDArray[np.float32] = features.float().flatten(1).cpu().numpy()
        return found


class InverseFeatures:
    """What an inverse-dynamics p2p net makes of each frame, and of those before and after it, before it says an action.

    Args:
        directory: Its checkpoint.
        channels: C of the frames.
        device: Where it computes.

    Raises:
        BadSettingError: The checkpoint holds no inverse model, or the frames have no colours.
    """

    sequential = True

    def __init__(self, directory: Path, *, channels: int, device: str = "cpu") -> None:
        if channels != 3:
            raise BadSettingError(f"inverse-dynamics networks see RGB; these frames have {channels} channel(s)")
        self._labeller = Labeller(directory, device=device)
        config = self._labeller.policy.config
        self._side, self._resize_id = config.frame_size, config.resize
        self.name = f"inverse-dynamics network, {self._labeller.about['params']:,} parameters"
        self.key = str(self._labeller.about["weights_sha256"])

    def __call__(self, frames_BTHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See :class:`Features`."""
        rows, steps = frames_BTHWC.shape[:2]
        flat = frames_BTHWC.reshape(-1, *frames_BTHWC.shape[2:])
        resized = np.stack([resize(np.ascontiguousarray(f), self._side, self._side, self._resize_id) for f in flat])
        first_BT = np.zeros((rows, steps), np.bool_)
        first_BT[:, 0] = True
        return self._labeller.read(resized, first_BT.reshape(-1)).reshape(rows, steps, -1)
