import numpy as np
import pytest

from playserve_trainer.laws.refusals import NotPositiveError, TooFewCellsError
from playserve_trainer.laws.returns import fit_loss_to_return, fit_return_law

C = np.geomspace(1e11, 1e14, 8)


def test_a_saturating_law_comes_back_and_ends():
    law = fit_return_law(C, 1 / (1e4 * C**-0.5 + 0.02))
    assert law.ceiling == pytest.approx(50, rel=1e-6)
    assert law.inverse.exponent == pytest.approx(0.5, rel=1e-6)
    assert law.predict(1e20) < 50.001


def test_forecasts_end_at_the_expert():
    law = fit_return_law(C, 1 / (1e4 * C**-0.5 + 0.02), expert=30.0)
    assert law.predict(1e20) == 30.0
    assert law.predict(1e11) < 30.0


def test_return_from_loss_is_a_line_of_logarithms():
    loss = np.geomspace(0.2, 2.0, 8)
    law = fit_loss_to_return(loss, 100 * (1 / loss) ** 2.05)
    assert law.exponent == pytest.approx(2.05)
    assert law.coefficient == pytest.approx(100)


def test_scores_of_0_or_below_and_few_points_are_refused():
    with pytest.raises(NotPositiveError, match="the least is -21"):
        fit_return_law(C, np.array([-21.0, 1, 2, 3, 4, 5, 6, 7]))
    with pytest.raises(TooFewCellsError):
        fit_return_law(C[:5], C[:5])
