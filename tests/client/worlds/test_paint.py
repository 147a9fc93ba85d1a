"""Pictures of frames: as they are, or of characters."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fake_world import world_spec

from playserve.specs import ImageFormat
from playserve_client.worlds.paint import Painter

pytest.importorskip("PIL")


def test_pictures_stay_as_they_are() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    paint = Painter(world_spec(channels=1))
    assert paint.size == (16, 16)
    assert (paint(frame) == frame).all()


def test_characters_are_drawn_where_they_stand() -> None:
    spec = world_spec(side=4, channels=1)
    text = dataclasses.replace(spec.outputs[0], image_format=ImageFormat.NONE, shape=(4, 6, 1))
    paint = Painter(dataclasses.replace(spec, outputs=(text, *spec.outputs[1:])))
    frame = np.full((4, 6, 3), ord(" "), np.uint8)
    frame[2, 3] = ord("@")
    picture = paint(frame)
    assert picture.shape == (*paint.size, 3) == (4 * 14, 6 * 8, 3)
    cells = picture.reshape(4, 14, 6, 8, 3).sum((1, 3, 4))
    assert np.argwhere(cells).tolist() == [[2, 3]]
