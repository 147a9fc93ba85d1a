"""The viewer in a real pseudo-terminal: keys go in, and what the terminal then shows is compared with the game."""

from __future__ import annotations

import bz2
import signal
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playserve_client.nethack.tty import TtyChunk
from playserve_client.terminal.player import SPEEDS, Player, status_text
from playserve_client.terminal.recording import ChunkRecording

pytest.importorskip("nle")
pytest.importorskip("curses")

UP, DOWN, RIGHT, LEFT = b"\x1b[A", b"\x1b[B", b"\x1b[C", b"\x1b[D"
HOME = b"\x1b[H"  # what TERM=ansi calls it


def at(step: int) -> Callable[[list[str]], bool]:
    return lambda lines: any(f"step {step} of" in line for line in lines)


def shows(recorded: Any, lines: list[str], step: int) -> bool:
    return [line.rstrip() for line in lines[:24]] == [line.rstrip() for line in recorded.lines(step)]


def test_keys_show_the_right_step_and_the_terminal_is_left_as_it_was(recorded: Any, pseudo_terminal: Any) -> None:
    terminal = pseudo_terminal("replay", str(recorded.path), "--start", "100")
    lines = terminal.wait_for(at(100))
    assert shows(recorded, lines, 100)
    assert lines[24].startswith("paused  | step 100 of 499 | next key ")
    assert "space play/pause" in lines[25]
    for keys, step in [
        (RIGHT, 101),
        (RIGHT * 3, 104),
        (LEFT, 103),
        (b"g250\r", 250),
        (b"g12\x7f7\r", 17),
        (b"g9999\r", 499),
        (HOME, 0),
        (LEFT, 0),
        (b"g42\x1b", 0),
        (b"g130\r", 130),
    ]:
        terminal.send(keys)
        lines = terminal.wait_for(lambda lines, step=step: at(step)(lines) and "paused" in lines[24])
        assert shows(recorded, lines, step), (keys, step)
    terminal.send(b"3")
    terminal.wait_for(lambda lines: lines[24].endswith("| 5/s"))
    terminal.send(UP + b"+")
    terminal.wait_for(lambda lines: lines[24].endswith("| 20/s"))
    terminal.send(DOWN)
    terminal.wait_for(lambda lines: lines[24].endswith("| 10/s"))
    terminal.send(b"q")
    assert terminal.wait_for_end() == 0
    assert termios.tcgetattr(terminal.slave) == terminal.before


def test_it_plays_to_the_end_and_starts_again(recorded: Any, pseudo_terminal: Any) -> None:
    terminal = pseudo_terminal("replay", str(recorded.path), "--speed", "2000")
    lines = terminal.wait_for(lambda lines: at(499)(lines) and "paused" in lines[24])
    assert shows(recorded, lines, 499)
    terminal.send(b"4 ")
    terminal.wait_for(lambda lines: "playing" in lines[24] and not at(499)(lines))
    terminal.send(b" ")
    lines = terminal.wait_for(lambda lines: "paused" in lines[24])
    step = int(lines[24].split("step ")[1].split()[0])
    assert shows(recorded, lines, step)
    terminal.send(b"q")
    assert terminal.wait_for_end() == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_broken_off_the_terminal_is_left_as_it_was(
    recorded: Any, pseudo_terminal: Any, number: int, status: int
) -> None:
    terminal = pseudo_terminal("replay", str(recorded.path))
    terminal.wait_for(lambda lines: "playing" in lines[24])
    assert termios.tcgetattr(terminal.slave) != terminal.before
    terminal.process.send_signal(number)
    assert terminal.wait_for_end() == status
    assert termios.tcgetattr(terminal.slave) == terminal.before
    assert b"Traceback" not in terminal.output


