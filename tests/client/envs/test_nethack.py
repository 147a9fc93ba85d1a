"""NetHack environments: nle's Challenge rules, games that are a function of their seed, and recordings that count."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from nle import dataset as nld

from playserve.errors import BadActionError, BadSettingError
from playserve_client.envs.nethack import NetHackEnv, SeedableChallenge
from playserve_client.envs.registry import make_env
from playserve_client.nethack.characters import all_characters, check_character
from playserve_client.nethack.keys import ACTION_KEYS, KEY_TO_ACTION

SPACE, QUIT, YES, ESCAPE = (int(KEY_TO_ACTION[key]) for key in (32, 241, ord("y"), 27))


def random_actions(count: int, seed: int = 5) -> list[int]:
    """Return actions that walk about, so that something happens."""
    rng = np.random.default_rng(seed)
    walk = [int(KEY_TO_ACTION[ord(key)]) for key in "hjklyubn    s"]
    return [int(a) for a in np.where(rng.random(count) < 0.9, rng.choice(walk, count), rng.integers(105, 121, count))]


def digest_of_play(env: NetHackEnv, seed: int, actions: list[int]) -> str:
    """Return a digest of everything seen; cut where the game ends."""
    digest = hashlib.sha256()
    observation, _ = env.reset(seed=seed)
    for action in actions:
        for value in observation.values():
            digest.update(value.tobytes())
        observation, reward, terminated, truncated, _ = env.step(action)
        digest.update(str(reward).encode())
        if terminated or truncated:
            break
    return digest.hexdigest()


def test_equals_the_challenge_of_nle() -> None:
    ours = NetHackEnv(max_steps=5_000, inventory=True)
    theirs = SeedableChallenge(character="mon-hum-neu-mal", max_episode_steps=5_000)
    assert [int(action) for action in theirs.actions] == list(ACTION_KEYS)
    ended = set()
    for seed in (3, 20033, 7):
        observation, _ = ours.reset(seed=seed)
        theirs.seed(seed, seed, reseed=False)
        wanted, _ = theirs.reset()
        for action in random_actions(1_200, seed):
            for name, value in observation.items():
                np.testing.assert_array_equal(value, wanted[name])
                assert value.dtype == theirs.observation_space[name].dtype
            observation, reward, terminated, truncated, info = ours.step(action)
            wanted, wanted_reward, wanted_end, _, _ = theirs.step(action)
            assert reward == wanted_reward
            assert (terminated or truncated) == wanted_end
            if wanted_end:
                ended.add(info["episode_facts"]["end"])
                break
        assert ours.observation_space.contains(observation)
    ours.close()
    theirs.close()


def test_an_episode_is_a_function_of_its_seed() -> None:
    env, actions = NetHackEnv(), random_actions(300)
    first = digest_of_play(env, 11, actions)
    assert digest_of_play(env, 12, actions) != first
    assert digest_of_play(env, 11, actions) == first
    assert digest_of_play(NetHackEnv(), 11, actions) == first
    env.close()


def test_without_a_seed_every_game_is_another() -> None:
    env = NetHackEnv()
    assert env.reset()[1]["seed"] != env.reset()[1]["seed"]
    env.close()


_CLOCK = """
#include <stdlib.h>
#include <time.h>
time_t time(time_t *out) { time_t now = atoll(getenv("GAME_TIME")); if (out) *out = now; return now; }
"""
# A game that meets a shopkeeper: NetHack names them after the time at which the game began.
_PLAY = """
import sys
sys.path.insert(0, sys.argv[1])
from test_nethack import digest_of_play, random_actions
from playserve_client.envs.nethack import NetHackEnv
from playserve_client.nethack.games import carried_games, read_games
from playserve_client.nethack.keys import KEY_TO_ACTION
game = next(game for game in read_games(carried_games()) if game.seed == 20042)
env = NetHackEnv()
print(digest_of_play(env, game.seed, KEY_TO_ACTION[game.keys].tolist()), env.steps)
print([digest_of_play(NetHackEnv(), seed, random_actions(300)) for seed in (0, 1, 2)])
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler to turn the clock")
def test_the_clock_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "clock.c").write_text(_CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "clock.so", "clock.c"], cwd=tmp_path, check=True)
    seen = set()
    # At midnight under a waning moon, and at noon under a full one.
    for clock in ("1760313600", "1762344000"):
        environment = os.environ | {"LD_PRELOAD": str(tmp_path / "clock.so"), "GAME_TIME": clock}
        done = subprocess.run(
            [sys.executable, "-c", _PLAY, str(Path(__file__).parent)],
            env=environment, check=True, capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        seen.add(done.stdout)
    assert len(seen) == 1


def test_ends_at_the_cap_with_its_facts() -> None:
    env = NetHackEnv(max_steps=4)
    env.reset(seed=1)
    ends = [env.step(SPACE) for _ in range(4)]
    assert [end[2:4] for end in ends] == [(False, False)] * 3 + [(False, True)]
    assert [end[4] for end in ends[:3]] == [{}] * 3
    assert ends[3][4] == {"episode_facts": {"turns": 1, "depth": 1, "experience_level": 1, "end": "max_steps"}}
    with pytest.raises(gymnasium.error.ResetNeeded, match="reset"):
        env.step(SPACE)
    env.reset(seed=1)
    assert env.steps == 0
    env.close()


def test_ends_after_so_many_steps_without_a_turn() -> None:
    env = NetHackEnv(no_progress_timeout=5)
    env.reset(seed=1)
    for _ in range(3):
        assert env.step(SPACE)[2:4] == (False, False)
    search = int(KEY_TO_ACTION[ord("s")])
    assert env.step(search)[3] is False  # a turn: it counts anew
    for _ in range(4):
        assert env.step(SPACE)[3] is False
    *_, truncated, info = env.step(SPACE)
    assert truncated
    assert info["episode_facts"]["end"] == "no_progress"
    assert info["episode_facts"]["turns"] == 2
    env.close()


def test_the_end_is_told_as_nethack_tells_it() -> None:
    env = NetHackEnv()
    env.reset(seed=1)
    env.step(QUIT)
    _, reward, terminated, truncated, info = env.step(YES)
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info["episode_facts"] == {"turns": 1, "depth": 1, "experience_level": 1, "end": "quit"}
    env.close()


def test_observations_are_copies() -> None:
    env = NetHackEnv()
    first, _ = env.reset(seed=1)
    kept = {name: value.copy() for name, value in first.items()}
    for _ in range(5):
        env.step(int(KEY_TO_ACTION[ord("i")]))
        env.step(SPACE)
    for name, value in first.items():
        np.testing.assert_array_equal(value, kept[name])
    assert {name: (value.dtype, value.shape) for name, value in first.items()} == {
        "tty_chars": (np.uint8, (24, 80)),
        "tty_colors": (np.int8, (24, 80)),
        "tty_cursor": (np.uint8, (2,)),
    }
    assert env.blstats[20] == 1
    env.close()


@pytest.mark.parametrize("action", [-1, 121, 3.5, "h"])
def test_bad_actions_are_typed_errors(action: Any) -> None:
    env = NetHackEnv()
    env.reset(seed=1)
    with pytest.raises(BadActionError, match="120"):
        env.step(action)
    env.step(np.int64(1))  # the game goes on
    env.close()


def test_a_step_before_reset_or_after_close_is_a_typed_error() -> None:
    env = NetHackEnv()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    env.close()
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)
    with pytest.raises(gymnasium.error.ClosedEnvironmentError):
        env.reset()
    env.close()


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_bad_seeds_are_typed_errors(seed: int) -> None:
    env = NetHackEnv()
    with pytest.raises(BadSettingError, match="seed"):
        env.reset(seed=seed)
    env.close()


