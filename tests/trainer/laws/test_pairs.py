import dataclasses

import numpy as np
import pytest

from playserve_trainer.laws.pairs import compare
from playserve_trainer.laws.refusals import TooFewCellsError
from playserve_trainer.laws.table import CellTable, Clusters


def cells(gain, *, seeds=3, episodes=60, seed=0):
    """Two variants; "b" is better by `gain` on episodes that differ far more than that from each other."""
    rng = np.random.default_rng(seed)
    hard, labels = rng.normal(3, 1, episodes), np.full(episodes, 20.0)
    rows, clusters = [], []
    for number in range(seeds):
        luck = rng.normal(0, 0.005)
        for variant, better in (("a", 0.0), ("b", gain)):
            sums = (hard - better + luck + rng.normal(0, 0.05, episodes)) * labels
            clusters.append(Clusters(tuple(map(str, range(episodes))), sums, labels))
            rows.append({"flops": 1e10, "budget": 1e10, "params": 1e4, "samples": 1e5, "size": "10", "task": "t",
                         "variant": variant, "seed": number, "loss": sums.sum() / labels.sum()})  # fmt: skip
    return CellTable.from_columns({n: [row[n] for row in rows] for n in rows[0]}, clusters=clusters)


def test_a_difference_far_below_the_spread_of_episodes_is_seen():
    found = compare(cells(0.05), "a", "b")
    assert found.difference == pytest.approx(0.05, abs=0.02)
    assert 0 < found.low < found.high
    assert found.verdict == "b is better"
    assert (found.pairs, found.seeds) == (3, 3)


def test_equal_variants_show_no_difference():
    shown = sum(compare(cells(0.0, seed=seed), "a", "b").verdict != "no difference is shown" for seed in range(10))
    assert shown <= 3


def test_what_was_evaluated_on_something_else_is_no_pair():
    table = cells(0.1)
    words = {**table.words, "held_out_digest": [f"of {variant}" for variant in table.words["variant"]]}
    with pytest.raises(TooFewCellsError, match="held-out labels"):
        compare(dataclasses.replace(table, words=words), "a", "b")


def test_variants_that_share_no_cell_are_refused():
    with pytest.raises(TooFewCellsError, match="share no size"):
        compare(cells(0.1), "a", "c")
