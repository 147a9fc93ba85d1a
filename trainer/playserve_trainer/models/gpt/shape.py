"""Shape of the core, and what follows from its width: the one size dial of the families on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from playserve.errors import BadSettingError

__all__ = ["CoreConfig", "Shape", "heads_of", "layers_of"]


def layers_of(width: int) -> int:
    """Return the layers of a width where none are said: 2 up to 64, 3 at 128, 4 at 256, 6 at 512, 8 at 1024."""
    return max(2, round(math.sqrt(width) / 4))


def heads_of(width: int) -> int:
    """Return the attention heads of a width where none are said: of 16 up to width 64, of 32 to 256, of 64 beyond."""
    size = 16 if width <= 64 else 32 if width <= 256 else 64
    return max(1, width // size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Shape of a core.

    Attributes:
        width: D.
        layers: L.
        heads: A, attention heads.
        frames: F, frames that a token looks back over, its own included.
        seen: [P], for each token of a frame how many of the frame's tokens it sees; 1, 2, 3 ... is causal.
    """

    width: int
    layers: int
    heads: int
    frames: int
    seen: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "frames"):
            if getattr(self, name) < 1:
                raise BadSettingError(f"gpt: {name} is at least 1, not {getattr(self, name)}")
        if self.width % (2 * self.heads):
            raise BadSettingError(f"gpt: width {self.width} is no multiple of 2 * heads ({self.heads})")
        if not self.seen or any(not place < seen <= len(self.seen) for place, seen in enumerate(self.seen)):
            raise BadSettingError(f"gpt: a token sees itself and at most its frame, not {self.seen}")

    @property
    def tokens(self) -> int:
        """P, tokens of a frame."""
        return len(self.seen)

    @property
    def window(self) -> int:
        """W, tokens that are kept."""
        return self.frames * self.tokens

    @property
    def head_size(self) -> int:
        """E, numbers of a head."""
        return self.width // self.heads

    @property
    def causal(self) -> bool:
        """Whether each token sees those before it and itself, and no others."""
        return self.seen == tuple(range(1, self.tokens + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """What every family on the core is told of it.

    Attributes:
        width: D, the size dial.
        layers: Of the core; 0: by the width.
        heads: Attention heads; 0: by the width.
        context: Frames that a token looks back over, its own included.
    """

    width: int
    layers: int = 0
    heads: int = 0
    context: int = 8

    def core(self, seen: tuple[int, ...]) -> Shape:
        """Return the shape of the core, each token of a frame seeing so many of them."""
        layers, heads = self.layers or layers_of(self.width), self.heads or heads_of(self.width)
        return Shape(width=self.width, layers=layers, heads=heads, frames=self.context, seen=seen)
