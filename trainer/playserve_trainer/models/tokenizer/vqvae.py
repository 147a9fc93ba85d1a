"""The `tokenizer` family: a VQ-VAE, frames to K of V codes and back; K, the tokens of a frame, is its one dial.

Pixels are standardised by the mean and the spread of each place over the data, and what training makes small is the
squared error in that measure: a ball of two pixels, which is seldom at any one place, weighs as much there as a wall
that comes and goes. The commitment loss holds the encoder to the codes; the codes follow by moving averages
(:mod:`.codebook`). After van den Oord et al. (1711.00937) and Razavi et al. (1906.00446).

Shape legend: B rows, T steps, M frames, K tokens of a frame, V codes, D width of a code, H, W, C of a frame,
P = H * W * C pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from playserve.errors import BadSettingError
from playserve_trainer.models.policy import IGNORED_LABEL, ForwardOutput, LabelCounts
from playserve_trainer.models.tokenizer.base import FRAME, Tokenizer
from playserve_trainer.models.tokenizer.codebook import Codebook
from playserve_trainer.models.tokenizer.nets import Decoder, Encoder, Levels, grid_of

__all__ = ["HIT_LEVELS", "TokenizerConfig", "VQTokenizer"]

#: A pixel is a hit whose reconstruction is off by at most so many of 255 levels.
HIT_LEVELS = 8

# Tokens are kept as uint16.
_MAX_CODES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """Size of the net, and what its frames are frames of.

    Attributes:
        height: H, pixels.
        width: W, pixels.
        channels: C: 1 grey, 3 RGB.
        tokens: K, the dial.
        codes: V, at least 2.
        code_width: D.
        filters: Channels of the encoder's convolutions.
        decoder_filters: Of the decoder's.
        decay: Of the codes' moving averages, a batch.
        dead_below: See :class:`playserve_trainer.models.tokenizer.codebook.Codebook`.
        commitment: Weight of the commitment loss.
        game: What is played, as the recordings name it; empty: nobody said.
        resize_id: Resize that made the frames from the screen (see playserve.resize); empty: none prescribed.
    """

    height: int
    width: int
    channels: int
    tokens: int
    codes: int = 512
    code_width: int = 16
    filters: int = 32
    decoder_filters: int = 64
    decay: float = 0.95
    dead_below: float = 0.05
    commitment: float = 0.25
    game: str = ""
    resize_id: str = ""

    def __post_init__(self) -> None:
        for name in ("height", "width", "tokens", "code_width", "filters", "decoder_filters"):
            if getattr(self, name) < 1:
                raise BadSettingError(f"tokenizer: {name} is at least 1, not {getattr(self, name)}")
        if self.channels not in (1, 3):
            raise BadSettingError(f"tokenizer: channels is 1 (grey) or 3 (RGB), not {self.channels}")
        if not 2 <= self.codes <= _MAX_CODES:
            raise BadSettingError(f"tokenizer: codes is 2 to {_MAX_CODES}, not {self.codes}")
        if not 0.0 < self.decay < 1.0 or self.dead_below < 0.0 or self.commitment < 0.0:
            raise BadSettingError(
                f"tokenizer: decay is between 0 and 1, dead_below and commitment at least 0, not {self.decay}, "
                f"{self.dead_below}, {self.commitment}"
            )
        rows, columns = self.grid
        if rows > self.height or columns > self.width or max(rows / columns, columns / rows) > 8:
            raise BadSettingError(
                f"tokenizer: {self.tokens} tokens make a grid of {rows} x {columns} for frames of {self.height} x "
                f"{self.width}; choose a number with a grid like the frame, such as 16, 36, 64, 100 or 256"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens."""
        return grid_of(self.tokens, self.height, self.width)


