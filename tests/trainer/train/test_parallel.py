"""Several processes: two that train together are one that trains alone, however the policy is spread."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import train_processes

from playserve.errors import BadSettingError
from playserve_trainer.train.parallel import Group
from playserve_trainer.train.state import read_state


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run of train_processes.RUNS, done by two processes under torchrun."""
    out = tmp_path_factory.mktemp("together")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
        str(Path(train_processes.__file__)), str(out),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def _state(directory: Path) -> dict[str, torch.Tensor]:
    return read_state(directory)[1]


@pytest.mark.parametrize("name", train_processes.RUNS)
def test_two_processes_equal_one_on_the_same_batches(together: Path, tmp_path: Path, name: str) -> None:
    settings: dict[str, Any] = {**train_processes.RUNS[name], "parallel": "auto"}
    settings.pop("stop_at", None)
    alone = train_processes.train(tmp_path, **settings)
    got, want = _state(together / name), _state(tmp_path)
    assert set(got) - {"rng/cpu.1"} == set(want)
    for key, tensor in want.items():
        if not key.startswith("rng/"):
            torch.testing.assert_close(got[key], tensor, rtol=2e-4, atol=2e-5, msg=key)
    numbers = json.loads((together / name / "numbers.json").read_text())
    assert alone.last_evaluation is not None
    assert numbers["loss"] == pytest.approx(alone.last_evaluation.loss, rel=1e-4)
    assert (numbers["labels"], numbers["samples"]) == (alone.last_evaluation.labels, alone.samples)
    with alone.published_policy() as policy:
        assert policy is not None
        published = torch.load(together / name / "published.pt", weights_only=True)
        for key, tensor in policy.state_dict().items():
            torch.testing.assert_close(published[key], tensor, rtol=2e-4, atol=2e-5, msg=key)
    lines = [json.loads(line) for line in (together / name / "metrics.jsonl").read_text().splitlines()]
    steps = train_processes.RUNS[name].get("max_steps", 8)
    assert [line["step"] for line in lines if line["kind"] == "train"] == sorted({*range(2, steps, 2), steps})


def test_a_codebook_learns_from_what_all_processes_see(together: Path) -> None:
    # That both processes hold the same codes is asserted by their own program, of which one writes.
    name = "tokenizer_kmeans"
    lines = [json.loads(line) for line in (together / name / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert losses[-1] < losses[0]
    state = _state(together / name)
    (uses,) = [tensor for key, tensor in state.items() if key.endswith("cluster_size") and key.startswith("model")]
    # Moving averages of the uses in a batch: 8 frames of 4 tokens, of both processes together.
    assert 0.5 * 32 < float(uses.sum()) < 1.5 * 32


@pytest.mark.parametrize("pair", [("ddp_passes", "ddp_resumed"), ("fsdp", "fsdp_resumed")])
def test_a_resumed_run_of_two_processes_is_the_same_bit_for_bit(together: Path, pair: tuple[str, str]) -> None:
    whole, resumed = (_state(together / name) for name in pair)
    assert whole.keys() == resumed.keys()
    for key, tensor in whole.items():
        if not key.startswith("rng/"):  # a run that is stopped draws its processes' seeds once only
            assert torch.equal(tensor, resumed[key]), key


def test_a_run_goes_on_with_another_number_of_processes(together: Path, tmp_path: Path) -> None:
    state, tensors = read_state(together / "fsdp")
    assert state.step == 8
    assert all(type(tensor) is torch.Tensor for tensor in tensors.values())
    for path in (together / "fsdp").glob("*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = {**train_processes.RUNS["fsdp"], "parallel": "auto", "max_steps": 10}
    assert train_processes.train(tmp_path, resume=True, **settings).step == 10


def test_what_does_not_fit_the_processes_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(BadSettingError, match="torchrun started 2"):
        train_processes.train(tmp_path / "a", Group(0, 2), parallel="none")
    with pytest.raises(BadSettingError, match="start it under torchrun"):
        train_processes.train(tmp_path / "b", parallel="fsdp")
    with pytest.raises(BadSettingError, match="multiple of processes"):
        train_processes.train(tmp_path / "c", Group(0, 3))
