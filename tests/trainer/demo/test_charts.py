from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from playserve_trainer.demo.charts import Scale, curve_chart, nice_ticks, score_chart, time_chart
from playserve_trainer.demo.outcome import Curve, read_outcomes
from playserve_trainer.demo.plan import DemoPlan

EMPTY = Curve(samples=(), loss=(), accuracy=())
Finished = Callable[..., tuple[DemoPlan, Path]]


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314 - our own


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in parsed(svg).iter("text")]


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0, 40, [0, 10, 20, 30, 40]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-21, 21, [-20, -10, 0, 10, 20]), (3, 3, [3])],
)
def test_ticks_are_round(low: float, high: float, wanted: list[float]) -> None:
    assert nice_ticks(low, high) == wanted


def test_a_scale_maps_its_ends_and_keeps_the_order() -> None:
    for log in (False, True):
        scale = Scale(low=0, high=400, start=10, end=350, log=log)
        places = [scale(value) for value in (0, 1, 15, 380, 400)]
        assert places[0] == 10
        assert places[-1] == pytest.approx(350)
        assert places == sorted(places)
    assert Scale(low=0, high=400, start=10, end=350, log=True).ticks() == [0, 1, 3, 10, 30, 100, 300]
    assert Scale(low=2, high=2, start=10, end=350)(2) == 10


def test_the_score_chart_shows_every_episode_and_the_goal(finished: Finished) -> None:
    freeway, breakout = read_outcomes(*finished())
    for outcome, axis in ((freeway, "score of an episode"), (breakout, "score of an episode, logarithmic")):
        svg = score_chart(outcome, 0.0)
        assert len(list(parsed(svg).iter("circle"))) == 24 + 4 * 3
        assert axis in texts(svg)
        assert f"goal {outcome.plan.goal:g}" in texts(svg)
        label = parsed(svg).get("aria-label") or ""
        assert "agent (sampled): mean" in label
        assert "95% interval" in label
    assert "always FIRE n = 3" in texts(score_chart(breakout, 0.0))
    assert not any(text.startswith("goal") for text in texts(score_chart(breakout, 0.25))), "the goal is of sticky 0"


def test_curves_of_one_point_or_none_are_drawn_too() -> None:
    one = Curve(samples=(100,), loss=(0.5,), accuracy=(0.9,))
    svg = curve_chart("Loss", EMPTY, one, lambda curve: curve.loss, percent=False)
    assert "0.500" in texts(svg)
    assert "90.0%" in texts(curve_chart("Accuracy", one, one, lambda curve: curve.accuracy, percent=True))
    assert texts(curve_chart("Loss", EMPTY, EMPTY, lambda curve: curve.loss, percent=False)) == ["nothing was measured"]


def test_the_time_chart_names_each_stage() -> None:
    assert {"record", "0:25", "train", "3:07"} <= set(texts(time_chart([("record", 25.2), ("train", 187.0)])))
    parsed(time_chart([]))
