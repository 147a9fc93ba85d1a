"""The atari recipe: settings from flags, and what the recordings decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

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


def test_held_out_samples_do_not_depend_on_the_run_and_say_their_episodes(record_toy: Record) -> None:
    root = record_toy(range(8), steps=40)
    data = atari.read(_config(root, held_out=0.4))
    held_out = set(np.flatnonzero(data.held_out_E).tolist())
    found = []
    for rows, seed in ((16, 0), (64, 7)):
        prepared = atari.prepare(_config(root, held_out=0.4, batch_size=rows, seed=seed), data=data)
        assert prepared.held_out_as is not None
        its = prepared.held_out_as(10, 1, 3)
        assert (its.source.batch_size, its.episodes[0]) == (10, f"seed-{data.metas[0].seed}")
        found.append([its.source.batch(index) for index in range(4)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.inputs["frames"], other.inputs["frames"])
        assert one.episodes_BT is not None
        assert other.episodes_BT is not None
        assert torch.equal(one.episodes_BT, other.episodes_BT)
        assert set(one.episodes_BT.flatten().tolist()) <= held_out
        for frame, episode in zip(one.inputs["frames"][:, 0, :, :, -1], one.episodes_BT[:, 0], strict=True):
            start, length = data.starts_E[episode], data.lengths_E[episode]
            assert (data.frames_NHW[start : start + length] == frame.numpy()).all((1, 2)).any()
    # What training reads says nothing of episodes.
    assert atari.prepare(_config(root), data=data).source.batch(0).episodes_BT is None


def test_a_share_of_the_data_is_learnt_from_and_has_a_digest_of_its_own(record_toy: Record) -> None:
    root = record_toy(range(12), steps=30)
    whole = atari.prepare(_config(root, held_out=0.3))
    part = atari.prepare(TrainConfig.from_json({**_config(root, held_out=0.3).to_json(), "data_share": 0.4}))
    assert 0.25 < part.source.num_samples / whole.source.num_samples < 0.55
    assert part.report.samples == part.source.num_samples
    assert part.report.digest != whole.report.digest
    assert part.held_out is not None
    assert whole.held_out is not None
    assert part.held_out.num_samples == whole.held_out.num_samples
    with pytest.raises(BadSettingError, match="data_share is above 0"):
        TrainConfig.from_json({**_config(root).to_json(), "data_share": 0.0})
