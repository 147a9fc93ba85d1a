import numpy as np
import pytest

from playserve_trainer.laws.break_point import break_points
from playserve_trainer.laws.fitting import FitOptions, fit_laws
from playserve_trainer.laws.refusals import TooFewCellsError
from playserve_trainer.laws.rows import notes
from playserve_trainer.laws.table import CellTable, Clusters

_SIZES = {"1m": 1e6, "6m": 6e6, "16m": 16e6}


def cells(gain, shares=(0.125, 0.25, 0.5, 1.0), sizes=tuple(_SIZES), episodes=60):
    """Three sizes on shares of 80,000 samples; each is better than the next smaller one by gain(share)."""
    rng = np.random.default_rng(0)
    hard, labels = rng.normal(3, 1, episodes), np.full(episodes, 20.0)
    rows, clusters = [], []
    for share in shares:
        for rank, size in enumerate(sizes):
            for seed in range(2):
                sums = (hard - rank * gain(share) + rng.normal(0, 0.05, episodes)) * labels
                clusters.append(Clusters(tuple(map(str, range(episodes))), sums, labels))
                rows.append({"flops": 1e12, "budget": 1e12, "params": _SIZES[size], "samples": 1e5, "size": size,
                             "task": "t", "variant": "base", "seed": seed, "unique": share, "run": f"{size}{seed}",
                             "unique_samples": 8e4 * share, "loss": sums.sum() / labels.sum()})  # fmt: skip
    return CellTable.from_columns({n: [row[n] for row in rows] for n in rows[0]}, clusters=clusters)


def test_below_the_break_point_more_model_does_not_help():
    found = break_points(cells(lambda share: 0.1 if share > 0.3 else -0.05), resamples=100)
    assert [(of.smaller, of.larger) for of in found] == [("1m", "6m"), ("6m", "16m")]
    assert [of.at for of in found] == [40_000, 40_000]
    assert found[0].unique_samples == (10_000, 20_000, 40_000, 80_000)
    assert found[0].verdict == "6m beats 1m from 40,000 unique samples on, not below"


def test_there_may_be_none_or_none_to_be_seen():
    (never,) = break_points(cells(lambda share: -0.1, sizes=("1m", "6m")), resamples=100)
    assert (never.at, never.is_least) == (None, False)
    assert "not shown to beat 1m with as much as 80,000" in never.verdict
    (always,) = break_points(cells(lambda share: 0.1, sizes=("1m", "6m")), resamples=100)
    assert (always.at, always.is_least) == (10_000, True)
    assert always.verdict.endswith("from 10,000 unique samples on, the least there is")
    # One amount at which it helps, between others at which it does not, is no break point.
    (odd,) = break_points(cells(lambda share: 0.1 if share == 0.25 else -0.1, sizes=("1m", "6m")), resamples=100)
    assert odd.at is None


def test_one_size_or_one_amount_of_data_is_refused():
    with pytest.raises(TooFewCellsError, match="share two amounts"):
        break_points(cells(lambda share: 0.1, sizes=("1m",)))
    with pytest.raises(TooFewCellsError, match="share two amounts"):
        break_points(cells(lambda share: 0.1, shares=(1.0,)))


def test_a_fit_says_it():
    table = cells(lambda share: 0.1 if share > 0.6 else -0.05, shares=(0.5, 1.0), sizes=("1m", "6m"))
    (group,) = fit_laws(table, FitOptions(resamples=8, starts=0))["groups"]
    assert [point["at"] for point in group["break_points"]] == [80_000]
    assert "Break point: 6m beats 1m from 80,000 unique samples on, not below." in notes(group)
