"""A captured picture becomes the same frame as the same picture read back from anywhere else."""

from __future__ import annotations

import numpy as np
import pytest

from playserve.resize import AREA_V1, HAMMING_V1, resize
from playserve_client.capture.base import Picture


def picture(height: int, width: int) -> tuple[Picture, np.ndarray]:
    rng = np.random.default_rng(3)
    rgb = rng.integers(0, 256, (height, width, 3), np.uint8)
    padding = rng.integers(0, 256, (height, width, 1), np.uint8)  # what it is must not matter
    return Picture(np.concatenate([rgb[..., ::-1], padding], axis=2).tobytes(), height, width), rgb


def test_colours_are_in_order() -> None:
    shot, rgb = picture(5, 7)
    assert (shot.rgb() == rgb).all()


@pytest.mark.parametrize("resize_id", [AREA_V1, HAMMING_V1])
@pytest.mark.parametrize("size", [(96, 96), (60, 80), (192, 100)])
def test_the_live_resize_is_the_resize(resize_id: str, size: tuple[int, int]) -> None:
    if resize_id == HAMMING_V1:
        pytest.importorskip("PIL")
    shot, rgb = picture(200, 301) if size != (192, 100) else picture(192, 100)
    live = shot.resized(*size, resize_id)
    assert (live == resize(rgb, *size, resize_id)).all()
