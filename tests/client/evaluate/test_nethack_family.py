"""NetHack's rows, rules and baselines, without NetHack."""

from __future__ import annotations

import argparse
import hashlib
import io
import json

import numpy as np
import pytest

from playserve.errors import BadActionError, BadSettingError
from playserve.specs import DiscreteActionSpec, PolicySpec, TensorSpec
from playserve_client.evaluate.families import COMMANDS, family_of
from playserve_client.evaluate.families.generic import GenericFamily
from playserve_client.evaluate.families.nethack_players import WALK, NetHackPlayers
from playserve_client.evaluate.journal import Journal, Result
from playserve_client.evaluate.merge import merge_runs
from playserve_client.evaluate.plan import EnvChoice, Settings, Shard
from playserve_client.evaluate.report import build_report
from playserve_client.evaluate.table import print_report
from playserve_client.nethack.expert_statistics import ExpertStatistics, carried_statistics
from playserve_client.nethack.keys import ACTION_KEYS, KEY_TO_ACTION, NUM_ACTIONS

ENV = EnvChoice(
    family="nethack", game="mon-hum-neu-mal", options={"no_progress_timeout": 10_000}, max_steps=100_000
)  # fmt: skip


def settings(**changes) -> Settings:
    wanted = {
        "env": ENV, "policy": "nethack", "episodes": 6, "argmax_episodes": 0, "baseline_episodes": 3,
        "most_frequent": 72, "knowledge": {"source": "146 games", "sha256": "1"},
    }  # fmt: skip
    return Settings(**{**wanted, **changes})


def results(wanted: Settings, score=lambda row, number: float(number)) -> dict[tuple[str, int], Result]:
    return {
        (a.row, a.number): Result(
            row=a.row, number=a.number, env_seed=a.env_seed, sampling_seed=a.sampling_seed,
            score=score(a.row, a.number), steps=12_345, terminated=True, truncated=False, digest="same",
            facts={"turns": 1000 + a.number, "depth": 2, "experience_level": 3,
                   "end": "killed by a gnome lord" if a.number % 2 else "no_progress"},
        )
        for row in wanted.rows()
        for a in row.assignments(wanted.seed_start, wanted.shard)
    }  # fmt: skip


EXTRA = {"policy": {"name": "nethack", "version": "7", "server": "here:1"}, "notes": ["a note"], "videos": []}


def report(wanted: Settings, **options):
    return build_report(wanted, results(wanted, **options), EXTRA, ENV.rules.recorded(carried_statistics()))


def test_rows_of_nethack():
    assert [(row.key, row.name, row.role, row.episodes) for row in settings(argmax_episodes=2).rows()] == [
        ("sample", "agent (sampled)", "agent", 6),
        ("argmax", "agent (argmax)", "agent", 2),
        ("random", "uniform", "baseline", 3),
        ("constant", "most frequent key", "baseline", 3),
        ("frequencies", "expert frequencies", "baseline", 3),
        ("bigram", "previous-key bigram", "baseline", 3),
        ("walk", "random walk", "baseline", 3),
    ]
    keys = [row.key for row in settings(knowledge={}, most_frequent=None).rows()]
    assert keys == ["sample", "random", "walk"]


def test_the_rules_are_stated():
    text = "; ".join(settings().protocol())
    for words in ("temperature 1", "100,000 steps", "10,000 steps in which no turn", "121 keys", "mon-hum-neu-mal",
                  "moon", "core and display", "1000000 + i", "most frequent key: ", "146 games", "15%"):  # fmt: skip
        assert words in text


def test_settings_of_nethack_and_of_old_folders_as_json():
    value = settings()
    assert Settings.from_json(json.loads(json.dumps(value.to_json()))) == value
    assert "knowledge" not in settings(knowledge={}).to_json()
    assert ENV.factory_options(None) == {"no_progress_timeout": 10_000, "max_steps": 100_000}


def test_families_by_name():
    assert family_of("nethack") is COMMANDS["nethack"]
    assert type(family_of("my.game:make")) is GenericFamily


def _spec(**environment: str) -> PolicySpec:
    chars = TensorSpec(name="tty_chars", dtype="uint8", shape=(24, 80))
    return PolicySpec(
        name="p", version="1", family="nethack", inputs=(chars,), action=DiscreteActionSpec(n=121),
        environment=environment,
    )  # fmt: skip


