"""A world and the recorded games that it is judged by.

Shape legend: N frames of all episodes, H, W, C of a frame, K tokens of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from playserve.errors import BadSettingError
from playserve.specs import ImageFormat
from playserve_trainer import checkpoint
from playserve_trainer.data.tokens.cache import TokenCache, open_cache
from playserve_trainer.models.gpt import WorldPolicy
from playserve_trainer.models.tokenizer import Tokenizer

__all__ = ["Subject", "open_subject"]

_FRAMES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Subject:
    """What is judged, and by what.

    Attributes:
        world: On its device, in eval mode.
        cache: Tokens by the world's own tokenizer.
        about: What is said of both in reports.
        notes: What to bear in mind, for people.
    """

    world: WorldPolicy
    cache: TokenCache
    about: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def tokenizer(self) -> Tokenizer:
        """The frozen tokenizer."""
        return self.world.tokenizer.net

    @property
    def pictures(self) -> bool:
        """Whether frames are pictures, of which PSNR and SSIM mean something."""
        return self.tokenizer.image_format() is not ImageFormat.NONE

    def real(self, places: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return what really was there, uint8 [..., H, W, C]: the kept frames, or where none are kept, the tokens'."""
        if self.cache.frames is not None:
            return self.cache.frames[places]
        return self.decoded(np.asarray(self.cache.tokens_NK[places]))

    def decoded(self, tokens_XK: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return the frames uint8 [..., H, W, C] that tokens [..., K] stand for."""
        flat_MK = torch.from_numpy(tokens_XK.reshape(-1, tokens_XK.shape[-1]).astype(np.int64))
        parts = [
            self.world.tokenizer.decode(part.to(self.world.device())).cpu().numpy()
            for part in torch.split(flat_MK, _FRAMES_AT_ONCE)
        ]
        frames: NDArray[np.uint8] = np.concatenate(parts)
        return frames.reshape(*tokens_XK.shape[:-1], *self.tokenizer.frame_shape)


def open_subject(directory: Path, cache: Path, *, held_out: float | None = None, device: str = "cpu") -> Subject:
    """Return the world in a checkpoint's folder, and a token cache.

    Args:
        directory: Of the checkpoint.
        cache: Folder of the cache, by the same tokenizer.
        held_out: Share of the episodes that counts as held out; None: as the cache was written.
        device: Where the world computes.

    Raises:
        NotFoundError, DataLossError: One of them is not there, or damaged.
        BadSettingError: The checkpoint is no `wm-token` world, the cache is by another tokenizer or of other actions,
            or nothing in it is held out.
    """
    policy, manifest = checkpoint.load(directory, device)
    if not isinstance(policy, WorldPolicy):
        raise BadSettingError(f"{directory} holds a policy of {manifest.family}; a world is of wm-token")
    data = open_cache(cache, held_out=held_out)
    tokenizer = policy.tokenizer.net.digest()
    if data.tokenizer != tokenizer:
        raise BadSettingError(
            f"{cache} holds tokens of tokenizer {data.tokenizer[:16] or '(none)'}, the world draws those of "
            f"{tokenizer[:16]}: make a cache with the world's tokenizer"
        )
    if data.heads != policy.actions.heads:
        raise BadSettingError(f"{cache} has actions of {data.heads} choices, the world of {policy.actions.heads}")
    if not data.held_out_E.any():
        raise BadSettingError(f"{cache} holds no episode out: worlds are judged by those that they did not learn from")
    about = {
        "world": {
            "weights_sha256": manifest.weights_sha256, "params": manifest.num_params,
            "samples_seen": manifest.samples_seen, "flops": manifest.flops, "seed": manifest.seed,
            "code_version": manifest.code_version, "tokens": policy.tokenizer.net.num_tokens,
            "parallel_tokens": policy.config.parallel_tokens, "context": policy.config.context,
            "loss": manifest.metrics.get("loss"),
        },
        "cache": {
            "digest": data.digest, "data_digest": data.data_digest, "tokenizer": data.tokenizer,
            "game": dict(data.game), "held_out_episodes": int(data.held_out_E.sum()),
            "frames": "kept" if data.frames is not None else "decoded",
        },
    }  # fmt: skip
    return Subject(policy.eval(), data, about, _notes(manifest, data))


def _notes(manifest: checkpoint.Manifest, cache: TokenCache) -> tuple[str, ...]:
    notes = []
    if not manifest.data_digest:
        notes.append("the world is untrained, or nobody said what it was trained on")
    elif manifest.data_digest != cache.digest:
        notes.append(
            f"the world was trained on other data ({manifest.data_digest[:16]}; this cache is {cache.digest[:16]}), or "
            "on a share of them: it may have learnt from episodes that are held out here"
        )
    if cache.frames is None:
        notes.append(
            "the cache keeps no frames: what is dreamed is compared with what the tokenizer makes of the real tokens"
        )
    return tuple(notes)
