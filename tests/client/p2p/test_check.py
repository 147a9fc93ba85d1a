"""A folder of recordings is counted and described, and everything that is wrong in it has its name and its number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from playserve.actions import DesktopAction
from playserve.cli import main
from playserve.errors import BadSettingError
from playserve_client.p2p.check import DatasetReport, RecordingReport, check_dataset, check_recording
from playserve_client.p2p.contact_sheet import Cell, draw_sheet, sample_cells
from playserve_client.p2p.problems import Problem
from playserve_client.p2p.quality import QualityRules
from playserve_client.p2p.recording import Source, read_recording
from playserve_client.p2p.statistics import ActionTally, tally
from playserve_client.p2p.writer import RecordingWriter

av = pytest.importorskip("av")

FRAMES = 40
Play = Callable[[int], tuple[DesktopAction, Source]]


def keys(*codes: str, dx: float = 0.0, buttons: tuple[int, ...] = ()) -> DesktopAction:
    return DesktopAction(keys=frozenset(codes), buttons=frozenset(buttons), mouse_dx_px=dx)


def walk(k: int) -> tuple[DesktopAction, Source]:
    """W for 5 of 10 frames, a shot every tenth, a turn every fourth."""
    held = ("KeyW",) if k % 10 < 5 else ()
    action = keys(*held, dx=3.0 if k % 4 == 0 else 0.0, buttons=(0,) if k % 10 == 9 else ())
    return action, Source.USER


def record(root: Path, play: Play = walk, *, env: str = "doom", subtype: str = "basic", count: int = FRAMES) -> Path:
    with RecordingWriter(root, env=env, env_subtype=subtype, frame_size=(16, 16), episode={"seed": 1}) as writer:
        writer.instruct("go on", 10, 20)
        for k in range(count):
            writer.add(np.full((16, 16, 3), 5 * k % 256, np.uint8), *play(k), sidecar={"reward": float(k)})
    return writer.path


def remuxed(path: Path) -> bytes:
    """The same mp4 with its index first."""
    out = path.with_suffix(".fast")
    with (
        av.open(str(path)) as source,
        av.open(str(out), "w", format="mp4", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = out.read_bytes()
    out.unlink()
    return content


def broken(root: Path) -> dict[str, Path]:
    """One recording for each thing that can be wrong, by what it is."""
    made = {name: record(root, count=20) for name in (
        "no annotation", "bad annotation", "no video", "unindexed", "cut", "too few annotations", "full cut",
        "bad sidecar", "short sidecar", "noise",
    )}  # fmt: skip
    made["nothing known"] = record(root, lambda k: (DesktopAction(), Source.UNKNOWN), count=20)
    (made["no annotation"] / "annotation.proto").unlink()
    (made["bad annotation"] / "annotation.proto").write_bytes(b"\xff" * 50)
    (made["no video"] / "16x16.mp4").unlink()
    video = {name: path / "16x16.mp4" for name, path in made.items()}
    whole = video["unindexed"].read_bytes()
    video["unindexed"].write_bytes(whole[: len(whole) // 2])
    fast = remuxed(video["cut"])
    video["cut"].write_bytes(fast[:-20])
    (made["full cut"] / "video.mp4").write_bytes(fast[:-20])
    video["noise"].write_bytes(bytes(range(256)))
    shorter = record(root / "elsewhere", count=17)
    shutil.copy(shorter / "annotation.proto", made["too few annotations"])
    (made["bad sidecar"] / "sidecar.npz").write_bytes(b"PK")
    shutil.copy(shorter / "sidecar.npz", made["short sidecar"])
    shutil.rmtree(root / "elsewhere")
    unfinished = root / ".0199-unfinished.part"
    unfinished.mkdir()
    (unfinished / "16x16.mp4").write_bytes(whole[:100])
    return {**made, "unfinished": unfinished}


WRONG = {
    "no annotation": {Problem.NO_ANNOTATION: 1},
    "bad annotation": {Problem.BAD_ANNOTATION: 1},
    "no video": {Problem.NO_VIDEO: 1},
    "unindexed": {Problem.UNINDEXED_VIDEO: 1},
    "cut": {Problem.TRUNCATED_VIDEO: 1},
    "too few annotations": {Problem.FRAME_COUNT: 1, Problem.BAD_SIDECAR: 1},
    "full cut": {Problem.FULL_VIDEO: 1},
    "bad sidecar": {Problem.BAD_SIDECAR: 1},
    "short sidecar": {Problem.BAD_SIDECAR: 1},
    "noise": {Problem.BAD_VIDEO: 1},
    "nothing known": {Problem.NO_ACTIONS: 1},
    "unfinished": {Problem.UNFINISHED: 1},
}
USABLE = {"cut", "too few annotations", "full cut", "bad sidecar", "short sidecar"}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    root = tmp_path_factory.mktemp("damaged")
    return root, broken(root)


@pytest.mark.parametrize("decode", [False, True])
def test_everything_that_is_wrong_is_named(damaged: tuple[Path, dict[str, Path]], decode: bool) -> None:
    root, made = damaged
    reports = {name: check_recording(path, root, decode=decode) for name, path in made.items()}
    assert {name: dict(report.problems) for name, report in reports.items()} == WRONG
    assert {name for name, report in reports.items() if report.usable} == USABLE
    assert all(report.details for report in reports.values())


def test_the_folder_is_counted_alike_by_one_and_by_two(damaged: tuple[Path, dict[str, Path]]) -> None:
    root, made = damaged
    told: list[tuple[int, int]] = []
    found: list[int] = []
    alone = check_dataset(root, on_found=found.append, progress=lambda *counts: told.append(counts))
    assert found == [len(made)]
    assert len(told) == len(made)
    assert check_dataset(root, workers=2).to_json() == alone.to_json()
    problems = alone.problems()
    assert problems[Problem.BAD_SIDECAR] == (3, 3)
    assert problems[Problem.UNFINISHED] == (1, 1)
    value = alone.to_json()
    assert (value["recordings"], value["usable"]) == (len(made), len(USABLE))
    assert value["total"]["frames"] == 4 * 20 + 17
    kept, left = alone.judged(QualityRules())
    assert set(kept) == {made[name].name for name in USABLE}
    assert left[made["noise"].name] == ["bad_video"]


def test_statistics_of_actions(tmp_path: Path) -> None:
    stats = tally(read_recording(record(tmp_path)))
    assert (stats.frames, stats.user, stats.system, stats.unknown, stats.seconds) == (40, 40, 0, 0, 2.0)
    assert stats.keys == {"KeyW": 20}
    assert stats.presses == {"KeyW": 4}
    assert stats.longest_held_s == {"KeyW": 0.25}
    assert stats.mean_held_s("KeyW") == 0.25
    assert stats.held_share("KeyW") == 0.5
    assert stats.buttons == {"0": 4}
    assert stats.keys_at_once == {"0": 20, "1": 20}
    assert stats.dx == {"13": 10, "11": 30}
    assert stats.dy == {"8": 40}
    idle = [k for k in range(40) if walk(k)[0] == DesktopAction()]
    assert stats.idle == len(idle)
    assert stats.longest_idle_s == 0.15  # frames 5, 6, 7 and those that look like them
    assert (stats.instructions, stats.instructed) == (1, 20)


def test_unknown_frames_end_what_is_held_and_count_for_nothing(tmp_path: Path) -> None:
    def play(k: int) -> tuple[DesktopAction, Source]:
        return keys("KeyW", "KeyR"), Source.UNKNOWN if k == 10 else Source.SYSTEM if k < 10 else Source.USER

    stats = tally(read_recording(record(tmp_path, play, count=30)))
    assert (stats.user, stats.system, stats.unknown, stats.known) == (19, 10, 1, 29)
    assert stats.longest_held_s["KeyW"] == pytest.approx(0.95)
    assert stats.presses["KeyW"] == 2
    assert stats.dropped == {"KeyR": 29}  # known, but no token says it
    assert stats.idle == 0


def test_tallies_add_up_and_travel_as_json(tmp_path: Path) -> None:
    one = tally(read_recording(record(tmp_path)))
    two = tally(read_recording(record(tmp_path, lambda k: (keys("KeyA", "KeyW"), Source.SYSTEM), count=20)))
    total = ActionTally()
    total.merge(one)
    total.merge(ActionTally.from_json(json.loads(json.dumps(two.to_json()))))
    assert (total.frames, total.user, total.system, total.seconds) == (60, 40, 20, 3.0)
    assert total.keys == {"KeyW": 40, "KeyA": 20}
    assert total.longest_held_s == {"KeyW": 1.0, "KeyA": 1.0}
    assert total.keys_at_once_max == 2
    assert ActionTally.from_json(total.to_json()) == total
    assert ActionTally().to_json()["activity"] == 0.0


def held_until(last: int) -> Play:
    return lambda k: (keys("KeyW") if k < last else keys("KeyA"), Source.USER)


def many_keys(k: int) -> tuple[DesktopAction, Source]:
    held = [f"Key{letter}" for letter in "ABCDEFG"[: 7 if k == 3 else 6]]
    return (keys(*held) if k < 9 else keys(dx=1.0)), Source.USER


@pytest.mark.parametrize(
    ("play", "said"),
    [
        (walk, []),
        (held_until(25), ["KeyW is held in 62%"]),
        (held_until(24), []),  # 60% itself is allowed
        (many_keys, ["7 keys are held at once"]),
        (lambda k: (keys("KeyW") if k == 3 else keys(), Source.USER), ["something is done in 2.5%"]),
    ],
)
def test_rules_of_quality(tmp_path: Path, play: Play, said: list[str]) -> None:
    found = QualityRules().broken(tally(read_recording(record(tmp_path, play))))
    assert len(found) == len(said)
    for reason, beginning in zip(found, said, strict=True):
        assert reason.startswith(beginning)


def test_rules_can_be_set_and_must_make_sense(tmp_path: Path) -> None:
    stats = tally(read_recording(record(tmp_path)))
    assert len(QualityRules(max_held=0.4, max_keys=0, min_activity=0.9).broken(stats)) == 3
    with pytest.raises(BadSettingError):
        QualityRules(max_held=1.5)


@pytest.mark.parametrize(("every_ms", "off"), [(50, False), (52, False), (48, False), (53, True), (40, True)])
def test_a_rate_that_is_not_what_it_says_is_a_problem(tmp_path: Path, every_ms: int, off: bool) -> None:
    with RecordingWriter(tmp_path, env="doom", frame_size=(16, 16)) as writer:
        for k in range(20):
            writer.add(np.zeros((16, 16, 3), np.uint8), keys("KeyW"), Source.USER, time_ns=7 + k * every_ms * 10**6)
    report = check_recording(writer.path, tmp_path)
    assert report.measured_fps == pytest.approx(1000 / every_ms)
    assert dict(report.problems) == ({Problem.OFF_RATE: 1} if off else {})
    assert report.usable


def test_games_are_told_apart(tmp_path: Path) -> None:
    for subtype, count in (("basic", 20), ("basic", 30), ("take_cover", 10)):
        record(tmp_path, subtype=subtype, count=count)
    record(tmp_path, env="quake", subtype="", count=10)
    report = check_dataset(tmp_path)
    games = report.to_json()["games"]
    assert {name: (game["recordings"], game["frames"]) for name, game in games.items()} == {
        "doom/basic": (2, 50), "doom/take_cover": (1, 10), "quake": (1, 10)
    }  # fmt: skip
    again = [RecordingReport.from_json(item.to_json()) for item in report.recordings]
    assert DatasetReport(report.root, again).to_json() == report.to_json()


def test_the_contact_sheet_shows_frames_with_what_was_done_upon_them(tmp_path: Path) -> None:
    paths = [record(tmp_path, lambda k: (keys(dx=float(k)), Source.SYSTEM)), record(tmp_path)]
    (tmp_path / "not-a-recording").mkdir()
    cells = list(sample_cells([*paths, tmp_path / "not-a-recording"], 9))
    assert len(cells) == 6  # three of each that can be read
    for cell in cells[:3]:
        number = int(cell.title.split("#")[1])
        assert cell.action.mouse_dx_px == number + 1  # the target of frame k is entry k + 1
        assert abs(int(cell.frame.mean()) - 5 * number % 256) < 6
        assert cell.source is Source.SYSTEM
        assert cell.instruction == ("go on" if 10 <= number < 30 else "")
    assert list(sample_cells([], 5)) == []
    sheet = draw_sheet(cells, columns=4)
    assert sheet.size[0] == 4 * 200
    pixels = np.asarray(sheet)
    assert ((pixels == (90, 150, 255)).all(-1)).sum() > 1000  # borders of a policy's
    assert ((pixels == (255, 220, 0)).all(-1)).sum() > 100  # mouse motion


def test_any_text_and_no_cell_can_be_drawn() -> None:
    pytest.importorskip("PIL")
    frame = np.zeros((8, 12, 3), np.uint8)
    strange = Cell(frame, keys("KeyW", *(f"F{i}" for i in range(1, 20))), Source.UNKNOWN, "x" * 400, "行け 🎮 " * 60)
    assert draw_sheet([strange]).size == draw_sheet([]).size


def test_the_command_prints_what_its_json_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    good = record(data)
    record(data, lambda k: (keys("KeyW"), Source.USER), subtype="stuck")
    arguments = ["data", "check", str(data), "--out", str(out), "--workers", "1"]
    assert main([*arguments, "--filter", "--contact-sheet", "--sheet-frames", "4"]) == 0
    printed = capsys.readouterr().out
    value = json.loads((out / "check.json").read_text())
    assert value["recordings"] == value["usable"] == 2
    assert value["filter"]["kept"] == [good.name]
    assert (out / "kept.txt").read_text() == f"{good.name}\n"
    assert "KeyW is held in 100% of frames" in printed
    assert value["total"]["keys"] == {"KeyW": 60}
    assert "75.0%" in printed
    assert value["total"]["held_share"] == {"KeyW": 0.75}
    assert value["contact_sheet"]["frames"] == 4
    assert (out / "contact-sheet.png").stat().st_size > 1000
    assert "nothing is wrong" in printed


def test_the_command_says_that_something_is_broken(
    damaged: tuple[Path, dict[str, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, made = damaged
    assert main(["data", "check", str(root), "--out", str(tmp_path), "--workers", "2"]) == 1
    printed = capsys.readouterr().out
    for problem in {problem for found in WRONG.values() for problem in found}:
        assert problem.value in printed
    assert not (tmp_path / "kept.txt").exists()
    assert len(json.loads((tmp_path / "check.json").read_text())["each"]) == len(made)


def test_the_command_takes_an_empty_folder_and_refuses_none(tmp_path: Path) -> None:
    assert main(["data", "check", str(tmp_path), "--contact-sheet", "--filter"]) == 0
    assert json.loads((tmp_path / "check/check.json").read_text())["recordings"] == 0
    assert main(["data", "check", str(tmp_path / "absent")]) != 0
