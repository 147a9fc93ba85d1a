"""`playserve train tokenizer` and `playserve data tokenize`, from recordings to a cache, on a game of four pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_tokens import nethack_shards

from playserve.errors import BadSettingError
from playserve_trainer import checkpoint
from playserve_trainer.commands import data_tokenize, train
from playserve_trainer.data.tokens.cache import load_tokenizer, open_cache
from playserve_trainer.models.tokenizer import NetHackTokenizer, VQTokenizer
from playserve_trainer.recipes import tokenizer
from playserve_trainer.recipes.tokenizer import settings
from playserve_trainer.store import CheckpointStore
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.loop import Trainer

Record = Callable[..., Path]
_SMALL = ("--tokens", "16", "--codes", "16", "--filters", "8", "--decoder-filters", "8", "--size", "32")


def _train(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    train.configure(parser)
    return train.run(parser.parse_args(["tokenizer", *argv]))


def _tokenize(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    data_tokenize.configure(parser)
    return data_tokenize.run(parser.parse_args(argv))


def _config(root: Path, out: Path, **given: object) -> TrainConfig:
    flags = {"game": "toy", "tokens": 4, "filters": 8, "decoder_filters": 8, "codes": 8, "size": 16}
    fixed = {"data": str(root), "out": str(out), "max_steps": 4, "batch_size": 16, "threads": 1, "device": "cpu"}
    return TrainConfig.from_json(settings({**flags, **fixed, **given}))


def test_frames_are_learnt_and_scored(record_toy: Record, tmp_path: Path) -> None:
    root, out = record_toy(steps=40), tmp_path / "run"
    flags = ["--game", "toy", "--data", str(root), "--out", str(out), "--max-steps", "60", "--batch-size", "32"]
    assert _train(*flags, "--lr", "3e-3", "--device", "cpu", "--threads", "1", *_SMALL) == 0
    summary = json.loads((out / "summary.json").read_text())
    held_out, (guess,) = summary["held_out"], summary["baselines"]
    assert held_out["loss"] < guess["loss"]
    assert held_out["psnr"] > guess["scores"]["psnr"]
    assert 0.0 < held_out["codes_used"] <= 1.0
    assert 1.0 <= held_out["perplexity"] <= 16.0
    assert 0.0 <= held_out["ssim"] <= 1.0
    assert "probe_error" not in held_out  # the toy game's RAM never changes
    policy, manifest = checkpoint.load(out / "checkpoint")
    assert isinstance(policy, VQTokenizer)
    assert policy.frame_shape == (32, 32, 1)
    assert manifest.metrics["psnr"] == held_out["psnr"]
    assert manifest.flops == summary["flops"] > 0

    flags = ["--data", str(root), "--game", "toy", "--tokenizer", str(out / "checkpoint"), "--frames"]
    assert _tokenize(*flags, "--out", str(tmp_path / "cache"), "--device", "cpu", "--workers", "1") == 0
    cache = open_cache(tmp_path / "cache")
    assert cache.frames is not None
    assert cache.frames.shape == (cache.num_frames, 32, 32, 1)
    tokens = policy.encode(torch.from_numpy(np.array(cache.frames[:20])))
    assert np.array_equal(tokens.numpy(), cache.tokens_NK[:20])
    assert load_tokenizer(cache).digest() == policy.digest()

    store = tmp_path / "store"
    CheckpointStore(store).publish("eyes", out / "checkpoint")
    flags[5:6] = ["eyes@1", "--store", str(store)]
    assert _tokenize(*flags, "--out", str(tmp_path / "again"), "--device", "cpu") == 0
    assert open_cache(tmp_path / "again").digest == cache.digest


def test_nethack_needs_no_training(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    games = nethack_shards(tmp_path / "data")
    flags = ["--data", str(tmp_path / "data"), "--game", "nethack", "--crop", "24x80"]
    assert _tokenize(*flags, "--out", str(tmp_path / "cache")) == 0
    cache = open_cache(tmp_path / "cache")
    assert (cache.num_tokens, cache.vocabulary) == (1920, 95)
    assert isinstance(load_tokenizer(cache), NetHackTokenizer)
    first = games[int(cache.seeds_E[0])]
    assert np.array_equal(cache.tokens_NK[:5].reshape(5, 24, 80) + 32, first.chars[:5])


def test_decoded_frames_are_kept_and_shared(record_toy: Record, tmp_path: Path) -> None:
    root = record_toy(steps=10)
    first = tokenizer.read(_config(root, tmp_path))
    again = tokenizer.read(_config(root, tmp_path, tokens=16))
    other = tokenizer.read(_config(root, tmp_path, size=32))
    assert first.folder == again.folder != other.folder
    assert first.folder.parent == root / ".playserve"
    elsewhere = tokenizer.read(_config(root, tmp_path, cache=str(tmp_path / "kept")))
    assert elsewhere.folder.parent == tmp_path / "kept"


def test_every_nth_frame_is_learnt_from(record_toy: Record, tmp_path: Path) -> None:
    root = record_toy(steps=30)
    whole, third = (tokenizer.prepare(_config(root, tmp_path, every=every)) for every in (1, 3))
    assert third.source.num_samples == -(-whole.source.num_samples // 3)
    batch = whole.source.batch(0)
    frames = batch.inputs["frame"]
    assert (frames.shape, frames.dtype) == ((16, 1, 16, 16, 1), torch.uint8)
    assert torch.equal(batch.labels_BTH.view(frames.shape).to(torch.uint8), frames)
    assert torch.equal(whole.source.batch(3).labels_BTH, whole.source.batch(3).labels_BTH)


def test_probes_are_read_off_the_codes_and_the_pixels(record_toy: Record, tmp_path: Path) -> None:
    import toy_episodes

    from playserve_client.recordings import Episode, episode_path, write_episode

    root = tmp_path / "probed"
    for seed in range(8):
        episode = toy_episodes.toy_episode(seed, 40)
        ram = np.zeros((40, 128), np.uint8)
        ram[:, 5] = episode.label % 2 * 50  # left or right
        probed = Episode(meta=episode.meta, **{**episode.arrays, "probes": ram})
        write_episode(episode_path(root, "atari", "toy", seed), probed)
    config = _config(root, tmp_path, tokens=16, max_steps=30, lr=3e-3)
    prepared = tokenizer.prepare(config)
    trainer = Trainer(config, prepared.policy, prepared.source, prepared.held_out, scores=prepared.scores)
    trainer.run()
    scores = trainer.last_evaluation.scores if trainer.last_evaluation else {}
    assert scores["probe_ram_005"] == scores["probe_error"] < 0.5
    assert scores["probe_error_pixels"] < 0.2


def test_a_resumed_run_is_the_same_run(record_toy: Record, tmp_path: Path) -> None:
    root = record_toy(steps=20)

    def run(name: str, *stops: int) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = {}
        for number, steps in enumerate(stops):
            (tmp_path / name).mkdir(exist_ok=True)
            config = _config(root, tmp_path / name, max_steps=steps, schedule="constant")
            prepared = tokenizer.prepare(config)
            trainer = Trainer(config, prepared.policy, prepared.source, data_digest=prepared.report.digest)
            if number:
                trainer.resume()
            trainer.run()
            state = prepared.policy.state_dict()
        return state

    whole, parts = run("whole", 8), run("parts", 3, 8)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_sketch_has_the_shapes_of_the_run(record_toy: Record, tmp_path: Path) -> None:
    config = _config(record_toy(steps=5), tmp_path)
    assert tokenizer.sketch(config).num_params() == tokenizer.prepare(config).policy.num_params()


@pytest.mark.parametrize(
    ("given", "named"),
    [({}, "which game"), ({"game": "nethack"}, "needs no training"), ({"game": "doom", "every": 0}, "every")],
)
def test_wrong_flags_are_named(given: dict[str, object], named: str) -> None:
    with pytest.raises(BadSettingError, match=named):
        settings(given)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--game", "toy"], "which tokenizer"), (["--game", "nethack", "--crop", "9"], "rows x columns"),
        (["--game", "toy", "--frames", "--workers", "0"], "--workers"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_tokenize_are_named(flags: list[str], named: str, tmp_path: Path) -> None:
    with pytest.raises(BadSettingError, match=named):
        _tokenize("--data", str(tmp_path), "--out", str(tmp_path / "cache"), *flags)
