"""A tiny study of toy episodes, and its grid as the command runs it."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_episodes import toy_episode

from playserve_client.recordings import episode_path, write_episode
from playserve_trainer.commands import grid

#: Two sizes, two budgets, a learning rate of two candidates, two seeds at the smaller budget, and a variant that cannot
#: be trained.
STUDY = """
study = "toy-grid"
title = "a toy"
family = "atari"
tasks = ["toy"]

[size]
dial = "width"
values = [1, 2]

[training]
batch_size = 16
warmup_steps = 2
log_every_steps = 5
save_every_s = 0.0
precision = "fp32"  # what two processes add up in another order would differ in the third digit with bf16 units
save_every_steps = 7

[evaluation]
samples = 96
batch_size = 32
held_out = 0.3

[tuning]
candidates = [3e-3, 1e-2]
share = 0.3

[variants.base]

[variants.broken]
training = { lr = 1e30, clip_norm = 0.0 }
sizes = [1]
budgets = [2e8]
seeds = [1]
hold_out = false

[tiers.small]
budgets = [2e8]
hold_out = [6e8]
seeds = [2]

[tiers.long]
budgets = [2e8, 6e9]
tuning = { candidates = [] }
"""


def command(*argv: object) -> int:
    """Run ``playserve grid`` in this process; return its exit status."""
    parser = argparse.ArgumentParser()
    grid.configure(parser)
    return grid.run(parser.parse_args([str(arg) for arg in argv]))


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the root of eight toy recordings."""
    root = tmp_path_factory.mktemp("toy-recordings")
    for seed in range(8):
        write_episode(episode_path(root, "atari", "toy", seed), toy_episode(seed, 60 + seed))
    return root


@pytest.fixture(scope="session")
def toy_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of the toy study."""
    path = tmp_path_factory.mktemp("study") / "toy.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="session")
def finished_grid(toy_data: Path, toy_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of the toy grid after it ran undisturbed, with two workers; not to be changed."""
    out = tmp_path_factory.mktemp("finished")
    assert command("plan", toy_study, "--tier", "small", "--data", toy_data, "--out", out, "--no-probe") == 0
    assert command("run", out, "--workers", 2) == 1  # the broken variant fails
    yield out
    shutil.rmtree(out, ignore_errors=True)


@pytest.fixture
def planned_grid(toy_data: Path, toy_study: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that plans the toy grid at a tier in a fresh folder."""

    def plan(tier: str = "small") -> Path:
        out = tmp_path / f"grid-{tier}"
        assert command("plan", toy_study, "--tier", tier, "--data", toy_data, "--out", out, "--no-probe") == 0
        return out

    return plan


@pytest.fixture
def grid_command() -> Callable[..., int]:
    """Return a function that runs ``playserve grid`` in this process."""
    return command


@pytest.fixture
def cells_of() -> Callable[[Path], dict[str, dict[str, Any]]]:
    """Return a function that reads a grid's cells, without what differs from run to run."""

    def read(folder: Path) -> dict[str, dict[str, Any]]:
        found = {}
        for path in sorted((folder / "cells").glob("*.json")):
            value = json.loads(path.read_text())
            for name in ("wall_s", "created_at", "checkpoint", "threads"):
                value.pop(name)
            found[path.stem] = value
        return found

    return read
