"""Augmentations of clips, with the probabilities and ranges of Open P2P, drawn once for each clip.

Every draw comes from the clip's own generator; all frames of a clip are changed alike, but for noise, which is fresh in
each frame. In order: rotation, colour jiggle, Planckian jitter (other light), ISO noise, horizontal shift, blur,
sharpness. What comes into view at an edge repeats the edge. Hue turns in the chroma plane of YIQ, which is linear.

Shape legend: T frames of a clip, S side, x_T3SS float32 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

__all__ = ["PROBABILITIES", "Augmenter"]

#: How often a clip gets each of them, in order.
PROBABILITIES: Mapping[str, float] = MappingProxyType(
    {
        "rotation": 1.0, "jiggle": 0.25, "planckian": 0.25, "iso_noise": 0.1, "shift": 0.25, "blur": 0.2,
        "sharpness": 0.15,
    }
)  # fmt: skip

_ROTATION_DEG = 3.0
_SHIFT = 0.03  # of the width
# Open P2P's own ranges of the jiggle are not known; these are usual ones. Hue in turns.
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 0.2, 0.2, 0.2, 0.05
_KERNELS = (3, 5, 7)

# Light of a black body of 6,000, 9,000, 12,000 and 15,000 K: red and blue over green (numbers 6, 12, 18 and 24 of the
# Planckian jitter's table).
_LIGHTS = (
    (0.4979 / 0.4584, 0.4468 / 0.4584),
    (0.4223 / 0.4648, 0.5844 / 0.4648),
    (0.3787 / 0.4656, 0.6532 / 0.4656),
    (0.3503 / 0.4653, 0.6933 / 0.4653),
)

_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_SMOOTH = torch.tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13.0

_Change = Callable[[Tensor, np.random.Generator], Tensor]


@dataclass(frozen=True)
class Augmenter:
    """Changes clips uint8 [T, S, S, 3]; a function of the clip and its generator, safe in any thread.

    Attributes:
        probabilities: How often a clip gets each change; what is not named is never done.
    """

    probabilities: Mapping[str, float] = field(default_factory=lambda: PROBABILITIES)

    @torch.no_grad()
    def __call__(self, clip_TSS3: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Return the changed clip."""
        # Every change draws its own generator, whether it is done or not: one more in the list moves no other.
        draws = [(change, rng.random(), rng.spawn(1)[0], name) for name, change in _CHANGES.items()]
        chosen = [(change, own) for change, drawn, own, name in draws if drawn < self.probabilities.get(name, 0.0)]
        if not chosen:
            return clip_TSS3
        x_T3SS = torch.from_numpy(clip_TSS3).permute(0, 3, 1, 2).contiguous().float().mul_(1 / 255)
        for change, own in chosen:
            x_T3SS = change(x_T3SS, own).clamp_(0.0, 1.0)
        out: NDArray[np.uint8] = x_T3SS.mul_(255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        return out


def rotate(x_T3SS: Tensor, rng: np.random.Generator) -> Tensor:
    """Turn by up to 3 degrees either way."""
    angle = math.radians(rng.uniform(-_ROTATION_DEG, _ROTATION_DEG))
    turn = torch.tensor([[[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]])
    # All frames share one grid: as channels of one picture they are sampled together.
    flat = x_T3SS.reshape(1, -1, *x_T3SS.shape[2:])
    grid = F.affine_grid(turn, [1, 1, *x_T3SS.shape[2:]], align_corners=False)
    return F.grid_sample(flat, grid, padding_mode="border", align_corners=False).reshape(x_T3SS.shape)


def jiggle(x_T3SS: Tensor, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue a little."""
    brightness, contrast, saturation = (
        rng.uniform(1 - reach, 1 + reach) for reach in (_BRIGHTNESS, _CONTRAST, _SATURATION)
    )
    angle = 2 * math.pi * rng.uniform(-_HUE, _HUE)
    chroma = saturation * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    in_yiq = torch.eye(3)
    in_yiq[1:, 1:] = chroma
    matrix = brightness * contrast * torch.linalg.inv(_TO_YIQ) @ in_yiq @ _TO_YIQ
    # Contrast is about the clip's mean brightness, so that a clip does not flicker.
    grey = brightness * (1 - contrast) * (x_T3SS.mean((0, 2, 3)) @ _TO_YIQ[0])
    return _recolour(x_T3SS, matrix) + grey


def planckian(x_T3SS: Tensor, rng: np.random.Generator) -> Tensor:
    """Light the scene with a black body of another temperature."""
    red, blue = _LIGHTS[rng.integers(len(_LIGHTS))]
    return x_T3SS * torch.tensor([red, 1.0, blue]).view(1, 3, 1, 1)


def iso_noise(x_T3SS: Tensor, rng: np.random.Generator) -> Tensor:
    """Add a sensor's noise: of brightness (Poisson) and of hue (normal), fresh in every pixel of every frame."""
    colour, intensity = rng.uniform(0.01, 0.2), rng.uniform(0.1, 0.6)
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    shape = (x_T3SS.shape[0], *x_T3SS.shape[2:])
    yiq = _recolour(x_T3SS, _TO_YIQ)
    luma_TSS, i_TSS, q_TSS = yiq.unbind(1)
    rate = float(luma_TSS.std()) * intensity * 255
    noise_TSS = torch.poisson(torch.full(shape, rate), generator=generator) / 255
    angle_TSS = torch.randn(shape, generator=generator) * (2 * math.pi * colour * intensity)
    cos, sin = angle_TSS.cos(), angle_TSS.sin()
    noisy = torch.stack(
        [luma_TSS + noise_TSS * (1 - luma_TSS), i_TSS * cos - q_TSS * sin, i_TSS * sin + q_TSS * cos], dim=1
    )
    return _recolour(noisy, torch.linalg.inv(_TO_YIQ))


def shift(x_T3SS: Tensor, rng: np.random.Generator) -> Tensor:
    """Shift sideways by up to 3 % of the width."""
    width = x_T3SS.shape[-1]
    by = round(rng.uniform(-_SHIFT, _SHIFT) * width)
    columns = (torch.arange(width) - by).clamp_(0, width - 1)
    return x_T3SS.index_select(-1, columns)


def blur(x_T3SS: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, one half of the time as a lens out of focus, the other as motion in one direction."""
    size = int(rng.choice(_KERNELS))
    axis = torch.arange(size) - (size - 1) / 2
    if rng.random() < 0.5:
        weights = torch.exp(-(axis**2) / (2 * rng.uniform(0.1, 2.0) ** 2))
        kernel = weights[:, None] * weights / weights.sum() ** 2
        if size > 3:  # rows, then columns
            line = torch.zeros(size, size)
            line[size // 2] = weights / weights.sum()
            return _convolve(_convolve(x_T3SS, line), line.T)
    else:
        kernel = _streak(size, math.pi * rng.random(), rng.uniform(-1.0, 1.0))
    return _convolve(x_T3SS, kernel / kernel.sum())


def sharpness(x_T3SS: Tensor, rng: np.random.Generator) -> Tensor:
    """Soften or sharpen."""
    smooth = _convolve(x_T3SS, _SMOOTH)
    return smooth + rng.uniform(0.5, 1.5) * (x_T3SS - smooth)


_CHANGES: Mapping[str, _Change] = MappingProxyType(
    {
        "rotation": rotate, "jiggle": jiggle, "planckian": planckian, "iso_noise": iso_noise, "shift": shift,
        "blur": blur, "sharpness": sharpness,
    }
)  # fmt: skip


def _streak(size: int, angle: float, direction: float) -> Tensor:
    """Return the kernel of a motion: a line at an angle, weighted towards one of its ends by `direction`, -1 to 1."""
    along = torch.linspace(-1.0, 1.0, 4 * size)
    middle = (size - 1) / 2
    rows = (middle + middle * along * math.sin(angle)).round().long()
    columns = (middle + middle * along * math.cos(angle)).round().long()
    kernel = torch.zeros(size, size)
    kernel.index_put_((rows, columns), 1 + direction * along, accumulate=True)
    return kernel


def _recolour(x_T3SS: Tensor, matrix_33: Tensor) -> Tensor:
    return torch.einsum("oc,tchw->tohw", matrix_33, x_T3SS)


def _convolve(x_T3SS: Tensor, kernel: Tensor) -> Tensor:
    """Convolve every channel with a kernel [K, K], the edge repeated: shifted copies added up, frame by frame.

    Five times faster on a CPU than conv2d, which is not made for one channel.
    """
    reach, (height, width) = kernel.shape[-1] // 2, x_T3SS.shape[2:]
    padded = F.pad(x_T3SS, (reach, reach, reach, reach), mode="replicate")
    out = torch.zeros_like(x_T3SS, memory_format=torch.contiguous_format)
    taps = [(row, column, float(kernel[row, column])) for row, column in kernel.nonzero().tolist()]
    for frame, place in zip(padded, out, strict=True):  # a frame stays in the cache
        for row, column, weight in taps:
            place.add_(frame[:, row : row + height, column : column + width], alpha=weight)
    return out
