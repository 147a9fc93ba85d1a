"""Clips of a token cache: whole, in order, with the action before each frame and what came with it as labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_cache import tiny_cache

from playserve.errors import BadSettingError
from playserve_trainer.data.token_clips import (
    Learns,
    TokenClips,
    arriving_rewards,
    reward_classes,
    reward_values,
    starts_of,
)
from playserve_trainer.data.token_scores import guesses
from playserve_trainer.data.tokens.cache import TokenCache
from playserve_trainer.models.policy import IGNORED_LABEL

LENGTH = 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    return tiny_cache(tmp_path_factory.mktemp("cache") / "bars-4")


def clips(cache: TokenCache, learns: Learns, **changes: object) -> TokenClips:
    rewards = arriving_rewards(cache)
    settings: dict[str, object] = {
        "batch_size": 5, "sequence_length": LENGTH, "seed": 1, "tell_episodes": True,
        "rewards_N": reward_classes(rewards, reward_values(rewards)),
    }  # fmt: skip
    return TokenClips(cache, cache.select(held_out=False), learns, **{**settings, **changes})  # type: ignore[arg-type]


def test_a_worlds_labels_are_its_frame_what_came_with_it_and_whether_it_ended(cache: TokenCache) -> None:
    source, ends, rewards = clips(cache, Learns.WORLD), 0, 0
    for index in range(8):
        batch = source.batch(index)
        assert batch.episodes_BT is not None
        assert (batch.labels_BTH[:, 0] == IGNORED_LABEL).all()
        for row in range(5):
            episode = int(batch.episodes_BT[row, 0])
            tokens = cache.tokens_NK[cache.starts_E[episode] :][: cache.lengths_E[episode]].astype(np.int64)
            known = batch.labels_BTH[row, 1:, 0] != IGNORED_LABEL
            length = 1 + int(known.sum())
            shown = batch.inputs["tokens"][row, :length].numpy()
            found = [at for at in range(len(tokens) - length + 1) if (tokens[at : at + length] == shown).all()]
            assert found
            labels = batch.labels_BTH[row, 1:length]
            assert (labels[:, :4].numpy() == shown[1:]).all()
            ends += int(labels[:, 5].sum())
            rewards += int(labels[:, 4].sum())
            assert not labels[:-1, 5].any()
    assert ends > 0
    assert rewards > 0


def test_the_reward_of_a_frame_is_what_the_action_before_it_brought_and_the_last_ones_too(cache: TokenCache) -> None:
    rewards = arriving_rewards(cache)
    for start, length in zip(cache.starts_E, cache.lengths_E, strict=True):
        followed = cache.reward_N[start : start + length]
        assert rewards[start : start + length].sum() == pytest.approx(followed.sum())
        assert rewards[start] == (followed[0] if length == 1 else 0.0)


def test_the_action_before_a_frame_is_the_one_upon_the_frame_before(cache: TokenCache) -> None:
    source = clips(cache, Learns.TOKENS)
    for index in range(6):
        batch = source.batch(index)
        known = batch.labels_BTH[:, 1:, 0] != IGNORED_LABEL
        # Here the expert's action is the one that is executed.
        assert (batch.executed_BTH[:, 1:, 0][known] == batch.labels_BTH[:, :-1, 0][known]).all()


def test_an_epoch_shows_every_clip_once_and_the_next_one_cuts_elsewhere(cache: TokenCache) -> None:
    source = clips(cache, Learns.FRAMES, batch_size=1)
    chosen = cache.select(held_out=False)
    count = int(np.maximum(1, cache.lengths_E[chosen] // LENGTH).sum())
    epochs = [[source.batch(index + epoch * count) for index in range(count)] for epoch in range(2)]
    for batches in epochs:
        episodes = [int(batch.episodes_BT[0, 0]) for batch in batches if batch.episodes_BT is not None]
        assert {e: episodes.count(e) for e in chosen} == {
            int(e): max(1, int(cache.lengths_E[e]) // LENGTH) for e in chosen
        }
        assert sum(batch.samples for batch in batches) == source.num_samples
    assert {b.inputs["frame"].shape for b in epochs[0]} == {(1, LENGTH, 16, 16, 1)}
    again = clips(cache, Learns.FRAMES, batch_size=1).batch(count)
    assert (again.inputs["frame"] == epochs[1][0].inputs["frame"]).all()


def test_an_episode_shorter_than_a_clip_is_filled_up_with_what_is_not_learnt(cache: TokenCache) -> None:
    source = clips(cache, Learns.TOKENS, sequence_length=64)
    batch = source.batch(0)
    assert batch.episodes_BT is not None
    for row in range(5):
        length = int(cache.lengths_E[int(batch.episodes_BT[row, 0])])
        assert (batch.labels_BTH[row, length:] == IGNORED_LABEL).all()
        assert (batch.labels_BTH[row, :length] != IGNORED_LABEL).all()
    assert batch.samples == int(sum(cache.lengths_E[batch.episodes_BT[:, 0].numpy()]))


def test_starts_are_first_frames_with_the_actions_between_them(cache: TokenCache) -> None:
    chosen = cache.select(held_out=True)
    tokens, actions = starts_of(cache, chosen, 6, 2)
    assert (tokens.shape, actions.shape) == ((6, 2, 4), (6, 2, 1))
    assert (actions[:, 0] == -1).all()
    for row in range(6):
        assert any(
            (tokens[row] == cache.tokens_NK[cache.starts_E[e] :][:2]).all()
            and actions[row, 1] == cache.executed_NH[cache.starts_E[e]]
            for e in chosen
        )
    with pytest.raises(BadSettingError, match="start_frames"):
        starts_of(cache, chosen, 6, 1000)


def test_rewards_become_classes_that_stand_for_them() -> None:
    few = np.array([0, 1, 5, -1, 5], np.float32)
    assert reward_values(few) == (-1.0, 0.0, 1.0, 5.0)
    assert reward_classes(few, reward_values(few)).tolist() == [1, 2, 3, 0, 3]
    many = np.linspace(-10, 1000, 400, dtype=np.float32)
    values = reward_values(many)
    assert 0.0 in values
    assert len(values) == 15
    assert list(values) == sorted(values)
    told = np.array(values)[reward_classes(many, values)]
    assert (np.abs(told - many) <= 0.45 * np.abs(many) + 1).all()


def test_a_cache_that_lacks_what_is_seen_is_refused(tmp_path: Path, cache: TokenCache) -> None:
    bare = tiny_cache(tmp_path / "bare", episodes=4, frames=False)
    with pytest.raises(BadSettingError, match="--frames"):
        clips(bare, Learns.FRAMES)
    with pytest.raises(BadSettingError, match="two frames"):
        clips(cache, Learns.WORLD, sequence_length=1)


def test_guesses_by_place_and_by_the_frame_before() -> None:
    before = np.array([[0, 1], [1, 1], [0, 2], [1, 2]] * 20)
    frequencies, previous = guesses((before, before), (before, before), 3)
    assert previous.accuracy == 1.0
    assert previous.loss < frequencies.loss
    assert frequencies.loss == pytest.approx(np.log(2), abs=0.02)
