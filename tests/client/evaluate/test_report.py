from __future__ import annotations

import io

import pytest

from playserve_client.evaluate.journal import Result
from playserve_client.evaluate.plan import EnvChoice, Settings, Shard
from playserve_client.evaluate.report import build_report
from playserve_client.evaluate.table import print_report

SETTINGS = Settings(
    env=EnvChoice(family="atari", game="breakout"), policy="breakout", episodes=4, argmax_episodes=2,
    baseline_episodes=3, stickiness=(0.0, 0.25), expert=True,
)  # fmt: skip
EXTRA = {"policy": {"name": "breakout", "version": "7", "server": "here:1"}, "notes": ["a note"], "videos": []}


def results(scores):
    """Return results of rows by key: one episode a score."""
    found = {}
    for row in SETTINGS.rows():
        for a, score in zip(row.assignments(SETTINGS.seed_start, Shard()), scores.get(row.key, ()), strict=False):
            found[a.row, a.number] = Result(
                row=a.row, number=a.number, env_seed=a.env_seed, sampling_seed=a.sampling_seed, score=score,
                steps=100, terminated=True, truncated=score == 0, digest=str(score), attempts=2 if score == 3 else 1,
            )  # fmt: skip
    return found


def printed(report):
    out = io.StringIO()
    print_report(report, out)
    return out.getvalue()


def test_numbers_of_a_row():
    report = build_report(SETTINGS, results({"sample-s0": [1.0, 2.0, 3.0, 6.0], "random-s0": [0.0, 0.0, 1.0]}), EXTRA)
    row = report["rows"][0]
    assert (row["mean"], row["median"], row["minimum"], row["maximum"], row["mean_steps"]) == (3.0, 2.5, 1.0, 6.0, 100)
    assert row["mean_interval"]["low"] < 3 < row["mean_interval"]["high"]
    assert len(row["deciles"]) == 9
    assert (row["distinct"], row["replayed"], row["truncated"]) == (4, 1, 0)
    assert report["rows"][2]["distinct"] == 2
    (versus,) = report["versus_best_baseline"]
    assert (versus["row"], versus["baseline"]) == ("sample-s0", "random-s0")
    assert versus["difference"] == pytest.approx(3 - 1 / 3)


def test_a_missing_result_is_missing_and_never_zero():
    report = build_report(SETTINGS, results({"sample-s0": [5.0]}), EXTRA)
    lone, nothing = report["rows"][0], report["rows"][4]
    assert (lone["mean"], lone["mean_interval"]) == (5.0, None)
    for key in ("mean", "mean_interval", "median", "deciles", "minimum", "maximum", "mean_steps"):
        assert nothing[key] is None
    assert not report["complete"]
    text = printed(report)
    assert "1 of 4" in text
    assert "0 of 4" in text
    assert "not complete" in text
    empty = next(line for line in text.splitlines() if "0.25" in line and "agent (sampled)" in line)
    assert "0.0" not in empty


def test_the_table_is_plain_where_nobody_looks_and_says_everything():
    scores = {"sample-s0": [1.0, 2.0, 3.0, 6.0], "argmax-s0": [7.0, 7.0], "random-s0": [0.0, 1.0, 0.0]}
    text = printed(build_report(SETTINGS, results(scores), EXTRA))
    assert text.isascii()
    for words in (
        "breakout", "version 7", "agent (sampled)", "agent (argmax)", "random", "expert", "deciles",
        "stickiness 0 and 0.25", "27,000", "1 attempts were lost", "a note", "argmax-s0 1 of 2",
    ):  # fmt: skip
        assert words in text