class VQTokenizer(Tokenizer):
    """Encoder, codebook, decoder; see the module's docstring."""

    mean: Tensor
    spread: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens, self.vocabulary = config.tokens, config.codes
        self.frame_shape = (config.height, config.width, config.channels)
        levels = Levels.between((config.height, config.width), config.grid)
        self.encoder = Encoder(levels, config.channels, config.filters, config.code_width)
        self.codebook = Codebook(config.codes, config.code_width, config.decay, config.dead_below)
        self.decoder = Decoder(levels, config.channels, config.decoder_filters, config.code_width)
        self.register_buffer("mean", torch.full(self.frame_shape, 127.5))
        self.register_buffer("spread", torch.full(self.frame_shape, 127.5))

    @property
    def family(self) -> str:
        """Key of the registry's FAMILIES."""
        return "tokenizer"

    def environment(self) -> Mapping[str, str]:
        """Return the game of the frames."""
        return {"game": self.config.game} if self.config.game else {}

    def resize_id(self) -> str:
        """Return the resize that makes a frame from a screen."""
        return self.config.resize_id

    def standardise_by(self, mean_HWC: Tensor, spread_HWC: Tensor) -> None:
        """Take mean and spread of each place over the data, in levels of 0 to 255; the spread is above 0."""
        self.mean.copy_(mean_HWC)
        self.spread.copy_(spread_HWC)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        executed_BTH: Tensor,
        first_BT: Tensor,
        state: Mapping[str, Tensor] | None = None,
    ) -> ForwardOutput:
        """Return what :meth:`loss` takes, for `frame` uint8 [B, T, H, W, C]; the other arguments do not matter.

        Returns:
            As logits: the reconstruction float32 [B, T, P], in levels; the commitment loss float32 [B, T, 1]; the
            tokens int64 [B, T, K].
        """
        steps = inputs[FRAME].shape[:2]
        features_MKD = self.features(inputs[FRAME].flatten(0, 1)).float()
        codes_MKD, tokens_MK = self.codebook(features_MKD)
        commitment_M = (features_MKD - codes_MKD.detach()).square().mean((1, 2))
        pixels_MHWC = self._pixels(codes_MKD)
        return ForwardOutput(
            (pixels_MHWC.reshape(*steps, -1), commitment_M.view(*steps, 1), tokens_MK.view(*steps, -1)), {}
        )

    def loss(self, logits: Sequence[Tensor], labels_BTH: Tensor, counts: LabelCounts) -> Tensor:
        """Return the mean squared error of a pixel in spreads of its place, and the weighted commitment loss.

        Args:
            logits: As :meth:`forward` gave them.
            labels_BTH: The frames' pixels [B, T, P], IGNORED_LABEL throughout where there is no frame.
            counts: Of the whole batch.
        """
        pixels_BTP, commitment_BT1 = logits[0], logits[1]
        known_BTP = labels_BTH != IGNORED_LABEL
        error_BTP = (pixels_BTP.float() - labels_BTH.float()) / self.spread.flatten()
        squared = (error_BTP.square() * known_BTP).sum() / counts.labels_H.sum().clamp(min=1)
        committed = (commitment_BT1 * known_BTP[..., :1]).sum() / counts.labels_H[0].clamp(min=1)
        return squared + self.config.commitment * committed

    def count_hits(self, logits: Sequence[Tensor], labels_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many pixels are reconstructed to within :data:`HIT_LEVELS`, and how many there are."""
        with torch.no_grad():
            known_BTP = labels_BTH != IGNORED_LABEL
            near_BTP = (logits[0].float() - labels_BTH.float()).abs() <= HIT_LEVELS
            return (near_BTP & known_BTP).sum(), known_BTP.sum()

    @torch.no_grad()
    def encode(self, frames_MHWC: Tensor) -> Tensor:
        """Return the tokens int64 [M, K] of frames uint8 [M, H, W, C]."""
        self.check_frames(frames_MHWC)
        return self.codebook.nearest(self.features(frames_MHWC))

    @torch.no_grad()
    def decode(self, tokens_MK: Tensor) -> Tensor:
        """Return the frames uint8 [M, H, W, C] that tokens [M, K] stand for."""
        self.check_tokens(tokens_MK)
        pixels_MHWC = self._pixels(self.codebook.vectors(tokens_MK))
        return pixels_MHWC.round().clamp(0, 255).to(torch.uint8).contiguous()

    def features(self, frames_MHWC: Tensor) -> Tensor:
        """Return the encoder's vectors [M, K, D] of frames uint8 [M, H, W, C], before they become codes."""
        x_MHWC = (frames_MHWC - self.mean).div_(self.spread)
        # A permuted HWC array already lies in channels_last order.
        y_MDRQ: Tensor = self.encoder(x_MHWC.permute(0, 3, 1, 2))
        return y_MDRQ.flatten(2).transpose(1, 2)

    def _pixels(self, codes_MKD: Tensor) -> Tensor:
        """Return pixels float32 [M, H, W, C], in levels, of codes [M, K, D]."""
        codes_MDRQ = codes_MKD.reshape(-1, *self.config.grid, self.config.code_width).permute(0, 3, 1, 2)
        y_MCHW: Tensor = self.decoder(codes_MDRQ)
        return y_MCHW.permute(0, 2, 3, 1).float() * self.spread + self.mean
