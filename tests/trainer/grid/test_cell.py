"""Cells: their names, and their flat JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playserve.errors import BadSettingError, DataLossError
from playserve.specs import check_policy_name
from playserve_trainer.grid.cell import Cell, cell_name, number, read_cell, write_cell


def _cell(**changes: Any) -> Cell:
    values: dict[str, Any] = {
        "cell": "s.toy.base.n8.c1e12.s0", "run": "toy.base.n8.s0", "study": "s", "tier": "t", "family": "atari",
        "task": "toy", "variant": "base", "size": 8, "unique": 1.0, "budget": 10**12, "seed": 0, "held_out": False,
        "flops": 10**12 + 7, "flops_convention": "per layer", "flops_6nd": 5, "params": 9580,
        "params_non_embedding": 9580, "samples": 1000, "unique_samples": 4000, "epochs": 0.25, "loss": 0.5,
        "loss_se": None, "accuracy": 0.8, "labels": 10, "wall_s": 2.5, "lr": 1e-3, "lr_at_edge": None,
        "batch_size": 64, "schedule": "constant", "data_digest": "d", "held_out_digest": "h", "code_version": "0.1.0",
        "created_at": "2026-11-21T00:00:00+00:00", "checkpoint": {"store": "s", "name": "n", "version": "1"},
        "clusters": {"ids": ["a", "b"], "loss_sum": [1.0, 4.0], "labels": [4, 6]}, "stop": "budget",
        "scores": {"perplexity_key": 1.25}, **changes,
    }  # fmt: skip
    return Cell(**values)


@given(size=st.one_of(st.integers(1, 4096), st.sampled_from(["1m", "1.2b"])), loss=st.floats(1e-6, 50.0))
def test_a_cell_survives_its_file(tmp_path_factory: pytest.TempPathFactory, size: int | str, loss: float) -> None:
    cell = _cell(size=size, loss=loss, loss_se=loss / 7)
    path = write_cell(tmp_path_factory.getbasetemp() / "cells", cell)
    assert read_cell(path) == cell


def test_the_json_is_flat_and_has_the_keys_that_the_laws_read(tmp_path: Path) -> None:
    value = json.loads(write_cell(tmp_path, _cell()).read_text())
    assert value["score_perplexity_key"] == 1.25
    assert value["loss_se"] is None
    nested = {key for key, item in value.items() if isinstance(item, dict | list)}
    assert nested == {"checkpoint", "clusters"}
    wanted = {
        "cell", "run", "study", "family", "task", "variant", "size", "budget", "seed", "held_out", "flops",
        "flops_convention", "flops_6nd", "params", "params_non_embedding", "samples", "unique_samples", "epochs",
        "loss", "loss_se", "accuracy", "labels", "wall_s", "lr", "batch_size", "schedule", "data_digest",
        "held_out_digest", "code_version", "created_at", "checkpoint", "clusters", "stop", "predicted_wall_s",
    }  # fmt: skip
    assert wanted <= set(value)


@pytest.mark.parametrize("text", ["{", "[]", '{"cell": "a"}', '{"cel": "a"}'])
def test_a_damaged_cell_is_a_typed_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cell.json"
    path.write_text(text)
    with pytest.raises(DataLossError, match="is no cell"):
        read_cell(path)


def test_clusters_are_of_one_length() -> None:
    with pytest.raises(BadSettingError, match="one length"):
        _cell(clusters={"ids": ["a"], "loss_sum": [], "labels": [1]})


@given(
    task=st.text(max_size=20), variant=st.text(max_size=10), size=st.integers(1, 10**6) | st.sampled_from(["1.2b"]),
    unique=st.floats(1e-4, 1.0), budget=st.floats(1.0, 1e22), seed=st.integers(0, 999),
)  # fmt: skip
def test_names_are_valid_for_policies_and_files(
    task: str, variant: str, size: int | str, unique: float, budget: float, seed: int
) -> None:
    name = cell_name("a study", task, variant, size, unique, budget, seed)
    assert check_policy_name(name) == name


def test_names_say_what_a_cell_is() -> None:
    assert cell_name("iso", "freeway", "base", 8, 1.0, 3e12, 2) == "iso.freeway.base.n8.c3e12.s2"
    assert cell_name("iso", "@", "base", "1.2b", 0.25, 1.5e13, 0) == "iso.any.base.n1-2b.u0.25.c1.5e13.s0"
    assert [number(v) for v in (1e12, 2.5e9, 12, 0.004, 0.03125)] == ["1e12", "2.5e9", "12", "0.004", "0.03125"]
