from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from playserve.errors import BadSettingError, DataLossError
from playserve_client.evaluate.journal import Journal, Result
from playserve_client.evaluate.merge import merge_runs
from playserve_client.evaluate.plan import EnvChoice, Settings, Shard

WHOLE = Settings(
    env=EnvChoice(family="my.game:make"), policy="p", episodes=5, argmax_episodes=0, baseline_episodes=2, seed_start=10
)


def write(out: Path, shard: str, *, skip: tuple[int, ...] = (), version: str = "v1", **changes) -> Path:
    settings = replace(WHOLE, shard=Shard.parse(shard), **changes)
    journal = Journal(out)
    with journal.open(settings, {"gymnasium": "1"}):
        journal.set_version(version)
        for row in settings.rows():
            for a in row.assignments(settings.seed_start, settings.shard):
                if a.number not in skip:
                    journal.add(
                        Result(
                            row=a.row, number=a.number, env_seed=a.env_seed, sampling_seed=a.sampling_seed,
                            score=float(a.number), steps=7, terminated=True, truncated=False, digest=f"{a.number}",
                        )
                    )  # fmt: skip
    return out


def test_parts_become_the_whole(tmp_path):
    folders = [write(tmp_path / f"{i}", f"{i}/3") for i in (2, 0, 1)]
    report = merge_runs(folders, tmp_path / "all")
    assert [(row["key"], row["episodes"], row["mean"]) for row in report["rows"]] == [
        ("sample", 5, 2.0),
        ("random", 2, 0.5),
    ]
    assert [e["number"] for e in report["episodes"]] == [0, 1, 2, 3, 4, 0, 1]
    assert report["complete"]
    assert json.loads((tmp_path / "all" / "results.json").read_text()) == report
    alone = write(tmp_path / "alone", "0/1")
    assert merge_runs([alone], tmp_path / "same")["rows"] == report["rows"]


def test_what_is_missing_is_named_and_stays_missing(tmp_path):
    folders = [write(tmp_path / "0", "0/3", skip=(3,)), write(tmp_path / "2", "2/3")]
    with pytest.raises(BadSettingError, match=r"shard 1/3 is not there; 1 of 5 episodes of sample are not finished"):
        merge_runs(folders, tmp_path / "all")
    assert not (tmp_path / "all").exists()
    report = merge_runs(folders, tmp_path / "all", partial=True)
    assert not report["complete"]
    assert [e["number"] for e in report["episodes"]] == [0, 2, 0]
    assert report["rows"][0]["mean"] == 1.0
    assert report["rows"][1]["mean_interval"] is None


@pytest.mark.parametrize(
    ("shard", "changes", "words"),
    [
        ("0/2", {}, "both shard 0"),
        ("1/3", {}, "shard count is 3, not 2"),
        ("1/2", {"episodes": 6}, "episodes is 6, not 5"),
        ("1/2", {"seed_start": 11}, "seed_start is 11, not 10"),
        ("1/2", {"version": "v2"}, "version 'v2'.*by 'v1'"),
    ],
)
def test_what_does_not_belong_together_is_refused(tmp_path, shard, changes, words):
    folders = [write(tmp_path / "a", "0/2"), write(tmp_path / "b", shard, **changes)]
    with pytest.raises(BadSettingError, match=words):
        merge_runs(folders, tmp_path / "all")


def test_an_episode_may_be_there_only_once(tmp_path):
    folders = [write(tmp_path / "a", "0/2"), write(tmp_path / "b", "1/2")]
    line = (tmp_path / "a" / "episodes.jsonl").read_text().splitlines()[0]
    with open(tmp_path / "b" / "episodes.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(BadSettingError, match="episode 0 of sample, which another folder holds"):
        merge_runs(folders, tmp_path / "all")


def test_folders_without_a_run_and_folders_with_one(tmp_path):
    part = write(tmp_path / "a", "0/1")
    with pytest.raises(BadSettingError, match="holds no rollout"):
        merge_runs([tmp_path / "nothing"], tmp_path / "all")
    with pytest.raises(BadSettingError, match="holds a run already"):
        merge_runs([part], part)
    (part / "settings.json").write_text("{")
    with pytest.raises(DataLossError, match="damaged"):
        merge_runs([part], tmp_path / "all")
