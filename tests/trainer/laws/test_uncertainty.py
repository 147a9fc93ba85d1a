from functools import partial

import numpy as np
import pytest
from surfaces import SMALL, grid

from playserve_trainer.laws.estimators import Settings
from playserve_trainer.laws.forecasting import fit_numbers
from playserve_trainer.laws.isoflop import budget_curves, optima
from playserve_trainer.laws.power import fit_power_law
from playserve_trainer.laws.refusals import TooFewCellsError
from playserve_trainer.laws.table import CellTable, Clusters
from playserve_trainer.laws.uncertainty import Resampler, bootstrap, jackknife_budgets

BUDGETS = (1e10, 3e10, 1e11, 3e11, 1e12)


def exponent(table, rng):
    found, _ = optima(budget_curves(table))
    if len(found) < 3:
        raise TooFewCellsError("too few")
    return {"a": fit_power_law(np.array([o.budget for o in found]), np.array([o.params for o in found])).exponent}


def with_episodes(cells=3, episodes=40, seed=0):
    """Cells whose losses share the difficulty of their held-out episodes; the second is better by 0.1 on each."""
    rng = np.random.default_rng(seed)
    hard, labels = rng.normal(2, 1, episodes), np.full(episodes, 10.0)
    sums = [(hard - 0.1 * k + rng.normal(0, 0.01, episodes)) * labels for k in range(cells)]
    clusters = [Clusters(tuple(map(str, range(episodes))), of, labels) for of in sums]
    columns = {"flops": [1e10] * cells, "params": list(range(1, cells + 1)), "samples": [1e5] * cells,
               "loss": [of.sum() / labels.sum() for of in sums]}  # fmt: skip
    return CellTable.from_columns(columns, clusters=clusters)


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say():
    hits = 0
    for number in range(30):
        table = grid(SMALL, BUDGETS, sizes=9, noise=0.01, seeds=3, rng=np.random.default_rng(number))
        estimate = bootstrap(table, exponent, resamples=100)["a"]
        hits += estimate.low <= 0.6 <= estimate.high
    # Three seeds a size: their bootstrap is known to be somewhat narrow.
    assert hits >= 21


def test_a_draw_keeps_the_number_of_runs_of_every_size_and_runs_stay_whole():
    table = grid(SMALL, BUDGETS, seeds=3)
    drawn = Resampler(table).draw(np.random.default_rng(0))
    assert len(drawn) == len(table)
    for key, part in table.groups("size"):
        assert drawn.words["size"].count(key[0]) == len(part)


def test_budgets_with_fewer_seeds_stay_in_every_draw():
    table = grid(SMALL, BUDGETS, seeds=3)
    # Runs that cross budgets: the same size at each, but two of three seeds stop before the last.
    sizes = np.tile(np.repeat(np.geomspace(1e3, 1e5, 7), 3), 5)
    runs = tuple(f"{size:.0f}/{seed:.0f}" for size, seed in zip(sizes, table.numbers["seed"], strict=True))
    table = CellTable(numbers={**table.numbers, "params": sizes}, clusters=table.clusters,
                      words={**table.words, "run": runs, "size": tuple(f"{s:.0f}" for s in sizes)})  # fmt: skip
    last = table.numbers["budget"] == BUDGETS[-1]
    table = table.take(~last | (table.numbers["seed"] == 0))
    resampler = Resampler(table)
    for seed in range(20):
        drawn = resampler.draw(np.random.default_rng(seed))
        assert len(np.unique(drawn.params[drawn.numbers["budget"] == BUDGETS[-1]])) == 7
    assert any("1e+12" in note for note in resampler.notes())


def test_one_seed_is_said_to_be_one():
    notes = Resampler(grid(SMALL, BUDGETS)).notes()
    assert "seed variance is not in the interval" in notes[0]
    assert "no standard errors" in notes[1]


def test_episodes_are_drawn_together_so_that_differences_are_sharp():
    resampler = Resampler(with_episodes())
    assert resampler.noise == "episodes"
    resampler.by_seed = True  # rows stay as they are: each size has one run
    draws = [resampler.draw(np.random.default_rng(seed)).loss for seed in range(200)]
    losses = np.array(draws)
    assert losses[:, 0].std() > 0.05
    assert (losses[:, 0] - losses[:, 1]).std() < 0.01


def test_standard_errors_move_losses_where_there_are_no_episodes():
    table = grid(SMALL, BUDGETS)
    table = table.with_numbers(loss_se=np.full(len(table), 0.05))
    assert Resampler(table).noise == "errors"
    estimate = bootstrap(table, lambda t, rng: {"loss": float(t.loss.mean())}, resamples=200)["loss"]
    assert estimate.high > estimate.low


def test_processes_change_nothing():
    table = grid(SMALL, BUDGETS, noise=0.02, seeds=2)
    numbers = partial(fit_numbers, settings=Settings(laws=("parabola", "quadratic")))
    assert bootstrap(table, numbers, resamples=24) == bootstrap(table, numbers, resamples=24, processes=2)


def test_refusals_are_counted_and_too_many_leave_no_interval():
    def sometimes(table, rng):
        if rng.random() < 0.7:
            raise TooFewCellsError("no")
        return {"x": 1.0}

    estimate = bootstrap(grid(SMALL, BUDGETS), sometimes, resamples=100)["x"]
    assert estimate.low is None
    assert estimate.draws + estimate.refused == 100
    assert estimate.refused > 50


def test_the_jackknife_shows_what_hangs_on_one_budget():
    table = grid(SMALL, BUDGETS)
    low, high = jackknife_budgets(table, exponent)["a"]
    assert low == pytest.approx(high, abs=0.02)
    spoilt = table.with_numbers(
        loss=np.where((table.numbers["budget"] == 1e12) & (table.params == table.params[-1]), 0.1, table.loss)
    )
    with pytest.raises(KeyError):
        jackknife_budgets(spoilt.take(spoilt.numbers["budget"] > 2e11), exponent)["a"]
