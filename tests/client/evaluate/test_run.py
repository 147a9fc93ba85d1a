"""Whole evaluations of the toy game against the fake server, with everything that can go wrong on the way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from playserve.errors import (
    BadSettingError,
    NoFreeSlotError,
    ServerUnavailableError,
    ShapeMismatchError,
    StepFailedError,
)
from playserve.testing import FakePolicyServer
from playserve_client.evaluate import pool as pool_module
from playserve_client.evaluate import run as run_module
from playserve_client.evaluate.errors import WorkerFailedError
from playserve_client.evaluate.journal import Journal
from playserve_client.evaluate.plan import EnvChoice, Settings, Shard
from playserve_client.evaluate.run import RunOptions, evaluate


def settings(**changes) -> Settings:
    options = changes.pop("options", {})
    wanted = {
        "env": EnvChoice(family="toy_rollout:Toy", options=options),
        "policy": "toy",
        "episodes": 12,
        "argmax_episodes": 0,
        "baseline_episodes": 0,
        "seed_start": 100,
    }
    return Settings(**{**wanted, **changes})


def play(out: Path, server: FakePolicyServer | None, wanted: Settings, **options):
    address = server.address if server is not None else "127.0.0.1:9"
    return evaluate(wanted, RunOptions(**{"out": out, "server": address, "envs": 4, "workers": 1, **options}))


def games(report):
    """Return what may depend on seeds and policy only."""
    kept = ("row", "number", "env_seed", "sampling_seed", "score", "steps", "terminated", "truncated", "digest")
    return [{key: episode[key] for key in kept} for episode in report["episodes"]]


@pytest.fixture(scope="module")
def undisturbed(toys, tmp_path_factory):
    """Return the games of 40 episodes in which nothing went wrong, one environment after another."""
    with FakePolicyServer({"toy": toys.policy()}) as server:
        report = play(tmp_path_factory.mktemp("undisturbed"), server, settings(episodes=40), envs=1, workers=1)
    return games(report)


def test_all_players_and_every_episode_is_a_function_of_its_seeds(toys, tmp_path, undisturbed):
    wanted = settings(argmax_episodes=3, baseline_episodes=4, most_frequent=2)
    with FakePolicyServer({"toy": toys.policy()}) as server:
        many = play(tmp_path / "many", server, wanted, envs=7, workers=2)
    assert games(many)[:12] == undisturbed[:12]
    assert [(row["key"], row["episodes"]) for row in many["rows"]] == [
        ("sample", 12), ("argmax", 3), ("random", 4), ("constant", 4),
    ]  # fmt: skip
    assert many["complete"]
    assert not many["run"]["interrupted"]
    episodes = [e for e in many["episodes"] if e["row"] == "sample"]
    assert [e["env_seed"] for e in episodes] == list(range(100, 112))
    assert [e["steps"] for e in episodes] == [10 + seed % 20 for seed in range(100, 112)]
    assert {e["version"] for e in episodes} == {"1"}
    assert many["policy"]["version"] == "1"
    assert json.loads((tmp_path / "many" / "results.json").read_text()) == many
    sampled, argmax = episodes[:3], [e for e in many["episodes"] if e["row"] == "argmax"]
    assert [e["digest"] for e in sampled] != [e["digest"] for e in argmax]


def test_a_dict_observation_goes_by_name(toys, tmp_path, undisturbed):
    with FakePolicyServer({"toy": toys.policy()}) as server:
        named = play(tmp_path, server, settings(episodes=4, options={"dict_obs": True}))
    assert games(named) == undisturbed[:4]


def test_a_cap_truncates(toys, tmp_path):
    wanted = settings(env=EnvChoice(family="toy_rollout:Toy", max_steps=15), baseline_episodes=2)
    with FakePolicyServer({"toy": toys.policy()}) as server:
        report = play(tmp_path, server, wanted)
    for episode in report["episodes"]:
        length = 10 + episode["env_seed"] % 20
        assert (episode["steps"], episode["truncated"]) == (min(length, 15), length > 15)
        assert episode["terminated"] == (length <= 15)


def test_finished_episodes_are_kept_and_only_the_missing_are_played(toys, tmp_path, undisturbed):
    out = tmp_path / "run"
    with FakePolicyServer({"toy": toys.policy()}) as server:
        first = play(out, server, settings())
        lines = (out / "episodes.jsonl").read_bytes().splitlines(keepends=True)
        # Torn by a kill in the middle of a line, with one line damaged besides.
        (out / "episodes.jsonl").write_bytes(b"".join([*lines[:4], b"{damaged\n", lines[5][:20]]))
        again = play(out, server, settings())
        assert again["run"]["phases"]["agent (sampled)"]["steps"] < first["run"]["phases"]["agent (sampled)"]["steps"]
    assert games(again) == undisturbed[:12]
    assert any("2 damaged lines" in note for note in again["notes"])
    # Nothing is missing: neither a server nor a worker is needed.
    assert games(play(out, None, settings())) == undisturbed[:12]


def test_another_run_in_the_folder_is_refused_by_name(toys, tmp_path):
    with FakePolicyServer({"toy": toys.policy()}) as server:
        play(tmp_path, server, settings())
        with pytest.raises(BadSettingError, match=r"episodes is 12, not 13"):
            play(tmp_path, server, settings(episodes=13))
        with pytest.raises(BadSettingError, match=r"env\.options\.dict_obs is None, not True"):
            play(tmp_path, server, settings(options={"dict_obs": True}))


def test_a_folder_is_of_one_version(toys, tmp_path):
    with FakePolicyServer({"toy": toys.policy()}) as server:
        play(tmp_path, server, settings(episodes=3))
        lines = (tmp_path / "episodes.jsonl").read_bytes().splitlines(keepends=True)
        (tmp_path / "episodes.jsonl").write_bytes(b"".join(lines[:2]))
        server.publish(toys.policy(version="2"))
        report = play(tmp_path, server, settings(episodes=3))  # the newest is 2, but this folder is of 1
        assert {e["version"] for e in report["episodes"]} == {"1"}
        (tmp_path / "episodes.jsonl").write_bytes(b"".join(lines[:2]))
    with (
        FakePolicyServer({"toy": toys.policy(version="2")}) as other,
        pytest.raises(Exception, match="1"),
    ):
        play(tmp_path, other, settings(episodes=3))


def test_two_runs_in_one_folder_are_refused(toys, tmp_path):
    with Journal(tmp_path).open(settings(), {}), pytest.raises(BadSettingError, match="another rollout is running"):
        play(tmp_path, None, settings())


def _during(action: Callable[[], None], journal: Path, episodes: int) -> threading.Thread:
    """Run `action` once so many episodes are finished."""

    def wait() -> None:
        path = journal / "episodes.jsonl"
        while not path.exists() or path.read_bytes().count(b"\n") < episodes:
            time.sleep(0.005)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_restarted_server_costs_only_the_episodes_in_flight(toys, tmp_path, undisturbed):
    wanted = settings(episodes=40)
    with FakePolicyServer({"toy": toys.policy()}) as server:
        server.set_delay(0.005)
        thread = _during(server.restart, tmp_path / "run", 8)
        report = play(tmp_path / "run", server, wanted)
        thread.join()
    assert games(report) == undisturbed
    assert report["run"]["reconnects"] == 1
    replayed = sum(e["attempts"] - 1 for e in report["episodes"])
    assert 1 <= replayed <= 4
    assert report["run"]["phases"]["agent (sampled)"]["replayed"] == replayed


def test_a_server_that_stays_away_is_an_error_and_results_are_kept(toys, tmp_path):
    with FakePolicyServer({"toy": toys.policy()}, delay_s=0.005) as server:
        thread = _during(server.stop, tmp_path, 3)
        with pytest.raises(ServerUnavailableError):
            play(tmp_path, server, settings(episodes=40), reconnect_s=0.5)
        thread.join()
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["failed"]
    assert 3 <= report["rows"][0]["episodes"] < 40


def test_a_failed_row_is_played_again(toys, tmp_path, undisturbed):
    with FakePolicyServer({"toy": toys.policy()}) as server:
        server.fail_row(2, StepFailedError("the model stumbled"))
        report = play(tmp_path / "run", server, settings())
    assert games(report) == undisturbed[:12]
    assert sum(e["attempts"] - 1 for e in report["episodes"]) == 1


def test_a_dead_worker_is_replaced_and_its_episodes_are_played_again(toys, tmp_path, undisturbed):
    with FakePolicyServer({"toy": toys.policy()}) as server:
        crash = settings(options={"crash_once": str(tmp_path / "crashed")})
        report = play(tmp_path / "run", server, crash, workers=2)
    assert games(report) == undisturbed[:12]
    assert report["run"]["worker_restarts"] == 1
    assert 1 <= sum(e["attempts"] - 1 for e in report["episodes"]) <= 2


@pytest.mark.slow
def test_a_worker_that_stands_still_is_replaced(toys, tmp_path, undisturbed, monkeypatch):
    monkeypatch.setattr(pool_module, "_SILENCE_S", 6.0)
    with FakePolicyServer({"toy": toys.policy()}) as server:
        report = play(tmp_path, server, settings(options={"hang_once": str(tmp_path / "hung")}), workers=2)
    assert games(report) == undisturbed[:12]
    assert report["run"]["worker_restarts"] >= 1


def test_a_worker_that_always_dies_is_an_error(toys, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "_MAX_RESTARTS", 1)
    wanted = settings(policy="", baseline_episodes=2, options={"crash_always": True})
    with pytest.raises(WorkerFailedError, match="exit status 3"):
        play(tmp_path, None, wanted)


def test_an_environment_that_raises_is_an_error_with_its_words(toys, tmp_path):
    wanted = settings(policy="", baseline_episodes=4, options={"fail_seed": 102})
    with pytest.raises(WorkerFailedError, match="RuntimeError: the toy is broken"):
        play(tmp_path, None, wanted)


def test_a_slow_environment_holds_nobody_up(toys, tmp_path):
    # Episode 0 stands still until all the others are through.
    wait = {"wait_seed": 100, "wait_file": str(tmp_path / "episodes.jsonl"), "wait_lines": 19}
    with FakePolicyServer({"toy": toys.policy()}) as server:
        report = play(tmp_path, server, settings(episodes=20, options=wait), envs=3, workers=3)
    order = [json.loads(line)["number"] for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert order[-1] == 0
    assert report["complete"]


def test_what_does_not_fit_is_said_before_anything_is_played(toys, tmp_path):
    with (
        FakePolicyServer({"toy": toys.policy(shape=(7,))}) as server,
        pytest.raises(ShapeMismatchError, match=r"\[6\]"),
    ):
        play(tmp_path / "a", server, settings())
    with FakePolicyServer({"toy": toys.policy(slots=2)}) as server, pytest.raises(NoFreeSlotError):
        play(tmp_path / "b", server, settings())


def test_interrupted_it_keeps_what_is_finished(toys, tmp_path, monkeypatch):
    original, seen = run_module.Journal.add, []

    def add(self, result):
        original(self, result)
        seen.append(result)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with FakePolicyServer({"toy": toys.policy()}) as server:
        with monkeypatch.context() as patch:
            patch.setattr(run_module.Journal, "add", add)
            report = play(tmp_path, server, settings())
        assert report["run"]["interrupted"]
        assert not report["complete"]
        assert report["rows"][0]["episodes"] == 3
        assert play(tmp_path, server, settings())["complete"]


def test_films_show_the_best_and_the_first(toys, tmp_path):
    image = pytest.importorskip("PIL.Image")
    with FakePolicyServer({"toy": toys.policy()}) as server:
        report = play(tmp_path, server, settings(), record=2)
        scores = [e["score"] for e in report["episodes"]]
        # Filmed later, too, from what was kept.
        again = play(tmp_path, server, settings(), record=1)
    best, first = report["videos"]
    assert again["videos"] == [best]
    assert (best["score"], first["number"]) == (max(scores), 0)
    with image.open(tmp_path / best["path"]) as film:
        assert film.format == "GIF"
        assert film.size == (12, 8)


def test_shards_make_the_whole(toys, tmp_path):
    from playserve_client.evaluate.merge import merge_runs

    wanted = settings(argmax_episodes=3, baseline_episodes=3)
    with FakePolicyServer({"toy": toys.policy()}) as server:
        whole = play(tmp_path / "whole", server, wanted)
        folders = [tmp_path / f"shard{i}" for i in range(2)]
        for i, folder in enumerate(folders):
            play(folder, server, settings(argmax_episodes=3, baseline_episodes=3, shard=Shard(index=i, count=2)))
    merged = merge_runs(folders, tmp_path / "merged")
    assert games(merged) == games(whole)
    assert merged["rows"] == whole["rows"]
    assert merged["versus_best_baseline"] == whole["versus_best_baseline"]
    # The merged folder is a run like any other: nothing is left to play in it, and films can be made.
    assert play(tmp_path / "merged", None, wanted, record=1)["videos"]
