"""The gate's statistics are scipy's, and its refusals say the numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from playserve_services.control.gate import GateRefusedError, judge
from playserve_services.control.repository.evaluations import summary_of_scores
from playserve_services.control.statistics import mean_interval, t_quantile, t_survival

stats = pytest.importorskip("scipy.stats")


@dataclass
class Sample:
    mean: float
    se: float | None
    n: int


@given(t=st.floats(-60, 60), df=st.floats(0.5, 1e6))
def test_the_survival_function_is_students(t: float, df: float) -> None:
    assert t_survival(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-8, abs=1e-14)


@given(p=st.floats(0.51, 0.9999), df=st.floats(1.0, 1e5))
def test_the_quantile_is_students(p: float, df: float) -> None:
    assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-6)


_scores = st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=30)


@given(candidate=_scores, stable=_scores, margin=st.floats(0, 100))
def test_the_test_is_welchs(candidate: list[float], stable: list[float], margin: float) -> None:
    a, b = summary_of_scores("p", candidate), summary_of_scores("p", stable)
    found = judge(a, b, margin=margin, alpha=0.05)
    if found.df is None or min(np.std(candidate), np.std(stable)) < 1e-6:
        return  # scipy warns of nearly identical scores
    wanted = stats.ttest_ind(np.array(candidate) + margin, stable, equal_var=False, alternative="greater")
    assert found.t == pytest.approx(wanted.statistic, rel=1e-6, abs=1e-9)
    assert found.df == pytest.approx(wanted.df, rel=1e-6)
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-5, abs=1e-12)
    assert found.passed == (found.p <= 0.05)


def test_an_interval_is_scipys_and_missing_where_one_episode_says_nothing() -> None:
    low, high = stats.t.interval(0.95, 9, loc=3.0, scale=0.5)
    assert mean_interval(3.0, 0.5, 10) == pytest.approx((low, high))
    assert mean_interval(3.0, None, 1) is None


def test_equal_ones_pass_by_a_margin_only() -> None:
    sample = Sample(100.0, 2.0, 50)
    assert not judge(sample, sample, margin=0.0, alpha=0.05).passed
    assert judge(sample, sample, margin=10.0, alpha=0.05).passed


def test_too_few_episodes_are_no_evidence() -> None:
    good = Sample(100.0, 2.0, 50)
    hardly_measured = Sample(101.0, 40.0, 3)
    assert not judge(hardly_measured, good, margin=10.0, alpha=0.05).passed
    for pair in ((Sample(1.0, None, 1), good), (good, Sample(1.0, None, 1))):
        with pytest.raises(GateRefusedError, match="1 episode"):
            judge(*pair, margin=0.0, alpha=0.05)


def test_without_spread_the_means_decide() -> None:
    a, b = Sample(2.0, 0.0, 5), Sample(1.0, 0.0, 5)
    assert judge(a, b, margin=0.0, alpha=0.05).passed
    assert not judge(b, a, margin=0.5, alpha=0.05).passed
    assert not judge(a, a, margin=0.0, alpha=0.05).passed
    assert judge(b, a, margin=0.0, alpha=0.05).t is None


def test_tiny_spreads_have_degrees_of_freedom() -> None:
    found = judge(Sample(1.0, 1e-150, 5), Sample(0.0, 1e-150, 5), margin=0.0, alpha=0.05)
    assert found.df is not None
    assert math.isclose(found.df, 8.0)
    assert found.passed


def test_the_words_have_the_numbers() -> None:
    words = judge(Sample(9.0, 1.0, 30), Sample(12.0, 1.5, 20), margin=1.0, alpha=0.05).in_words()
    for number in ("candidate 9 (se 1, n 30)", "stable 12 (se 1.5, n 20)", "-3", "margin of 1", "p 0.86", "0.05"):
        assert number in words
