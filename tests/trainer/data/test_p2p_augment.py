"""Augmentations: a function of the generator, alike in all frames of a clip, within their ranges."""

from typing import Any

import numpy as np
import pytest

from playserve_trainer.data.p2p_augment import PROBABILITIES, Augmenter

Clip = np.ndarray[Any, np.dtype[np.uint8]]


@pytest.fixture
def clip() -> Clip:
    """Four equal frames: a coloured gradient with a square."""
    frame = np.zeros((48, 48, 3), np.uint8)
    frame[..., 0] = np.linspace(40, 200, 48)
    frame[..., 1] = np.linspace(60, 180, 48)[:, None]
    frame[..., 2] = 90
    frame[10:20, 30:40] = (220, 30, 60)
    return np.stack([frame] * 4)


def _only(name: str) -> Augmenter:
    return Augmenter({name: 1.0})


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("name", PROBABILITIES)
def test_each_is_a_function_of_its_generator(clip: Clip, name: str) -> None:
    before = clip.copy()
    results = [_only(name)(clip, _rng(seed)) for seed in (1, 1, 2, 3, 4)]
    assert (clip == before).all()
    assert all(r.shape == clip.shape and r.dtype == np.uint8 for r in results)
    assert (results[0] == results[1]).all()
    assert any((r != results[0]).any() for r in results[2:])
    assert any((r != clip).any() for r in results)
    difference = np.abs(results[0].astype(int) - clip.astype(int)).mean()
    assert difference < 40  # the picture stays what it is


@pytest.mark.parametrize("name", [name for name in PROBABILITIES if name != "iso_noise"])
def test_all_frames_of_a_clip_are_changed_alike(clip: Clip, name: str) -> None:
    for seed in range(5):
        changed = _only(name)(clip, _rng(seed))
        assert (changed == changed[:1]).all()


def test_noise_is_fresh_in_every_frame(clip: Clip) -> None:
    noisy = _only("iso_noise")(clip, _rng(0)).astype(int)
    assert all((noisy[i] != noisy[0]).any() for i in range(1, 4))
    assert np.abs(noisy - clip).mean() > 1


def test_shift_moves_by_up_to_three_percent_and_repeats_the_edge() -> None:
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, None, :, None], (1, 100, 100, 3)).copy()
    seen = set()
    for seed in range(30):
        row = _only("shift")(ramp, _rng(seed))[0, 50, :, 0].astype(int)
        by = 50 - row[50]
        assert row.tolist() == np.clip(np.arange(100) - by, 0, 99).tolist()
        seen.add(by)
    assert seen <= {-3, -2, -1, 0, 1, 2, 3}
    assert len(seen) > 3


def test_rotation_keeps_the_middle_and_turns_the_rim() -> None:
    frame = np.zeros((1, 65, 65, 3), np.uint8)
    frame[:, :, 31:34] = 255  # a vertical bar
    changed = [_only("rotation")(frame, _rng(seed))[0, ..., 0].astype(float) for seed in range(20)]
    columns = np.arange(65)
    leans = [((c[0] * columns).sum() / c[0].sum()) - ((c[64] * columns).sum() / c[64].sum()) for c in changed]
    assert all(abs(lean) < 64 * np.tan(np.radians(3.2)) for lean in leans)
    assert max(leans) > 1 > -1 > min(leans)
    assert all(c[32, 32] > 250 for c in changed)


def test_flat_pictures_stay_flat_under_blur_and_sharpness() -> None:
    flat = np.full((1, 32, 32, 3), 100, np.uint8)
    for name in ("blur", "sharpness", "rotation", "shift"):
        for seed in range(4):
            assert np.abs(_only(name)(flat, _rng(seed)).astype(int) - 100).max() <= 1


def test_another_light_is_bluer_or_neutral(clip: Clip) -> None:
    ratios = set()
    for seed in range(20):
        r, g, b = _only("planckian")(clip, _rng(seed))[0, 5, 5].astype(float) / clip[0, 5, 5]
        assert g == 1.0
        ratios.add((round(r, 1), round(b, 1)))
    assert len(ratios) >= 3


def test_they_come_as_often_as_they_should(clip: Clip) -> None:
    small = clip[:1, :8, :8]
    for name, probability in PROBABILITIES.items():
        if name == "shift":
            continue  # 3 % of 8 pixels is none
        chosen = Augmenter({name: probability})
        hits = sum(chosen(small, _rng(seed)) is not small for seed in range(200))
        assert abs(hits / 200 - probability) < 0.12, name
    assert Augmenter({})(small, _rng(0)) is small
