"""The last hour out of heartbeats: differences, quantiles, and what cannot be known."""

from __future__ import annotations

import math

import pytest

from playserve_services.control.history import HOUR_S, WINDOW_S, History, PolicyCounts

BOUNDS = (0.01, 0.1)


def counts(answered: int, late: int = 0, dropped: int = 0) -> dict[str, PolicyCounts]:
    """Return counts of which all answers were in the first bucket, but the late ones in the second."""
    return {"p": PolicyCounts(answered, late, dropped, BOUNDS, (answered - late, late, 0))}


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 100_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def history(clock: Clock) -> History:
    return History(clock)


def test_what_counts_is_what_was_added_between_two_beats(history: History, clock: Clock) -> None:
    history.add("r", "one", counts(1000))  # of unknown age: since its start
    assert history.lately(60).answered == 0
    clock.now += 2
    history.add("r", "one", counts(1100, late=5, dropped=7))
    found = history.lately(60)
    assert (found.answered, found.late, found.dropped) == (100, 5, 7)
    assert found.late_share == 0.05
    assert found.quantile_s(0.5) == pytest.approx(0.01 * 50 / 95)
    assert found.quantile_s(0.99) == pytest.approx(0.01 + 0.09 * 4 / 5)


def test_a_restarted_server_counts_from_zero_again(history: History, clock: Clock) -> None:
    history.add("r", "one", counts(1000))
    clock.now += 2
    history.add("r", "two", counts(30))
    assert history.lately(60).answered == 30
    clock.now += 2
    history.add("r", "two", counts(20))  # back: it should never, and nothing is made of it
    assert history.lately(60).answered == 30


def test_what_a_silent_replica_counted_meanwhile_is_nobodys_rate(history: History, clock: Clock) -> None:
    history.add("r", "one", counts(0))
    clock.now += 600
    history.add("r", "one", counts(10_000))
    assert history.lately(3600).answered == 0
    clock.now += 2
    history.add("r", "one", counts(10_001))
    assert history.lately(60).answered == 1


def test_windows_are_an_hour_and_of_one_replica_or_policy_where_asked(history: History, clock: Clock) -> None:
    for step in range(10):
        history.add("a", "one", {**counts(10 * step), "q": PolicyCounts(step, 0, 0, (), (step,))})
        history.add("b", "one", counts(100 * step))
        clock.now += WINDOW_S
    windows = history.windows()
    assert len(windows) == HOUR_S / WINDOW_S
    assert [window.answered for window in windows[-3:]] == [111, 111, 0]
    assert history.windows("a")[-2].answered == 11
    assert history.windows("a", "q")[-2].answered == 1
    assert history.windows(policy="q")[-2].total == {math.inf: 1}
    assert history.windows("other")[-2].quantile_s(0.5) is None
    clock.now += HOUR_S + 1
    history.add("c", "one", counts(0))
    assert sum(window.answered for window in history.windows()) == 0


def test_above_the_last_bound_counts_as_the_last_bound(history: History, clock: Clock) -> None:
    history.add("r", "one", {"p": PolicyCounts(0, 0, 0, BOUNDS, (0, 0, 0))})
    clock.now += 1
    history.add("r", "one", {"p": PolicyCounts(4, 0, 0, BOUNDS, (0, 0, 4))})
    assert history.lately(60).quantile_s(0.5) == 0.1


async def test_heartbeats_bring_the_figures(plane) -> None:
    def beat(answered: int) -> dict[str, object]:
        of = {"answered": answered, "late": 0, "dropped": 1, "total": [answered, 0], "of_a_newer_version": 1}
        return {"instance": "one", "address": "10.0.0.1:50051", "figures": {"bounds_s": [0.01], "policies": {"p": of}}}

    for answered in (0, 40):
        assert (await plane.client.put("/v1/replicas/r", json=beat(answered))).status_code == 200
    assert plane.context.history.lately(60).answered == 40
    broken = beat(1) | {"figures": {"bounds_s": [-1], "policies": {}}}
    assert (await plane.client.put("/v1/replicas/r", json=broken)).status_code == 422
