"""The video reader gives exactly the frame that is asked for, also with B-frames, and says where a file ends."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from playserve.errors import BadSettingError, OutOfBoundsError, ShapeMismatchError, StateError
from playserve_client.p2p.problems import BrokenRecordingError, MissingPartError, Problem
from playserve_client.p2p.video import VideoReader, VideoSettings, VideoWriter

av = pytest.importorskip("av")

SIZE = 48


def scene(number: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """A smooth picture that moves, whose mean tells which frame it is."""
    rows, columns = np.mgrid[0:height, 0:width]
    wave = 60 * np.sin((columns + 3 * number) / 9) + 40 * np.cos((rows - 2 * number) / 7)
    return np.stack([100 + wave, 90 + wave / 2, 120 - wave], axis=-1).astype(np.uint8)


def encode(path: Path, count: int, options: dict[str, str], movflags: str = "", codec: str = "libx264") -> Path:
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=20, options=options)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            picture = av.VideoFrame.from_ndarray(scene(number), format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 20)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def sequential(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


CODINGS = {
    "many B-frames": {"bf": "8", "b_strategy": "0", "g": "40", "preset": "veryfast"},
    "a pyramid of B-frames": {"bf": "5", "x264-params": "b-pyramid=normal:bframes=5:b-adapt=0", "g": "25"},
    "open groups": {"x264-params": "open-gop=1:keyint=20:bframes=3:b-adapt=0"},
    "short groups": {"g": "2", "bf": "2"},
    "one key frame": {"g": "1000", "bf": "3"},
    "key frames only": {"g": "1"},
    "no B-frames": {"bf": "0", "g": "30"},
}


@pytest.mark.parametrize("options", CODINGS.values(), ids=list(CODINGS))
def test_every_frame_is_found_exactly(tmp_path: Path, options: dict[str, str]) -> None:
    path = encode(tmp_path / "v.mp4", 90, options)
    want = sequential(path)
    assert len(want) == 90
    if "bf" in options and options["bf"] not in ("0",) and options.get("g") not in ("1", "2"):
        with av.open(str(path)) as container:
            assert any(packet.pts != packet.dts for packet in container.demux(video=0) if packet.pts is not None)
    order = np.random.default_rng(0).permutation(90)
    with VideoReader(path) as reader:
        assert (reader.num_frames, reader.declared_frames, reader.truncated) == (90, 90, False)
        assert (reader.height, reader.width, reader.fps) == (SIZE, SIZE, 20.0)
        for number in order:
            assert (reader.read(int(number), 1)[0] == want[number]).all(), number
        for start, count in ((0, 90), (88, 2), (17, 40), (18, 3), (89, 1), (5, 0)):
            assert (reader.read(start, count) == np.array(want[start : start + count]).reshape(-1, SIZE, SIZE, 3)).all()


def test_a_late_start_of_the_stream_shifts_nothing(tmp_path: Path) -> None:
    # Their files' first frame lies 4.5 ms behind the start.
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"bf": "3"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        for number in range(30):
            picture = av.VideoFrame.from_ndarray(scene(number), format="rgb24")
            picture.pts, picture.time_base = 405 + number * 4500, Fraction(1, 90_000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    want = sequential(path)
    with VideoReader(path) as reader:
        assert reader.num_frames == 30
        for number in (29, 0, 14, 15, 3):
            assert (reader.read(number, 1)[0] == want[number]).all()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.83, 0.999])
@pytest.mark.parametrize("bframes", ["0", "5"])
def test_of_a_file_that_was_cut_short_the_whole_frames_are_read(tmp_path: Path, share: float, bframes: str) -> None:
    path = encode(tmp_path / "v.mp4", 120, {"g": "30", "bf": bframes, "b_strategy": "0"}, movflags="faststart")
    want = sequential(path)
    content = path.read_bytes()
    head = content.index(b"mdat")
    path.write_bytes(content[: head + int((len(content) - head) * share)])
    with VideoReader(path) as reader:
        assert reader.truncated
        assert reader.declared_frames == 120
        assert 0 < reader.num_frames < 120
        got = reader.read(0, reader.num_frames)
        assert (got == np.array(want[: reader.num_frames])).all()  # no neighbour in the place of a lost frame
        with pytest.raises(OutOfBoundsError):
            reader.read(reader.num_frames, 1)
        assert (reader.read(reader.num_frames - 1, 1)[0] == want[reader.num_frames - 1]).all()


def test_files_that_cannot_be_opened_are_told_apart(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", 20, {})
    content = path.read_bytes()
    problems = {}
    for name, damaged in {
        "no index": content[: len(content) // 2],
        "noise": bytes(range(256)) * 40,
        "empty": b"",
        "header only": content[:40],
    }.items():
        path.write_bytes(damaged)
        with pytest.raises(BrokenRecordingError) as caught:
            VideoReader(path)
        problems[name] = caught.value.problem
    cut = Problem.UNINDEXED_VIDEO
    bad = Problem.BAD_VIDEO
    assert problems == {"no index": cut, "noise": bad, "empty": bad, "header only": cut}
    with pytest.raises(MissingPartError, match="no_video"):
        VideoReader(tmp_path / "absent.mp4")


def test_a_frame_that_cannot_be_decoded_is_an_error_of_its_own(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", 60, {"g": "20", "bf": "0", "crf": "1"})
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        place, size = packets[45].pos, packets[45].size
    content = bytearray(path.read_bytes())
    content[place : place + size] = b"\xff" * size
    path.write_bytes(bytes(content))
    with VideoReader(path) as reader:
        with pytest.raises(BrokenRecordingError, match="frame 45") as caught:
            reader.read(45, 1)
        assert caught.value.problem is Problem.BAD_VIDEO
        reader.read(0, 40)  # what lies before it is as good as ever


def test_a_video_without_pictures_is_none(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(BrokenRecordingError, match="no video stream"):
        VideoReader(path)


@pytest.mark.parametrize("encoding", ["yuv", "rgb"])
def test_what_is_written_comes_back(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "v.mp4"
    settings = VideoSettings(encoding=encoding, crf=6, keyframe_every=25)
    with VideoWriter(path, 64, SIZE, 20, settings) as writer:
        for number in range(70):
            writer.write(scene(number, SIZE, 64))
        assert writer.num_frames == 70
    with VideoReader(path, threads=2) as reader:
        assert (reader.num_frames, reader.fps) == (70, 20.0)
        for number in (69, 0, 33):
            error = np.abs(reader.read(number, 1)[0].astype(int) - scene(number, SIZE, 64)).mean()
            assert error < (4 if encoding == "yuv" else 2)
            other = np.abs(reader.read(number, 1)[0].astype(int) - scene(number + 2, SIZE, 64)).mean()
            assert other > 3 * error
    with av.open(str(path)) as container:
        shown = sorted(packet.pts * packet.time_base for packet in container.demux(video=0) if packet.pts is not None)
    assert {b - a for a, b in itertools.pairwise(shown)} == {Fraction(1, 20)}


@pytest.mark.parametrize("encoding", ["yuv", "rgb"])
def test_equal_frames_are_equal_files(tmp_path: Path, encoding: str) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (12, 12, 12, 3)).astype(np.uint8)
    frames = colours.repeat(16, axis=1).repeat(16, axis=2)  # hard edges, 192 x 192
    files = set()
    for number in range(4):
        path = tmp_path / f"{number}.mp4"
        with VideoWriter(path, 192, 192, settings=VideoSettings(encoding=encoding, crf=12)) as writer:
            for frame in frames:
                writer.write(frame)
        files.add(path.read_bytes())
    assert len(files) == 1


def test_lossless_rgb_is_lossless(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 15, 17, 3), dtype=np.uint8)
    with VideoWriter(tmp_path / "v.mp4", 17, 15, 17.5, VideoSettings(encoding="rgb", crf=0)) as writer:
        for frame in frames:
            writer.write(frame)
    with VideoReader(tmp_path / "v.mp4") as reader:
        assert (reader.read(0, 12) == frames).all()
        assert reader.fps == 17.5


def test_settings_are_drawn_as_theirs() -> None:
    drawn = [VideoSettings.drawn(np.random.default_rng(seed)) for seed in range(200)]
    assert {item.crf for item in drawn} == set(range(6, 18))
    assert {item.encoding for item in drawn} == {"yuv", "rgb"}
    assert {item.fastdecode for item in drawn} == {True, False}
    assert drawn[3] == VideoSettings.drawn(np.random.default_rng(3))


def test_wrong_use_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ShapeMismatchError, match="even"):
        VideoWriter(tmp_path / "v.mp4", 17, 16)
    with pytest.raises(BadSettingError):
        VideoSettings(encoding="hsv")
    writer = VideoWriter(tmp_path / "v.mp4", 16, 16)
    with pytest.raises(ShapeMismatchError):
        writer.write(np.zeros((16, 18, 3), np.uint8))
    writer.write(np.zeros((16, 16, 3), np.uint8))
    writer.close()
    writer.close()
    with pytest.raises(StateError):
        writer.write(np.zeros((16, 16, 3), np.uint8))
    reader = VideoReader(tmp_path / "v.mp4")
    reader.close()
    with pytest.raises(StateError):
        reader.read(0, 1)
