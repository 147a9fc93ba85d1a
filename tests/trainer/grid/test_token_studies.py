"""Studies on token caches: variants of other families, caches by their tokens, D in frames and in tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_cache import tiny_cache

from playserve_trainer import checkpoint
from playserve_trainer.flops import count_flops
from playserve_trainer.grid.cell import Cell, read_cell
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.grid.plan import make_plan
from playserve_trainer.grid.running import Hands, train_run
from playserve_trainer.grid.settings import measure_sizes
from playserve_trainer.grid.study import load_study
from playserve_trainer.laws.reading import read_cells
from playserve_trainer.train.progress import Silent

STUDY = """
study = "toy-tokens"
family = "bc-token"
tasks = ["bars"]
size = { dial = "width", values = [16, 32] }
training = { batch_size = 4, context = 2, sequence_length = 4, warmup_steps = 1, lr = 1e-3 }
evaluation = { samples = 64, batch_size = 2, sequence_length = 4, held_out = 0.25 }

[variants.token]
options = { tokens = 4 }
sizes = [16]

[variants.cnn]
family = "bc-cnn"
options = { tokens = 4 }
sizes = [16]

[variants.world]
family = "wm-token"
options = { tokens = 4 }
model = { start_frames = 1 }
sizes = [32]

[tiers.t]
budgets = [2e7, 5e7]
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the study's grid after it ran."""
    root = tmp_path_factory.mktemp("token-study")
    tiny_cache(root / "data" / "bars-4")
    (root / "study.toml").write_text(STUDY)
    study, data = load_study(str(root / "study.toml"), "t"), str(root / "data")
    plan, folder = make_plan(study, measure_sizes(study, data), data=data), GridFolder(root / "grid")
    hands = Hands(store=str(root / "store"), reporter=Silent(), threads=1)
    for run in plan.runs:
        assert train_run(folder, plan, run, hands)
    return folder.root


@pytest.fixture(scope="module")
def cells(grid: Path) -> dict[str, Cell]:
    """Return the cells of the larger budget by variant."""
    found = [read_cell(path) for path in sorted(GridFolder(grid).cells.iterdir())]
    assert len(found) == 6
    return {cell.variant: cell for cell in found if cell.budget == 5 * 10**7}


def test_each_variant_is_of_its_family(cells: dict[str, Cell]) -> None:
    assert {name: cell.family for name, cell in cells.items()} == {
        "token": "bc-token", "cnn": "bc-cnn", "world": "wm-token",
    }  # fmt: skip


def test_d_is_counted_in_frames_and_in_tokens_and_c_both_ways(cells: dict[str, Cell]) -> None:
    for name, cell in cells.items():
        tokens = 1 if name == "cnn" else 5
        assert cell.tokens_seen == tokens * cell.samples
        assert cell.flops_6nd == 6 * cell.params * cell.tokens_seen
        assert cell.flops >= cell.budget
        policy, manifest = checkpoint.load(Path(cell.checkpoint["store"]) / cell.cell / cell.checkpoint["version"])
        assert manifest.flops_6nd == cell.flops_6nd
        assert cell.flops == count_flops(policy, 4).training * cell.samples
        assert (cell.params, cell.params_non_embedding) == (
            policy.num_params(), policy.num_params_without_embeddings(),
        )  # fmt: skip
        assert cell.loss_se is not None


def test_agents_are_compared_on_the_same_held_out_frames(cells: dict[str, Cell]) -> None:
    assert cells["token"].held_out_digest == cells["cnn"].held_out_digest
    assert cells["token"].labels == cells["cnn"].labels
    assert {"ce_action", "accuracy_action"} <= set(cells["cnn"].scores)
    assert {"ce_tokens", "ce_reward", "ce_end"} <= set(cells["world"].scores)


def test_the_laws_read_the_cells_with_d_in_frames(grid: Path, cells: dict[str, Cell]) -> None:
    table = read_cells(grid)
    assert set(table.numbers["samples"].tolist()) >= {float(cell.samples) for cell in cells.values()}


def test_only_variants_of_the_same_labels_can_be_paired(grid: Path) -> None:
    digests = {cell.variant: cell.held_out_digest for cell in map(read_cell, (grid / "cells").glob("*.json"))}
    assert digests["token"] == digests["cnn"] != digests["world"]
