"""Recordings are written whole or not at all, and come back as they went in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from playserve.actions import DesktopAction
from playserve.errors import BadActionError, BadSettingError, ShapeMismatchError, StateError
from playserve.p2p.keys import CODE_TO_P2P
from playserve_client.p2p.problems import BrokenRecordingError, Problem
from playserve_client.p2p.recording import Source, align, list_recordings, read_recording, video_path, video_sizes
from playserve_client.p2p.sidecar import read_sidecar
from playserve_client.p2p.video import VideoReader, VideoSettings
from playserve_client.p2p.writer import RecordingWriter, uuid7

pytest.importorskip("av")

FRAME = np.zeros((16, 16, 3), np.uint8)
IDLE = DesktopAction()

entries = st.tuples(
    st.builds(
        DesktopAction,
        keys=st.frozensets(st.sampled_from(sorted(CODE_TO_P2P)), max_size=6),
        buttons=st.frozensets(st.integers(0, 4)),
        mouse_dx_px=st.integers(-3000, 3000).map(float),
        mouse_dy_px=st.integers(-3000, 3000).map(float),
        scroll=st.integers(-3, 3).map(float),
    ),
    st.sampled_from(Source),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(entries, min_size=1, max_size=6))
def test_round_trip(tmp_path: Path, played: list[tuple[DesktopAction, Source]]) -> None:
    with RecordingWriter(tmp_path, env="doom", env_subtype="basic", env_version="1", frame_size=(16, 16)) as writer:
        for action, source in played:
            writer.add(FRAME, action, source)
    recording = read_recording(writer.path)
    about = recording.metadata
    assert (about.env, about.env_subtype, about.env_version) == ("doom", "basic", "1")
    assert about.id == writer.path.name
    assert [frame.source for frame in recording.frames] == [source for _, source in played]
    for frame, (action, source) in zip(recording.frames, played, strict=True):
        assert frame.action == (IDLE if source is Source.UNKNOWN else action)
    assert recording.problems == {}
    assert video_sizes(writer.path) == [(16, 16)]


def scene(number: int) -> np.ndarray:
    rows, columns = np.mgrid[0:24, 0:32]
    return np.stack([(rows * 5 + number * 9) % 256, columns * 7, rows + columns], axis=-1).astype(np.uint8)


def test_frames_actions_instructions_and_sidecar_stay_together(tmp_path: Path) -> None:
    lossless = VideoSettings(encoding="rgb", crf=0)
    with RecordingWriter(
        tmp_path, env="doom", frame_size=(24, 32), video=lossless, full_video=True, episode={"seed": 7}
    ) as writer:
        writer.instruct("take the medkits", 0, 10)
        writer.instruct("avoid the medkits", 10, None)
        writer.instruct("never reached", 500, None)
        for k in range(25):
            full = np.full((600, 801, 3), 10 * k % 256, np.uint8)
            probes = {"reward": k / 4, "health": 100 - k, "dead": k == 24}
            writer.add(scene(k), DesktopAction(mouse_dx_px=float(k)), Source.USER, full_frame=full, sidecar=probes)
        writer.describe(goal="collect", score=3.5)
    recording = read_recording(writer.path)
    assert [(i.text, i.start_frame, i.num_frames) for i in recording.instructions] == [
        ("take the medkits", 0, 10),
        ("avoid the medkits", 10, 15),
    ]
    with VideoReader(video_path(writer.path, 24, 32)) as video:
        aligned = align(recording, video.num_frames)
        for k, frame in enumerate(video.frames()):
            assert (frame == scene(k)).all()
    assert [action.mouse_dx_px for action in aligned.actions] == list(range(1, 25))
    assert [frame.time_ns for frame in recording.frames] == [k * 50_000_000 for k in range(25)]
    with VideoReader(writer.path / "video.mp4") as original:
        assert (original.height, original.width, original.num_frames) == (480, 644, 25)  # 640.8, up to a multiple of 4
    sidecar = read_sidecar(writer.path)
    assert sidecar is not None
    assert sidecar.episode == {"seed": 7, "goal": "collect", "score": 3.5}
    assert sidecar.arrays["reward"].tolist() == [k / 4 for k in range(25)]
    assert sidecar.arrays["health"].dtype == np.int64
    assert sidecar.arrays["dead"].dtype == np.bool_


def test_a_sidecar_value_that_a_frame_lacks_is_nan(tmp_path: Path) -> None:
    with RecordingWriter(tmp_path, env="x", frame_size=(16, 16)) as writer:
        writer.add(FRAME, IDLE, Source.USER, sidecar={"a": 1})
        writer.add(FRAME, IDLE, Source.USER)
    sidecar = read_sidecar(writer.path)
    assert sidecar is not None
    np.testing.assert_array_equal(sidecar.arrays["a"], [1.0, np.nan])
    (writer.path / "sidecar.npz").write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(BrokenRecordingError) as caught:
        read_sidecar(writer.path)
    assert caught.value.problem is Problem.BAD_SIDECAR
    (writer.path / "sidecar.npz").unlink()
    assert read_sidecar(writer.path) is None


@given(st.integers(1, 5000), st.sampled_from([20.0, 17.5, 30.0, 60.0, 29.97]))
def test_the_frames_of_an_instruction_are_counted_as_theirs(count: int, fps: float) -> None:
    from playserve_client.p2p.writer import _seconds

    seconds = _seconds(count, fps)
    assert seconds == np.float32(seconds)  # what the file holds
    assert int(seconds * fps) == count


def test_embeddings_travel(tmp_path: Path) -> None:
    vector = np.random.default_rng(0).normal(size=(1, 768)).astype(np.float32)
    with RecordingWriter(tmp_path, env="x", frame_size=(16, 16)) as writer:
        writer.instruct("go", 0, 1, version="v1", embeddings={"gemma": vector})
        writer.add(FRAME, IDLE, Source.USER)
    (instruction,) = read_recording(writer.path).instructions
    assert (instruction.embeddings["gemma"] == vector).all()
    assert instruction.version == "v1"


def test_nothing_is_there_before_it_is_whole(tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path, env="x", frame_size=(16, 16))
    writer.add(FRAME, IDLE, Source.USER)
    assert list_recordings(tmp_path) == []
    assert not writer.path.exists()
    path = writer.close()
    assert list_recordings(tmp_path) == [path]
    assert writer.close() == path
    with pytest.raises(StateError):
        writer.add(FRAME, IDLE, Source.USER)


def test_a_block_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ShapeMismatchError):  # noqa: PT012
        with RecordingWriter(tmp_path, env="x", frame_size=(16, 16)) as writer:
            writer.add(FRAME, IDLE, Source.USER)
            writer.add(FRAME[1:], IDLE, Source.USER)
    with pytest.raises(StateError, match="no frame"):
        with RecordingWriter(tmp_path, env="x", frame_size=(16, 16)):
            pass
    with pytest.raises(ShapeMismatchError):
        RecordingWriter(tmp_path, env="x", frame_size=(15, 15))
    assert list(tmp_path.iterdir()) == []


CRASH = """
import sys, time, numpy as np
from pathlib import Path
from playserve.actions import DesktopAction
from playserve_client.p2p.recording import Source
from playserve_client.p2p.writer import RecordingWriter
writer = RecordingWriter(Path(sys.argv[1]), env="x", frame_size=(16, 16))
for k in range(50):
    writer.add(np.zeros((16, 16, 3), np.uint8), DesktopAction(), Source.USER)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", CRASH, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGKILL)
    assert list_recordings(tmp_path) == []
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]


