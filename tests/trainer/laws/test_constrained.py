import numpy as np
import pytest
from surfaces import SMALL, loss_of

from playserve_trainer.laws import rows
from playserve_trainer.laws.constrained import before_overfitting, effective_samples, fit_constrained
from playserve_trainer.laws.estimators import Settings
from playserve_trainer.laws.fitting import FitOptions, fit_laws
from playserve_trainer.laws.refusals import TooFewCellsError
from playserve_trainer.laws.table import CellTable


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


def study(overfitting=1.0):
    """Four sizes on three shares of a million samples; three checkpoints a run and a last that is worse by a factor.

    The second largest budget of the whole data is held out.
    """
    made = []
    for size in np.geomspace(1e3, 1e5, 4):
        for share in (0.01, 0.1, 1.0):
            unique, budgets = 1e6 * share, (0.5, 4, 16, 64)
            for i, epochs in enumerate(budgets):
                seen = effective_samples(np.array([unique]), np.array([unique * epochs]), 15.0)[0]
                loss = loss_of(size, seen, **SMALL) * (overfitting if epochs == budgets[-1] else 1.0)
                made.append({
                    "cell": f"{size:.0f}.{share}.{i}", "run": f"{size:.0f}.{share}", "size": f"{size:.0f}",
                    "task": "toy", "params": size, "samples": unique * epochs, "flops": 6 * size * unique * epochs,
                    "unique_samples": unique, "unique": share, "budget": float(i), "loss": loss, "seed": 0,
                    "held_out": share == 1.0 and i == 2,
                })  # fmt: skip
    return CellTable.from_columns({name: [row[name] for row in made] for name in made[0]})


def test_checkpoints_past_the_least_loss_of_their_run_are_left_out():
    table = study(overfitting=1.5)
    kept = before_overfitting(table)
    assert len(table) - len(kept) == 12
    assert set(kept.numbers["budget"]) == {0.0, 1.0, 2.0}


def test_a_report_holds_the_law_its_intervals_and_held_out_cells():
    options = FitOptions(resamples=10, starts=0, settings=Settings(laws=("parametric",)))
    (group,) = fit_laws(study(), options)["groups"]
    law = group["constrained"]
    assert law["numbers"]["repeats"]["value"] == pytest.approx(15, rel=0.05)
    assert law["numbers"]["repeats"]["interval"]["draws"] == 2
    assert len(law["held_out"]) == 4
    assert all(of["predicted"] == pytest.approx(of["loss"], rel=0.01) for of in law["held_out"])
    numbers, judged = rows.constrained(law)
    assert numbers.title.startswith("L(N, unique D, epochs) over 44 cells")
    assert len(judged.rows) == 4


def test_laws_over_compute_see_only_what_learns_from_all_the_data():
    table = study()
    (group,) = fit_laws(table, FitOptions(resamples=1, starts=0))["groups"]
    whole = table.take(table.numbers["unique"] == 1.0)
    (alone,) = fit_laws(whole, FitOptions(resamples=1, starts=0))["groups"]
    assert group["curves"] == alone["curves"]
    assert (group["cells"], group["whole_data_cells"]) == (48, 16)
    assert rows.whole_data(group)
    assert not rows.whole_data(alone)
    assert group["by_data"]
    assert not alone["by_data"]
