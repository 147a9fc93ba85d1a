"""Goals: what the grammar takes and refuses, and when a run has failed."""

from __future__ import annotations

import pytest

from playserve.errors import BadSettingError
from playserve_client.load.goals import parse_goal
from playserve_client.load.tally import Tally


def tally() -> Tally:
    made = Tally()
    for ms in range(1, 101):
        made.times["age"].add(ms * 1_000_000)
    made.times["open"].add(2_000_000)
    made.counts.update(frames=200, misses=4, superseded=6, stale=2, opens=10)
    made.refused["NO_FREE_SLOT"] += 1
    return made


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("p99>50ms", True),
        ("p50 > 60 ms", False),
        ("p50>=49000us", True),
        ("p99.9<1s", True),
        ("max>100ms", False),
        ("max >= 100ms", True),
        ("mean>50.4ms", True),
        ("open_max>1ms", True),
        ("misses>1%", True),
        ("misses>2%", False),
        ("misses>3", True),
        ("drops>4%", False),
        ("drops>=4%", True),
        ("errors>0", False),
        ("refused>0", True),
        ("refused>10%", False),
        ("unanswered>0", False),
    ],
)
def test_a_goal_fails_where_it_holds(text: str, failed: bool) -> None:
    assert parse_goal(text).failed(tally()) is failed


@pytest.mark.parametrize(
    "text",
    ["", "p99", "p99>50", "p99>50%", "p100>1ms", "p99=50ms", "p99>-1ms", "misses>5ms", "nonsense>1", "p99>50ms p50>1ms",
     "server_p99>1ms", "p99>1e3ms", "p>1ms"],
)  # fmt: skip
def test_what_is_no_goal_is_refused_before_anything_runs(text: str) -> None:
    with pytest.raises(BadSettingError, match="goal"):
        parse_goal(text)


def test_a_run_that_measured_nothing_has_failed_by_every_goal_of_times_and_shares() -> None:
    for text in ("p99>50ms", "misses>1%", "lag_p99>1ms"):
        goal = parse_goal(text)
        assert goal.measured(Tally()) is None
        assert goal.failed(Tally())
