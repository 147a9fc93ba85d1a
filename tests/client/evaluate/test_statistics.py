from __future__ import annotations

import numpy as np
import pytest

from playserve_client.evaluate.statistics import bootstrap_difference, bootstrap_mean, deciles


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        interval = bootstrap_mean(rng.exponential(10.0, 50), resamples=1000, seed=trial)
        hits += interval.low <= 10.0 <= interval.high
    # The percentile bootstrap is a little narrow for skewed samples of 50: 0.92 to 0.94.
    assert 0.89 <= hits / 300 <= 0.97


def test_interval_of_a_normal_sample_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    interval = bootstrap_mean(values)
    half = 1.96 * values.std() / 20
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)


def test_the_interval_repeats():
    values = list(range(700))  # resampled in more than one chunk
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values)


def test_confidence_widens_the_interval():
    values = np.random.default_rng(2).normal(size=60)
    narrow, wide = bootstrap_mean(values, confidence=0.5), bootstrap_mean(values, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_difference_excludes_zero_only_where_there_is_one():
    rng = np.random.default_rng(3)
    low, same, high = rng.normal(0, 1, 100), rng.normal(0, 1, 100), rng.normal(2, 1, 100)
    apart, alike = bootstrap_difference(high, low), bootstrap_difference(same, low)
    assert apart.low > 1.5
    assert apart.high < 2.6
    assert alike.low < 0.3
    assert alike.high > -0.3


@pytest.mark.parametrize("values", [[], [3.0]])
def test_too_few_values_have_no_interval(values):
    assert bootstrap_mean(values) is None
    assert bootstrap_difference(values, [1.0, 2.0]) is None
    assert bootstrap_difference([1.0, 2.0], values) is None


def test_deciles():
    assert deciles(range(101)) == [10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert deciles([4.0]) == [4.0] * 9
    assert deciles([]) is None
