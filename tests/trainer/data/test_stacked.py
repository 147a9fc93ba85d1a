"""Stacked frames: what a policy learns on is what it sees in the environment, byte for byte."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from playserve_client.recordings import Episode, EpisodeMeta, episode_path, read_episode, stack_frames, write_episode
from playserve_trainer.data.episodes import load_episodes
from playserve_trainer.data.stacked import ShuffledSteps, Streams, gather_stacks
from playserve_trainer.models.policy import UNKNOWN_ACTION

Record = Callable[..., Path]


def test_stacks_equal_the_environments(tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    from playserve_client.envs.atari import AtariEnv

    env, rng, seen = AtariEnv("breakout"), np.random.default_rng(0), []
    for seed in (1, 2):
        observation, _ = env.reset(seed=seed)
        frames, executed, observations = [], [], []
        for _ in range(12):
            frames.append(env.single_frame())
            observations.append(observation)
            executed.append(int(rng.integers(0, 4)))
            observation, *_ = env.step(executed[-1])
        meta = EpisodeMeta(
            env="atari", game="breakout", seed=seed, steps=12, score=0.0, terminated=False, truncated=True,
            action_names=env.action_names,
        )  # fmt: skip
        arrays = {"executed": np.array(executed, np.int16), "label": np.array(executed, np.int16)}
        write_episode(
            episode_path(tmp_path, "atari", "breakout", seed),
            Episode(
                meta=meta, frames=np.stack(frames), reward=np.zeros(12, np.float32),
                probes=np.zeros((12, 128), np.uint8), **arrays,
            ),
        )  # fmt: skip
        seen.append(np.stack(observations))
    episodes = load_episodes(tmp_path, held_out_fraction=0.0)
    stacks = gather_stacks(episodes.frames_NHW, np.arange(24), episodes.start_N, 4)
    np.testing.assert_array_equal(stacks, np.concatenate(seen))


def test_stacks_equal_the_reference_and_stay_inside_their_episode(record_toy: Record) -> None:
    root = record_toy(range(3), steps=9)
    episodes = load_episodes(root, held_out_fraction=0.0)
    wanted = [
        stack_frames(read_episode(path).frames, np.arange(n))
        for path, n in zip(sorted(root.rglob("*.npz")), episodes.lengths_E, strict=True)
    ]
    steps = np.random.default_rng(0).permutation(int(episodes.lengths_E.sum()))
    out = np.empty((len(steps), 84, 84, 4), np.uint8)
    got = gather_stacks(episodes.frames_NHW, steps, episodes.start_N, 4, out)
    assert got is out
    np.testing.assert_array_equal(got, np.concatenate(wanted)[steps])


def test_shuffled_steps_give_every_step_with_its_own_label(record_toy: Record) -> None:
    episodes = load_episodes(record_toy())
    chosen = episodes.select(held_out=False)
    source = ShuffledSteps(episodes, chosen, batch_size=7, seed=3)
    assert (source.num_samples, source.sequence_length, source.carries_state) == (episodes.report.samples, 1, False)
    batch = source.batch(4)
    assert batch.inputs["frames"].shape == (7, 1, 84, 84, 4)
    assert batch.inputs["frames"].dtype == torch.uint8
    assert (batch.labels_BTH.shape, batch.executed_BTH.shape, batch.first_BT.shape) == ((7, 1, 1), (7, 1, 1), (7, 1))
    assert batch.first_BT.all()
    assert batch.samples == 7
    # The toy's label is the bright quadrant of the newest frame.
    newest = batch.inputs["frames"][:, 0, :, :, -1].float()
    quadrants = newest.unflatten(2, (2, 42)).unflatten(1, (2, 42)).mean((2, 4)).flatten(1)
    assert torch.equal(quadrants.argmax(1), batch.labels_BTH[:, 0, 0])
    again = ShuffledSteps(episodes, chosen, batch_size=7, seed=3).batch(4)
    assert torch.equal(again.inputs["frames"], batch.inputs["frames"])


def test_streams_tell_the_executed_action_before_each_step(record_toy: Record) -> None:
    episodes = load_episodes(record_toy(steps=11), held_out_fraction=0.0)
    source = Streams(episodes, episodes.select(held_out=False), batch_size=2, sequence_length=4, seed=0)
    assert source.carries_state
    row = [source.batch(i) for i in range(5)]
    executed = torch.cat([b.executed_BTH for b in row], 1)[0, :, 0]
    first = torch.cat([b.first_BT for b in row], 1)[0]
    labels = torch.cat([b.labels_BTH for b in row], 1)[0, :, 0]
    # Find the stream in the recordings by its labels, and compare what was executed.
    begins = int(np.flatnonzero(first[1:].numpy())[0]) + 1
    assert executed[begins] == UNKNOWN_ACTION
    tail = labels[begins : begins + 6].numpy()
    start = next(s for s in episodes.starts_E if np.array_equal(episodes.label_N[s : s + len(tail)], tail))
    told = executed[begins + 1 : begins + len(tail)]
    np.testing.assert_array_equal(told, episodes.executed_N[start : start + len(told)])
