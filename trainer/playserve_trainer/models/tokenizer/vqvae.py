"""The `tokenizer` family: a VQ-VAE, frames to K of V codes and back; K, the tokens of a frame, is its one dial.

Pixels are standardised by the mean and the spread of each place over the data, and what training makes small is the
squared error in that measure: a ball of two pixels, which is seldom at any one place, weighs as much there as a wall
that comes and goes. It is one thing among many nevertheless, and learnt last; a root of mean fourth powers beside it
makes a thing that is missed as heavy as everything that is a little off. The commitment loss holds the encoder to the
codes; the codes follow by moving averages (:mod:`.codebook`). After van den Oord et al. (1711.00937) and Razavi et al.
(1906.00446).

Shape legend: B rows, T steps, M frames, K tokens of a frame, V codes, D width of a code, H, W, C of a frame,
P = H * W * C pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from playserve_trainer.models.policy import IGNORED_LABEL, ForwardOutput, LabelCounts
from playserve_trainer.models.tokenizer.aids import Adversary, perceptual_distance
from playserve_trainer.models.tokenizer.base import FRAME, Tokenizer
from playserve_trainer.models.tokenizer.codebook import Codebook
from playserve_trainer.models.tokenizer.config import TokenizerConfig
from playserve_trainer.models.tokenizer.nets import Decoder, Encoder, Levels

__all__ = ["HIT_LEVELS", "VQTokenizer"]

#: A pixel is a hit whose reconstruction is off by at most so many of 255 levels.
HIT_LEVELS = 8


class VQTokenizer(Tokenizer):
    """Encoder, codebook, decoder; see the module's docstring."""

    training_only = frozenset(
        (
            "missed",
            "adversarial",
            "adversarial_after",
            "adversary_filters",
            "perceptual",
            "perceptual_net",
            "adversary",
            "passes",
        )
    )
    mean: Tensor
    spread: Tensor
    passes: Tensor

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens, self.vocabulary = config.tokens, config.codes
        self.frame_shape = (config.height, config.width, config.channels)
        levels = Levels.between((config.height, config.width), config.grid)
        self.encoder = Encoder(levels, config.channels, config.filters, config.code_width)
        self.codebook = Codebook(config.codes, config.code_width, config.decay, config.dead_below)
        self.decoder = Decoder(levels, config.channels, config.decoder_filters, config.code_width)
        self.adversary: Adversary | None = None
        if config.adversarial:
            self.adversary = Adversary(config.channels, config.adversary_filters)
            self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self._perceptual: Callable[[Tensor, Tensor], Tensor] | None = None  # fetched where it is first needed
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
            tokens int64 [B, T, K]; in training with an adversary, or by LPIPS, what those say, float32 [B, T, 1].
        """
        steps, frames_MHWC = inputs[FRAME].shape[:2], inputs[FRAME].flatten(0, 1)
        features_MKD = self.features(frames_MHWC).float()
        codes_MKD, tokens_MK = self.codebook(features_MKD)
        commitment_M = (features_MKD - codes_MKD.detach()).square().mean((1, 2))
        pixels_MHWC = self._pixels(codes_MKD)
        logits = (pixels_MHWC.reshape(*steps, -1), commitment_M.view(*steps, 1), tokens_MK.view(*steps, -1))
        if self.training and (self.config.adversarial or self.config.perceptual):
            return ForwardOutput((*logits, self._aids(frames_MHWC, pixels_MHWC).view(*steps, 1)), {})
        return ForwardOutput(logits, {})

    def loss(self, logits: Sequence[Tensor], labels_BTH: Tensor, counts: LabelCounts) -> Tensor:
        """Return the mean squared error of a pixel in spreads of its place, and the other losses, weighted.

        What is missed is asked of training alone: held-out losses are squared errors.

        Args:
            logits: As :meth:`forward` gave them.
            labels_BTH: The frames' pixels [B, T, P], IGNORED_LABEL throughout where there is no frame.
            counts: Of the whole batch.
        """
        pixels_BTP, commitment_BT1 = logits[0], logits[1]
        known_BTP = labels_BTH != IGNORED_LABEL
        error_BTP = (pixels_BTP.float() - labels_BTH.float()) / self.spread.flatten()
        squared_BTP = error_BTP.square() * known_BTP
        squared = squared_BTP.sum() / counts.labels_H.sum().clamp(min=1)
        beside_BT1 = self.config.commitment * commitment_BT1
        if self.config.missed and self.training:
            fourth_BT1 = squared_BTP.square().mean(-1, keepdim=True)
            beside_BT1 = beside_BT1 + self.config.missed * (fourth_BT1 + 1e-8).sqrt()
        if len(logits) > 3:
            beside_BT1 = beside_BT1 + logits[3]
        return squared + (beside_BT1 * known_BTP[..., :1]).sum() / counts.labels_H[0].clamp(min=1)

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

    def num_params(self) -> int:
        """Return N; the adversary is of the training alone."""
        aids = sum(p.numel() for p in self.adversary.parameters()) if self.adversary is not None else 0
        return super().num_params() - aids

    def _aids(self, frames_MHWC: Tensor, pixels_MHWC: Tensor) -> Tensor:
        """Return the weighted losses [M] of the adversary, its own included, and of LPIPS."""
        config, total_M = self.config, torch.zeros(len(frames_MHWC), device=frames_MHWC.device)
        real_MCHW, made_MCHW = (x_MHWC.permute(0, 3, 1, 2) for x_MHWC in (frames_MHWC.float(), pixels_MHWC))
        if self.adversary is not None:
            mean_CHW, spread_CHW = self.mean.permute(2, 0, 1), self.spread.permute(2, 0, 1)
            pair = ((x_MCHW - mean_CHW) / spread_CHW for x_MCHW in (real_MCHW, made_MCHW))
            fooled_M, own_M = self.adversary.losses(*pair)
            counts = (self.passes >= config.adversarial_after).float()
            total_M = total_M + own_M.float() + config.adversarial * counts * fooled_M.float()
            self.passes.add_(1)
        if config.perceptual and not frames_MHWC.is_meta:  # no layer of ours: its FLOPs are not counted
            self._perceptual = self._perceptual or perceptual_distance(config.perceptual_net)
            total_M = total_M + config.perceptual * self._perceptual(real_MCHW, made_MCHW)
        return total_M

    def _pixels(self, codes_MKD: Tensor) -> Tensor:
        """Return pixels float32 [M, H, W, C], in levels, of codes [M, K, D]."""
        codes_MDRQ = codes_MKD.reshape(-1, *self.config.grid, self.config.code_width).permute(0, 3, 1, 2)
        y_MCHW: Tensor = self.decoder(codes_MDRQ)
        return y_MCHW.permute(0, 2, 3, 1).float() * self.spread + self.mean
