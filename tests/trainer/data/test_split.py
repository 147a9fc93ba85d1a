"""The split by episode: stable when the data, or the held-out share, grow."""

import itertools

import numpy as np
import pytest

from playserve.errors import BadSettingError
from playserve_trainer.data.split import (
    held_out_episodes,
    share_digest,
    share_of_episodes,
    split_hash,
    unique_names,
)


def _split(seeds: range, fraction: float) -> dict[int, bool]:
    flags = held_out_episodes([split_hash("atari", "breakout", seed) for seed in seeds], fraction)
    return dict(zip(seeds, flags, strict=True))


def test_an_episode_keeps_its_side_when_the_data_grow() -> None:
    small, large = _split(range(10_000, 10_050), 0.2), _split(range(9_000, 12_000), 0.2)
    assert all(large[seed] == side for seed, side in small.items())
    assert 0.17 < sum(large.values()) / len(large) < 0.23


def test_a_larger_share_only_adds() -> None:
    few, many = _split(range(500), 0.1), _split(range(500), 0.3)
    assert all(many[seed] for seed, side in few.items() if side)


def test_neither_side_is_left_empty() -> None:
    assert held_out_episodes([0.9, 0.5, 0.7], 0.1) == [False, True, False]
    assert held_out_episodes([0.01, 0.05, 0.02], 0.1) == [True, False, True]
    assert held_out_episodes([0.01, 0.05, 0.02], 0.0) == [False] * 3


def test_a_share_of_everything_is_refused() -> None:
    with pytest.raises(BadSettingError, match="held-out fraction"):
        held_out_episodes([0.5], 1.0)


def test_shares_of_the_data_are_nested_and_near_to_what_was_asked() -> None:
    hashes = [split_hash("atari", "breakout", seed) for seed in range(200)]
    lengths = np.array([50 + seed % 7 * 10 for seed in range(200)])
    chosen = np.flatnonzero(np.array(hashes) > 0.1)
    taken = [share_of_episodes(chosen, hashes, lengths, share) for share in (1e-9, 0.1, 0.25, 0.5, 1.0)]
    assert len(taken[0]) == 1
    assert np.array_equal(taken[-1], chosen)
    for smaller, larger in itertools.pairwise(taken):
        assert set(smaller.tolist()) < set(larger.tolist())
    for share, some in zip((0.1, 0.25, 0.5), taken[1:], strict=False):
        assert abs(lengths[some].sum() / lengths[chosen].sum() - share) < 0.01
    assert share_digest("d", 1.0) == "d"
    assert share_digest("d", 0.5) != share_digest("d", 0.25)


def test_names_that_come_again_get_a_number() -> None:
    assert unique_names(["a", "b", "a", "a"]) == ("a", "b", "a#2", "a#3")
