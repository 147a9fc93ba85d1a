from __future__ import annotations

import json

import pytest

from playserve.errors import BadSettingError
from playserve_client.evaluate.plan import EnvChoice, Settings, Shard


def settings(**changes) -> Settings:
    wanted = {
        "env": EnvChoice(family="atari", game="breakout"),
        "policy": "breakout",
        "episodes": 7,
        "argmax_episodes": 3,
        "baseline_episodes": 2,
        "stickiness": (0.0, 0.25),
        "expert": True,
        "most_frequent": 1,
    }
    return Settings(**{**wanted, **changes})


def test_rows_and_their_episodes():
    rows = settings().rows()
    assert [row.key for row in rows] == [
        f"{kind}-s{sticky}"
        for sticky in ("0", "0.25")
        for kind in ("sample", "argmax", "random", "constant", "expert")
    ]  # fmt: skip
    assert [row.episodes for row in rows[:5]] == [7, 3, 2, 2, 2]
    assert rows[3].name == "most frequent action (1)"


def test_what_is_not_known_has_no_row():
    rows = settings(expert=False, most_frequent=None, argmax_episodes=0, stickiness=(0.0,)).rows()
    assert [row.key for row in rows] == ["sample-s0", "random-s0"]
    assert [row.key for row in settings(policy="", stickiness=(0.0,)).rows()] == [
        "random-s0",
        "constant-s0",
        "expert-s0",
    ]
    assert settings(policy="", baseline_episodes=0).rows() == []


def test_every_player_gets_the_same_seeds():
    rows = settings().rows()
    seeds = [[(a.env_seed, a.sampling_seed) for a in row.assignments(500, Shard())] for row in rows]
    assert seeds[0] == seeds[5]
    assert seeds[1] == seeds[0][:3]
    assert len({seed for _, seed in seeds[0]}) == 7
    assert all(seed < 2**53 for _, seed in seeds[0])
    assert [seed for seed, _ in seeds[0]] == list(range(500, 507))


def test_shards_are_a_partition():
    row = settings().rows()[0]
    whole = row.assignments(9, Shard())
    parts = [row.assignments(9, Shard(index=i, count=3)) for i in range(3)]
    assert sorted((a for part in parts for a in part), key=lambda a: a.number) == whole
    assert sum(len(part) for part in parts) == len(whole)


@pytest.mark.parametrize("text", ["3/3", "1", "a/b", "-1/2", "0/0"])
def test_bad_shards(text):
    with pytest.raises(BadSettingError, match="shard"):
        Shard.parse(text)


def test_json_round_trip():
    value = settings(shard=Shard.parse("1/3"))
    assert Settings.from_json(json.loads(json.dumps(value.to_json()))) == value
    with pytest.raises(BadSettingError, match="unknown keys"):
        Settings.from_json({**value.to_json(), "colour": 1})


@pytest.mark.parametrize("changes", [{"episodes": 0}, {"seed_start": -1}, {"stickiness": (0.0, 0.0)}])
def test_bad_settings(changes):
    with pytest.raises(BadSettingError):
        settings(**changes)


def test_protocol_is_stated():
    text = "; ".join(settings().protocol())
    for fact in ("temperature 1", "stickiness 0 and 0.25", "1 to 30 no-ops", "unclipped", "27,000", "frame skip 4"):
        assert fact in text
