"""Annotations become frames, masks, instructions and chunks as Open P2P reads them; what is broken has a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import p2p_bytes as raw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from playserve.actions import DesktopAction
from playserve.errors import DataLossError, NotFoundError
from playserve_client.p2p.problems import BrokenRecordingError, MissingPartError, Problem, problem_of
from playserve_client.p2p.recording import (
    Chunk,
    Recording,
    Source,
    align,
    chunks,
    last_shuffle_start,
    list_recordings,
    read_recording,
    video_sizes,
)


def store(folder: Path, frames: list[bytes], **settings: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "annotation.proto").write_bytes(raw.annotation(frames, **settings))  # type: ignore[arg-type]
    return folder


def user(*keys: str, delta: tuple[int, int] = (0, 0)) -> bytes:
    return raw.low_level_action(keys, (), delta)


def times(entries: list[dict[str, object]]) -> list[bytes]:
    return [raw.frame(**entry, time_ns=130_000_000 + 50_000_000 * k) for k, entry in enumerate(entries)]  # type: ignore[arg-type]


def numbered(count: int, **first: object) -> list[bytes]:
    """Frames of a user whose motion in entry k is k pixels."""
    return times([{"user": user(delta=(k, 0)), **(first if k == 0 else {})} for k in range(count)])


def test_a_frame_is_read_from_hand_made_bytes(tmp_path: Path) -> None:
    action = raw.low_level_action(("w", "LeftShift", "ctrl"), ("0", "1"), (-322, 7))
    recording = read_recording(store(tmp_path / "a", times([{"user": action}]), env="Roblox", subtype="Hypershot"))
    assert recording.metadata.env == "Roblox"
    assert recording.metadata.env_subtype == "Hypershot"
    assert (recording.metadata.fps, recording.version, recording.problems) == (20.0, 5, {})
    (frame,) = recording.frames
    assert frame.action == DesktopAction(
        keys=frozenset({"KeyW", "ShiftLeft", "ControlLeft"}),
        buttons=frozenset({0, 2}),  # their "1" is right, the W3C's 2
        mouse_dx_px=-322.0,
        mouse_dy_px=7.0,
    )
    assert (frame.source, frame.time_ns, frame.unknown_keys) == (Source.USER, 130_000_000, ())


def test_the_target_of_a_frame_is_the_next_entry(tmp_path: Path) -> None:
    aligned = align(read_recording(store(tmp_path / "a", numbered(5))), 5)
    assert [action.mouse_dx_px for action in aligned.actions] == [1, 2, 3, 4]
    assert [action.mouse_dx_px for action in aligned.executed] == [0, 1, 2, 3]
    assert len(aligned) == 4
    assert aligned.loss_mask.tolist() == [True] * 4


def test_masks_of_a_takeover_recording(tmp_path: Path) -> None:
    """The policy plays, the human takes over, nobody knows, the policy goes on."""
    entries = [
        {"system": user("w")},
        {"system": user("w")},
        {"user": user("a")},
        {"user": user("a")},
        {},
        {"user": raw.low_level_action(("s",), known=False)},
        {"system": user("d")},
        {"user": user("q"), "system": user("z")},
    ]
    recording = read_recording(store(tmp_path / "a", times(entries)))
    kinds = [frame.source for frame in recording.frames]
    known, unknown = [Source.SYSTEM, Source.USER], Source.UNKNOWN
    assert kinds == [known[0], known[0], known[1], known[1], unknown, unknown, known[0], known[0]]
    assert recording.problems == {Problem.BOTH_KNOWN: 1}
    aligned = align(recording, 8)
    # Place i is the target of frame i: entry i + 1.
    assert aligned.user_mask.tolist() == [False, True, True, False, False, False, False]
    assert aligned.system_mask.tolist() == [True, False, False, False, False, True, True]
    assert aligned.loss_mask.tolist() == aligned.user_mask.tolist()
    # A policy's actions stay as history, the unknown ones read as idle, and of two known ones the system's counts.
    assert [sorted(action.keys) for action in aligned.actions] == [
        ["KeyW"], ["KeyA"], ["KeyA"], [], [], ["KeyD"], ["KeyZ"]
    ]  # fmt: skip


@pytest.mark.parametrize("video_frames", [3, 5, 9, 0])
def test_where_lengths_differ_what_both_have_is_used(tmp_path: Path, video_frames: int) -> None:
    aligned = align(read_recording(store(tmp_path / "a", numbered(5))), video_frames)
    assert len(aligned) == max(0, min(5, video_frames) - 1)
    assert len(aligned.user_mask) == len(aligned.instruction) == len(aligned.valid) == len(aligned)


def test_names_that_nobody_knows_are_named(tmp_path: Path) -> None:
    action = raw.low_level_action(("w", "HyperKey"), ("0", "9"))
    recording = read_recording(store(tmp_path / "a", times([{"user": action}, {"user": action}])))
    assert recording.frames[0].unknown_keys == ("HyperKey", "button 9")
    assert recording.frames[0].action.keys == {"KeyW"}
    assert recording.problems == {Problem.UNKNOWN_KEYS: 2}


def test_an_instruction_runs_on_across_chunks(tmp_path: Path) -> None:
    texts = (raw.text("find the key", 15.0),)  # 300 frames: one and a half chunks
    frames = numbered(500, texts=texts)
    late = raw.frame(user(), time_ns=10**12, texts=(raw.text("open the door", 2.0),))
    recording = read_recording(store(tmp_path / "a", [*frames, late]))
    assert [(i.text, i.start_frame, i.num_frames) for i in recording.instructions] == [
        ("find the key", 0, 300),
        ("open the door", 500, 1),  # cut where the recording ends
    ]
    aligned = align(recording, 501)
    cut = chunks(len(aligned))
    assert [(chunk.start, chunk.valid) for chunk in cut] == [(0, 200), (200, 200), (400, 100)]
    in_force = [aligned.instruction[chunk.entry_index()][chunk.valid_mask()] for chunk in cut]
    assert (in_force[0] == 0).all()
    assert in_force[1].tolist() == [0] * 100 + [-1] * 100  # their loader would have seen no text here
    assert (in_force[2] == -1).all()


def test_the_newest_instruction_counts_and_phrasings_stay_together(tmp_path: Path) -> None:
    frames = numbered(6, texts=(raw.text("go on", 1.0), raw.text("carry on", 1.0, version="other")))
    frames[2] = raw.frame(user(), time_ns=10**12, texts=(raw.text("stop", 0.1),))
    recording = read_recording(store(tmp_path / "a", frames))
    assert [i.text for i in recording.instructions] == ["go on", "carry on", "stop"]
    assert recording.instruction_index().tolist() == [0, 0, 2, 2, 0, 0]
    assert recording.problems == {Problem.BAD_TIMES: 1}


def test_stored_embeddings_are_read(tmp_path: Path) -> None:
    version = "gemini-2.5-flash"
    values = [float(i) for i in range(768)]
    good = raw.text("a", 1, extra=raw.embedding(version, "gemma", (1, 768), values))
    other = raw.text("b", 1, extra=raw.embedding("older", "gemma", (1, 768), values))
    bad = raw.text("c", 1, extra=raw.embedding(version, "gemma", (1, 767), values))
    recording = read_recording(store(tmp_path / "a", numbered(2, texts=(good, other, bad))))
    with_values, of_another_version, damaged = recording.instructions
    assert with_values.embeddings["gemma"].shape == (1, 768)
    assert with_values.embeddings["gemma"].dtype == np.float32
    assert with_values.embeddings["gemma"][0].tolist() == values
    assert not of_another_version.embeddings
    assert not damaged.embeddings
    assert recording.problems == {Problem.BAD_EMBEDDING: 1}


def test_an_instruction_without_duration_is_left_out_and_counted(tmp_path: Path) -> None:
    recording = read_recording(
        store(tmp_path / "a", numbered(3, texts=(raw.text("x", 0.0), raw.text("", 1.0), raw.text("y", float("nan")))))
    )
    assert recording.instructions == ()
    assert recording.problems == {Problem.BAD_INSTRUCTION: 3}


@pytest.mark.parametrize(
    ("content", "problem", "kind"),
    [
        (None, Problem.NO_ANNOTATION, NotFoundError),
        (b"\xff\xff\xff", Problem.BAD_ANNOTATION, DataLossError),
        (b"", Problem.NO_FRAMES, DataLossError),
        (raw.annotation(numbered(3))[:-9], Problem.BAD_ANNOTATION, DataLossError),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, content: bytes | None, problem: Problem, kind: type[Exception]
) -> None:
    if content is not None:
        (tmp_path / "annotation.proto").write_bytes(content)
    with pytest.raises(kind, match=problem.value) as caught:
        read_recording(tmp_path)
    assert isinstance(caught.value, BrokenRecordingError | MissingPartError)
    assert problem_of(caught.value) is problem
    assert problem_of(ValueError()) is None


@given(st.data())
def test_any_bytes_are_read_or_refused_by_name(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    told = raw.text("go", 1.0, extra=raw.embedding("gemini-2.5-flash", "gemma", (1, 3), [0.5, 1.0, 2.0]))
    content = bytearray(raw.annotation(numbered(4, texts=(told,))))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    (folder / "annotation.proto").write_bytes(bytes(content))
    try:
        recording = read_recording(folder)
    except BrokenRecordingError as error:
        refused = error.problem
        assert refused in (Problem.BAD_ANNOTATION, Problem.NO_FRAMES)
        return
    assert len(align(recording, 4)) == min(4, len(recording.frames)) - 1


def test_recordings_are_found_and_unfinished_ones_are_not(tmp_path: Path) -> None:
    for name in ("b", "a/deep", ".c.part"):
        store(tmp_path / name, numbered(1))
    (tmp_path / "empty").mkdir()
    assert list_recordings(tmp_path) == [tmp_path / "a/deep", tmp_path / "b"]
    assert list_recordings(tmp_path / "b") == [tmp_path / "b"]
    for name in ("192x192.mp4", "96x128.mp4", "video.mp4"):
        (tmp_path / "b" / name).touch()
    assert video_sizes(tmp_path / "b") == [(96, 128), (192, 192)]


@given(st.integers(0, 900), st.integers(1, 300), st.integers(1, 300), st.integers(0, 299))
def test_chunks_cover_every_frame(total: int, length: int, stride: int, start: int) -> None:
    cut = chunks(total, length, stride, start=start)
    seen = {int(i) for chunk in cut for i in chunk.entry_index()[chunk.valid_mask()]}
    if stride <= length:
        assert seen == set(range(start, total))
    for chunk in cut:
        frames, valid = chunk.frame_index(), chunk.valid_mask()
        assert len(frames) == len(valid) == length
        assert (frames[valid] == chunk.entry_index()[valid]).all()
        assert (frames[~valid] == total).all()  # of total + 1 frames the last one, which has no target
        assert 1 <= chunk.valid <= length


def test_chunks_of_nothing_but_a_policy_are_left_out() -> None:
    mask = np.array([True] * 10 + [True] * 9 + [False] + [True] * 5)
    assert chunks(25, 10, 10, system_mask=mask) == [Chunk(10, 10, 10)]
    assert len(chunks(25, 10, 10)) == 3
    with pytest.raises(ValueError, match="chunks"):
        chunks(5, 0)


@pytest.mark.parametrize(("frames", "last"), [(1000, 199), (300, 99), (201, 0), (50, 0), (0, 0)])
def test_shuffled_visits_begin_where_theirs_do(frames: int, last: int) -> None:
    assert last_shuffle_start(frames) == last


def test_fps_that_makes_no_sense_is_theirs(tmp_path: Path) -> None:
    recording: Recording = read_recording(store(tmp_path / "a", numbered(1), fps=0.0))
    assert recording.metadata.fps == 20.0