def test_wrong_use_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadSettingError, match="frames a second"):
        RecordingWriter(tmp_path, env="x", fps=0)
    with RecordingWriter(tmp_path, env="x", frame_size=(16, 16), full_video=True) as writer:
        with pytest.raises(ShapeMismatchError, match="full_frame"):
            writer.add(FRAME, IDLE, Source.USER)
        with pytest.raises(ShapeMismatchError, match="full frame"):
            writer.add(FRAME, IDLE, Source.USER, full_frame=np.zeros((32, 32, 4), np.uint8))
        full = np.zeros((32, 32, 3), np.uint8)
        with pytest.raises(ShapeMismatchError):
            writer.add(np.zeros((16, 17, 3), np.uint8), IDLE, Source.USER, full_frame=full)
        with pytest.raises(BadActionError):
            writer.add(FRAME, DesktopAction(mouse_dx_px=float("nan")), Source.USER, full_frame=full)
        with pytest.raises(BadActionError, match="buttons"):
            writer.add(FRAME, DesktopAction(buttons=frozenset({9})), Source.USER, full_frame=full)
        with pytest.raises(BadSettingError, match="instruction"):
            writer.instruct("", 0, 1)
        writer.add(FRAME, IDLE, Source.USER, time_ns=5, full_frame=full)
        with pytest.raises(BadSettingError, match="frame time"):
            writer.add(FRAME, IDLE, Source.USER, time_ns=5, full_frame=full)
        assert writer.num_frames == 1  # what was refused left nothing behind
    recording = read_recording(writer.path)
    with VideoReader(video_path(writer.path, 16, 16)) as video:
        assert video.num_frames == len(recording.frames) == 1


def test_identifiers_sort_by_time() -> None:
    early, late = uuid7(datetime(2026, 1, 1, tzinfo=UTC)), uuid7(datetime(2026, 1, 2, tzinfo=UTC))
    assert early < late
    assert early.version == 7
    assert str(early.variant) == "specified in RFC 4122"
    assert len({uuid7() for _ in range(100)}) == 100
