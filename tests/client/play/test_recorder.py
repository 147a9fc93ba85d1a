"""Recordings of play: who did what, one recording a stretch, instructions where they were in force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from playserve.actions import DesktopAction
from playserve.settings import ActionSource

pytest.importorskip("av")

from playserve_client.p2p.recording import Source, list_recordings, read_recording
from playserve_client.play.core import FramePlan
from playserve_client.play.recorder import Recorder

FORWARD, LEFT = DesktopAction(keys=frozenset({"KeyW"})), DesktopAction(keys=frozenset({"KeyA"}), mouse_dx_px=4.0)
FIRST = FramePlan(False, None, ActionSource.UNKNOWN, 1)
POLICY = FramePlan(False, FORWARD, ActionSource.POLICY, 1)
HUMAN = FramePlan(True, LEFT, ActionSource.HUMAN, 1)


def test_a_session_becomes_recordings_of_its_stretches(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, game="Game", rate_hz=20.0, episode={"policy": "scripted"})
    frame, at = np.full((32, 32, 3), 90, np.uint8), 100.0
    recorder.instruct("one")
    for plans in ([FIRST, *[POLICY] * 30, *[HUMAN] * 10], [FIRST, *[POLICY] * 5], [FIRST, *[HUMAN] * 30]):
        for i, plan in enumerate(plans):
            at += 0.05
            recorder.add(frame, plan, at)
            if i == 20 and len(plans) > 35:
                recorder.instruct("two")
        at += 3.0
    recorder.close()
    found = [read_recording(path) for path in list_recordings(tmp_path)]
    assert len(found) == 2
    assert recorder.report()["too_short"] == 1
    first, second = found
    assert [f.source for f in first.frames] == [Source.UNKNOWN, *[Source.SYSTEM] * 30, *[Source.USER] * 10]
    assert first.frames[5].action.keys == {"KeyW"}
    assert (first.frames[35].action.keys, first.frames[35].action.mouse_dx_px) == ({"KeyA"}, 4.0)
    assert [(t.text, t.start_frame, t.num_frames) for t in first.instructions] == [("one", 0, 21), ("two", 21, 20)]
    assert [(t.text, t.start_frame, t.num_frames) for t in second.instructions] == [("two", 0, 31)]
    assert recorder.paths == [first.path, second.path]


def test_a_long_pause_within_play_begins_a_new_recording(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, game="Game", rate_hz=20.0, episode={})
    frame = np.zeros((32, 32, 3), np.uint8)
    for i in range(25):
        recorder.add(frame, POLICY, i / 20)
    recorder.add(frame, FramePlan(False, FORWARD, ActionSource.POLICY, 10), 2.0)
    recorder.close()
    assert len(recorder.paths) == 1
    assert len(read_recording(recorder.paths[0]).frames) == 25


def test_a_disk_that_cannot_be_written_to_is_said_where_frames_come_in(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    recorder = Recorder(tmp_path / "file", game="Game", rate_hz=20.0, episode={})
    frame = np.zeros((32, 32, 3), np.uint8)
    recorder.add(frame, POLICY, 0.0)
    with pytest.raises(OSError):
        recorder.close()
