"""Probes are fitted once and kept; Fréchet distances are those of normal clouds; inverse networks see what they can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from playserve.errors import BadSettingError, DataLossError
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.data.tokens.cache import TokenCache, load_tokenizer
from playserve_trainer.models.p2p import P2PConfig, P2PPolicy
from playserve_trainer.models.tokenizer import NetHackTokenizer, NetHackTokenizerConfig
from playserve_trainer.worlds.features import InverseFeatures, TokenizerFeatures
from playserve_trainer.worlds.frechet import Axes, Cloud, frechet
from playserve_trainer.worlds.probes import kept_probes


def test_probes_are_fitted_once_and_kept_beside_the_cache(cache: TokenCache) -> None:
    features, asked = TokenizerFeatures(load_tokenizer(cache)), list[int]()
    frames = cache.frames
    assert frames is not None

    def seen(places: NDArray[np.int64]) -> NDArray[np.uint8]:
        asked.append(len(places))
        return frames[places]

    fitted = kept_probes(cache, features, seen, refit=True)
    assert asked[0] == fitted.frames
    asked.clear()
    kept = kept_probes(cache, features, seen)
    assert not asked
    assert (kept.names, kept.frames, kept.features) == (("column",), fitted.frames, "encoder of the tokenizer")
    for name in ("spread_P", "left_out_P", "real_P"):
        assert np.array_equal(getattr(kept, name), getattr(fitted, name))
    assert kept.readable_P.tolist() == [True]
    assert kept.real_P[0] < 0.02
    some = features(frames[:5][None])[0]
    np.testing.assert_allclose(kept.reading(some)[:, 0], cache.probes_NP[:5, 0], atol=0.02)
    np.testing.assert_allclose(kept.squared_errors(some, cache.probes_NP[:5] + kept.spread_P), 1.0, atol=0.1)


def test_damaged_probes_are_said_to_be(cache: TokenCache) -> None:
    features, frames = TokenizerFeatures(load_tokenizer(cache)), cache.frames
    assert frames is not None
    kept_probes(cache, features, lambda places: frames[places])
    (path,) = (cache.folder / "probes").glob("*.npz")
    content = path.read_bytes()
    path.write_bytes(content[:100])
    with pytest.raises(DataLossError, match="--refit"):
        kept_probes(cache, features, lambda places: frames[places])
    path.write_bytes(content)


def test_characters_are_features_one_of_each() -> None:
    tokenizer = NetHackTokenizer(NetHackTokenizerConfig(height=1, width=3))
    found = TokenizerFeatures(tokenizer)(np.array([[[[[64], [32], [33]]]]], np.uint8))
    assert found.shape == (1, 1, 3 * tokenizer.vocabulary)
    assert np.flatnonzero(found[0, 0]).tolist() == [32, tokenizer.vocabulary, 2 * tokenizer.vocabulary + 1]


def _cloud(along: NDArray[np.float64], episodes: int = 4) -> Cloud:
    return Cloud.of(along, np.arange(len(along)) % episodes, episodes)


def test_the_distance_of_normal_clouds_is_known() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(40_000, 3))
    scale, shift = np.array([1.0, 2.0, 0.5]), np.array([0.0, 1.0, -2.0])
    other = rng.normal(size=(40_000, 3)) * scale + shift
    ones = np.ones((1, 4))
    wanted = (shift**2).sum() + ((scale - 1) ** 2).sum()
    assert frechet(_cloud(one), _cloud(other), ones)[0] == pytest.approx(wanted, rel=0.03)
    assert frechet(_cloud(one), _cloud(one), ones)[0] == pytest.approx(0.0, abs=1e-9)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turned = frechet(_cloud(one @ turn), _cloud(other @ turn), ones)[0]
    assert turned == pytest.approx(frechet(_cloud(one), _cloud(other), ones)[0], rel=1e-6)


def test_a_resample_is_the_cloud_of_its_episodes() -> None:
    rng = np.random.default_rng(1)
    along, episode = rng.normal(size=(60, 2)), np.repeat(np.arange(3), 20)
    counts = np.array([[2.0, 0.0, 1.0]])
    mean, covariance = Cloud.of(along, episode, 3).moments(counts)
    drawn = np.concatenate([along[:20], along[:20], along[40:]])
    np.testing.assert_allclose(mean[0], drawn.mean(0))
    np.testing.assert_allclose(covariance[0], np.cov(drawn.T), rtol=1e-9)


def test_axes_hold_the_variance_of_what_varies_in_units_of_it() -> None:
    rng = np.random.default_rng(2)
    hidden = rng.normal(size=(200, 2)) * 50
    features = hidden @ rng.normal(size=(2, 30)) + 7.0
    axes = Axes.of(features, 16)
    assert axes.axes_XA.shape == (30, 2)
    assert axes.kept == pytest.approx(1.0)
    assert axes(features).var(0).sum() == pytest.approx(1.0)
    assert Axes.of(features, 1).kept < 1.0


@pytest.fixture(scope="module")
def inverse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inverse")
    torch.manual_seed(0)
    config = P2PConfig(
        size="tiny", layers=1, width=16, heads=2, decoder_layers=1, decoder_heads=2, trunk="conv3", frame_size=32,
        history=(2,), dropout=0.0, inverse=True, past_actions=False,
    )  # fmt: skip
    policy = P2PPolicy(config).eval()
    checkpoint.save(folder, policy, Manifest.describe(policy))
    return folder


def test_an_inverse_network_sees_the_frames_around_but_no_other_row(inverse: Path) -> None:
    features = InverseFeatures(inverse, channels=3)
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 24, 24, 3), np.uint8)
    found = features(frames)
    assert found.shape == (3, 6, 16)
    np.testing.assert_allclose(features(frames[1:2])[0], found[1], atol=1e-5)
    changed = frames.copy()
    changed[1, 3] = 0
    moved = (np.abs(features(changed) - found).max(-1) > 1e-6).tolist()
    assert moved[0] == moved[2] == [False] * 6
    assert moved[1][2:5] == [True] * 3


def test_an_inverse_network_wants_colours(inverse: Path) -> None:
    with pytest.raises(BadSettingError, match="see RGB"):
        InverseFeatures(inverse, channels=1)
