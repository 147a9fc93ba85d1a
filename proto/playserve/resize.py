"""The one resize: a screen becomes a policy's frame in the same way when it is recorded, trained on and played.

`area-v1` averages the box of source pixels that each target pixel covers, parts of pixels by their part, and rounds
half up, once, at the end. It is two banded matrix products, rows first, then columns, with integer weights: between n
source and m target pixels each weight is the overlap in units of 1/m pixel, so that the weights of a target pixel add
up to n. Every sum is an integer that its floating-point type holds exactly (rows below 2**24 in float32, columns below
2**53 in float64), so the result is the same bit for bit on every machine and in any order of summation.

It only makes images smaller or keeps them.

`hamming-v1` is Open Pixel2Play's resize: separable convolution with a Hamming-windowed sinc of support 1, antialiased,
the aspect squashed. Theirs is fast_image_resize 5.1.4, ours Pillow's; both take the same weights over the same source
pixels and round to 8 bits after each of the two passes. They are not the same bit for bit: Pillow's weights have 22
fractional bits and its rows are resized first, theirs have as many bits as fit 16-bit integers. A pixel can be one
level off. With the id of a policy, recording, training and playing take the same code, so nothing of that is between
them. It needs Pillow (`pip install "playserve[play]"`), resizes either way, and takes any number of channels.

An id never changes its meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from playserve.errors import BadSettingError, ShapeMismatchError

__all__ = ["AREA_V1", "HAMMING_V1", "RESIZES", "bgrx_to_rgb", "resize", "resize_bgrx"]

AREA_V1 = "area-v1"
HAMMING_V1 = "hamming-v1"

Image = npt.NDArray[np.uint8]
Buffer = bytes | bytearray

# 255 * 16384 is below 2**24: sums over a column of pixels are exact in float32.
_MAX_SIDE = 16384


def resize(frame: Image, height: int, width: int, resize_id: str = AREA_V1) -> Image:
    """Return uint8 [height, width, C] (or [height, width]) of a uint8 frame [H, W, C] (or [H, W])."""
    method = RESIZES.get(resize_id)
    if method is None:
        raise BadSettingError(f"resize {resize_id!r} is none of {sorted(RESIZES)}")
    if frame.dtype != np.uint8 or frame.ndim not in (2, 3):
        raise ShapeMismatchError(f"frame of {frame.dtype} {list(frame.shape)}, wanted uint8 [H, W, C] or [H, W]")
    return method(frame, height, width)


def resize_bgrx(pixels: Buffer, source: tuple[int, int], height: int, width: int, resize_id: str = AREA_V1) -> Image:
    """Return what :func:`resize` makes of a picture as screens have it, in fewer passes over it.

    Args:
        pixels: Rows of pixels of 4 bytes: blue, green, red and one that means nothing.
        source: [H, W] of the picture.
        height: Of the result.
        width: Of the result.
        resize_id: See :data:`RESIZES`.
    """
    if resize_id != HAMMING_V1 or source == (height, width) or min(*source, height, width) < 1:
        return resize(bgrx_to_rgb(pixels, *source), height, width, resize_id)
    from PIL import Image as PillowImage

    picture = PillowImage.frombuffer("RGB", (source[1], source[0]), pixels, "raw", "BGRX", 0, 1)
    return np.array(picture.resize((width, height), PillowImage.Resampling.HAMMING))


def bgrx_to_rgb(pixels: Buffer, height: int, width: int) -> Image:
    """Return uint8 [H, W, 3] of rows of pixels of 4 bytes: blue, green, red and one that means nothing."""
    bgrx = np.frombuffer(pixels, np.uint8).reshape(height, width, 4)
    rgb = np.empty((height, width, 3), np.uint8)
    # Plane by plane: five times as fast as one copy of a reversed view.
    rgb[..., 0], rgb[..., 1], rgb[..., 2] = bgrx[..., 2], bgrx[..., 1], bgrx[..., 0]
    return rgb


def _area(frame: Image, height: int, width: int) -> Image:
    source_height, source_width = frame.shape[:2]
    if not (0 < height <= source_height and 0 < width <= source_width):
        raise ShapeMismatchError(
            f"{AREA_V1} makes {source_height} x {source_width} smaller, wanted at most that, not {height} x {width}"
        )
    if (height, width) == (source_height, source_width):
        return np.ascontiguousarray(frame)
    if source_height > _MAX_SIDE or source_width > _MAX_SIDE:
        raise ShapeMismatchError(
            f"{AREA_V1} takes up to {_MAX_SIDE} pixels a side, not {source_height} x {source_width}"
        )
    tall = _average(frame.reshape(source_height, -1), height, np.float32)
    # [h, W * C] -> [W, h * C], so that columns are rows
    turned = tall.reshape(height, source_width, -1).transpose(1, 0, 2).reshape(source_width, -1)
    total = _average(turned, width, np.float64).reshape(width, height, -1).transpose(1, 0, 2).astype(np.int64)
    area = source_height * source_width
    mean: Image = ((2 * total + area) // (2 * area)).astype(np.uint8)
    return mean.reshape(height, width, *frame.shape[2:])


def _average(rows: npt.NDArray[Any], target: int, dtype: type[np.floating[Any]]) -> npt.NDArray[Any]:
    """Return [target, M], the weighted sums of [N, M] source rows; divided by N they would be the means."""
    out = np.empty((target, rows.shape[1]), dtype)
    for i, (first, weights) in enumerate(_bands(rows.shape[0], target)):
        np.matmul(weights.astype(dtype), rows[first : first + len(weights)].astype(dtype), out=out[i])
    return out


@lru_cache(maxsize=64)
def _bands(source: int, target: int) -> tuple[tuple[int, npt.NDArray[np.int64]], ...]:
    """Return, for each target pixel, the first source pixel that it covers and the weights from there on."""
    bands = []
    for i in range(target):
        start, stop = i * source, (i + 1) * source  # in units of 1/target source pixel
        first, last = start // target, -(-stop // target)
        pixel = np.arange(first, last, dtype=np.int64) * target
        bands.append((first, np.minimum(stop, pixel + target) - np.maximum(start, pixel)))
    return tuple(bands)


def _hamming(frame: Image, height: int, width: int) -> Image:
    from PIL import Image as PillowImage  # brought by the extras; area-v1 needs nothing

    if min(*frame.shape, height, width) < 1:
        raise ShapeMismatchError(f"{HAMMING_V1} from {list(frame.shape)} to {height} x {width}, wanted at least 1 x 1")
    if frame.shape[:2] == (height, width):
        return np.ascontiguousarray(frame)
    if frame.ndim == 3 and frame.shape[2] != 3:
        # Pillow gives other channel counts a meaning: the fourth would be multiplied into the others.
        planes = [_hamming(frame[:, :, channel], height, width) for channel in range(frame.shape[2])]
        return np.stack(planes, axis=2)
    source = PillowImage.fromarray(np.ascontiguousarray(frame))
    return np.array(source.resize((width, height), PillowImage.Resampling.HAMMING))


#: Every resize by its id, as TensorSpec.resize_id names it.
RESIZES: Mapping[str, Callable[[Image, int, int], Image]] = {AREA_V1: _area, HAMMING_V1: _hamming}
