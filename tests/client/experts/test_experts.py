"""Scripted experts: far better than any blind player, from RAM alone, the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from playserve.errors import BadSettingError
from playserve_client.envs.atari import AtariEnv
from playserve_client.experts import EXPERTS, make_expert


def play(game: str, seed: int, *, steps: int, epsilon: float = 0.0) -> tuple[float, list[int]]:
    env, expert = AtariEnv(game, max_steps=steps), make_expert(game)
    noise = np.random.default_rng(seed)
    env.reset(seed=seed)
    expert.reset()
    labels, ended = [], False
    while not ended:
        labels.append(expert.act(env.ram()))
        blind = noise.random() < epsilon
        action = int(noise.integers(len(env.action_names))) if blind else labels[-1]
        _, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
    return env.score, labels


# In as many steps always-up in Freeway reaches 5, random play in Breakout ends with about 1, and in Pong has lost 10.
@pytest.mark.parametrize(("game", "steps", "score"), [("freeway", 500, 7), ("breakout", 500, 12), ("pong", 500, 0)])
def test_plays_well_from_the_start(game: str, steps: int, score: float) -> None:
    assert play(game, 1000, steps=steps, epsilon=0.02)[0] >= score


@pytest.mark.parametrize("game", EXPERTS)
def test_is_a_function_of_the_episode(game: str) -> None:
    first, again = play(game, 1001, steps=150), play(game, 1001, steps=150)
    assert first == again


def test_reset_forgets_the_last_episode() -> None:
    for game in EXPERTS:
        env, used, fresh = AtariEnv(game), make_expert(game), make_expert(game)
        env.reset(seed=1)
        for _ in range(50):
            env.step(used.act(env.ram()))
        env.reset(seed=2)
        used.reset()
        fresh.reset()
        for _ in range(50):
            action = used.act(env.ram())
            assert action == fresh.act(env.ram())
            env.step(action)


def test_breakout_serves_whenever_there_is_no_ball() -> None:
    env, expert = AtariEnv("breakout", max_steps=400), make_expert("breakout")
    env.reset(seed=1000)
    fire = env.action_names.index("FIRE")
    serves = 0
    ended = False
    while not ended:
        ram = env.ram()
        label = expert.act(ram)
        assert expert.serving(ram) == (ram[101] == 0)
        assert (label == fire) == (ram[101] == 0)
        serves += label == fire
        # Serve and then go and hide, so that balls are lost.
        _, _, terminated, truncated, _ = env.step(label if label == fire else env.action_names.index("RIGHT"))
        ended = terminated or truncated
    assert serves >= 2


def test_an_unknown_game_names_those_there_are() -> None:
    with pytest.raises(BadSettingError, match=r"'tennis'.*breakout, freeway, pong"):
        make_expert("tennis")


@pytest.mark.slow
@pytest.mark.parametrize(("game", "score"), [("freeway", 29), ("breakout", 250), ("pong", 14)])
def test_whole_noisy_games(game: str, score: float) -> None:
    scores = [play(game, seed, steps=8000, epsilon=0.02)[0] for seed in (1000, 1001, 1002)]
    assert np.mean(scores) >= score
