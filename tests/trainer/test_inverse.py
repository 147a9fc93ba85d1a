"""Labels of an inverse model, on recordings where nothing but the frame after tells what was done."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_recordings as small

from playserve.actions import DesktopAction
from playserve.cli import main
from playserve.errors import BadSettingError, ShapeMismatchError, StateError
from playserve_client.p2p.recording import Source, list_recordings, read_recording
from playserve_client.p2p.relabel import relabel
from playserve_client.p2p.sidecar import read_sidecar
from playserve_client.p2p.video import VideoSettings
from playserve_client.p2p.writer import RecordingWriter
from playserve_trainer import checkpoint
from playserve_trainer.commands import data_label
from playserve_trainer.data.p2p import load_recordings
from playserve_trainer.inverse import Labeller, windows
from playserve_trainer.recipes import p2p
from playserve_trainer.train import finish
from playserve_trainer.train.config import TrainConfig
from playserve_trainer.train.loop import Trainer
from playserve_trainer.train.start import begin_from

_KEYS = ("KeyA", "KeyD", "KeyS", "KeyW")
_TINY = {
    "layers": 2,
    "width": 32,
    "heads": 2,
    "decoder_layers": 1,
    "decoder_heads": 2,
    "frame_size": 32,
    "history": [2],
}
_VIDEO = VideoSettings(encoding="rgb", crf=6, preset="ultrafast", keyframe_every=16)


def _record(root: Path, seed: int, *, known: bool = True, frames: int = 60) -> Path:
    """Record keys drawn by lot, each of which lights a bar in the frame after; a second episode at frame 30."""
    rng = np.random.default_rng(seed)
    with RecordingWriter(root, env="toy", env_subtype="lot", frame_size=(32, 32), video=_VIDEO) as writer:
        for number in range(frames):
            key = int(rng.integers(4))
            action = DesktopAction(keys=frozenset({_KEYS[key]})) if known else None
            source = Source.USER if known else Source.UNKNOWN
            picture = np.full((32, 32, 3), 20, np.uint8)
            picture[8 * key : 8 * key + 8] = 220
            writer.add(picture, action, source, sidecar={"first": number == 30, "reward": 0.5})
        writer.instruct("press keys", 0, frames)
    return writer.path


def _train(data: Path, out: Path, **given: Any) -> tuple[Trainer, Path]:
    """Train on recordings as `playserve train p2p` does; return the trainer and its checkpoint's folder."""
    out.mkdir(parents=True)
    values = {
        "data": str(data), "out": str(out), "batch_size": 8, "sequence_length": 12, "warmup_steps": 5, "held_out": 0.2,
        "eval_samples": 96, "eval_every_steps": 0, "threads": 1, "save_every_s": 0.0, "lr": 1e-2, "device": "cpu",
        "ema_decay": 0.0, "augment": False, "dropout": 0.0, "schedule": "constant", **given,
    }  # fmt: skip
    settings = p2p.settings(values)
    model = settings["model"] if given.get("init_from") else {**_TINY, **settings["model"]}
    config = TrainConfig.from_json({**settings, "model": model})
    prepared = p2p.prepare(config)
    if config.init_from:
        begin_from(prepared.policy, config.init_from)
    trainer = Trainer(
        config, prepared.policy, prepared.source, prepared.held_out, data_digest=prepared.report.digest,
        scores=prepared.scores,
    )  # fmt: skip
    trainer.run()
    finish.write_checkpoint(trainer, out / "checkpoint")
    return trainer, out / "checkpoint"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    for seed in range(5):
        _record(root, seed)
    return root


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of which one has no known action."""
    root = tmp_path_factory.mktemp("pool")
    for seed in range(3):
        _record(root / "deep", 100 + seed, known=seed > 0)
    return root


@pytest.fixture(scope="module")
def inverse(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train(labelled, tmp_path_factory.mktemp("inverse") / "run", inverse=True, max_steps=100)[1]


@pytest.fixture(scope="module")
def made(pool: Path, inverse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "labels"
    command = ["data", "label", str(pool), "--model", str(inverse), "--out", str(out), "--length", "16"]
    assert main(command) == 0
    return out


def _label(*argv: object) -> int:
    """Run ``playserve data label`` in this process."""
    parser = argparse.ArgumentParser()
    data_label.configure(parser)
    return data_label.run(parser.parse_args([str(arg) for arg in argv]))


def test_labels_beat_copying_where_only_the_future_tells_the_action(made: Path, inverse: Path) -> None:
    report = json.loads((made / "labels.json").read_text())
    rows = {row["group"]: row for row in report["accuracy"]}
    assert rows["all"]["accuracy"] > 0.95
    assert rows["key"]["accuracy_changed"] > 0.95
    assert rows["key"]["copy"] < 0.4
    assert (report["recordings"], report["made_now"], report["failed"]) == (3, 3, [])
    # 60 entries less the first and the one that begins an episode.
    assert (report["frames"], report["labelled"]) == (180, 3 * 58)
    assert rows["all"]["labels"] == 2 * 56  # of which the action before is known, too
    assert report["model"]["weights_sha256"] == checkpoint.read_manifest(inverse).weights_sha256


def test_a_labelled_copy_says_by_whom_and_how_surely_and_keeps_the_rest(pool: Path, made: Path, inverse: Path) -> None:
    sources, copies = list_recordings(pool), list_recordings(made)
    assert [path.relative_to(pool) for path in sources] == [path.relative_to(made) for path in copies]
    for source, copy in zip(sources, copies, strict=True):
        before, after = read_recording(source), read_recording(copy)
        assert after.instructions == before.instructions
        assert after.metadata == before.metadata
        assert [frame.source for frame in after.frames].count(Source.USER) == 58
        assert [k for k, frame in enumerate(after.frames) if frame.source is Source.UNKNOWN] == [0, 30]
        assert (copy / "32x32.mp4").read_bytes() == (source / "32x32.mp4").read_bytes()
        sidecar = read_sidecar(copy)
        assert sidecar is not None
        assert sidecar.episode["labelled_by"]["weights_sha256"] == checkpoint.read_manifest(inverse).weights_sha256
        probability_N = sidecar.arrays["label_probability"]
        assert np.flatnonzero(np.isnan(probability_N)).tolist() == [0, 30]
        assert 0.5 < np.nanmean(probability_N) <= 1
        assert sidecar.arrays["reward"].tolist() == [0.5] * 60


def test_labelling_again_adds_what_is_new_and_refuses_to_mix_models(
    pool: Path, made: Path, inverse: Path, labelled: Path, tmp_path: Path
) -> None:
    assert _label(pool, "--model", inverse, "--out", made, "--length", 16) == 0
    assert json.loads((made / "labels.json").read_text())["made_now"] == 0
    with pytest.raises(StateError, match="labelled by another model, or with other settings"):
        _label(pool, "--model", inverse, "--out", made, "--length", 16, "--min-probability", 0.5)
    out = tmp_path / "sure"
    assert _label(pool, "--model", inverse, "--out", out, "--length", 16, "--min-probability", 1.0) == 0
    report = json.loads((out / "labels.json").read_text())
    assert report["labelled"] == 0
    assert report["accuracy"] == []


def test_what_cannot_label_or_be_labelled_is_refused(pool: Path, inverse: Path, labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSettingError, match="lie in each other"):
        _label(pool, "--model", inverse, "--out", pool / "labels")
    with pytest.raises(BadSettingError, match="windows of 2 frames"):
        Labeller(inverse, length=2)
    _, causal = _train(labelled, tmp_path / "causal", max_steps=1)
    with pytest.raises(BadSettingError, match=r"sees no future.*train p2p --inverse"):
        Labeller(causal)
    source = list_recordings(pool)[0]
    with pytest.raises(ShapeMismatchError, match=r"of \[3\] frames, wanted 60"):
        relabel(source, tmp_path / "copy", [None] * 3, change="", episode={}, columns={})
    # One broken recording does not keep the others from their labels.
    data = tmp_path / "data"
    broken = _record(data, 1)
    _record(data, 2)
    (broken / "32x32.mp4").unlink()
    assert _label(data, "--model", inverse, "--out", tmp_path / "out", "--length", 16) == 1
    report = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert (report["recordings"], len(report["failed"])) == (1, 1)


def test_pre_training_on_labels_then_fine_tuning(made: Path, labelled: Path, inverse: Path, tmp_path: Path) -> None:
    """The chain of Open P2P's three stages; the trunk may come from the inverse model alone, and stay as it is."""
    pretrained, folder = _train(made, tmp_path / "pretrained", max_steps=10, trunk_from=str(inverse))
    assert pretrained.policy.config.text_encoder == "words"  # type: ignore[union-attr]
    tuned, _ = _train(labelled, tmp_path / "tuned", max_steps=2, init_from=str(folder), freeze_trunk=True)
    trunk = {n: t for n, t in tuned.policy.state_dict().items() if n.startswith("image.trunk.")}
    assert trunk
    assert all((t == pretrained.policy.state_dict()[n]).all() for n, t in trunk.items())
    started, _ = _train(labelled, tmp_path / "frozen", max_steps=2, trunk_from=str(inverse), freeze_trunk=True)
    of_inverse = checkpoint.load(inverse)[0].state_dict()
    assert all((started.policy.state_dict()[n] == of_inverse[n]).all() for n in trunk)
    with pytest.raises(BadSettingError, match="sees with conv3, the run's policy with efficientnet_b0"):
        p2p.prepare(TrainConfig.from_json({**started.config.to_json(), "model": {**_TINY, "trunk": "efficientnet_b0"}}))


