"""The recipes on token caches and on text: settings from flags, policies of the data, and runs that learn."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_cache import tiny_cache, tiny_tokenizer

from playserve.errors import BadSettingError, NotFoundError
from playserve_trainer import checkpoint
from playserve_trainer.commands import train
from playserve_trainer.models.gpt import CnnAgent, TokenAgent, WorldPolicy
from playserve_trainer.models.policy import Memory
from playserve_trainer.recipes.families import recipe_of
from playserve_trainer.train.config import TrainConfig

FAMILIES = {"wm-token": WorldPolicy, "bc-token": TokenAgent, "bc-cnn": CnnAgent}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds a cache of the game, named after it and its tokens."""
    folder = tmp_path_factory.mktemp("caches")
    tiny_cache(folder / "bars-4", episodes=16)
    return folder


def config_of(family: str, root: Path, **given: Any) -> TrainConfig:
    flags = {"game": "bars", "tokens": 4, "width": 16, "context": 2, "batch_size": 4, "max_steps": 3, "threads": 1}
    flags |= {"starts": 3, "start_frames": 1} if family == "wm-token" else {}
    settings = recipe_of(family).settings({"data": str(root), "out": "", **flags, **given})
    return TrainConfig.from_json(settings)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_flags_become_settings_and_a_sequence_is_twice_the_context(family: str, root: Path) -> None:
    parser = argparse.ArgumentParser()
    recipe_of(family).configure(parser)
    given = vars(parser.parse_args(["--game", "bars", "--tokens", "4", "--width", "32", "--context", "6"]))
    settings = recipe_of(family).settings(given)
    assert (settings["task"], settings["sequence_length"]) == ("bars", 12)
    assert settings["model"] == {"width": 32, "context": 6}
    assert settings["options"] == {"tokens": 4}
    assert recipe_of(family).settings({**given, "sequence_length": 3})["sequence_length"] == 3
    with pytest.raises(BadSettingError, match="which game"):
        recipe_of(family).settings({})


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_cache_decides_actions_tokenizer_rewards_and_starts(family: str, root: Path) -> None:
    prepared = recipe_of(family).prepare(config_of(family, root))
    policy = prepared.policy
    assert isinstance(policy, FAMILIES[family])
    assert policy.spec().action.n == 3
    assert policy.spec().rate_hz == 20.0
    assert policy.spec().environment["game"] == "bars"
    assert policy.num_params() == recipe_of(family).sketch(config_of(family, root)).num_params()
    if isinstance(policy, WorldPolicy | TokenAgent):
        assert policy.tokenizer.net.digest() == tiny_tokenizer().digest()
    if isinstance(policy, WorldPolicy):
        assert policy.config.reward_values == (0.0, 1.0)
        assert policy.start_tokens_SCK.shape == (3, 1, 4)
        assert len(prepared.head_weights) == len(policy.heads())
    assert [baseline.name for baseline in prepared.baselines] == ["frequencies", "previous"]
    batch = prepared.source.batch(0)
    assert set(batch.inputs) == set(policy.training_inputs())
    assert prepared.held_out_as is not None
    held_out = prepared.held_out_as(2, 4, 0)
    assert held_out.source.batch(0).episodes_BT is not None


def train_by_command(family: str, root: Path, out: Path, *flags: str) -> dict[str, Any]:
    """Train as the command does; return the manifest's metrics."""
    parser = argparse.ArgumentParser()
    train.configure(parser)
    text = [family, "--data", str(root), "--out", str(out), "--threads", "1", "--precision", "fp32", *flags]
    assert train.run(parser.parse_args(text)) == 0
    manifest = checkpoint.read_manifest(out / "checkpoint")
    return {**manifest.metrics, "manifest": manifest}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_training_by_the_command_learns_the_game_and_leaves_a_checkpoint_that_plays(
    family: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--game", "bars", "--tokens", "4", "--width", "16", "--context", "2", "--batch-size", "8", "--lr", "1e-2"]
    flags += ["--max-steps", "60", "--warmup-steps", "5", "--held-out", "0.25", "--eval-samples", "200"]
    flags += ["--starts", "3", "--start-frames", "2"] if family == "wm-token" else []
    found = train_by_command(family, root, tmp_path / "run", *flags)
    manifest = found["manifest"]
    policy, _ = checkpoint.load(tmp_path / "run" / "checkpoint")
    tokens = policy.tokens_per_sample()
    assert tokens == (1 if family == "bc-cnn" else 5)
    assert manifest.flops_6nd == 6 * policy.num_params() * manifest.samples_seen * tokens
    assert manifest.num_params > manifest.num_params_without_embeddings
    if family == "wm-token":
        # A bar that stays, or goes one column aside: without the action it is one of up to three frames.
        assert found["accuracy_tokens"] > 0.6
        assert {"ce_tokens", "ce_reward", "ce_end"} <= set(found)
    else:
        assert found["ce_action"] == pytest.approx(found["loss"], rel=1e-5)
    pools = {name: torch.zeros(2, *t.shape, dtype=t.dtype) for name, t in policy.state_layout().items()}
    inputs = {s.name: torch.zeros(1, *s.shape, dtype=getattr(torch, s.dtype)) for s in policy.spec().inputs}
    executed = torch.zeros(1, policy.executed_size(), dtype=torch.int64)
    memory = Memory(pools, torch.tensor([1]), torch.tensor([True]))
    drawn = policy.step(inputs, executed, memory, lambda logits_BA, head: logits_BA.argmax(-1))
    assert drawn.actions_BH.shape == (1, len(policy.heads()))


def test_a_cache_of_another_game_or_none_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="data tokenize"):
        recipe_of("wm-token").read(config_of("wm-token", tmp_path))
    with pytest.raises(BadSettingError, match="a cache of bars"):
        recipe_of("wm-token").read(config_of("wm-token", root / "bars-4", game="doom"))


def test_characters_are_learnt_and_held_out_labels_are_dense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.txt").write_text("the cat sat on the mat, and the dog sat on the log. " * 400)
    flags = ["--text", "small", "--width", "16", "--context", "16", "--sequence-length", "16", "--batch-size", "16"]
    flags += ["--max-steps", "60", "--warmup-steps", "5", "--lr", "1e-2", "--sparse", "4", "--eval-samples", "1024"]
    found = train_by_command("char", tmp_path, tmp_path / "run", *flags)
    assert found["loss"] < 2.0  # by frequency 2.6
    prepared = recipe_of("char").prepare(TrainConfig.from_json(recipe_of("char").settings({
        "data": str(tmp_path), "out": "", "text": "small", "sequence_length": 16, "sparse": 4, "max_steps": 1,
    })))  # fmt: skip
    assert prepared.held_out is not None
    assert (prepared.held_out.batch(0).labels_BTH[:, :-1] >= 0).all()
    assert int((prepared.source.batch(0).labels_BTH >= 0).sum()) <= 4 * prepared.source.batch_size
