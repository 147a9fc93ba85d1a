"""A frame captured live and the same out of a recording: one tensor up to the codec's error; and what that does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_recordings as small
import torch

from playserve.actions import DesktopAction
from playserve.cli import main
from playserve.p2p.vocabulary import OPEN_P2P, MouseDecode
from playserve.resize import HAMMING_V1, resize
from playserve_client.p2p.recording import Source
from playserve_client.p2p.video import VideoSettings
from playserve_client.p2p.writer import RecordingWriter
from playserve_trainer import checkpoint
from playserve_trainer.checkpoint import Manifest
from playserve_trainer.data.gap import LiveClip, measure_gap, play_live, read_back
from playserve_trainer.data.p2p import load_recordings
from playserve_trainer.data.p2p_clips import ClipOrder, Clips, ClipSet
from playserve_trainer.data.p2p_frames import VideoFrames
from playserve_trainer.models.p2p import P2PPolicy, config_of_size

_SIZE, _T = 64, 12
Frames = np.ndarray[Any, np.dtype[np.uint8]]


def _screen(number: int) -> Frames:
    """Return a screen 160 x 120 with edges, colours and something that moves."""
    y, x = np.mgrid[0:120, 0:160]
    screen = np.stack([x * 255 // 160, y * 255 // 120, np.full_like(x, 60)], -1).astype(np.uint8)
    screen[20 + number : 50 + number, 30 + 4 * number : 60 + 4 * number] = (230, 40, 30)
    screen[80:90, ::2] = (20, 220, 120)
    return screen


def _live() -> Frames:
    """Return what a client sends: the screen by the one resize."""
    return np.stack([resize(_screen(number), _SIZE, _SIZE, HAMMING_V1) for number in range(_T)])


@pytest.mark.parametrize(("encoding", "mean", "most"), [("rgb", 1.5, 30), ("yuv", 8.0, 160)])
def test_a_frame_live_and_out_of_a_recording_is_the_same_tensor(
    tmp_path: Path, encoding: str, mean: float, most: int
) -> None:
    live = _live()
    settings = VideoSettings(encoding=encoding, crf=6)
    with RecordingWriter(tmp_path, env="toy", frame_size=(_SIZE, _SIZE), video=settings) as writer:
        for number, frame in enumerate(live):
            writer.add(frame, small.action_at(number), Source.USER)
    recordings = load_recordings(tmp_path, OPEN_P2P, frame_size=_SIZE, held_out_fraction=0.0)
    order = ClipOrder(recordings, np.array([0]), _T - 1, 0, moving=False)
    source = Clips([ClipSet(recordings, VideoFrames(recordings), order)], batch_size=1, sequence_length=_T - 1, seed=0)
    trained = source.batch(0).inputs["frame"][0]
    assert trained.shape == (_T - 1, _SIZE, _SIZE, 3)  # what play feeds: uint8 RGB, rows first
    assert trained.dtype == torch.uint8
    error = (trained.int() - torch.from_numpy(live[:-1]).int()).abs()
    assert float(error.float().mean()) < mean
    assert int(error.max()) <= most
    # No neighbour of it, and not its mirror or with red and blue exchanged, is as near.
    flat = error.float().mean()
    for wrong in (live[1:], live[:-1, :, ::-1], live[:-1, ::-1], live[:-1, ..., ::-1]):
        assert (trained.int() - torch.from_numpy(wrong.copy()).int()).abs().float().mean() > 1.2 * flat
    losslessly = read_back(live, VideoSettings(encoding="rgb", crf=0))
    assert (losslessly == live).all()


@pytest.fixture(scope="module")
def policy() -> P2PPolicy:
    torch.manual_seed(0)
    changes: dict[str, Any] = {
        "layers": 1, "width": 32, "heads": 2, "decoder_layers": 1, "decoder_heads": 2, "frame_size": _SIZE,
        "history": (8,), "text_encoder": "words", "text_width": 16,
    }  # fmt: skip
    policy = P2PPolicy(config_of_size("1m", **changes))
    with torch.no_grad():  # an untrained policy hardly looks at the frame
        policy.image.norm.weight *= 20
    policy.eval()
    return policy


def test_the_gap_lies_between_nothing_and_other_frames(policy: P2PPolicy) -> None:
    tokens = np.array([OPEN_P2P.encode(small.action_at(number)) for number in range(_T)], np.int64)
    clips = [LiveClip(_live(), tokens, "go"), LiveClip(255 - _live(), tokens)]
    encodings = [VideoSettings(encoding=name, crf=crf) for name, crf in (("rgb", 0), ("rgb", 12), ("yuv", 12))]
    gaps = {(g.frames, g.crf, g.augmented): g for g in measure_gap(policy, clips, encodings, draws=2)}
    assert len(gaps) == 8
    lossless, other = gaps["rgb", 0, False], gaps["other", None, False]
    assert (lossless.pixel_error, lossless.kl, lossless.changed) == (0.0, 0.0, 0.0)
    assert 0 < gaps["rgb", 12, False].kl < other.kl
    assert gaps["yuv", 12, False].pixel_error > gaps["rgb", 12, False].pixel_error > 0
    assert gaps["rgb", 0, True].kl == pytest.approx(gaps["live", None, True].kl)
    assert gaps["live", None, True].pixel_error > 0
    assert other.of_other == 1.0
    assert gaps["yuv", 12, False].of_other == pytest.approx(gaps["yuv", 12, False].kl / other.kl)
    for gap in gaps.values():
        assert sum(gap.kl_by_group.values()) == pytest.approx(gap.kl)
        assert 0 <= gap.changed <= 1
    again = measure_gap(policy, clips, encodings, draws=2)
    assert again == list(gaps.values())


class _Room:
    """A room that shows how far the mouse was moved; an episode is five frames."""

    def __init__(self) -> None:
        self.said: list[DesktopAction] = []

    def reset(self, *, seed: int | None = None) -> tuple[dict[str, Frames], dict[str, Any]]:
        self._left = 5
        return self._seen(), {"instruction": "go left"}

    def step(self, action: DesktopAction) -> tuple[dict[str, Frames], float, bool, bool, dict[str, Any]]:
        self._left -= 1
        self.said.append(action)
        return self._seen(), 0.0, self._left == 0, False, {}

    def _seen(self) -> dict[str, Frames]:
        return {"frame": np.full((_SIZE, _SIZE, 3), 10 * self._left + len(self.said), np.uint8)}


def test_a_live_clip_is_what_the_policy_saw_and_did(policy: P2PPolicy) -> None:
    room = _Room()
    clip = play_live(policy, room, 12, seed=3)  # type: ignore[arg-type]
    assert clip.text == "go left"
    assert clip.frames_TSS3.shape == (12, _SIZE, _SIZE, 3)
    for action, tokens in zip(room.said, clip.tokens_TH.tolist(), strict=True):
        assert action.keys == policy.vocabulary.decode(tokens, MouseDecode.MEAN).keys
    again = play_live(policy, _Room(), 12, seed=3)  # type: ignore[arg-type]
    assert (again.tokens_TH == clip.tokens_TH).all()
    assert [int(frame[0, 0, 0]) for frame in clip.frames_TSS3][:6] == [50, 41, 32, 23, 14, 55]


def test_the_command_reads_recordings_and_writes_every_number(
    policy: P2PPolicy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tmp_path / "checkpoint", policy, Manifest.describe(policy))
    with RecordingWriter(tmp_path / "data", env="toy", frame_size=(_SIZE, _SIZE), full_video=True) as writer:
        for number, frame in enumerate(_live()):
            writer.add(frame, small.action_at(number), Source.USER, full_frame=_screen(number))
        writer.instruct("go left", 0, None)
    command = ["data", "gap", "--recordings", str(tmp_path / "data"), "--length", "8", "--crf", "6,17"]
    where = ["--json", str(tmp_path / "gap.json"), "--checkpoint", f"first={tmp_path / 'checkpoint'}"]
    assert main([*command, *where, "--draws", "1"]) == 0
    value = json.loads((tmp_path / "gap.json").read_text())
    assert [(gap["frames"], gap["crf"], gap["augmented"]) for gap in value["policies"]["first"]] == [
        ("live", None, True), ("rgb", 6, False), ("rgb", 6, True), ("rgb", 17, False), ("rgb", 17, True),
        ("yuv", 6, False), ("yuv", 6, True), ("yuv", 17, False), ("yuv", 17, True),
    ]  # fmt: skip
    assert "KL" in capsys.readouterr().out
    assert main([*command[:4], "--length", "50", *where]) == 2
    assert "no recording of 50 frames" in capsys.readouterr().err
    assert main([*command[:4], "--crf", "good", *where]) == 2
    assert "whole numbers" in capsys.readouterr().err
