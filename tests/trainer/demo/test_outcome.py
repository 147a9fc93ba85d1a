import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from playserve.errors import DataLossError, NotFoundError
from playserve_trainer.demo.outcome import is_played, is_trained, read_outcome, read_outcomes
from playserve_trainer.demo.plan import DemoPlan
from playserve_trainer.demo.recorded import is_recorded
from playserve_trainer.demo.table import verdict_line

Finished = Callable[..., tuple[DemoPlan, Path]]


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_goals_are_judged_by_the_mean_and_the_lower_bound_is_told(finished: Finished) -> None:
    verdicts = {outcome.plan.game: outcome.judge() for outcome in read_outcomes(*finished(breakout=10.5))}
    assert verdicts["freeway"]["met"] is verdicts["freeway"]["lower_bound_met"] is True
    assert verdicts["breakout"]["met"] is True
    assert verdicts["breakout"]["lower_bound_met"] is False
    assert verdicts["breakout"]["interval"]["low"] == pytest.approx(9.45)
    assert verdicts["breakout"]["episodes"] == 24


def test_a_goal_that_is_missed_and_one_that_is_not_set(finished: Finished) -> None:
    assert [outcome.judge()["met"] for outcome in read_outcomes(*finished(breakout=9.9))] == [True, False]
    assert [outcome.judge()["met"] for outcome in read_outcomes(*finished(judged=False))] == [None, None]


def test_an_agent_that_was_not_played_has_missed_its_goal(finished: Finished) -> None:
    plan, out = finished()
    change(out / "rollout" / "breakout" / "results.json", rows=[], episodes=[], videos=[])
    verdict = read_outcomes(plan, out)[1].judge()
    assert (verdict["mean"], verdict["met"]) == (None, False)


def test_files_that_are_missing_or_damaged_are_named(finished: Finished) -> None:
    plan, out = finished()
    metrics = out / "train" / "breakout" / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-30])
    with pytest.raises(DataLossError, match=r"metrics\.jsonl"):
        read_outcomes(plan, out)
    (out / "rollout" / "freeway" / "results.json").unlink()
    with pytest.raises(NotFoundError, match=r"rollout/freeway/results\.json"):
        read_outcome(plan.games[0], out)


def test_whole_stages_are_told_from_broken_ones(finished: Finished) -> None:
    plan, out = finished()
    game = plan.games[1]
    data, train, rollout = out / "data/atari/breakout", out / "train/breakout", out / "rollout/breakout"
    assert is_recorded(game, data)
    assert is_trained(train, out / "store")
    assert is_played(rollout)

    change(data / "summary.json", frames=59_999)
    assert not is_recorded(game, data)
    change(data / "summary.json", frames=60_000, interrupted=True)
    assert not is_recorded(game, data)
    (out / "store/breakout/1/manifest.json").unlink()
    assert not is_trained(train, out / "store")
    change(rollout / "results.json", complete=False)
    assert not is_played(rollout)
    (rollout / "results.json").write_text("{")
    assert not is_played(rollout)
    assert not is_trained(out / "nowhere", out / "store")


@pytest.mark.parametrize(
    ("mean", "low", "met", "words"),
    [
        (150.0, 40.0, True, "goal met: mean 150"),
        (150.0, -3.0, False, "is not surely above the best baseline"),
        (90.0, 40.0, False, "is below the goal of 100"),
    ],
)
def test_a_goal_may_ask_for_more_than_the_best_baseline(
    finished: Finished, mean: float, low: float, met: bool, words: str
) -> None:
    plan, out = finished(breakout=mean)
    game = dataclasses.replace(plan.games[1], goal=100.0, beats_baselines=True)
    above = {"row": "sample-s0", "baseline": "walk", "difference": 118.0, "interval": {"low": low, "high": 180.0}}
    change(out / "rollout" / "breakout" / "results.json", versus_best_baseline=[above])
    verdict = read_outcome(game, out).judge()
    assert verdict["met"] is met
    assert words in verdict_line(verdict)
    assert "above the best baseline (walk)" in verdict_line(verdict)
    change(out / "rollout" / "breakout" / "results.json", versus_best_baseline=[])
    assert read_outcome(game, out).judge()["met"] is False, "nothing to compare with is no victory"