@pytest.mark.parametrize("option", ["max_steps", "no_progress_timeout"])
def test_caps_must_be_positive(option: str) -> None:
    with pytest.raises(BadSettingError, match=option):
        NetHackEnv(**{option: 0})


def test_characters_are_checked() -> None:
    assert check_character("@") == "@"
    assert check_character("val-dwa-law-fem") == "val-dwa-law-fem"
    assert len(list(all_characters())) == len(set(all_characters())) == 73
    for wrong, hint in (
        ("mon-hum-mal-neu", "mon-hum-neu-mal"),
        ("Mon-Hum-Neu-Mal", "mon-hum-neu-mal"),
        ("sam-elf-cha-fem", "wiz-elf-cha-fem"),
        ("", "role-race-alignment-gender"),
    ):
        with pytest.raises(BadSettingError, match=hint):
            NetHackEnv(wrong)


def test_every_character_is_played_as_named() -> None:
    words = {
        "law": "lawful", "neu": "neutral", "cha": "chaotic",
        "hum": "human", "dwa": "dwarven", "elf": "elven", "gno": "gnomish", "orc": "orcish",
    }  # fmt: skip
    attributes = int(KEY_TO_ACTION[24])
    for character in ("val-dwa-law-fem", "wiz-gno-neu-fem", "pri-elf-cha-mal"):
        env = make_env("nethack", character)
        env.reset(seed=4)
        text = bytes(env.step(attributes)[0]["tty_chars"]).decode("latin-1")
        _, race, alignment, _ = character.split("-")
        assert words[race] in text
        assert words[alignment] in text
        env.close()


