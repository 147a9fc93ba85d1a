"""Quantiles are within their bound of the exact ones, and histograms add up."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playserve_client.load.histogram import RELATIVE_ERROR, Histogram

values = st.lists(st.integers(0, 1 << 45), max_size=60)
shares = st.floats(0, 1)


def of(numbers: list[int]) -> Histogram:
    made = Histogram()
    for number in numbers:
        made.add(number)
    return made


@given(values.filter(bool), shares)
def test_a_quantile_is_never_below_the_exact_one_and_hardly_above(numbers: list[int], q: float) -> None:
    exact = sorted(numbers)[max(1, math.ceil(q * len(numbers) - 1e-9)) - 1]
    found = of(numbers).quantile(q)
    assert found is not None
    assert exact <= found <= exact * (1 + RELATIVE_ERROR)


@given(values.filter(bool))
def test_the_ends_the_sum_and_the_mean_are_exact(numbers: list[int]) -> None:
    made = of(numbers)
    assert (made.minimum, made.maximum, made.quantile(1.0)) == (min(numbers), max(numbers), max(numbers))
    assert (made.count, made.total, made.mean) == (len(numbers), sum(numbers), sum(numbers) / len(numbers))


@given(values, values)
def test_a_merge_is_the_histogram_of_both(first: list[int], second: list[int]) -> None:
    merged = of(first)
    merged.merge(of(second))
    assert merged == of(first + second)


@given(values)
def test_it_survives_json(numbers: list[int]) -> None:
    made = of(numbers)
    assert Histogram.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_nothing_has_no_quantile_and_what_is_no_count_is_refused() -> None:
    assert (Histogram().quantile(0.99), Histogram().mean) == (None, None)
    with pytest.raises(ValueError, match="-1"):
        of([-1])
    with pytest.raises(ValueError, match="quantile 99"):
        of([1]).quantile(99)
    broken = of([1, 2]).to_json() | {"count": 3}
    with pytest.raises(ValueError, match="buckets hold 2"):
        Histogram.from_json(broken)
    with pytest.raises(ValueError, match="3 bits"):
        Histogram.from_json(of([1]).to_json() | {"bits": 3})
