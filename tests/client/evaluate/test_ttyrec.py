"""Episodes recorded after the run, and read again by NLE's own dataset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from playserve_client.evaluate.families.nethack_players import NetHackPlayers
from playserve_client.evaluate.journal import Journal, Result
from playserve_client.evaluate.plan import EnvChoice, Settings
from playserve_client.evaluate.run import RunOptions, evaluate
from playserve_client.evaluate.ttyrec import first_episodes, record_ttyrecs
from playserve_client.nethack.keys import ACTION_KEYS

pytest.importorskip("nle")
from playserve_client.envs.registry import make_env

SETTINGS = Settings(
    env=EnvChoice(family="nethack", game="mon-hum-neu-mal", options={"no_progress_timeout": 200}, max_steps=1500),
    policy="p", episodes=6, argmax_episodes=0, baseline_episodes=1,
)  # fmt: skip


def _play(env, player, assignment):
    """Return (result, frames, actions) of one episode of the random walk."""
    player.reset(assignment.sampling_seed)
    observation, _ = env.reset(seed=assignment.env_seed)
    frames, actions, score, ended = [], [], 0.0, False
    while not ended:
        frames.append(observation)
        actions.append(player.act(env))
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        score += reward
        ended = terminated or truncated
    result = Result(
        row=assignment.row, number=assignment.number, env_seed=assignment.env_seed, sampling_seed=0, score=score,
        steps=len(actions), terminated=terminated, truncated=truncated, digest="", facts=info["episode_facts"],
    )  # fmt: skip
    return result, frames, actions


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Return the folder of six games, with what was seen and pressed in each."""
    journal, games = Journal(tmp_path_factory.mktemp("played")), []
    env = make_env("nethack", SETTINGS.env.game, **SETTINGS.env.factory_options(None))
    player = NetHackPlayers(None)("walk", None)
    with journal.open(SETTINGS, {}):
        for assignment in SETTINGS.rows()[0].assignments(SETTINGS.seed_start, SETTINGS.shard):
            result, frames, actions = _play(env, player, assignment)
            journal.add(result)
            path = journal.actions_dir / result.row / f"{result.number:06d}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(path, executed=np.array(actions, np.int16), reward=np.zeros(len(actions)))
            games.append((result, frames, actions))
    env.close()
    return journal, games


def _dataset(folder, tmp_path):
    import nle.dataset as nld

    database = str(tmp_path / "ttyrecs.db")
    nld.db.create(database)
    nld.add_nledata_directory(str(folder), "played", database)
    return nld.TtyrecDataset(
        "played", batch_size=1, seq_length=64, dbfilename=database, shuffle=False, loop_forever=False
    )


def _read(dataset, game: int):
    """Return (chars, colors, cursor, keys, scores) of all frames of one game."""
    parts = []
    for batch in dataset.get_ttyrec(game, 64):
        real = batch["gameids"][0] != 0
        keys = ("tty_chars", "tty_colors", "tty_cursor", "keypresses", "scores")
        parts.append([np.array(batch[key][0][real]) for key in keys])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def test_recorded_games_are_the_games_that_were_played(played, tmp_path):
    journal, games = played
    # What there is to test: games that were lost, and games that were cut.
    assert {result.terminated for result, _, _ in games} == {True, False}
    made = record_ttyrecs(SETTINGS, journal, 5, lambda _steps, _episodes: None)
    assert made.notes == []
    assert [item["number"] for item in made.files] == [0, 1, 2, 3, 4]
    assert all((journal.out / item["path"]).exists() for item in made.files)
    assert json.loads(json.dumps(made.files)) == made.files
    dataset = _dataset(journal.out / "ttyrec", tmp_path)
    game_of = {Path(dataset.get_paths(game)[0]).name: game for game in dataset._gameids}
    assert len(game_of) == 5
    for item, (result, frames, actions) in zip(made.files, games, strict=False):
        chars, colors, cursor, keys, scores = _read(dataset, game_of[Path(item["path"]).name])
        steps = len(actions)
        assert steps == result.steps
        # Where a game opens with a message, nle itself sends spaces before the agent's first frame.
        wanted = [ACTION_KEYS[action] for action in actions]
        opening = next(i for i in range(4) if keys[i : i + steps].tolist() == wanted)
        assert (keys[:opening] == 32).all()
        chars, colors, cursor, scores = (part[opening:] for part in (chars, colors, cursor, scores))
        assert (chars[:steps] == np.stack([frame["tty_chars"] for frame in frames])).all()
        assert (colors[:steps] == np.stack([frame["tty_colors"] for frame in frames])).all()
        assert (cursor[:steps] == np.stack([frame["tty_cursor"] for frame in frames])).all()
        if result.truncated:
            assert scores[steps] - scores[0] == result.score


