"""The convolutions of a learnt tokenizer: frames of any size to a grid of vectors, and back.

The encoder is cheap and the decoder less so: a cache is written of every frame there is, pictures are made for people.
A strided stem and stride-2 convolutions take the frame to about twice the grid, an interpolation to exactly that, and a
last stride-2 convolution to the grid, so that any number of tokens comes out of any frame. Where frame and grid are in
a ratio of powers of two nothing is interpolated.

Shape legend: M frames, C channels, H, W sides, R x Q the grid (rows, columns), F filters, D width of a code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Decoder", "Encoder", "Levels", "grid_of"]


def grid_of(tokens: int, height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns whose product is `tokens` and whose cells are nearest to squares."""
    pairs = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    return min(pairs, key=lambda pair: (abs(math.log(pair[0] / pair[1] * width / height)), pair))


@dataclass(frozen=True, slots=True)
class Levels:
    """Sizes [H, W] of the maps between a frame and its grid.

    Attributes:
        frame: Of the frame.
        stem: Stride of the first convolution: 4, 2 or 1.
        maps: Behind the stem, and behind each stride-2 convolution after it.
        double: Twice the grid: what the last of `maps` is interpolated to.
        grid: Of the tokens.
    """

    frame: tuple[int, int]
    stem: int
    maps: tuple[tuple[int, int], ...]
    double: tuple[int, int]
    grid: tuple[int, int]

    @classmethod
    def between(cls, frame: tuple[int, int], grid: tuple[int, int]) -> Levels:
        """Return the levels whose last map is as near to twice the grid as halving gets."""
        double = (2 * grid[0], 2 * grid[1])
        ratio = math.sqrt(frame[0] * frame[1] / (double[0] * double[1]))
        stem = 4 if ratio >= 2**1.5 else 2 if ratio >= 2**0.5 else 1
        maps = [(max(1, frame[0] // stem), max(1, frame[1] // stem))]
        while math.sqrt(maps[-1][0] * maps[-1][1] / (double[0] * double[1])) >= 2**0.5:
            maps.append((max(1, maps[-1][0] // 2), max(1, maps[-1][1] // 2)))
        return cls(frame, stem, tuple(maps), double, grid)


class Residual(nn.Module):
    """x + two convolutions of relu(x), the second of them 1x1."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(filters, filters, 3, padding=1)
        self.conv2 = nn.Conv2d(filters, filters, 1)

    def forward(self, x_MFHW: Tensor) -> Tensor:
        """Return a map of the same shape."""
        y_MFHW: Tensor = self.conv2(F.relu(self.conv1(F.relu(x_MFHW))))
        return x_MFHW + y_MFHW


class Encoder(nn.Module):
    """Standardised pixels [M, C, H, W] to vectors [M, D, R, Q].

    Args:
        levels: Sizes between frame and grid.
        channels: C.
        filters: F.
        width: D.
    """

    def __init__(self, levels: Levels, channels: int, filters: int, width: int) -> None:
        super().__init__()
        self.levels = levels
        kernel = {4: 6, 2: 4, 1: 3}[levels.stem]
        self.stem = nn.Conv2d(channels, filters, kernel, levels.stem, padding=1)
        self.halvings = nn.ModuleList(nn.Conv2d(filters, filters, 4, 2, padding=1) for _ in levels.maps[1:])
        self.last = nn.Conv2d(filters, filters, 4, 2, padding=1)
        self.residual = Residual(filters)
        self.out = nn.Conv2d(filters, width, 1)

    def forward(self, x_MCHW: Tensor) -> Tensor:
        """See the class."""
        x_MFHW = F.relu(self.stem(x_MCHW))
        for halving in self.halvings:
            x_MFHW = F.relu(halving(x_MFHW))
        x_MFHW = self.last(_sized(x_MFHW, self.levels.double))
        y_MDRQ: Tensor = self.out(F.relu(self.residual(x_MFHW)))
        return y_MDRQ


class Decoder(nn.Module):
    """Codes [M, D, R, Q] to standardised pixels [M, C, H, W].

    Args:
        levels: Those of the encoder.
        channels: C.
        filters: F.
        width: D.
    """

    def __init__(self, levels: Levels, channels: int, filters: int, width: int) -> None:
        super().__init__()
        self.levels = levels
        self.inwards = nn.Conv2d(width, filters, 3, padding=1)
        self.residuals = nn.Sequential(Residual(filters), Residual(filters))
        self.doublings = nn.ModuleList(nn.Conv2d(filters, filters, 3, padding=1) for _ in levels.maps)
        self.out = nn.Conv2d(filters, channels * levels.stem**2, 3, padding=1)

    def forward(self, codes_MDRQ: Tensor) -> Tensor:
        """See the class."""
        x_MFHW = F.relu(self.residuals(self.inwards(codes_MDRQ)))
        for size, doubling in zip(reversed(self.levels.maps), self.doublings, strict=True):
            x_MFHW = F.relu(doubling(F.interpolate(x_MFHW, size=size, mode="nearest")))
        y_MCHW = F.pixel_shuffle(self.out(x_MFHW), self.levels.stem)
        return _sized(y_MCHW, self.levels.frame)


def _sized(x_MFHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the map in another size; nothing happens where it has it."""
    if tuple(x_MFHW.shape[-2:]) == size:
        return x_MFHW
    return F.interpolate(x_MFHW, size=size, mode="bilinear", align_corners=False)
