import numpy as np
import pytest
from surfaces import SMALL, loss_of

from playserve_trainer.laws.constrained import effective_samples, fit_constrained
from playserve_trainer.laws.refusals import TooFewCellsError


def cells(repeats=15.0, noise=0.0, epochs=(1, 2, 4, 8, 16, 64)):
    rows = [(n, u, u * e) for n in np.geomspace(1e3, 1e5, 4) for u in np.geomspace(1e4, 1e6, 4) for e in epochs]
    n, u, d = np.array(rows).T
    loss = loss_of(n, effective_samples(u, d, repeats), **SMALL)
    return n, u, d, loss * np.exp(np.random.default_rng(0).normal(0, noise, len(n)))


def test_repeats_are_worth_less_and_less():
    u = np.full(5, 1e5)
    worth = effective_samples(u, u * np.array([0.5, 1, 2, 10, 1e6]), 15.0)
    assert worth[:2] == pytest.approx([5e4, 1e5])
    assert (np.diff(worth) > 0).all()
    assert worth[-1] == pytest.approx(1e5 * 16)


def test_the_worth_of_repeats_comes_back():
    law = fit_constrained(*cells())
    assert law.repeats == pytest.approx(15, rel=0.01)
    assert not law.at_edge
    truth = loss_of(1e4, effective_samples(np.array([1e5]), np.array([8e5]), 15.0)[0], **SMALL)
    assert law.predict(1e4, 1e5, 8) == pytest.approx(truth, rel=1e-3)
    assert law.parametric.alpha == pytest.approx(0.4, abs=0.01)


def test_noise_moves_it_a_little():
    assert fit_constrained(*cells(noise=0.01)).repeats == pytest.approx(15, rel=0.5)


def test_data_that_are_never_repeated_say_nothing_of_repeats():
    n, u, d, loss = cells(epochs=(1,))
    with pytest.raises(TooFewCellsError, match="more than once"):
        fit_constrained(n, u, d, loss)


def test_endless_worth_is_said_to_be_beyond():
    n, u, d, _ = cells()
    law = fit_constrained(n, u, d, loss_of(n, d, **SMALL))
    assert law.at_edge
