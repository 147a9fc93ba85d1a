"""The plan of a load: the same seed gives the same sessions, and as many at once as were meant."""

from __future__ import annotations

import math
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playserve.errors import BadSettingError
from playserve_client.load.plan import LoadShape, SessionPlan, parse_ramp, sessions

shapes = st.builds(
    lambda first, last, ramp_s, **rest: LoadShape(
        seconds=10, warmup_s=2, first=first, last=last if ramp_s else first, ramp_s=ramp_s, **rest
    ),
    first=st.floats(0, 20),
    last=st.floats(0, 20),
    ramp_s=st.sampled_from([0.0, 4.0, 10.0]),
    lifetime_s=st.sampled_from([1.0, 7.0, math.inf]),
    exponential=st.booleans(),
    poisson=st.booleans(),
    seed=st.integers(0, 1000),
)


def at_once(plans: list[SessionPlan], at_s: float) -> int:
    return sum(plan.start_s <= at_s < plan.end_s for plan in plans)


@given(shapes)
def test_the_same_seed_gives_the_same_schedule_in_order_and_within_the_time(shape: LoadShape) -> None:
    plans = list(sessions(shape))
    assert plans == list(sessions(shape))
    assert [plan.number for plan in plans] == list(range(len(plans)))
    assert [plan.start_s for plan in plans] == sorted(plan.start_s for plan in plans)
    for plan in plans:
        assert -shape.warmup_s <= plan.start_s < shape.seconds
        assert plan.start_s <= plan.end_s <= shape.seconds
        assert 0 <= plan.phase < 1


@pytest.mark.parametrize("exponential", [True, False])
@pytest.mark.parametrize("poisson", [True, False])
def test_as_many_sessions_play_at_once_as_were_meant(exponential: bool, poisson: bool) -> None:
    shape = LoadShape(seconds=400, first=40, last=40, lifetime_s=5, exponential=exponential, poisson=poisson, seed=3)
    plans = list(sessions(shape))
    assert mean(at_once(plans, t) for t in range(400)) == pytest.approx(40, rel=0.05)
    assert len(plans) == pytest.approx(40 + 400 * 40 / 5, rel=0.05)


@pytest.mark.parametrize(("first", "last"), [(0, 100), (100, 20)])
def test_a_ramp_is_followed_with_churn(first: float, last: float) -> None:
    shapes = [LoadShape(seconds=60, first=first, last=last, ramp_s=40, lifetime_s=8, seed=seed) for seed in range(20)]
    plans = [list(sessions(shape)) for shape in shapes]
    for t in (10, 20, 30, 50):
        assert mean(at_once(run, t) for run in plans) == pytest.approx(shapes[0].wanted(t), rel=0.1)


@pytest.mark.parametrize(("first", "last"), [(0, 100), (100, 20)])
def test_a_ramp_of_sessions_that_stay_adds_or_ends_them_one_by_one(first: float, last: float) -> None:
    shape = LoadShape(seconds=60, first=first, last=last, ramp_s=40, poisson=False)
    plans = list(sessions(shape))
    for t in (0.01, 10, 20, 30, 50):
        assert at_once(plans, t) == pytest.approx(shape.wanted(t), abs=1.01)


def test_a_fall_that_is_too_steep_stops_the_coming_and_ends_nobody_early() -> None:
    steep = LoadShape(seconds=100, first=50, last=0, ramp_s=1, lifetime_s=20)
    assert all(plan.start_s <= 0 for plan in sessions(steep))


def test_phases_are_spread_and_lifetimes_do_not_depend_on_how_sessions_come() -> None:
    plans = list(sessions(LoadShape(seconds=200, first=50, last=50, lifetime_s=5)))
    assert mean(plan.phase for plan in plans) == pytest.approx(0.5, abs=0.05)
    assert len({plan.seed for plan in plans}) == len(plans)
    even = list(sessions(LoadShape(seconds=200, first=50, last=50, lifetime_s=5, poisson=False)))
    lives = [[round(p.end_s - p.start_s, 6) for p in run[50:300] if p.end_s < 200] for run in (plans, even)]
    assert lives[0][:150] == lives[1][:150]


def test_what_is_no_load_is_refused() -> None:
    for shape in ({"seconds": 0}, {"seconds": 5, "first": 1, "last": 2}, {"seconds": 5, "ramp_s": 6},
                  {"seconds": 5, "lifetime_s": 0}, {"seconds": 5, "first": -1}, {"seconds": math.inf}):  # fmt: skip
        with pytest.raises(BadSettingError):
            LoadShape(**shape)
    assert parse_ramp("10:200:60") == (10, 200, 60)
    for text in ("10:200", "a:b:c", "1:2:3:4", ""):
        with pytest.raises(BadSettingError, match="FROM:TO:SECONDS"):
            parse_ramp(text)
