"""What every tokenizer is: a memoryless policy that gives a frame's tokens, and the frame that tokens stand for.

A tokenizer is a checkpoint like any other: it is trained, published and served as a policy whose one input is `frame`,
whose outputs are `tokens` and `reconstruction`, and which has no action to choose. Families on tokens hold one, frozen,
as a submodule.

Shape legend: B rows, T steps, M frames in any order, K tokens of a frame, V codes, H, W, C of a frame.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from playserve.errors import ShapeMismatchError
from playserve.specs import Codec, DiscreteActionSpec, ImageFormat, PolicySpec, TensorSpec
from playserve_trainer.models.policy import Memory, Policy, Sampler, StateTensor, StepOutput

__all__ = ["FRAME", "RECONSTRUCTION", "TOKENS", "Tokenizer"]

#: Name of a tokenizer's input: one frame.
FRAME = "frame"

#: Name of the output that holds the tokens of the frame.
TOKENS = "tokens"

#: Name of the output that holds what the tokens stand for.
RECONSTRUCTION = "reconstruction"


class Tokenizer(Policy):
    """A policy that turns frames into tokens and back.

    Attributes:
        num_tokens: K, tokens of a frame.
        vocabulary: V, codes that a token may be: 0 to V - 1.
        frame_shape: H, W, C of a frame.
        training_only: Settings, and modules or buffers, that decide no token.
    """

    training_only: frozenset[str] = frozenset()
    num_tokens: int
    vocabulary: int
    frame_shape: tuple[int, int, int]

    @abstractmethod
    def encode(self, frames_MHWC: Tensor) -> Tensor:
        """Return the tokens int64 [M, K] of frames uint8 [M, H, W, C]; deterministic, without gradient.

        Raises:
            ShapeMismatchError: The frames are of another shape.
        """

    @abstractmethod
    def decode(self, tokens_MK: Tensor) -> Tensor:
        """Return the frames uint8 [M, H, W, C] that tokens int64 [M, K] stand for; without gradient.

        Raises:
            ShapeMismatchError: There are not K tokens a frame.
        """

    @property
    @abstractmethod
    def family(self) -> str:
        """Key of the registry's FAMILIES."""

    def environment(self) -> Mapping[str, str]:
        """Return what the spec says of the frames' game; empty: nothing."""
        return {}

    def resize_id(self) -> str:
        """Return the resize that makes a frame from a screen (see playserve.resize); empty: none prescribed."""
        return ""

    def image_format(self) -> ImageFormat:
        """Return the meaning of a frame's channels."""
        return {1: ImageFormat.GRAY8, 3: ImageFormat.RGB8}.get(self.frame_shape[2], ImageFormat.NONE)

    def spec(self) -> PolicySpec:
        """Return the spec: a frame in; its tokens and what they stand for out; nothing to choose."""
        picture: dict[str, Any] = {
            "dtype": "uint8", "shape": self.frame_shape, "image_format": self.image_format(),
        }  # fmt: skip
        frame = TensorSpec(name=FRAME, resize_id=self.resize_id(), codecs=(Codec.LZ4,), **picture)
        tokens = TensorSpec(
            name=TOKENS, dtype="int32", shape=(self.num_tokens,), minimum=0.0, maximum=float(self.vocabulary - 1)
        )
        return PolicySpec(
            name="",
            family=self.family,
            inputs=(frame,),
            outputs=(tokens, TensorSpec(name=RECONSTRUCTION, **picture)),
            action=DiscreteActionSpec(n=1, names=("none",)),
            environment=dict(self.environment()),
        )

    def state_layout(self) -> Mapping[str, StateTensor]:
        """Return nothing: tokenizers are memoryless."""
        return {}

    @torch.no_grad()
    def step(self, inputs: Mapping[str, Tensor], executed_BH: Tensor, memory: Memory, sample: Sampler) -> StepOutput:
        """Return the tokens and the reconstruction of `frame` uint8 [B, H, W, C]; the one action there is."""
        tokens_BK = self.encode(inputs[FRAME])
        none_B1 = torch.zeros(tokens_BK.shape[0], 1, device=tokens_BK.device)
        outputs = {TOKENS: tokens_BK.to(torch.int32), RECONSTRUCTION: self.decode(tokens_BK)}
        return StepOutput(sample(none_B1, 0).unsqueeze(1), outputs=outputs)

    def digest(self) -> str:
        """Return the sha256 of what decides the tokens: the family, its config and every tensor; what caches go by."""
        from playserve_trainer.models.registry import describe  # it imports every family, this one too

        family, config = describe(self)
        deciding = {name: value for name, value in config.items() if name not in self.training_only}
        digest = hashlib.sha256(json.dumps([family, deciding], sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if name.partition(".")[0] in self.training_only:
                continue
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def check_frames(self, frames_MHWC: Tensor) -> None:
        """Raise ShapeMismatchError unless the frames are uint8 [M, H, W, C] of this tokenizer's shape."""
        if frames_MHWC.dtype != torch.uint8 or tuple(frames_MHWC.shape[1:]) != self.frame_shape:
            raise ShapeMismatchError(
                f"frames of {frames_MHWC.dtype} {list(frames_MHWC.shape)}, wanted uint8 [M, *{list(self.frame_shape)}]"
            )

    def check_tokens(self, tokens_MK: Tensor) -> None:
        """Raise ShapeMismatchError unless there are K tokens a frame; what each of them is is not looked at."""
        if tokens_MK.dim() != 2 or tokens_MK.shape[1] != self.num_tokens:
            raise ShapeMismatchError(f"tokens {list(tokens_MK.shape)}, wanted [M, {self.num_tokens}]")
