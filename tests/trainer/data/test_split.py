"""The split by episode: stable when the data, or the held-out share, grow."""

import pytest

from playserve.errors import BadSettingError
from playserve_trainer.data.split import held_out_episodes, split_hash


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
