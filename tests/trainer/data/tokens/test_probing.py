"""Probes find what can be read off features, and nothing where nothing is; statistics of places."""

from __future__ import annotations

import numpy as np

from playserve_trainer.data.tokens.frames import evenly, place_statistics
from playserve_trainer.data.tokens.probing import probe_errors


def test_what_is_linear_is_read_and_what_is_not_there_is_not() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 40)).astype(np.float32)
    linear = features @ rng.normal(size=40) + 5.0
    noise = rng.normal(size=300)
    values = np.stack([linear, noise, np.full(300, 7.0)], 1).astype(np.float32)
    errors = probe_errors(features[:200], values[:200], features[200:], values[200:])
    assert errors[0] < 0.05
    assert 0.9 < errors[1] < 1.3
    assert np.isnan(errors[2])


def test_more_features_than_frames_are_no_hindrance() -> None:
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(120, 3))
    features = (hidden @ rng.normal(size=(3, 2000)) + 0.1 * rng.normal(size=(120, 2000))).astype(np.float32)
    errors = probe_errors(features[:80], hidden[:80], features[80:], hidden[80:])
    assert (errors < 0.2).all()


def test_a_place_that_never_changes_has_a_spread_all_the_same() -> None:
    frames = np.zeros((50, 2, 2, 1), np.uint8)
    frames[::2, 0, 0] = 200
    mean, spread = place_statistics(frames)
    assert mean[..., 0].tolist() == [[100.0, 0.0], [0.0, 0.0]]
    assert spread[..., 0].tolist() == [[100.0, 4.0], [4.0, 4.0]]


def test_at_most_so_many_places_are_taken_from_first_to_last() -> None:
    places = np.arange(100, 150)
    assert evenly(places, 60).tolist() == places.tolist()
    assert evenly(places, 7).tolist() == [100, 108, 116, 124, 132, 140, 148]
