import argparse
import json
from pathlib import Path

import pytest
import torch

from playserve.errors import NotFoundError, PolicyNotFoundError
from playserve_trainer.checkpoint import Manifest, save
from playserve_trainer.commands import checkpoints
from playserve_trainer.models.registry import build


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def run(action: str, *arguments: str) -> str:
        parser = argparse.ArgumentParser()
        checkpoints.configure(parser)
        assert checkpoints.run(parser.parse_args([action, "--store", str(tmp_path / "store"), *arguments])) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    torch.manual_seed(0)
    policy = build("atari", {"game": "pong", "num_actions": 6, "width": 1})
    save(tmp_path / "checkpoint", policy, Manifest.describe(policy, samples_seen=12_345, metrics={"loss": 0.25}))
    return str(tmp_path / "checkpoint")


def test_publish_list_show_alias(call, checkpoint: str) -> None:
    assert call("publish", "pong", checkpoint).split() == ["pong", "1"]
    assert json.loads(call("publish", "pong", checkpoint, "--json", "--alias", "beta")) == {
        "policy": "pong",
        "version": "2",
    }
    assert "prod -> 2" in call("alias", "pong", "prod", "beta")

    table = call("list").splitlines()
    assert [line.split()[:3] for line in table] == [
        ["policy", "version", "aliases"],
        ["pong", "1", "-"],
        ["pong", "2", "beta,prod"],
    ]
    assert "12,345" in table[1]
    rows = json.loads(call("list", "--json"))
    assert [(row["version"], row["aliases"], row["samples_seen"]) for row in rows] == [
        ("1", [], 12_345),
        ("2", ["beta", "prod"], 12_345),
    ]

    manifest = json.loads(call("show", "pong", "prod", "--json"))
    assert manifest["spec"]["version"] == "2"
    assert manifest["metrics"] == {"loss": 0.25}
    assert json.loads(call("show", "pong", "--json")) == manifest
    assert "weights_sha256" in call("show", "pong", "1")


def test_an_empty_store_lists_nothing(call) -> None:
    assert json.loads(call("list", "--json")) == []
    assert len(call("list").splitlines()) == 1


def test_errors_are_typed(call, tmp_path: Path) -> None:
    with pytest.raises(PolicyNotFoundError):
        call("show", "pong")
    with pytest.raises(NotFoundError):
        call("publish", "pong", str(tmp_path))
