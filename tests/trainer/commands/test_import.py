"""`playserve import open-p2p` from the golden checkpoint to a store, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from playserve import cli
from playserve_trainer.checkpoint import load
from playserve_trainer.store import CheckpointStore

_REPO = Path(__file__).resolve().parents[3]


@pytest.fixture
def checkpoint() -> Path:
    for folder in (_REPO.parent / "shared" / "data", _REPO / "shared" / "data"):
        if (folder / "p2p-golden").is_dir():
            return folder / "p2p-golden" / "checkpoint-step=00000000.ckpt"
    pytest.skip("missing data: ../shared/data/p2p-golden")


def test_a_released_checkpoint_becomes_ours(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["import", "open-p2p", str(checkpoint), "--out", str(tmp_path / "out"), "--store",
                 str(tmp_path / "store"), "--name", "p2p", "--alias", "stable", "--state-dtype", "float32"]  # fmt: skip
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "2,250,144 parameters" in shown
    assert "246 keys were there twice and agree; 0 keys were not used" in shown
    report = json.loads((tmp_path / "out" / "import.json").read_text())
    assert (report["num_params"], report["unused_keys"], report["version"]) == (2_250_144, [], "1")
    policy, manifest = load(tmp_path / "out")
    assert manifest.family == "p2p"
    assert manifest.config["resize"] == "hamming-v1"
    assert len(manifest.config["vocabulary"]["keys"]) == 19
    assert policy.num_params() == 2_250_144
    store = CheckpointStore(tmp_path / "store")
    assert store.resolve("p2p", "stable") == "1"


def test_it_wants_to_know_where_to(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", "open-p2p", str(checkpoint)]) == 2
    assert "--out" in capsys.readouterr().err
    assert cli.main(["import", "open-p2p", str(checkpoint), "--store", "x"]) == 2
    assert "--name" in capsys.readouterr().err
