"""The `tokenizer-nethack` family: NetHack's screen is made of tokens already, so nothing is learnt.

A frame is a crop of the screen around the cursor, or the whole screen, as characters; each printable character is a
token. Shape legend: M frames, K tokens of a frame, H, W of the crop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from playserve.errors import BadSettingError, NotImplementedHereError, ShapeMismatchError
from playserve.specs import ImageFormat
from playserve_trainer.models.policy import ForwardOutput
from playserve_trainer.models.tokenizer.base import Tokenizer

__all__ = ["SCREEN", "NetHackTokenizer", "NetHackTokenizerConfig", "crop_screens"]

#: Rows and columns of the terminal.
SCREEN = (24, 80)

_SPACE, _LAST, _OTHER = 32, 126, ord("?")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetHackTokenizerConfig:
    """What of the screen is a frame.

    Attributes:
        height: Rows of the crop, odd so that the cursor is in its middle; 24: the whole screen.
        width: Columns of the crop, odd; 80: the whole screen.
    """

    height: int = 9
    width: int = 9

    def __post_init__(self) -> None:
        for name, size, whole in (("height", self.height, SCREEN[0]), ("width", self.width, SCREEN[1])):
            if not 1 <= size <= whole or (size % 2 == 0 and size != whole):
                raise BadSettingError(f"tokenizer-nethack: {name} is odd and below {whole}, or {whole}, not {size}")
        if (self.height == SCREEN[0]) != (self.width == SCREEN[1]):
            raise BadSettingError(
                f"tokenizer-nethack: a crop of {self.height} x {self.width}; the whole screen is {SCREEN[0]} x "
                f"{SCREEN[1]}, and a crop is smaller both ways"
            )


class NetHackTokenizer(Tokenizer):
    """Characters are tokens: code c is the character c + 32; what is not printable is a question mark or a space."""

    token_of: Tensor

    def __init__(self, config: NetHackTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = config.height * config.width
        self.vocabulary = _LAST - _SPACE + 1
        self.frame_shape = (config.height, config.width, 1)
        # One of the two tables is kept: a checkpoint holds a tensor, and the digest goes by what the tokens are.
        characters = torch.arange(256)
        token_of = (characters - _SPACE).clamp(min=0)
        token_of[characters > _LAST] = _OTHER - _SPACE
        self.register_buffer("token_of", token_of)

    @property
    def family(self) -> str:
        """Key of the registry's FAMILIES."""
        return "tokenizer-nethack"

    def environment(self) -> Mapping[str, str]:
        """Return the game."""
        return {"family": "nethack"}

    def image_format(self) -> ImageFormat:
        """Return that characters are no picture."""
        return ImageFormat.NONE

    def device(self) -> torch.device:
        """Return the device of the table: there are no parameters."""
        return self.token_of.device

    def encode(self, frames_MHWC: Tensor) -> Tensor:
        """Return the tokens int64 [M, K] of crops uint8 [M, H, W, 1]."""
        self.check_frames(frames_MHWC)
        return self.token_of[frames_MHWC.flatten(1).long()]

    def decode(self, tokens_MK: Tensor) -> Tensor:
        """Return the crops uint8 [M, H, W, 1] of tokens [M, K]."""
        self.check_tokens(tokens_MK)
        return (tokens_MK + _SPACE).to(torch.uint8).view(-1, *self.frame_shape)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        executed_BTH: Tensor,
        first_BT: Tensor,
        state: Mapping[str, Tensor] | None = None,
    ) -> ForwardOutput:
        """Refuse: there is nothing to train.

        Raises:
            NotImplementedHereError: Always.
        """
        raise NotImplementedHereError("tokenizer-nethack learns nothing: characters are its tokens")


def crop_screens(chars_MHW: Tensor, cursor_M2: Tensor, height: int, width: int) -> Tensor:
    """Return the crops uint8 [M, height, width, 1] of screens around the cursor, spaces beyond the edge.

    Args:
        chars_MHW: uint8 [M, 24, 80].
        cursor_M2: Row and column of the cursor, any integers [M, 2].
        height: Of the crop; 24 with width 80: the whole screen, wherever the cursor is.
        width: Of the crop.

    Raises:
        ShapeMismatchError: The screens are of another shape.
    """
    if tuple(chars_MHW.shape[1:]) != SCREEN or chars_MHW.dtype != torch.uint8:
        raise ShapeMismatchError(f"screens {chars_MHW.dtype} {list(chars_MHW.shape)}, wanted uint8 [M, 24, 80]")
    if (height, width) == SCREEN:
        return chars_MHW.unsqueeze(-1)
    up, left = height // 2, width // 2
    padded = F.pad(chars_MHW, (left, left, up, up), value=_SPACE)
    where = cursor_M2.long()
    rows_MH = where[:, :1].clamp(0, SCREEN[0] - 1) + torch.arange(height, device=where.device)
    columns_MW = where[:, 1:].clamp(0, SCREEN[1] - 1) + torch.arange(width, device=where.device)
    frames = torch.arange(len(where), device=where.device)[:, None, None]
    return padded[frames, rows_MH[:, :, None], columns_MW[:, None, :]].unsqueeze(-1)
