from functools import partial

import numpy as np
import pytest
from surfaces import SMALL, best_size, grid, loss_of

from playserve_trainer.laws.estimators import Settings
from playserve_trainer.laws.forecasting import fit_numbers
from playserve_trainer.laws.forecasting import forecast as forecast_with
from playserve_trainer.laws.refusals import TooFarError
from playserve_trainer.laws.uncertainty import bootstrap

QUICK = Settings(laws=("parabola", "parametric"))
BUDGETS = (1e10, 2e10, 5e10, 1e11, 2e11, 5e11, 1e12)


def forecast(table, flops, settings, *, resamples, seed=0, beyond=False):
    numbers = partial(fit_numbers, settings=settings, flops=tuple(flops))
    return forecast_with(
        table, flops, settings, bootstrap(table, numbers, resamples=resamples, seed=seed), beyond=beyond
    )


def of(found, estimator):
    return next(one for one in found if one.estimator == estimator)


def test_a_bigger_agent_is_forecast_by_every_law():
    found, refused = forecast(grid(SMALL, BUDGETS, sizes=11), [1e13], Settings(near_quadratic=1.5), resamples=20)
    n = best_size(1e13, **SMALL)
    truth = loss_of(n, 1e13 / (6 * n), **SMALL)
    assert not refused
    for name in ("parabola", "parametric"):
        assert of(found, name).values["loss"] == pytest.approx(truth, rel=0.01)
        assert of(found, name).values["params"] == pytest.approx(n, rel=0.1)
    assert of(found, "parametric").beyond == pytest.approx(10)


@pytest.mark.slow
def test_the_interval_holds_what_is_then_trained():
    hits = total = 0
    for number in range(8):
        rng = np.random.default_rng(number)
        table = grid(SMALL, BUDGETS, sizes=7, noise=0.01, seeds=2, rng=rng)
        found, _ = forecast(table, [3e12], Settings(laws=("parametric",)), resamples=60, seed=number)
        n = best_size(3e12, **SMALL)
        trained = loss_of(n, 3e12 / (6 * n), **SMALL) * np.exp(rng.normal(0, 0.01))
        interval = of(found, "parametric").intervals["loss"]
        hits += interval.low <= trained <= interval.high
        total += 1
    assert hits >= total - 2


def test_far_forecasts_are_refused_unless_asked_for():
    table = grid(SMALL, BUDGETS)
    with pytest.raises(TooFarError, match="100 times beyond"):
        forecast(table, [1e14], QUICK, resamples=2)
    found, _ = forecast(table, [1e14], QUICK, resamples=2, beyond=True)
    assert found


def test_nets_whose_samples_cost_something_else_than_6n():
    table = grid(SMALL, BUDGETS, sizes=9, cost=lambda n: 600 * n**0.8)
    found, _ = forecast(table, [1e13], Settings(near=10.0, laws=("parametric",)), resamples=2)
    values = of(found, "parametric").values
    assert 600 * values["params"] ** 0.8 * values["samples"] == pytest.approx(1e13, rel=1e-3)
