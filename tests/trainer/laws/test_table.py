import numpy as np
import pytest
from surfaces import table_of

from playserve.errors import BadSettingError
from playserve_trainer.laws.refusals import TooFewCellsError
from playserve_trainer.laws.table import CellTable, Clusters, joined


def columns(**changed):
    return {"flops": [6e9, 12e9], "params": [1e3, 1e3], "samples": [1e6, 2e6], "loss": [2.0, 1.5], **changed}


def test_other_tables_names_are_understood():
    table = CellTable.from_columns({"C": ["6e9"], "Model Size": ["1000"], "Training Tokens": [1e6], "loss": [2.0]})
    assert (table.flops[0], table.params[0], table.samples[0]) == (6e9, 1e3, 1e6)


def test_what_is_missing_follows_from_6nd_and_is_said():
    given = columns()
    del given["flops"]
    table = CellTable.from_columns(given)
    assert table.flops.tolist() == [6e9, 12e9]
    assert table.is_6nd
    assert "C = 6ND" in table.notes[0]
    assert table.convention == "6ND"


def test_two_missing_columns_are_refused():
    with pytest.raises(BadSettingError, match="lacks flops and samples"):
        CellTable.from_columns({"params": [1.0], "loss": [1.0]})


def test_a_word_where_a_number_belongs_is_named():
    with pytest.raises(BadSettingError, match="'loss', row 2: 'oops' is no number"):
        CellTable.from_columns(columns(loss=[1.0, "oops"]))


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf")])
def test_sizes_and_compute_are_above_0(bad):
    with pytest.raises(BadSettingError, match=r"row 2: params is"):
        CellTable.from_columns(columns(params=[1e3, bad]))


def test_two_columns_of_one_meaning_are_refused():
    with pytest.raises(BadSettingError, match="two columns mean 'flops'"):
        CellTable.from_columns(columns(C=[1.0, 1.0]))


def test_a_table_without_results_or_rows_is_refused():
    with pytest.raises(BadSettingError, match="neither a loss nor a return"):
        CellTable.from_columns({"flops": [1.0], "params": [1.0], "samples": [1.0]})
    with pytest.raises(TooFewCellsError):
        CellTable.from_columns({"flops": [], "params": [], "samples": [], "loss": []})


def test_a_cost_that_is_no_6nd_is_noticed():
    assert not CellTable.from_columns(columns(flops=[6e9, 13e9])).is_6nd


def test_groups_and_tasks():
    table = CellTable.from_columns(columns(task=["a", "b"]))
    assert [key for key, _ in table.groups("task")] == [("a",), ("b",)]
    assert table.only("task", "b").loss.tolist() == [1.5]
    with pytest.raises(TooFewCellsError, match="it has: a, b"):
        table.only("task", "c")


def test_joined_tables_keep_their_rows_and_the_digest_is_of_the_content():
    table = CellTable.from_columns(columns())
    both = joined([table, table])
    assert len(both) == 4
    assert both.take(np.array([0, 1])).digest() == table.digest()
    assert table.with_numbers(loss=table.loss + 1).digest() != table.digest()


def test_episodes_count_only_where_all_cells_share_them():
    rows = [{"flops": 1.0, "params": 1.0, "samples": 1.0, "loss": 1.0}] * 2
    one = Clusters(("x", "y"), np.array([1.0, 3.0]), np.array([2.0, 2.0]))
    other = Clusters(("x", "z"), np.array([1.0, 3.0]), np.array([2.0, 2.0]))
    given = {name: [row[name] for row in rows] for name in rows[0]}
    shared = CellTable.from_columns(given, clusters=[one, one]).episode_losses()
    assert shared is not None
    assert shared[0].shape == (2, 2)
    assert CellTable.from_columns(given, clusters=[one, other]).episode_losses() is None
    assert CellTable.from_columns(given, clusters=[one, None]).episode_losses() is None
    assert table_of(rows).episode_losses() is None