def test_a_clip_of_labels_stands_where_the_known_one_stood(made: Path, pool: Path, inverse: Path) -> None:
    """What training reads as the action of frame i is what was known of frame i."""
    policy = Labeller(inverse).policy
    ours = load_recordings(made, policy.vocabulary, frame_size=32, held_out_fraction=0.0)
    theirs = load_recordings(pool, policy.vocabulary, frame_size=32, held_out_fraction=0.0)
    for number, folder in enumerate(theirs.folders):
        other = ours.folders.index(folder)
        pairs = [
            recordings.tokens_NH[start : start + length]
            for recordings, start, length in (
                (ours, ours.starts_R[other], ours.lengths_R[other]),
                (theirs, theirs.starts_R[number], theirs.lengths_R[number]),
            )
        ]
        assert (pairs[0] == pairs[1]).all(1).mean() > 0.9


@pytest.mark.parametrize("count", [1, 5, 16, 17, 24, 60, 61])
def test_windows_cover_every_frame_with_margins_where_there_is_room(count: int) -> None:
    length = min(16, count)
    starts, margin = windows(count, length)
    owner = np.full(count, -1)
    for row, start in enumerate(starts):
        assert 0 <= start <= count - length
        owner[start + (margin if row else 0) : start + length] = row
    assert (owner >= 0).all()
    for frame, row in enumerate(owner):
        left, right = frame - starts[row], starts[row] + length - 1 - frame
        assert left >= margin or starts[row] == 0
        assert right >= margin or starts[row] + length == count