def test_a_damaged_file_is_played_as_far_as_it_is_whole(recorded: Any, pseudo_terminal: Any, tmp_path: Path) -> None:
    data = bz2.decompress(recorded.path.read_bytes())
    path = tmp_path / "cut.ttyrec3.bz2"
    path.write_bytes(bz2.compress(data[: len(data) // 2]))
    terminal = pseudo_terminal("replay", str(path), "--start", "50")
    # The last line is drawn last.
    lines = terminal.wait_for(lambda lines: at(50)(lines) and lines[25].startswith("damaged: "))
    assert shows(recorded, lines, 50)
    assert lines[24].endswith("| damaged")
    assert lines[25].startswith("damaged: the last record is cut off; the first ")
    terminal.send(b"q")
    assert terminal.wait_for_end() == 0
    assert b"cut.ttyrec3.bz2 is damaged: the last record is cut off" in terminal.output


def test_a_terminal_of_24_rows_can_hide_the_status(recorded: Any, pseudo_terminal: Any) -> None:
    terminal = pseudo_terminal("replay", str(recorded.path), "--start", "100", rows=24)
    lines = terminal.wait_for(at(100))
    assert lines[23].endswith("i hides this")
    terminal.send(b"i")
    lines = terminal.wait_for(lambda lines: not at(100)(lines))
    assert shows(recorded, lines, 100)
    terminal.send(b"q")
    assert terminal.wait_for_end() == 0


def test_it_follows_the_size_of_the_terminal(recorded: Any, pseudo_terminal: Any) -> None:
    terminal = pseudo_terminal("replay", str(recorded.path), "--start", "100", rows=15)
    terminal.wait_for(lambda lines: lines[14].startswith("80x15 is too small for 80x24 | paused"))
    terminal.resize(26)
    lines = terminal.wait_for(lambda lines: lines[24].startswith("paused"))
    assert shows(recorded, lines, 100)
    terminal.send(b"q")
    assert terminal.wait_for_end() == 0


def test_a_terminal_that_cannot_place_text_is_refused(
    recorded: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from playserve.errors import BadSettingError
    from playserve_client.terminal.viewer import watch

    monkeypatch.setenv("TERM", "dumb")
    with open("/dev/null", "w") as null:
        monkeypatch.setattr(sys, "stdout", null)
        with pytest.raises(BadSettingError, match="cannot place text"):
            watch(ChunkRecording(recorded.truth, name="x"))


def test_the_player_moves_by_time_and_stops_at_the_end() -> None:
    player = Player(total=100, speed=10.0)
    player.advance(5.0)
    assert player.step == 0
    player.toggle()
    player.advance(0.55)
    assert player.step == 5
    player.advance(0.05)
    assert player.step == 6
    player.advance(1000.0)
    assert (player.step, player.playing) == (99, False)
    player.toggle()
    assert (player.step, player.playing) == (0, True)
    player.move(-1)
    assert (player.step, player.playing) == (0, False)


def test_speeds_go_up_and_down_within_bounds() -> None:
    player = Player(total=2, speed=7.5)
    player.faster()
    assert player.speed == 10
    for _ in range(20):
        player.faster()
    assert player.speed == SPEEDS[-1]
    for _ in range(20):
        player.slower()
    assert player.speed == SPEEDS[0]
    player.choose_speed(9)
    assert player.speed == SPEEDS[8]


def test_the_status_of_a_long_game_fits_a_line() -> None:
    chunk = TtyChunk(
        np.full((1, 24, 80), 32, np.uint8),
        np.zeros((1, 24, 80), np.int8),
        np.zeros((1, 2), np.uint8),
        np.array([ord("B")], np.uint8),
        np.array([1_234_567], np.int32),
        np.ones(1, np.bool_),
    )
    recording = ChunkRecording(chunk, name="x")
    line = status_text(Player(total=1, speed=1000.0), recording)
    assert line == "paused  | step 0 of 0 | next key B far southwest | score 1,234,567 | 1000/s"
    assert len(line) + 2 * len("100,000") - 2 <= 90
