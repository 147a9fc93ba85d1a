"""Studies in stages: commands that make what variants begin from, once each, and variants that do begin from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.grid.plan import SizeFacts, make_plan
from playserve_trainer.grid.settings import run_config
from playserve_trainer.grid.stages import going_on
from playserve_trainer.grid.study import load_study
from playserve_trainer.models.registry import build
from playserve_trainer.train.state import STATE_NAME

_STUDY = """
study = "begun"
family = "atari"
tasks = ["toy"]
training = { batch_size = 16, warmup_steps = 0, lr = 1e-9, ema_decay = 0.0, weight_decay = 0.0 }
evaluation = { samples = 32, batch_size = 16, held_out = 0.3 }
size = { dial = "width", values = [1] }
variants = { from = { training = { init_from = "{data}-start/checkpoint" } } }
[tiers.t]
budgets = [1e8]
"""


def test_a_training_is_left_out_once_it_is_finished_and_resumed_if_it_was_stopped(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["train", "p2p", "--data", "d", "--out", str(out), "--max-steps", "3"]
    assert going_on(command) == command
    out.mkdir()
    (out / STATE_NAME).touch()
    assert going_on(command) == [*command, "--resume"]
    (out / "checkpoint").mkdir()
    for name in (checkpoint.MANIFEST_NAME, checkpoint.WEIGHTS_NAME):
        (out / "checkpoint" / name).touch()
    assert going_on(command) is None
    label = ["data", "label", "d", "--model", "m", "--out", str(out)]
    assert going_on(label) == label  # it looks at its folder itself


def test_the_folder_of_the_data_stands_in_a_variants_settings() -> None:
    study = load_study("doom-inverse", "laptop")
    facts = SizeFacts(
        params=9, params_non_embedding=9, flops_per_sample=10**8, batch_size=8, sequence_length=32, lr=1e-3
    )
    plan = make_plan(study, lambda task, variant, size: facts, data="/x/data")
    configs = {run.variant: run_config(plan, run, Path("/x"), lr=1e-3) for run in plan.runs}
    assert configs["pretrained"].init_from == "/x/data-pretrained/checkpoint"
    assert configs["inverse-trunk"].options["trunk_from"] == "/x/data-inverse/checkpoint"
    assert (configs["scratch"].init_from, configs["scratch"].options["trunk_from"]) == ("", "")
    frozen = {name for name, config in configs.items() if config.freeze == "image.trunk."}
    assert frozen == {"pretrained-frozen", "inverse-trunk-frozen", "random-trunk-frozen"}


def test_a_run_of_a_grid_begins_from_a_checkpoint(
    toy_data: Path, tmp_path: Path, grid_command: Callable[..., int]
) -> None:
    (tmp_path / "study.toml").write_text(_STUDY)
    data, out = tmp_path / "data", tmp_path / "grid"
    data.symlink_to(toy_data)
    arguments = (tmp_path / "study.toml", "--tier", "t", "--data", data, "--out", out, "--no-probe")
    assert grid_command("plan", *arguments) == 0
    config = checkpoint_config(toy_data, out)
    torch.manual_seed(7)
    start = build("atari", config)
    checkpoint.save(tmp_path / "data-start" / "checkpoint", start, Manifest.describe(start))
    assert grid_command("run", out, "--index", 0, "--threads", 1, "--device", "cpu") == 0
    (folder,) = (out / "runs").iterdir()
    ended = checkpoint.load(folder / "checkpoint")[0].state_dict()
    for name, tensor in start.state_dict().items():
        torch.testing.assert_close(ended[name], tensor, atol=1e-6, rtol=0.0)


def checkpoint_config(data: Path, out: Path) -> dict[str, object]:
    """Return the config of the policy that the grid's only run trains."""
    from playserve_trainer.grid.folder import GridFolder
    from playserve_trainer.models.registry import describe
    from playserve_trainer.recipes.families import recipe_of

    plan = GridFolder(out).plan()
    config = run_config(plan, plan.runs[0], out / "x", lr=1e-9, threads=1)
    return describe(recipe_of("atari").prepare(config).policy)[1]