def test_an_inverse_model_learns_whatever_was_done_also_by_a_policy(tmp_path: Path) -> None:
    for _ in range(2):
        small.record(
            tmp_path / "data", 30, episodes=(12,), source=lambda n: Source.SYSTEM if n % 3 else Source.USER, size=96
        )
    values = {"data": str(tmp_path / "data"), "out": "o", "max_steps": 1, "held_out": 0.5}
    causal, inverse = (
        p2p.read(TrainConfig.from_json(p2p.settings({**values, **flags})))[0] for flags in ({}, {"inverse": True})
    )
    learnt = [np.asarray(of.learnt_N[:29]) for of in (causal, inverse)]
    # Frame i's target is what was held at frame i + 1; nothing that was done upon frame 11 led to frame 12.
    assert np.flatnonzero(learnt[0]).tolist() == [i for i in range(29) if (i + 1) % 3 == 0]
    assert np.flatnonzero(~learnt[1]).tolist() == [11]


def test_flags_of_the_recipe() -> None:
    model = p2p.settings({"inverse": True})["model"]
    assert model == {"size": "1m", "inverse": True, "past_actions": False, "text_encoder": "none"}
    assert "past_actions" not in p2p.settings({"decoder": "direct", "layers": 5})["model"]
    with pytest.raises(BadSettingError, match="give one of them"):
        p2p.settings({"trunk_weights": "a", "trunk_from": "b"})