def test_again_it_takes_the_place_of_what_lay_there(played):
    journal, _ = played
    record_ttyrecs(SETTINGS, journal, 2, lambda _steps, _episodes: None)
    made = record_ttyrecs(SETTINGS, journal, 1, lambda _steps, _episodes: None)
    assert len(list((journal.out / "ttyrec").rglob("*.ttyrec3.bz2"))) == len(made.files) == 1
    assert not list(journal.out.glob(".ttyrec*"))


def test_what_cannot_be_played_again_is_said(played, tmp_path):
    _, games = played
    other = Journal(tmp_path)
    with other.open(SETTINGS, {}):
        for result, _, actions in games[:3]:
            wrong = {"score": result.score + 1} if result.number == 1 else {}
            other.add(Result(**{**{f: getattr(result, f) for f in Result.__slots__}, **wrong}))
            if result.number != 2:  # whose keys were lost
                path = other.actions_dir / result.row / f"{result.number:06d}.npz"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez_compressed(path, executed=np.array(actions, np.int16))
    made = record_ttyrecs(SETTINGS, other, 3, lambda _steps, _episodes: None)
    assert [item["number"] for item in made.files] == [0]
    assert [note.partition(":")[0] for note in made.notes] == [
        "no recording of sample episode 1",
        "no recording of sample episode 2",
    ]


def test_the_first_of_the_agent_or_of_whoever_plays(played):
    journal, _ = played
    assert [result.number for result in first_episodes(SETTINGS, journal, 2)] == [0, 1]


def test_a_run_without_an_agent_records_a_baseline(tmp_path):
    wanted = Settings(
        env=EnvChoice(family="nethack", game="mon-hum-neu-mal", options={"no_progress_timeout": 100}, max_steps=150),
        policy="", episodes=1, argmax_episodes=0, baseline_episodes=2, most_frequent=3,
    )  # fmt: skip
    report = evaluate(wanted, RunOptions(out=tmp_path, envs=2, workers=1, record=2))
    assert [row["key"] for row in report["rows"]] == ["random", "constant", "walk"]
    assert [(item["row"], item["number"]) for item in report["recordings"]] == [("random", 0), ("random", 1)]
    facts = {e["row"]: e["facts"] for e in report["episodes"]}
    assert facts["constant"]["turns"] >= 1
    assert all(set(fact) == {"turns", "depth", "experience_level", "end"} for fact in facts.values())
    assert {e["steps"] for e in report["episodes"]} <= set(range(1, 151))
    assert report["packages"]["nle"] == "1.3.0"


def test_the_run_s_folder_may_be_relative(played, tmp_path, monkeypatch):
    journal, games = played
    monkeypatch.chdir(journal.out.parent)
    relative = Journal(Path(journal.out.name))
    with relative.open(SETTINGS, {}):
        made = record_ttyrecs(SETTINGS, relative, 1, lambda _steps, _episodes: None)
    assert [item["score"] for item in made.files] == [games[0][0].score]
    assert (relative.out / made.files[0]["path"]).exists()
    assert not made.notes
