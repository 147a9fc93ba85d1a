"""Replays equal what the environment shows, reach the recorded results, and say so where they do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from playserve.errors import BadSettingError
from playserve_client.envs.nethack import NetHackEnv
from playserve_client.nethack.game import NetHackGame, birthday_of, distinct_birthdays
from playserve_client.nethack.games import GameRecord, carried_games, read_games
from playserve_client.nethack.keys import KEY_TO_ACTION
from playserve_client.nethack.replay import Replayer, ReplayMismatchError, expert_mask, replay_game


@pytest.fixture(scope="module")
def games() -> dict[int, GameRecord]:
    """The carried games by seed."""
    return {game.seed: game for game in read_games(carried_games())}


@pytest.fixture
def replayer() -> Iterator[Replayer]:
    """A replayer of monks."""
    replayer = Replayer("mon-hum-neu-mal")
    yield replayer
    replayer.close()


def test_equals_what_the_environment_shows(games: dict[int, GameRecord]) -> None:
    game = replace(games[30030], birthday=None)  # the environment's birthday is the seed's
    env = NetHackEnv(inventory=True)
    observation, _ = env.reset(seed=game.seed)
    score, t = 0.0, 0
    for chunk in replay_game(game, chunk=100, blstats=True, inventory=True):
        assert len(chunk) <= 100
        for i in range(len(chunk)):
            np.testing.assert_array_equal(chunk.chars[i], observation["tty_chars"])
            np.testing.assert_array_equal(chunk.colors[i], observation["tty_colors"])
            np.testing.assert_array_equal(chunk.cursor[i], observation["tty_cursor"])
            assert chunk.inv_glyphs is not None
            np.testing.assert_array_equal(chunk.inv_glyphs[i], observation["inv_glyphs"])
            assert chunk.blstats is not None
            np.testing.assert_array_equal(chunk.blstats[i], env.blstats)
            assert chunk.scores[i] == env.blstats[9]
            assert chunk.keys[i] == game.keys[t]
            observation, reward, terminated, _, info = env.step(int(KEY_TO_ACTION[game.keys[t]]))
            score, t = score + reward, t + 1
        assert chunk.expert.all()
    assert (t, score, terminated) == (game.steps, game.score, True)
    facts = info["episode_facts"]
    assert (facts["turns"], facts["depth"], facts["experience_level"]) == (
        game.turns, game.max_depth, game.experience_level,
    )  # fmt: skip
    assert facts["end"] == "killed by a giant mimic"
    env.close()


def test_one_replayer_replays_game_after_game(games: dict[int, GameRecord], replayer: Replayer) -> None:
    for seed, end in ((20033, "killed by a wand"), (30030, "killed by a giant mimic"), (20033, "killed by a wand")):
        chunks = list(replayer.replay(games[seed]))
        assert sum(map(len, chunks)) == games[seed].steps
        assert chunks[-1].blstats is None
        assert replayer.end == end


def test_chunks_are_the_callers(games: dict[int, GameRecord], replayer: Replayer) -> None:
    first, *_ = chunks = list(replayer.replay(replace(games[30030])))
    again = next(iter(replayer.replay(games[30030])))
    np.testing.assert_array_equal(first.chars, again.chars)
    assert not any(np.shares_memory(first.chars, chunk.chars) for chunk in chunks[1:])


def test_shopkeepers_are_named_after_the_birthday_not_the_clock(
    games: dict[int, GameRecord], replayer: Replayer
) -> None:
    # Two ways to die of a shopkeeper's wand; with another birthday the wand misses.
    game = games[20042]
    assert not replayer.matches(game, birthday_of(game.seed))
    with pytest.raises(ReplayMismatchError):
        list(replayer.replay(replace(game, birthday=birthday_of(game.seed))))
    found = replayer.find_birthday(game)
    assert found is not None
    assert replayer.matches(game, found)
    assert sum(map(len, replayer.replay(replace(game, birthday=found)))) == game.steps
    assert len(distinct_birthdays()) == 51


def test_an_altered_key_is_noticed(games: dict[int, GameRecord], replayer: Replayer) -> None:
    game = games[30030]
    keys = game.keys.copy()
    keys[10:40] = ord("s")
    with pytest.raises(ReplayMismatchError, match=r"game mon-hum-neu-mal-30030: .* came, .* was recorded") as caught:
        list(replayer.replay(replace(game, keys=keys)))
    assert caught.value.game == game.name
    assert caught.value.came != caught.value.wanted
    assert replayer.find_birthday(replace(game, keys=keys, birthday=None)) is None


@pytest.mark.parametrize(("what", "by"), [("score", 1), ("turns", -1)])
def test_another_result_is_noticed(games: dict[int, GameRecord], replayer: Replayer, what: str, by: int) -> None:
    game = games[20033]
    wrong = replace(game, **{what: getattr(game, what) + by})
    with pytest.raises(ReplayMismatchError, match=what) as caught:
        list(replayer.replay(wrong))
    assert (caught.value.what, caught.value.came, caught.value.wanted) == (
        what, getattr(game, what), getattr(wrong, what),
    )  # fmt: skip


def test_keys_after_the_end_are_noticed(games: dict[int, GameRecord], replayer: Replayer) -> None:
    game = games[20033]
    longer = replace(game, keys=np.append(game.keys, game.keys[:9]), steps=game.steps + 9)
    with pytest.raises(ReplayMismatchError, match="steps 213 came, 222 was recorded"):
        list(replayer.replay(longer))


def test_another_version_of_nle_is_said(games: dict[int, GameRecord], replayer: Replayer) -> None:
    wrong = replace(games[20033], score=0, game="NetHack 3.6.6, nle 1.2.0, NetHackChallenge-v0")
    with pytest.raises(ReplayMismatchError, match=r"played with .*nle 1\.2\.0.*here is nle 1\.3\.0"):
        list(replayer.replay(wrong))


def test_settings_are_checked(games: dict[int, GameRecord]) -> None:
    with pytest.raises(BadSettingError, match="chunk is 0"):
        Replayer("mon-hum-neu-mal", chunk=0)
    valkyries = Replayer("val-dwa-law-fem")
    with pytest.raises(BadSettingError, match="not of val-dwa-law-fem"):
        next(valkyries.replay(games[20033]))
    valkyries.close()


def test_keys_that_quit_are_masked() -> None:
    keys = np.frombuffer(b"hjkl" * 30, np.uint8).copy()
    assert expert_mask(keys).all()
    keys[-6:] = [27, 0x80 | ord("q"), ord("y"), 32, 32, 32]
    np.testing.assert_array_equal(np.flatnonzero(~expert_mask(keys)), np.arange(115, 120))
    keys[5:7] = [0x80 | ord("q"), ord("y")]  # long before: the player's own affair
    assert expert_mask(keys)[:115].all()


def test_a_dropped_game_leaves_no_trace_in_the_next() -> None:
    game = NetHackGame("mon-hum-neu-mal", keys=("tty_chars",))
    game.start(5)
    fresh = game.buffers["tty_chars"].copy()
    game.start(6)
    for key in b"jjjj>S":
        game.send(key)
    game.start(5)
    np.testing.assert_array_equal(game.buffers["tty_chars"], fresh)
    game.close()
