from __future__ import annotations

import bz2
import dataclasses
import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve_client.nethack.tty import TtyChunk
from playserve_client.terminal.frames import BLOCK, FrameStore
from playserve_client.terminal.open import list_games, open_game, split_target
from playserve_client.terminal.recording import ChunkRecording, ReplayedRecording, best_excerpt, to_chunk

pytest.importorskip("nle")

from playserve_client.terminal.ttyrec import Ttyrec


def records(*parts: tuple[int, bytes] | bytes) -> bytes:
    """Return ttyrec bytes: of (channel, bytes) in versions 2 and 3, of bytes in version 1."""
    packed = b""
    for part in parts:
        channel, data = part if isinstance(part, tuple) else (None, part)
        packed += struct.pack("<iii", 1, 2, len(data)) + (b"" if channel is None else bytes([channel])) + data
    return packed


def test_frames_are_what_the_player_saw(recorded: Any) -> None:
    recording, truth = Ttyrec(recorded.path), recorded.truth
    assert len(recording) == len(truth)
    assert recording.problem == ""
    for step in range(len(truth)):
        screen = recording.screen(step)
        np.testing.assert_array_equal(screen.chars, truth.chars[step])
        np.testing.assert_array_equal(screen.colors, truth.colors[step])
        assert screen.cursor == tuple(truth.cursor[step])
        assert recording.key(step) == truth.keys[step]


def test_seeking_equals_reading_in_order(recorded: Any) -> None:
    in_order, seeking = Ttyrec(recorded.path), Ttyrec(recorded.path)
    expected = [in_order.screen(step) for step in range(len(in_order))]
    for step in np.random.default_rng(0).permutation(len(seeking)).tolist():
        screen = seeking.screen(step)
        np.testing.assert_array_equal(screen.chars, expected[step].chars)
        np.testing.assert_array_equal(screen.colors, expected[step].colors)
        assert screen.cursor == expected[step].cursor


