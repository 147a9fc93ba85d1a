from collections.abc import Callable
from pathlib import Path

import pytest

from playserve.errors import NotFoundError
from playserve_trainer.demo.doom.plan import DoomPlan
from playserve_trainer.demo.doom.results import read_results, share_interval
from playserve_trainer.demo.doom.steps import rollout_folder

Finished = Callable[..., tuple[DoomPlan, Path]]


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"), [(50, 50, 0.9287, 1.0), (0, 50, 0.0, 0.0713), (40, 50, 0.6696, 0.8876)]
)
def test_the_interval_of_a_share_does_not_vanish_where_all_are_alike(
    hits: int, count: int, low: float, high: float
) -> None:
    found = share_interval(hits, count)
    assert found is not None
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-4)
    assert share_interval(0, 0) is None


def test_controls_stand_beside_what_was_asked_for(finished: Finished) -> None:
    results = read_results(*finished())
    assert [(goal["scenario"], goal["goal"]) for goal in results["goals"]] == [("two_vests", "green"),
                                                                               ("two_vests", "red")]  # fmt: skip
    for goal in results["goals"]:
        shares = [goal[name]["share"] for name in ("unseen", "trained", "no text", "wrong text", "random", "expert")]
        assert shares == [1.0, 1.0, 0.5, 0.0, 0.25, 1.0]
        assert goal["unseen"]["episodes"] == 6
    assert all(verdict["met"] for verdict in results["verdicts"])


def test_a_policy_that_does_not_obey_misses(finished: Finished) -> None:
    verdicts = {item["name"]: item for item in read_results(*finished(obeys=0.5))["verdicts"]}
    green = verdicts["two_vests: green, unseen phrasings"]
    assert (green["value"], green["met"], green["lower_bound_met"]) == (0.5, False, False)
    assert verdicts["basic, headless"]["met"]


def test_a_desktop_is_normalised_by_the_headless_players(finished: Finished) -> None:
    (desktop,) = read_results(*finished())["desktop"]
    assert desktop["normalised"]["value"] == pytest.approx((61.5 + 120) / (86 + 120), abs=1e-3)
    assert desktop["normalised"]["interval"]["low"] < desktop["normalised"]["value"]
    assert desktop["play"]["model_ms"]["p50"] == 9.0


def test_what_was_not_played_is_said(finished: Finished) -> None:
    plan, out = finished()
    (rollout_folder(plan.rollouts()[0], out) / "results.json").unlink()
    with pytest.raises(NotFoundError, match="is not there"):
        read_results(plan, out)


def test_without_a_desktop_the_rest_is_told(finished: Finished) -> None:
    plan, out = finished()
    (out / "desktop" / "basic" / "results.json").unlink()
    results = read_results(plan, out)
    assert results["desktop"] == []
    assert len(results["verdicts"]) == 3
