"""Atari environments: the field's preprocessing, and episodes that are a function of their seed."""

from __future__ import annotations

import ale_py
import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from playserve.errors import BadActionError, BadSettingError
from playserve_client.envs.atari import AtariEnv, action_names, atari_games
from playserve_client.recordings import stack_frames


@pytest.mark.parametrize(
    ("game", "stickiness"), [("breakout", 0.0), ("pong", 0.25), ("freeway", 0.0), ("space_invaders", 0.25)]
)
def test_equals_gymnasium_byte_for_byte(game: str, stickiness: float) -> None:
    gymnasium.register_envs(ale_py)
    name = "".join(part.capitalize() for part in game.split("_"))
    raw = gymnasium.make(f"ALE/{name}-v5", frameskip=1, repeat_action_probability=stickiness)
    theirs = FrameStackObservation(AtariPreprocessing(raw, noop_max=30), 4)
    ours = AtariEnv(game, stickiness=stickiness)
    rng = np.random.default_rng(0)
    for seed in (3, 1001):
        observation, _ = ours.reset(seed=seed)
        wanted, _ = theirs.reset(seed=seed)
        np.testing.assert_array_equal(observation, np.moveaxis(wanted, 0, -1))
        for _ in range(120):
            action = int(rng.integers(len(ours.action_names)))
            observation, reward, terminated, truncated, _ = ours.step(action)
            wanted, wanted_reward, wanted_terminated, wanted_truncated, _ = theirs.step(action)
            np.testing.assert_array_equal(observation, np.moveaxis(wanted, 0, -1))
            assert (reward, terminated, truncated) == (wanted_reward, wanted_terminated, wanted_truncated)
            if terminated:
                break
    theirs.close()


def play(env: AtariEnv, seed: int, steps: int = 60) -> tuple[np.ndarray, np.ndarray, int]:
    """Return frames, RAM and no-ops of an episode under fixed actions."""
    env.reset(seed=seed)
    actions = np.random.default_rng(5).integers(len(env.action_names), size=steps)
    frames, rams = [], []
    for action in actions:
        env.step(int(action))
        frames.append(env.single_frame())
        rams.append(env.ram())
    return np.stack(frames), np.stack(rams), env.noops


def test_an_episode_may_begin_without_seeding_the_emulator_again() -> None:
    env, other = AtariEnv("breakout", stickiness=0.25), AtariEnv("breakout", stickiness=0.25)
    env.reset(seed=4)
    play(other, 9)
    shown, noops = [], []
    for each in (env, other):
        observation, _ = each.reset(seed=7, options={"reseed": False})
        shown.append(observation)
        noops.append(each.noops)
        assert (each.steps, each.score, each.lives()) == (0, 0.0, 5)
    env.reset(seed=7)
    assert noops == [env.noops] * 2  # those are the seed's
    np.testing.assert_array_equal(shown[0], shown[1])  # no ball yet: nothing moves by itself


@pytest.mark.parametrize("stickiness", [0.0, 0.25])
def test_an_episode_is_a_function_of_its_seed(stickiness: float) -> None:
    env = AtariEnv("breakout", stickiness=stickiness)
    first = play(env, 10_000)
    play(env, 10_001)  # whatever was played in between
    again = play(env, 10_000)
    fresh = play(AtariEnv("breakout", stickiness=stickiness), 10_000)
    for frames, rams, noops in (again, fresh):
        np.testing.assert_array_equal(frames, first[0])
        np.testing.assert_array_equal(rams, first[1])
        assert noops == first[2]


def test_seeds_start_differently_without_stickiness() -> None:
    env = AtariEnv("freeway")
    episodes = [play(env, seed) for seed in range(10_000, 10_006)]
    assert len({noops for _, _, noops in episodes}) > 1
    for _, rams, noops in episodes:
        # At stickiness 0 the number of no-ops is all that a seed changes.
        same = np.array_equal(rams, episodes[0][1])
        assert same == (noops == episodes[0][2])
        assert 1 <= noops <= 30


def test_stickiness_makes_episodes_of_equal_starts_differ() -> None:
    env = AtariEnv("breakout", stickiness=0.25, noop_max=0)
    assert not np.array_equal(play(env, 1)[1], play(env, 2)[1])


def test_ends_at_the_cap_as_truncated_and_wants_a_reset() -> None:
    env = AtariEnv("freeway", max_steps=5)
    env.reset(seed=1)
    ends = [env.step(1)[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.step(1)
    env.reset(seed=1)
    assert (env.steps, env.score) == (0, 0.0)


def test_plays_on_after_a_lost_life_to_the_end_of_the_game() -> None:
    env = AtariEnv("breakout")
    env.reset(seed=1)
    total, lives, terminated = 0.0, set(), False
    while not terminated:
        _, reward, terminated, truncated, _ = env.step(1)
        total += reward
        lives.add(env.lives())
        assert not truncated
    assert lives == {0, 1, 2, 3, 4, 5}
    assert env.score == total


def test_observation_stacks_single_frames_and_is_never_overwritten() -> None:
    env = AtariEnv("pong")
    observations = [env.reset(seed=4)[0]]
    frames = [env.single_frame()]
    for _ in range(6):
        observations.append(env.step(2)[0])
        frames.append(env.single_frame())
    assert env.observation_space.contains(observations[-1])
    np.testing.assert_array_equal(np.stack(observations), stack_frames(np.stack(frames), np.arange(7)))


def test_policies_with_a_memory_of_their_own_may_see_single_frames() -> None:
    stacked, single = AtariEnv("pong"), AtariEnv("pong", stack=1)
    shown = [env.reset(seed=4)[0] for env in (stacked, single)]
    assert single.observation_space.contains(shown[1])
    np.testing.assert_array_equal(shown[0][..., -1:], shown[1])
    np.testing.assert_array_equal(stacked.step(2)[0][..., -1:], single.step(2)[0])


def test_screen_ram_and_names() -> None:
    env = AtariEnv("breakout")
    env.reset(seed=1)
    assert env.rgb().shape == (210, 160, 3)
    assert env.ram().shape == (128,)
    assert env.action_names == action_names("breakout") == ("NOOP", "FIRE", "RIGHT", "LEFT")


def test_every_bundled_game_is_known() -> None:
    games = atari_games()
    assert len(games) > 100
    assert {"breakout", "freeway", "pong", "montezuma_revenge"} <= set(games)


def test_wrong_settings_say_what_was_wanted() -> None:
    with pytest.raises(BadSettingError, match=r"'braekout'.*breakout"):
        AtariEnv("braekout")
    with pytest.raises(BadSettingError, match=r"stickiness.*not 1\.5"):
        AtariEnv("pong", stickiness=1.5)
    with pytest.raises(BadSettingError, match="max_steps"):
        AtariEnv("pong", max_steps=0)
    env = AtariEnv("pong")
    env.reset(seed=0)
    with pytest.raises(BadActionError, match="action 6 of pong is not within 0 to 5"):
        env.step(6)