def test_a_policy_of_another_family_is_refused_and_of_another_character_noted():
    rules = ENV.rules
    assert rules.check_policy(settings(), _spec(family="nethack", character="mon-hum-neu-mal")) == []
    assert rules.check_policy(settings(), _spec()) == []
    with pytest.raises(BadSettingError, match="'atari'"):
        rules.check_policy(settings(), _spec(family="atari"))
    (note,) = rules.check_policy(settings(), _spec(family="nethack", character="val-dwa-law-fem"))
    assert "val-dwa-law-fem" in note


# Players


def _draws(players: NetHackPlayers, kind: str, count: int, seed: int = 5) -> list[int]:
    player = players(kind, None)
    player.reset(seed)
    return [player.act(None) for _ in range(count)]


@pytest.mark.parametrize("kind", ["random", "frequencies", "bigram", "walk"])
def test_players_are_a_function_of_their_seed(kind):
    players = NetHackPlayers(carried_statistics())
    player = players(kind, None)
    player.reset(5)
    first = [player.act(None) for _ in range(50)]
    assert first == _draws(players, kind, 50)
    player.reset(5)
    assert [player.act(None) for _ in range(50)] == first
    assert _draws(players, kind, 50, seed=6) != first


def test_players_draw_what_their_tables_say():
    statistics = ExpertStatistics.from_bytes(carried_statistics().read_bytes())
    players, n = NetHackPlayers(carried_statistics()), 20_000
    for kind, wanted in [
        ("walk", WALK),
        ("frequencies", statistics.counts / statistics.counts.sum()),
        ("random", np.full(NUM_ACTIONS, 1 / NUM_ACTIONS)),
    ]:
        shares = np.bincount(_draws(players, kind, n), minlength=NUM_ACTIONS) / n
        assert np.abs(shares - wanted).max() < 0.015, kind
        assert not shares[wanted == 0].any()
    keys = _draws(players, "bigram", n)
    pairs = np.zeros((NUM_ACTIONS, NUM_ACTIONS))
    np.add.at(pairs, (keys[:-1], keys[1:]), 1)
    assert not pairs[statistics.bigram == 0].any()
    most = int(np.argmax(pairs.sum(1)))
    expected = statistics.bigram[most] / statistics.bigram[most].sum()
    assert np.abs(pairs[most] / pairs[most].sum() - expected).max() < 0.05


def test_the_walk_goes_in_eight_directions():
    keys = {ACTION_KEYS[action] for action in np.flatnonzero(WALK)}
    assert keys == set(b"hjklyubn ")
    assert WALK.sum() == pytest.approx(1)
    assert WALK[KEY_TO_ACTION[32]] == pytest.approx(0.15)


def test_players_that_lack_something_say_so():
    with pytest.raises(BadSettingError, match="statistics"):
        NetHackPlayers(None)("bigram", None)
    with pytest.raises(BadActionError, match="0 to 120"):
        NetHackPlayers(None)("constant", 121)


# Report and table


def test_facts_are_summed_up():
    value = report(settings())
    row = value["rows"][0]
    assert row["fact_means"] == {"turns": 1002.5, "depth": 2.0, "experience_level": 3.0}
    assert row["fact_counts"] == {"end": {"no_progress": 3, "killed by a gnome lord": 3}}
    assert value["episodes"][1]["facts"]["end"] == "killed by a gnome lord"
    assert row["distinct"] == 6  # another seed is another game, whatever was pressed in it


def test_the_expert_has_a_row_that_nobody_played_and_is_no_baseline():
    scores = {"walk": 30.0, "bigram": 10.0, "sample": 100.0}
    value = report(settings(), score=lambda row, number: scores.get(row, 0.0) + number)
    expert = value["rows"][-1]
    assert (expert["key"], expert["name"], expert["role"]) == ("expert-recorded", "AutoAscend (recorded)", "expert")
    assert expert["episodes"] == expert["planned"] == 146
    assert expert["mean"] == pytest.approx(14_715, abs=1)
    assert set(expert["fact_means"]) == {"turns", "depth", "experience_level"}
    (versus,) = value["versus_best_baseline"]
    assert (versus["row"], versus["baseline"]) == ("sample", "walk")
    assert any("not played here" in note for note in value["notes"])
    assert value["complete"]
    assert all(e["row"] != "expert-recorded" for e in value["episodes"])


