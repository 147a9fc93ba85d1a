"""The atari recipe: settings from flags, and what the recordings decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from playserve.errors import BadSettingError
from playserve_client.recordings import Episode, list_episodes, read_episode, write_episode
from playserve_trainer.models.atari import AtariPolicy
from playserve_trainer.recipes import atari
from playserve_trainer.train.config import TrainConfig

Record = Callable[..., Path]


def _config(root: Path, **given: object) -> TrainConfig:
    flags = {"game": "toy", "data": str(root), "out": str(root), "max_steps": 1, "width": 1, **given}
    return TrainConfig.from_json(atari.settings(flags))


def _shade(root: Path, shade: int) -> None:
    """Paint three quarters of every frame in one shade."""
    for path in list_episodes(root):
        episode = read_episode(path)
        arrays = dict(episode.arrays)
        arrays["frames"] = arrays["frames"].copy()
        arrays["frames"][:, :63] = shade
        write_episode(path, Episode(meta=episode.meta, **arrays))


def test_flags_override_the_games_settings() -> None:
    plain = atari.settings({"game": "freeway", "data": "d", "out": "o"})
    assert (plain["task"], plain["family"]) == ("freeway", "atari")
    changed = atari.settings({"game": "freeway", "data": "d", "out": "o", "width": 7, "lr": 0.5})
    assert (changed["model"]["width"], changed["lr"]) == (7, 0.5)
    assert atari.settings({"game": "freeway", "data": "d", "out": "o"}) == plain
    with pytest.raises(BadSettingError, match="--game"):
        atari.settings({"data": "d", "out": "o"})


@pytest.mark.parametrize("shade", [0, 142])
def test_the_net_is_centred_on_the_games_background(record_toy: Record, shade: int) -> None:
    root = record_toy(range(3), steps=20)
    _shade(root, shade)
    policy = atari.prepare(_config(root)).policy
    assert isinstance(policy, AtariPolicy)
    assert policy.config.pixel_background == shade
    assert 1.0 <= policy.config.pixel_scale <= 255.0


def test_initial_weights_are_a_function_of_the_seed(record_toy: Record) -> None:
    root = record_toy(range(3), steps=20)
    heads = [atari.prepare(_config(root, seed=seed)).policy.state_dict()["head.weight"] for seed in (1, 1, 2)]
    assert heads[0].equal(heads[1])
    assert not heads[0].equal(heads[2])
