"""The one resize: exact, deterministic, and what OpenCV calls INTER_AREA."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playserve.errors import BadSettingError, ShapeMismatchError
from playserve.resize import AREA_V1, HAMMING_V1, RESIZES, resize


def exact_mean(frame, height, width, i, j):
    """The definition, in rational numbers, rounded half up."""
    total = Fraction(0)
    scale_y, scale_x = Fraction(frame.shape[0], height), Fraction(frame.shape[1], width)
    for y in range(frame.shape[0]):
        wy = min((i + 1) * scale_y, y + 1) - max(i * scale_y, y)
        for x in range(frame.shape[1]):
            wx = min((j + 1) * scale_x, x + 1) - max(j * scale_x, x)
            if wy > 0 and wx > 0:
                total += wy * wx * int(frame[y, x])
    return int(total / (scale_y * scale_x) + Fraction(1, 2))


@settings(max_examples=40)
@given(st.data())
def test_it_is_the_exact_area_mean(data):
    source = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    target = data.draw(st.tuples(st.integers(1, source[0]), st.integers(1, source[1])))
    frame = np.random.default_rng(data.draw(st.integers(0, 999))).integers(0, 256, source, dtype=np.uint8)
    small = resize(frame, *target)
    want = [[exact_mean(frame, *target, i, j) for j in range(target[1])] for i in range(target[0])]
    assert small.tolist() == want


@pytest.mark.parametrize(
    ("source", "target"), [((210, 160), (84, 84)), ((240, 320), (84, 84)), ((480, 640), (192, 192))]
)
def test_it_is_opencvs_area_to_one_level(source, target):
    cv2 = pytest.importorskip("cv2")
    frame = np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8)
    theirs = cv2.resize(frame, target[::-1], interpolation=cv2.INTER_AREA)
    ours = resize(frame, *target, AREA_V1)
    assert ours.shape == (*target, 3)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_extremes_stay_extremes_and_the_same_size_stays_the_same():
    assert (resize(np.full((16384, 3), 255, np.uint8), 7, 2) == 255).all()
    frame = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    assert (resize(frame, 7, 5) == frame).all()


def test_what_it_does_not_do_is_an_error():
    frame = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(BadSettingError, match=r"bicubic.*area-v1"):
        resize(frame, 4, 4, "bicubic")
    with pytest.raises(ShapeMismatchError):
        resize(frame, 9, 8)
    with pytest.raises(ShapeMismatchError):
        resize(frame, 0, 8)
    with pytest.raises(ShapeMismatchError):
        resize(frame.astype(np.float32), 4, 4)  # type: ignore[arg-type]
    assert set(RESIZES) == {AREA_V1, HAMMING_V1}


def hamming(x: float) -> float:
    """The window of Pillow and of fast_image_resize, support 1."""
    if x == 0:
        return 1.0
    if abs(x) >= 1:
        return 0.0
    return math.sin(math.pi * x) / (math.pi * x) * (0.54 + 0.46 * math.cos(math.pi * x))


def weights(source: int, target: int) -> np.ndarray:
    scale = source / target
    reach = max(scale, 1.0)
    matrix = np.zeros((target, source))
    for i in range(target):
        centre = (i + 0.5) * scale
        first, last = max(0, int(centre - reach + 0.5)), min(source, int(centre + reach + 0.5))
        row = [hamming((x + 0.5 - centre) / reach) for x in range(first, last)]
        matrix[i, first:last] = np.array(row) / sum(row)
    return matrix


@pytest.mark.parametrize(
    ("source", "target"), [((480, 852), (192, 192)), ((240, 320), (96, 96)), ((37, 53), (29, 11)), ((20, 30), (50, 31))]
)
def test_hamming_is_the_windowed_sinc_to_one_level(source, target):
    pytest.importorskip("PIL")
    frame = np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8)
    ours = resize(frame, *target, HAMMING_V1)
    assert ours.shape == (*target, 3)
    assert ours.dtype == np.uint8
    across = np.clip(np.round(np.einsum("xw,hwc->hxc", weights(source[1], target[1]), frame)), 0, 255)
    exact = np.clip(np.round(np.einsum("yh,hxc->yxc", weights(source[0], target[0]), across)), 0, 255)
    assert np.abs(ours.astype(int) - exact).max() <= 1
    # fast_image_resize's other order of passes moves a pixel by one level at most, too.
    down = np.clip(np.round(np.einsum("yh,hwc->ywc", weights(source[0], target[0]), frame)), 0, 255)
    other = np.clip(np.round(np.einsum("xw,ywc->yxc", weights(source[1], target[1]), down)), 0, 255)
    assert np.abs(ours.astype(int) - other).max() <= 1


def test_hamming_keeps_what_it_should():
    pytest.importorskip("PIL")
    frame = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    assert (resize(frame, 9, 7, HAMMING_V1) == frame).all()
    small = resize(frame, 4, 5, HAMMING_V1)
    assert small.shape == (4, 5, 4)
    for channel in range(4):  # no channel is an alpha
        assert (small[:, :, channel] == resize(frame[:, :, channel], 4, 5, HAMMING_V1)).all()
    assert (resize(np.full((50, 40, 3), 255, np.uint8), 9, 9, HAMMING_V1) == 255).all()
    with pytest.raises(ShapeMismatchError):
        resize(frame, 0, 5, HAMMING_V1)


def test_hamming_golden_values():
    """Pinned, so that another Pillow that resizes otherwise is noticed."""
    pytest.importorskip("PIL")
    rows, columns, channels = np.meshgrid(np.arange(48), np.arange(64), np.arange(3), indexing="ij")
    frame = ((rows * 37 + columns * 91 + channels * 53 + rows * columns) % 256).astype(np.uint8)
    digest = hashlib.sha256(resize(frame, 19, 24, HAMMING_V1).tobytes()).hexdigest()
    assert digest == "fb612daae4ac2fd8566287895995c6d0f56940cc5ced7bc75687d1668964d149"