def test_a_frame_that_is_not_there(recorded: Any) -> None:
    recording = Ttyrec(recorded.path)
    for step in (-1, len(recording)):
        with pytest.raises(IndexError):
            recording.screen(step)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_a_truncated_file_is_read_as_far_as_it_is_whole(
    recorded: Any, tmp_path: Path, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    data = bz2.decompress(recorded.path.read_bytes())
    path = tmp_path / "cut.ttyrec3.bz2"
    path.write_bytes(bz2.compress(data[: int(len(data) * share)]))
    recording = Ttyrec(path)
    assert "cut off" in recording.problem
    assert 0 < len(recording) < len(recorded.truth)
    last = len(recording) - 1
    np.testing.assert_array_equal(recording.screen(last).chars, recorded.truth.chars[last])
    assert recording.key(last) == recorded.truth.keys[last]
    assert capfd.readouterr().err == ""  # NLE's converter would have written into the viewer's screen


def test_damaged_packing_is_named(recorded: Any, tmp_path: Path) -> None:
    path = tmp_path / "damaged.ttyrec3.bz2"
    # Two streams: the first is whole, the second is not.
    data = bz2.decompress(recorded.path.read_bytes())
    second = bytearray(bz2.compress(data[len(data) // 2 :]))
    second[len(second) // 2] ^= 255
    path.write_bytes(bz2.compress(data[: len(data) // 2]) + second)
    recording = Ttyrec(path)
    assert "bz2 damaged at byte" in recording.problem
    step = len(recording) - 1
    assert step > 100
    np.testing.assert_array_equal(recording.screen(step).chars, recorded.truth.chars[step])


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, lambda data: bz2.compress(data[:999]) + bz2.compress(data[999:])]
)
def test_other_packings(recorded: Any, tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "game.ttyrec3"
    path.write_bytes(pack(bz2.decompress(recorded.path.read_bytes())))
    recording = Ttyrec(path)
    assert (len(recording), recording.problem) == (len(recorded.truth), "")
    np.testing.assert_array_equal(recording.screen(499).chars, recorded.truth.chars[499])


@pytest.mark.parametrize("name", ["x.ttyrec.bz2", "x.recording"])
def test_version_1_has_a_frame_a_record_and_no_keys(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(bz2.compress(records(b"hello", b"\x1b[2;3H\x1b[1;31mworld", b"\x1b(0lqk\x1b(B!")))
    recording = Ttyrec(path)
    assert len(recording) == 3
    assert recording.screen(1).text().split("\n")[:2] == ["hello", "  world"]
    assert recording.screen(1).colors[1, 2] == 9
    assert recording.screen(2).lines()[1].startswith("  world---!")  # line drawing, as NLE shows it
    assert recording.key(0) is None
    assert recording.score(0) is None


def test_a_key_that_ends_the_file_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "x.ttyrec3.bz2"
    path.write_bytes(bz2.compress(records((0, b"a"), (2, b"\x05\0\0\0"), (1, b"k"), (0, b"b"), (1, b"\x1b"))))
    recording = Ttyrec(path)
    assert [recording.key(step) for step in range(len(recording))] == [ord("k"), 27]
    assert [recording.screen(step).text().strip() for step in range(2)] == ["a", "ab"]
    assert recording.score(0) == 5


@pytest.mark.parametrize("data", [b"", b"hello" * 50, bz2.compress(b""), bz2.compress(b"no ttyrec" * 20)])
def test_what_is_no_ttyrec_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.ttyrec3.bz2"
    path.write_bytes(data)
    with pytest.raises(DataLossError, match="no whole frame"):
        Ttyrec(path)


def test_no_damage_ends_otherwise_than_in_words(
    recorded: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    raw, packed = bz2.decompress(recorded.path.read_bytes()), recorded.path.read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / "x.ttyrec3.bz2"
    read = 0
    for _ in range(60):
        damaged = bytearray([raw, packed][random.integers(2)])
        for place in random.integers(len(damaged), size=random.choice([1, 3, 100])).tolist():
            damaged[place] = random.integers(256)
        del damaged[random.integers(len(damaged) // 2, 2 * len(damaged)) :]
        path.write_bytes(bytes(damaged) if damaged[:3] == b"BZh" else bz2.compress(bytes(damaged), 1))
        try:
            recording = Ttyrec(path)
        except DataLossError:
            continue
        while recording.read_ahead():
            pass
        assert recording.ready == len(recording)
        assert recording.screen(len(recording) - 1).text().replace("\n", "").isprintable()
        read += 1
    assert read > 10
    assert capfd.readouterr().err == ""


def test_frames_are_stored_as_changes() -> None:
    random = np.random.default_rng(1)
    chars = np.full((3 * BLOCK + 5, 24, 80), 32, np.uint8)
    colors = np.zeros(chars.shape, np.int8)
    for step in range(1, len(chars)):
        chars[step], colors[step] = chars[step - 1], colors[step - 1]
        row, column = random.integers(24), random.integers(80)
        chars[step, row, column], colors[step, row, column] = random.integers(33, 127), random.integers(16)
    cursor = random.integers(0, 24, (len(chars), 2))
    store = FrameStore()
    store.append(chars[:BLOCK], colors[:BLOCK], cursor[:BLOCK])
    store.append(chars[BLOCK:], colors[BLOCK:], cursor[BLOCK:])
    assert len(store) == len(chars)
    for step in random.permutation(len(chars)).tolist():
        screen = store.screen(step)
        np.testing.assert_array_equal(screen.chars, chars[step])
        np.testing.assert_array_equal(screen.colors, colors[step])
        assert screen.cursor == tuple(cursor[step])
    with pytest.raises(ValueError, match="after a block of 5"):
        store.append(chars, colors, cursor)


def test_games_of_a_folder(recorded: Any, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nle.1.0.ttyrec3.bz2").write_bytes(recorded.path.read_bytes())
    (tmp_path / "two" / "nle.1.xlogfile").write_text(
        "version=3.6.7\tpoints=12\trole=Mon\tdeath=killed by a newt\tttyrecname=nle.1.0.ttyrec3.bz2\n"
    )
    entries = list_games(tmp_path)
    assert [entry.name for entry in entries] == ["one/nle.1.0", "two/nle.1.0"]
    assert entries[1].facts == {"score": "12", "end": "killed by a newt", "character": "mon"}
    assert open_game(tmp_path, "two").name == "two/nle.1.0"
    with pytest.raises(BadSettingError, match="2 games"):
        open_game(tmp_path, "nle.1.0")
    with pytest.raises(NotFoundError, match="no game 'three'"):
        open_game(tmp_path, "three")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="no recorded game"):
        open_game(tmp_path / "empty")
    with pytest.raises(NotFoundError):
        open_game(tmp_path / "nothing")
    assert split_target(f"{tmp_path}#two") == (tmp_path, "two")
    assert split_target(str(recorded.path)) == (recorded.path, "")


def test_games_of_shards(recorded: Any, tmp_path: Path) -> None:
    from playserve_client.nethack.shards import GameMeta, ShardWriter

    writer = ShardWriter(tmp_path)
    for name in ("seed-1", "seed-2"):
        writer.begin(GameMeta(name=name, character="mon-hum-neu-mal", source="keys", score=0, steps=500, end="stopped"))
        writer.append(recorded.truth)
        writer.end()
    writer.close()
    assert [entry.name for entry in list_games(tmp_path)] == ["seed-1", "seed-2"]
    recording = open_game(tmp_path, "seed-2")
    assert recording.facts["end"] == "stopped"
    for step in (499, 0, 130, 127, 128):
        screen = recording.screen(step)
        np.testing.assert_array_equal(screen.chars, recorded.truth.chars[step])
        np.testing.assert_array_equal(screen.colors, recorded.truth.colors[step])
        assert recording.key(step) == recorded.truth.keys[step]
        assert recording.score(step) == 0


def test_games_of_keys_are_played_again() -> None:
    pytest.importorskip("pyarrow")
    from playserve_client.nethack.games import read_games
    from playserve_client.nethack.replay import replay_game

    path, name = split_target("expert#20001")
    (game,) = (game for game in read_games(path) if game.name.endswith(name))
    recording = open_game(path, name)
    assert (len(recording), recording.name) == (game.steps, game.name)
    chunks = replay_game(game, chunk=300)
    truth = next(chunks)
    chunks.close()
    for step in (299, 0, 128, 127):
        np.testing.assert_array_equal(recording.screen(step).chars, truth.chars[step])
        assert (recording.key(step), recording.score(step)) == (truth.keys[step], truth.scores[step])


def test_a_game_that_does_not_come_out_as_recorded_is_damaged() -> None:
    pytest.importorskip("pyarrow")
    from playserve_client.nethack.games import carried_games, read_games

    game = read_games(carried_games())[0]
    recording = ReplayedRecording(dataclasses.replace(game, keys=game.keys[:200], steps=200, score=-1))
    assert recording.key(127) == game.keys[127]
    with pytest.raises(IndexError):
        recording.screen(199)
    assert len(recording) == 128
    assert "score" in recording.problem
    short = ReplayedRecording(dataclasses.replace(game, keys=game.keys[:20], steps=20, score=-1))
    with pytest.raises(DataLossError, match=r"not one whole frame: .*score"):
        short.screen(0)


def test_a_chunk_is_a_recording_and_back(recorded: Any) -> None:
    truth: TtyChunk = recorded.truth
    chunk = to_chunk(ChunkRecording(truth, name="x"), 100, 200)
    np.testing.assert_array_equal(chunk.chars, truth.chars[100:200])
    np.testing.assert_array_equal(chunk.keys, truth.keys[100:200])
    with pytest.raises(BadSettingError, match="frames 100 to 501 of x"):
        to_chunk(ChunkRecording(truth, name="x"), 100, 501)


def test_the_best_excerpt_is_where_the_score_grows_most() -> None:
    scores = np.array([0, 0, 5, 5, 5, 20, 21, 21, 0, 0], np.int32)
    assert best_excerpt(scores, 3) == (4, 7)
    assert best_excerpt(scores, 10) == (0, 10)
    assert best_excerpt(np.zeros(10, np.int32), 4) == (0, 4)