def _printed(value, width: int | None) -> list[str]:
    out = io.StringIO()
    print_report(value, out, width=width)
    return out.getvalue().splitlines()


def test_the_table_fits_a_hundred_columns():
    value = report(settings(), score=lambda row, number: 12_345.0 + 1000 * number)
    wide = _printed(value, None)
    assert any("deciles 10%" in line for line in wide)
    lines = _printed(value, 100)
    top = next(i for i, line in enumerate(lines) if "player" in line)
    rows = lines[top : next(i for i, line in enumerate(lines) if line.startswith("protocol"))]
    assert all(len(line.rstrip()) <= 100 for line in rows)
    header = rows[0]
    for column in ("player", "episodes", "mean [95% interval]", "median", "steps", "turns", "depth", "level", "cut"):
        assert column in header
    assert not any("deciles 10%" in line for line in lines)
    # No row is broken in two: each player is in a line with its numbers.
    assert sum("12,345" in line for line in rows) == len(settings().rows())
    assert any("results.json" in line for line in lines)


def test_how_games_ended_stands_under_the_table():
    text = "\n".join(_printed(report(settings()), None))
    assert "how agent (sampled) ended: no progress 3, killed by a gnome lord 3" in text
    assert "how AutoAscend (recorded) ended: finished 127, stopped 19" in text


def test_a_terminal_shows_lines(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    value = report(settings(), score=lambda row, number: 12_345.0 + 1000 * number)
    out = Terminal()
    print_report(value, out, width=100)
    table = out.getvalue().partition("protocol")[0].splitlines()
    assert "12,345" in out.getvalue()
    assert "…" not in "".join(table)


# Journals


def test_old_journals_without_facts_still_load(tmp_path):
    wanted = settings(knowledge={})
    with Journal(tmp_path).open(wanted, {}) as journal:
        for result in results(wanted).values():
            journal.add(result)
    lines = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    for line in lines:
        del line["facts"]
    (tmp_path / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    journal = Journal(tmp_path)
    journal.load()
    assert len(journal.results) == len(lines)
    assert not journal.damaged
    assert build_report(wanted, journal.results, EXTRA)["rows"][0]["fact_means"] == {}


def test_shards_keep_what_their_baselines_drew_from(tmp_path):
    content = carried_statistics().read_bytes()
    knowledge = {"source": "146 games", "sha256": hashlib.sha256(content).hexdigest()}
    for index in range(2):
        part = settings(knowledge=knowledge, shard=Shard(index=index, count=2))
        with Journal(tmp_path / f"{index}").open(part, {}, content) as journal:
            for result in results(part).values():
                journal.add(result)
    merged = merge_runs([tmp_path / "0", tmp_path / "1"], tmp_path / "all")
    whole = settings(knowledge=knowledge)
    assert merged["rows"] == report(whole)["rows"]
    assert (tmp_path / "all" / "knowledge.json").read_bytes() == content


# The command line


def _arguments(**changes) -> argparse.Namespace:
    wanted = {"stickiness": None, "character": "mon-hum-neu-mal", "no_progress": 500, "no_baselines": False,
              "data": None, "most_frequent": None}  # fmt: skip
    return argparse.Namespace(**{**wanted, **changes})


def test_choices():
    pytest.importorskip("nle")
    choose = COMMANDS["nethack"].choose
    choice = choose(_arguments(), {}, 9000)
    assert (choice.env.game, choice.env.max_steps) == ("mon-hum-neu-mal", 9000)
    assert choice.env.options == {"no_progress_timeout": 500}
    assert ACTION_KEYS[choice.most_frequent] == 32
    assert choice.argmax_episodes == 0
    assert choice.knowledge == carried_statistics().read_bytes()
    assert choose(_arguments(no_baselines=True), {}, 9000).knowledge == b""
    other = choose(_arguments(character="val-dwa-law-fem"), {}, 9000)
    assert other.knowledge == b""
    assert "mon-hum-neu-mal" in other.notes[0]
    for changes in ({"stickiness": [0.25]}, {"character": "xyz"}, {"no_progress": 0}):
        with pytest.raises(BadSettingError):
            choose(_arguments(**changes), {}, 9000)
    with pytest.raises(BadSettingError, match="colour"):
        choose(_arguments(), {"colour": 1}, 9000)
