"""Settings of the `tokenizer` family: the size of its nets, what its frames are frames of, what its training minds."""

from __future__ import annotations

from dataclasses import dataclass

from playserve.errors import BadSettingError
from playserve_trainer.models.tokenizer.aids import PERCEPTUAL_NETS
from playserve_trainer.models.tokenizer.nets import grid_of

__all__ = ["TokenizerConfig"]

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
        missed: Weight of the root of a frame's mean fourth power of the error, in which a small thing that is missed
            weighs as much as all that is a little off; 0: not looked at.
        adversarial: Weight of the loss of not passing for real (see :mod:`.aids`); 0: there is no adversary.
        adversarial_after: Training passes before the adversary's verdict counts; it learns from the first.
        adversary_filters: Channels of the adversary's first convolution.
        perceptual: Weight of LPIPS; 0: not looked at.
        perceptual_net: Net of LPIPS, one of :data:`.aids.PERCEPTUAL_NETS`.
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
    missed: float = 0.3
    adversarial: float = 0.0
    adversarial_after: int = 0
    adversary_filters: int = 32
    perceptual: float = 0.0
    perceptual_net: str = "vgg"
    game: str = ""
    resize_id: str = ""

    def __post_init__(self) -> None:
        for name in ("height", "width", "tokens", "code_width", "filters", "decoder_filters", "adversary_filters"):
            if getattr(self, name) < 1:
                raise BadSettingError(f"tokenizer: {name} is at least 1, not {getattr(self, name)}")
        if self.channels not in (1, 3):
            raise BadSettingError(f"tokenizer: channels is 1 (grey) or 3 (RGB), not {self.channels}")
        if not 2 <= self.codes <= _MAX_CODES:
            raise BadSettingError(f"tokenizer: codes is 2 to {_MAX_CODES}, not {self.codes}")
        if not 0.0 < self.decay < 1.0:
            raise BadSettingError(f"tokenizer: decay is between 0 and 1, not {self.decay}")
        for name in ("dead_below", "commitment", "missed", "adversarial", "adversarial_after", "perceptual"):
            if getattr(self, name) < 0:
                raise BadSettingError(f"tokenizer: {name} is at least 0, not {getattr(self, name)}")
        if self.perceptual_net not in PERCEPTUAL_NETS:
            raise BadSettingError(
                f"tokenizer: perceptual_net is one of {', '.join(PERCEPTUAL_NETS)}, not {self.perceptual_net!r}"
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
