"""Studies by reinforcement learning: on the grid's plan and cells, which its returns and the laws read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from playserve.errors import BadSettingError
from playserve_trainer.grid.cell import read_cell
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.laws.reading import read_cells
from playserve_trainer.rl.grid import load_rl_study, plan_rl, run_rl_grid
from playserve_trainer.store import CheckpointStore

TIERS = {"atari-rl": ("smoke", "laptop", "gpu", "cluster"), "nethack-rl": ("smoke", "gpu", "cluster")}

#: The toy as a study; its model has no size but `hidden`.
STUDY = """
study = "toy-rl"
family = "tiny_recurrent"
tasks = ["toy"]
budgets = [{first}, {second}]
size = {{ dial = "hidden", values = [4] }}

[training]
env = "toy_bandit:Bandit"
num_envs = 4
unroll = 5
batch = 4
replay = 0
replay_size = 0
critic_hidden = 4
log_every_updates = 2
publish_every_s = 0.5
threads = 1
device = "cpu"

[variants.base]
model = {{ num_actions = 3, observation_shape = [3], value_head = false }}

[tiers.small]
{more}
"""


def study(tmp_path: Path, *, budgets: tuple[float, float] = (1e5, 3e5), more: str = "") -> str:
    path = tmp_path / "toy-rl.toml"
    path.write_text(STUDY.format(first=budgets[0], second=budgets[1], more=more))
    return str(path)


@pytest.mark.parametrize("name", TIERS)
def test_packaged_studies_have_plans(name: str) -> None:
    plan = plan_rl(load_rl_study(name, "smoke"))
    assert all(run.kind == "train" and run.steps >= 1 and run.cells for run in plan.runs)
    for tier in TIERS[name]:
        assert load_rl_study(name, tier).tier == tier


def test_what_a_step_costs_holds_its_replays(tmp_path: Path) -> None:
    plain = plan_rl(load_rl_study(study(tmp_path), "small")).runs[0]
    more = "training = { replay = 4, replay_size = 8 }"
    doubled = plan_rl(load_rl_study(study(tmp_path, more=more), "small")).runs[0]
    assert doubled.flops_per_sample == pytest.approx(2 * plain.flops_per_sample, abs=1)
    assert plain.samples_per_step == 4 * 5


def test_settings_without_meaning_are_named(tmp_path: Path) -> None:
    for more, word in (
        ("training = { max_steps = 5 }", "max_steps"),
        ("tuning = { candidates = [1e-3, 2e-3], share = 0.1 }", "held-out"),
        ("training = { batch_rows = 3 }", "batch_rows"),
    ):
        with pytest.raises(BadSettingError, match=word):
            plan_rl(load_rl_study(study(tmp_path, more=more), "small"))


@pytest.mark.slow
def test_runs_cross_their_budgets_stop_and_go_on(tmp_path: Path) -> None:
    plan, folder = plan_rl(load_rl_study(study(tmp_path), "small")), GridFolder(tmp_path / "grid")
    folder.write_plan(plan)
    store, said = str(tmp_path / "store"), list[str]()
    assert not run_rl_grid(folder, plan, store=store, device="cpu", should_stop=lambda: True, say=said.append)
    assert not list(folder.cells.glob("*.json"))
    assert run_rl_grid(folder, plan, store=store, device="cpu", say=said.append)
    assert folder.is_done(plan.runs[0])
    cells = [read_cell(folder.cells / f"{cell.cell}.json") for cell in plan.runs[0].cells]
    update = plan.runs[0].flops_per_sample * plan.runs[0].samples_per_step
    for cell in cells:
        assert cell.budget <= cell.flops <= cell.budget + 1.01 * update
        assert cell.loss is None
        assert CheckpointStore(store).manifest(cell.cell, "1").samples_seen == cell.samples
    for number, cell in enumerate(cells):  # as `playserve grid returns` writes them
        folder.returns.mkdir(exist_ok=True)
        value = {"cell": cell.cell, "return_mean": 2.0 + number, "return_se": 0.1, "return_n": 4}
        (folder.returns / f"{cell.cell}.json").write_text(json.dumps(value))
    table = read_cells(folder.root)
    assert sorted(table.numbers["return_mean"]) == [2.0, 3.0]
    assert not table.has("loss")
