"""Training settings of a run, sizes, and predictions by a probe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from playserve.errors import BadSettingError
from playserve_trainer.flops import count_flops
from playserve_trainer.grid.folder import GridFolder
from playserve_trainer.grid.plan import make_plan
from playserve_trainer.grid.settings import measure_sizes, run_config
from playserve_trainer.grid.study import Study, load_study
from playserve_trainer.models.atari import AtariPolicy
from playserve_trainer.recipes.families import recipe_of


def test_sizes_are_counted_as_the_trained_policy_is(toy_data: Path, toy_study: Path) -> None:
    study = load_study(str(toy_study), "small")
    plan = make_plan(study, measure_sizes(study, str(toy_data)), data=str(toy_data))
    run = plan.run("toy.base.n2.s1")
    config = run_config(plan, run, toy_data, lr=0.5, threads=1)
    assert (config.schedule, config.lr, config.seed, config.max_flops) == ("constant", 0.5, 1, 2 * 10**8)
    assert (config.eval_every_steps, config.held_out, config.batch_size) == (0, 0.3, 16)
    policy = recipe_of("atari").prepare(config).policy
    assert isinstance(policy, AtariPolicy)
    assert run.params == policy.num_params()
    assert run.flops_per_sample == count_flops(policy).training


@pytest.mark.parametrize(("name", "sizes"), [("nethack-data", (96, 192)), ("doom-data", ("1m", "6m"))])
def test_other_families_are_planned_without_their_data(name: str, sizes: tuple[object, ...]) -> None:
    study = load_study(name, "smoke")
    measure = measure_sizes(study, "/nowhere")
    facts = [measure(study.tasks[0], "base", size) for size in sizes]  # type: ignore[arg-type]
    assert facts[0].params < facts[1].params
    assert facts[0].flops_per_sample < facts[1].flops_per_sample
    assert facts[0].sequence_length > 1


def test_inputs_that_are_left_out_cost_nothing() -> None:
    study = load_study("nethack-data", "smoke")
    measure = measure_sizes(study, "/nowhere")
    whole, *parts = (measure(study.tasks[0], variant, 192) for variant in ("base", "no-message", "no-map"))
    assert all(part.params < whole.params for part in parts)
    assert parts[1].flops_per_sample < parts[0].flops_per_sample == whole.flops_per_sample  # of embedding bags: 0


def test_settings_that_the_grid_decides_are_refused(toy_study: Path, toy_data: Path) -> None:
    study = load_study(str(toy_study), "small")
    values = {name: getattr(study, name) for name in Study.__slots__} | {"training": {"seed": 3, "max_steps": 1}}
    with pytest.raises(BadSettingError, match=r"sets max_steps, seed, which the grid decides"):
        measure_sizes(Study(**values), str(toy_data))("toy", "base", 1)
    with pytest.raises(BadSettingError, match=r"family is one of atari, .*, wm-token, not 'chess'"):
        recipe_of("chess")


def test_a_probe_predicts_time_and_memory_and_is_kept(
    toy_study: Path,
    toy_data: Path,
    tmp_path: Path,
    grid_command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "grid"
    for _ in range(2):
        assert grid_command("plan", toy_study, "--tier", "small", "--data", toy_data, "--out", out) == 0
        printed = capsys.readouterr()
    assert "measured" not in printed.err  # the second time everything is known
    assert "MiB a worker at most" in printed.out
    (machine,) = json.loads((out / "probes.json").read_text()).items()
    plan = GridFolder(out).plan()
    assert plan.machine == machine[0]
    for run in plan.runs:
        assert run.prediction is not None
        assert run.prediction.wall_s > 0
        assert run.prediction.peak_mib > 50
        assert run.prediction.epochs == pytest.approx(run.samples / run.prediction.unique_samples)


def test_a_dry_run_prints_the_table_and_writes_nothing(
    toy_study: Path,
    toy_data: Path,
    tmp_path: Path,
    grid_command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "grid"
    argv = ("plan", toy_study, "--tier", "small", "--data", toy_data, "--out", out, "--no-probe", "--dry-run")
    assert grid_command(*argv) == 0
    assert not out.exists()
    printed = capsys.readouterr().out
    assert "toy.base.n2.s1" in printed
    assert "2e+08" in printed
    assert grid_command("data", "atari-isoflop", "--tier", "laptop", "--out", out, "--dry-run") == 0
    assert "playserve data record atari --game breakout --steps 600000" in capsys.readouterr().out
