import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from playserve_trainer.laws.power import fit_offset_power_law, fit_power_law
from playserve_trainer.laws.refusals import NotPositiveError, TooFewCellsError

X = np.geomspace(1e11, 1e14, 9)


def test_the_line_is_ordinary_least_squares_with_students_interval():
    y = 3.0 * X**0.6 * np.exp(np.random.default_rng(0).normal(0, 0.1, len(X)))
    law, peer = fit_power_law(X, y), stats.linregress(np.log(X), np.log(y))
    half = stats.t.ppf(0.975, len(X) - 2) * peer.stderr
    assert law.exponent == pytest.approx(peer.slope, rel=1e-12)
    assert (law.exponent_low, law.exponent_high) == pytest.approx((peer.slope - half, peer.slope + half))
    assert law.r2 == pytest.approx(peer.rvalue**2)
    low, high = law.interval(1e15)
    assert low < law.predict(1e15) < high


def test_the_interval_of_the_exponent_holds_the_truth_as_often_as_it_says():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(400):
        law = fit_power_law(X, 2 * X**0.5 * np.exp(rng.normal(0, 0.2, len(X))))
        hits += law.exponent_low <= 0.5 <= law.exponent_high
    assert 0.92 < hits / 400 < 0.98


@settings(max_examples=40, deadline=None)
@given(a=st.floats(0.1, 1e4), g=st.floats(0.05, 1.5), b=st.floats(0.01, 3.0))
def test_an_offset_law_without_noise_is_found(a, g, b):
    x = np.geomspace(1.0, 1e4, 10)
    law = fit_offset_power_law(x, a * x**-g + b)
    assert law.predict(1e5) == pytest.approx(a * 1e5**-g + b, rel=1e-4)
    assert law.residual_sd < 1e-5


def test_an_offset_law_is_found_to_the_last_digits():
    law = fit_offset_power_law(X, 3e3 * X**-0.35 + 0.12)
    assert (law.coefficient, law.exponent, law.offset) == pytest.approx((3e3, 0.35, 0.12), rel=1e-8)


def test_a_law_without_an_offset_gets_none():
    assert fit_offset_power_law(X, 3e3 * X**-0.35).offset < 1e-6


def test_three_parameters_on_five_points_are_refused():
    with pytest.raises(TooFewCellsError, match="at least 6 are wanted"):
        fit_offset_power_law(X[:5], X[:5] ** -0.3 + 0.1)


def test_two_points_and_one_place_are_refused():
    with pytest.raises(TooFewCellsError):
        fit_power_law(X[:2], X[:2])
    with pytest.raises(TooFewCellsError):
        fit_power_law(np.ones(5), np.arange(1.0, 6.0))


def test_values_without_a_logarithm_are_refused():
    with pytest.raises(NotPositiveError, match="y is -1"):
        fit_power_law(X[:3], np.array([1.0, -1.0, 2.0]))