def test_the_seed_draws_the_random_character() -> None:
    env = make_env("nethack", "@")
    screens = {seed: [bytes(env.reset(seed=seed)[0]["tty_chars"]) for _ in range(2)] for seed in (1, 2)}
    assert screens[1][0] == screens[1][1]
    assert screens[1][0] != screens[2][0]
    env.close()


def test_recorded_games_are_read_again_by_nle(tmp_path: Path) -> None:
    env = NetHackEnv(max_steps=60, ttyrec_dir=tmp_path / "nle_data")
    twin = NetHackEnv(max_steps=60, ttyrec_dir=tmp_path / "nle_data")  # its files are its own
    played = {}
    for number in range(3):
        observation, _ = env.reset(seed=100 + number)
        twin.reset(seed=1)
        frames, actions = [], random_actions(60, number)
        if number == 1:  # the cap comes inside a menu
            actions[-1] = int(KEY_TO_ACTION[ord("i")])
        if number == 2:  # or while a place on the map is asked for
            actions[-2:] = [int(KEY_TO_ACTION[ord(";")]), int(KEY_TO_ACTION[ord("l")])]
        for action in actions:
            frames.append(observation["tty_chars"])
            observation, _, _, truncated, info = env.step(action)
        assert truncated
        assert info["ttyrec"] == str(env._game.ttyrec_path)
        played[Path(info["ttyrec"]).name] = (np.stack(frames), [ACTION_KEYS[action] for action in actions])
    env.reset(seed=103)  # never ended: does not count
    env.close()
    twin.close()

    database = str(tmp_path / "games.db")
    nld.db.create(database)
    nld.add_nledata_directory(str(tmp_path / "nle_data"), "ours", database)
    data = nld.TtyrecDataset(
        "ours", batch_size=1, seq_length=60, dbfilename=database, shuffle=False, loop_forever=False
    )
    assert len(data._gameids) == 3
    for gameid, path in ((game, Path(data.get_paths(game)[0]).name) for game in data._gameids):
        batch = next(iter(data.get_ttyrecs([gameid], chunk_size=60)), None)
        assert batch is not None
        frames, keys = played[path]
        np.testing.assert_array_equal(batch["tty_chars"][0][:60], frames)
        np.testing.assert_array_equal(batch["keypresses"][0][:60], keys)
        assert data.get_meta(gameid)["death"] == "quit"
