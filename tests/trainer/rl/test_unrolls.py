"""Unrolls: cut from a stream of steps without losing one, and the same behind the pipe."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from playserve.errors import MalformedMessageError
from playserve_trainer.rl.unrolls import EpisodeEnd, Unroll, UnrollBuilder


def test_bytes_give_the_unroll_back(make_unroll: Callable[..., Unroll]) -> None:
    unroll = make_unroll(env_id=3, number=7)
    back = Unroll.from_bytes(unroll.to_bytes())
    assert (back.env_id, back.number, back.episodes, back.length) == (3, 7, (), 5)
    for name in ("executed", "first", "actions", "log_probs", "rewards", "ends", "versions"):
        np.testing.assert_array_equal(getattr(back, name), getattr(unroll, name), strict=True)
    np.testing.assert_array_equal(back.inputs["observation"], unroll.inputs["observation"], strict=True)


def test_a_cut_message_is_named(make_unroll: Callable[..., Unroll]) -> None:
    data = make_unroll().to_bytes()
    for size in (3, 20, len(data) - 1):
        with pytest.raises(MalformedMessageError):
            Unroll.from_bytes(data[:size])


def test_unrolls_overlap_by_the_one_observation_that_the_next_begins_with() -> None:
    builder, made = UnrollBuilder(env_id=1, length=3), []
    action = -1
    for t in range(8):  # an episode of five steps, then three of another
        first = t in (0, 5)
        unroll = builder.observe({"x": np.array([t])}, executed=-1 if first else action, first=first)
        made += [unroll] if unroll else []
        action = t % 4
        builder.act(action, -0.5, float(t), end=t == 4, version=t)
        if t == 4:
            builder.end_episode(EpisodeEnd(10.0, 5, 4, 99))
    one, two = made
    assert (one.number, two.number) == (0, 1)
    assert one.inputs["x"][:, 0].tolist() == [0, 1, 2, 3]
    assert two.inputs["x"][:, 0].tolist() == [3, 4, 5, 6]
    assert one.rewards.tolist() == [0, 1, 2]
    assert two.rewards.tolist() == [3, 4, 5]
    assert two.ends.tolist() == [False, True, False]
    assert two.first.tolist() == [False, False, True, False]
    assert two.executed.tolist() == [2, 3, -1, 1]
    assert two.versions.tolist() == [3, 4, 5]
    assert (one.episodes, two.episodes) == ((), (EpisodeEnd(10.0, 5, 4, 99),))
