import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from surfaces import EPOCH, best_size, loss_of

from playserve_trainer.laws.parametric import (
    HUBER_DELTA,
    _law,
    chinchilla_starts,
    fit_many_starts,
    fit_parametric,
    huber_objective,
)
from playserve_trainer.laws.refusals import NotDeterminedError, NotPositiveError, TooFewCellsError


def design(noise, seed=0):
    """Cells as in Hoffmann et al.: 240 of them, 5e7 to 1.6e10 parameters, over their budgets."""
    rng = np.random.default_rng(seed)
    n = np.repeat(np.geomspace(5e7, 1.6e10, 16), 15)
    d = np.tile(np.geomspace(1e9, 3e11, 15), 16)
    return n, d, loss_of(n, d, **EPOCH) * np.exp(rng.normal(0, noise, len(n)))


def test_without_noise_the_surface_is_found_to_the_last_digits():
    law = fit_parametric(*design(0.0))
    got = {"a": law.a, "b": law.b, "e": law.e, "alpha": law.alpha, "beta": law.beta}
    assert got == pytest.approx(EPOCH, rel=1e-9)
    assert law.n_exponent == pytest.approx(0.5126, abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    alpha=st.floats(0.15, 1.0), beta=st.floats(0.15, 1.0), e=st.floats(0.05, 3.0),
    share=st.floats(0.3, 3.0), seed=st.integers(0, 100),
)  # fmt: skip
def test_any_surface_is_found(alpha, beta, e, share, seed):
    n, d = np.repeat(np.geomspace(1e3, 1e6, 8), 8), np.tile(np.geomspace(1e4, 1e8, 8), 8)
    surface = {"a": share * 1e4**alpha, "b": 1e6**beta, "e": e, "alpha": alpha, "beta": beta}
    law = fit_parametric(n, d, loss_of(n, d, **surface))
    assert float(law.predict(3e6, 1e9)) == pytest.approx(loss_of(3e6, 1e9, **surface), rel=1e-4)


def test_epochs_parameters_come_back_from_noisy_cells():
    # Besiroglu et al. (2404.10102) give standard errors of .02 for alpha and beta over 240 cells.
    found = [fit_parametric(*design(0.004, seed)) for seed in range(12)]
    assert np.mean([law.alpha for law in found]) == pytest.approx(EPOCH["alpha"], abs=0.01)
    assert np.mean([law.beta for law in found]) == pytest.approx(EPOCH["beta"], abs=0.01)
    assert np.mean([law.e for law in found]) == pytest.approx(EPOCH["e"], abs=0.02)
    assert np.mean([law.n_exponent for law in found]) == pytest.approx(0.5126, abs=0.01)


def test_the_projection_agrees_with_many_starts():
    cells = design(0.01, seed=3)
    quick, slow = fit_parametric(*cells), fit_many_starts(*cells, chinchilla_starts()[::450])
    assert quick.objective <= slow.objective * (1 + 1e-6)
    assert (quick.alpha, quick.beta, quick.e) == pytest.approx((slow.alpha, slow.beta, slow.e), rel=1e-3)


def test_the_published_starts_are_4500():
    assert len(chinchilla_starts()) == len(set(chinchilla_starts())) == 4500


def test_a_mean_instead_of_a_sum_stops_early():
    """The error behind Hoffmann et al.'s approach 3: losses averaged, optimiser at its default tolerances."""
    n, d, loss = design(0.004, seed=5)
    arguments = (np.log(n / 1e6), np.log(d / 1e9), np.log(loss))
    best = fit_parametric(n, d, loss).objective

    def ends(share):
        def objective(theta):
            value, gradient = huber_objective(theta, *arguments)
            return value * share, gradient * share

        starts = chinchilla_starts()[::450]
        found = [optimize.minimize(objective, start, jac=True, method="L-BFGS-B") for start in starts]
        return [one.fun / share / best for one in found], [one.x[4] / (one.x[3] + one.x[4]) for one in found]

    mean, mean_exponents = ends(1 / len(n))
    total, _ = ends(1.0)
    assert max(total) < 1.001
    assert sum(objective > 1.01 for objective in mean) >= 5
    assert max(abs(a - 0.5126) for a in mean_exponents) > 0.06


def test_the_gradient_is_that_of_the_objective():
    n, d, loss = design(0.05)
    arguments = (np.log(n / 1e6), np.log(d / 1e9), np.log(loss))
    theta = np.array([0.5, 2.0, 1.5, 0.3, 0.4])
    error = optimize.check_grad(
        lambda at: huber_objective(at, *arguments)[0], lambda at: huber_objective(at, *arguments)[1], theta
    )
    assert error < 1e-4
    assert huber_objective(theta, *arguments)[0] > HUBER_DELTA


def test_the_optimum_is_the_best_size_of_its_budget():
    law = fit_parametric(*design(0.0))
    n, d, loss = law.optimum_6nd(1e21)
    assert n == pytest.approx(best_size(1e21, **EPOCH), rel=1e-6)
    around = [float(law.predict(n * k, d / k)) for k in (0.9, 1.1)]
    assert loss < min(around)


def test_kaplan_exponents_come_from_counting_without_embeddings():
    """Pearce & Song (2406.12907): the same surface, sizes counted with and without N_T = N + 47491 N^(1/3)."""
    budgets = np.geomspace(1e13, 5e20, 24)
    sizes = np.geomspace(1e2, 1e12, 20_001)
    totals = sizes + 47491 * sizes ** (1 / 3)

    def exponent(counted, budgets):
        best = [counted[np.argmin(loss_of(totals, c / (6 * counted), **EPOCH))] for c in budgets]
        return np.polyfit(np.log(budgets), np.log(best), 1)[0]

    assert exponent(totals, budgets) == pytest.approx(0.511, abs=0.003)
    assert exponent(sizes, budgets) == pytest.approx(0.774, abs=0.005)
    assert exponent(sizes, np.geomspace(1e13, 1e17, 24)) == pytest.approx(0.86, abs=0.01)


def test_too_few_cells_and_bad_losses_are_refused():
    n, d, loss = design(0.0)
    with pytest.raises(TooFewCellsError, match="5 parameters: 9 cells"):
        fit_parametric(n[:9], d[:9], loss[:9])
    with pytest.raises(TooFewCellsError, match="1 sizes"):
        fit_parametric(n[:15], d[:15], loss[:15])
    with pytest.raises(NotPositiveError, match="loss is not above 0"):
        fit_parametric(n, d, loss - 2.5)


def test_factors_that_are_no_numbers_are_refused():
    with pytest.raises(NotDeterminedError, match="beyond any number"):
        _law(np.array([0.0, 1.0, 1.0, 0.5, 300.0]), 0.0, 9, (10.0, 10.0))
