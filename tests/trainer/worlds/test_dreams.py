"""A dream is what the world draws after the recorded frames, on the recorded actions, and nobody else's business.

Shape legend: B starts, T frames, C frames that are given, K tokens of a frame.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_dream import dream as other_world

from playserve.errors import BadSettingError
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.data.tokens.cache import TokenCache, load_tokenizer
from playserve_trainer.worlds.dreams import Dream, Dreamer
from playserve_trainer.worlds.starts import Start, choose_starts, trail_of
from playserve_trainer.worlds.subject import Subject, open_subject


def roll(subject: Subject, starts: list[Start], *, given: int = 2, steps: int = 7, **options: float) -> Dream:
    trail = trail_of(subject.cache, starts, given=given, steps=steps)
    tokens_BCK = np.asarray(subject.cache.tokens_NK[trail.given_BC])
    return Dreamer(subject.world, given=given, **options).dream(starts, trail, tokens_BCK)  # type: ignore[arg-type]


def test_starts_are_held_out_differ_and_say_what_is_around_them(cache: TokenCache) -> None:
    starts = choose_starts(cache, 12, given=3, seed=1)
    assert len({(s.episode, s.frame) for s in starts}) == 12
    assert [s.steps for s in starts] == sorted((s.steps for s in starts), reverse=True)
    trail = trail_of(cache, starts, given=3, steps=4)
    for row, start in enumerate(starts):
        assert cache.held_out_E[start.episode]
        assert start.other != start.episode
        begin, length = int(cache.starts_E[start.episode]), int(cache.lengths_E[start.episode])
        at = begin + start.frame
        assert trail.given_BC[row].tolist() == [at - 2, at - 1, at]
        assert trail.executed_BCH[row, :, 0].tolist() == [-1, *cache.executed_NH[at - 2 : at, 0].tolist()]
        count = min(4, length - 1 - start.frame)
        assert trail.there_BT[row].tolist() == [step < count for step in range(4)]
        assert trail.place_BT[row, :count].tolist() == list(range(at + 1, at + 1 + count))
        assert trail.acted_BTH[row, :count, 0].tolist() == cache.executed_NH[at : at + count, 0].tolist()
        other = int(cache.starts_E[start.other]) + start.frame
        assert trail.other_BT[row, :2].tolist() == [other, other + 1]


def test_the_seed_decides_the_starts_and_there_are_no_more_than_there_are(cache: TokenCache) -> None:
    assert choose_starts(cache, 8, given=2, seed=1) == choose_starts(cache, 8, given=2, seed=1)
    assert choose_starts(cache, 8, given=2, seed=1) != choose_starts(cache, 8, given=2, seed=2)
    lengths = cache.lengths_E[cache.held_out_E]
    assert len(choose_starts(cache, 10_000, given=2, seed=1)) == int(np.maximum(lengths - 2, 0).sum())
    with pytest.raises(BadSettingError, match="no held-out episode has 1001 frames"):
        choose_starts(cache, 8, given=1000, seed=1)


@pytest.mark.parametrize("given", [2, 4])
def test_the_likeliest_dream_is_what_forward_says_of_the_whole(subject: Subject, given: int) -> None:
    starts = choose_starts(subject.cache, 3, given=given, seed=0)
    steps = starts[-1].steps
    found = roll(subject, starts, given=given, steps=steps, temperature=0.0)
    trail = trail_of(subject.cache, starts, given=given, steps=steps)
    tokens_BTK = torch.from_numpy(
        np.concatenate([subject.cache.tokens_NK[trail.given_BC].astype(np.int64), found.tokens_BTK], axis=1)
    )
    executed_BTH = torch.from_numpy(np.concatenate([trail.executed_BCH, trail.acted_BTH], axis=1))
    first_BT = torch.zeros(tokens_BTK.shape[:2], dtype=torch.bool)
    first_BT[:, 0] = True
    logits = subject.world({"tokens": tokens_BTK}, executed_BTH, first_BT).logits
    assert torch.equal(logits[0].argmax(-1)[:, given:], tokens_BTK[:, given:])
    ended_BT = logits[2].argmax(-1)[:, given:] == 1
    assert ended_BT.tolist() == found.ended_BT.tolist()


def test_a_dream_hangs_on_seed_and_start_and_not_on_the_batch(subject: Subject) -> None:
    starts = choose_starts(subject.cache, 4, given=2, seed=0)
    together = roll(subject, starts, seed=5)
    for row, start in enumerate(starts):
        alone = roll(subject, [start], seed=5)
        count = min(7, start.steps)
        for field in dataclasses.fields(Dream):
            one, all_of = getattr(alone, field.name)[0, :count], getattr(together, field.name)[row, :count]
            np.testing.assert_allclose(one, all_of, rtol=1e-4)
    assert not np.array_equal(roll(subject, starts, seed=6).tokens_BTK, together.tokens_BTK)


def test_fewer_frames_than_a_start_has_are_refused(subject: Subject) -> None:
    with pytest.raises(BadSettingError, match="1 frames are given; the world begins with 2"):
        Dreamer(subject.world, given=1)
    with pytest.raises(BadSettingError, match="temperature"):
        Dreamer(subject.world, given=2, temperature=-1.0)


def test_only_worlds_are_judged_and_only_on_tokens_of_their_own(cache: TokenCache, tmp_path: Path) -> None:
    policy = other_world()
    checkpoint.save(tmp_path / "world", policy, Manifest.describe(policy))
    with pytest.raises(BadSettingError, match="make a cache with the world's tokenizer"):
        open_subject(tmp_path / "world", cache.folder)
    tokenizer = load_tokenizer(cache)
    checkpoint.save(tmp_path / "tokenizer", tokenizer, Manifest.describe(tokenizer))
    with pytest.raises(BadSettingError, match="a world is of wm-token"):
        open_subject(tmp_path / "tokenizer", cache.folder)


def test_worlds_are_judged_by_what_was_held_out(cache: TokenCache, world_folder: Path) -> None:
    with pytest.raises(BadSettingError, match="holds no episode out"):
        open_subject(world_folder, cache.folder, held_out=0.0)
    assert "untrained" in open_subject(world_folder, cache.folder).notes[0]
