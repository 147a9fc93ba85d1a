"""Progress of a recording where stderr is no terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from playserve.cli import main
from playserve_client.commands.counting import show_count


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_line_now_and_then_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with show_count("recording pong", "episodes", 4, by_steps=False, clock=clock) as counter:
        for _ in range(40):
            clock.now_s += 1
            counter.advance(1000, 0)
        counter.advance(0, 1)
        for _ in range(10):
            clock.now_s += 0.1
            counter.advance(0, 0)
    out, err = capsys.readouterr()
    assert out == "", "stdout is for the report"
    assert err.splitlines() == [
        "recording pong: 0/4 episodes",
        "recording pong: 0/4 episodes, 1,000 frames/s",
        "recording pong: 0/4 episodes, 1,000 frames/s",
        "recording pong: 1/4 episodes, 976 frames/s, 123 s left",
    ]


def test_steps_are_counted_where_steps_are_wanted_and_a_total_may_come_late(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with show_count("importing", "frames", None, by_steps=True, clock=clock) as counter:
        counter.advance(1500, 1)
        clock.now_s = 20
        counter.set_total(6000)
        counter.advance(1500, 1)
    assert capsys.readouterr().err.splitlines() == [
        "importing: 0 frames",
        "importing: 3,000/6,000 frames, 150 frames/s, 20 s left",
        "importing: 3,000/6,000 frames, 150 frames/s, 20 s left",
    ]


def test_the_last_line_comes_whatever_happens(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        with show_count("recording", "steps", 10, by_steps=True, clock=Clock()) as counter:
            counter.advance(3, 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert capsys.readouterr().err.splitlines()[-1] == "recording: 3/10 steps"


def test_the_recorder_says_how_far_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ale_py")
    arguments = ["--game", "freeway", "--episodes", "1", "--max-steps", "50", "--workers", "1", "--out", str(tmp_path)]
    assert main(["data", "record", "atari", *arguments]) == 0
    err = capfd.readouterr().err
    assert "recording freeway: 0/1 episodes" in err
    assert "recording freeway: 1/1 episodes" in err
