"""Checks a folder of recordings: what each holds, and what is wrong with it, by name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from playserve.errors import PlayserveError
from playserve.p2p.vocabulary import OPEN_P2P
from playserve_client.p2p.problems import Problem, problem_of
from playserve_client.p2p.quality import QualityRules
from playserve_client.p2p.recording import (
    ANNOTATION,
    FULL_VIDEO,
    Recording,
    list_recordings,
    read_recording,
    video_path,
    video_sizes,
)
from playserve_client.p2p.sidecar import read_sidecar
from playserve_client.p2p.statistics import ActionTally, tally
from playserve_client.p2p.video import VideoReader
from playserve_client.p2p.writer import PART_SUFFIX
from playserve_client.workers import receive, send, share_out, worker_life, worker_processes

__all__ = ["DatasetReport", "RecordingReport", "check_dataset", "check_recording"]

#: Share by which the rate of frames may be off: of 20 a second, 19 to 21 are right, as Open P2P's recorder has it.
_RATE_SLACK = 0.05


@dataclass
class RecordingReport:
    """What one recording holds.

    Attributes:
        path: Its folder, relative to the dataset.
        env: Game or environment.
        env_subtype: Game of a platform, map, scenario.
        fps: Frames a second, as it says.
        measured_fps: Frames a second by the frames' own times; 0: they do not tell.
        videos: Frames that can be decoded of each video, by file name.
        problems: Frames, instructions or files with each problem.
        details: The same in words, for what is rare enough.
        tally: Its actions.
    """

    path: str
    env: str = ""
    env_subtype: str = ""
    fps: float = 0.0
    measured_fps: float = 0.0
    videos: dict[str, int] = field(default_factory=dict)
    problems: Counter[Problem] = field(default_factory=Counter)
    details: list[str] = field(default_factory=list)
    tally: ActionTally = field(default_factory=ActionTally)

    @property
    def usable(self) -> bool:
        """Whether anything can be learnt from it."""
        return not any(problem.breaks for problem in self.problems)

    @property
    def game(self) -> str:
        """The game, with its map or platform's game."""
        return f"{self.env}/{self.env_subtype}" if self.env_subtype else self.env

    def found(self, problem: Problem, detail: str) -> None:
        """Count a problem and say it in words."""
        self.problems[problem] += 1
        self.details.append(detail)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return {
            "path": self.path,
            "env": self.env,
            "env_subtype": self.env_subtype,
            "fps": self.fps,
            "measured_fps": self.measured_fps,
            "usable": self.usable,
            "videos": self.videos,
            "problems": {problem.value: count for problem, count in self.problems.items()},
            "details": self.details,
            "actions": self.tally.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RecordingReport:
        """Return the report of a JSON value."""
        return cls(
            path=value["path"],
            env=value["env"],
            env_subtype=value["env_subtype"],
            fps=value["fps"],
            measured_fps=value["measured_fps"],
            videos=dict(value["videos"]),
            problems=Counter({Problem(name): count for name, count in value["problems"].items()}),
            details=list(value["details"]),
            tally=ActionTally.from_json(value["actions"]),
        )


@dataclass
class DatasetReport:
    """What a folder of recordings holds.

    Attributes:
        root: The folder.
        recordings: Each, by path.
    """

    root: Path
    recordings: list[RecordingReport]

    def total(self) -> ActionTally:
        """Return the actions of every usable recording."""
        return _sum(self.recordings)

    def games(self) -> dict[str, list[RecordingReport]]:
        """Return the usable recordings of each game, by game."""
        result: dict[str, list[RecordingReport]] = {}
        for report in sorted(self.recordings, key=lambda report: report.game):
            if report.usable:
                result.setdefault(report.game, []).append(report)
        return result

    def problems(self) -> dict[Problem, tuple[int, int]]:
        """Return how many recordings have each problem, and how often it is there in all."""
        having: Counter[Problem] = Counter()
        times: Counter[Problem] = Counter()
        for report in self.recordings:
            having.update(report.problems.keys())
            times.update(report.problems)
        return {problem: (having[problem], times[problem]) for problem in Problem if having[problem]}

    def judged(self, rules: QualityRules) -> tuple[list[str], dict[str, list[str]]]:
        """Return the paths of the recordings to keep, and the reasons against each other one."""
        kept, left = [], {}
        for report in self.recordings:
            reasons = [problem.value for problem in report.problems if problem.breaks] or rules.broken(report.tally)
            if reasons:
                left[report.path] = reasons
            else:
                kept.append(report.path)
        return kept, left

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        games = {
            game: {"recordings": len(reports), **_sum(reports).to_json()} for game, reports in self.games().items()
        }
        problems = {
            problem.value: {"recordings": having, "times": times, "breaks": problem.breaks}
            for problem, (having, times) in self.problems().items()
        }
        dx, dy = OPEN_P2P.centres()
        return {
            "directory": str(self.root),
            "bin_centres_px": {"dx": dx, "dy": dy},
            "recordings": len(self.recordings),
            "usable": sum(report.usable for report in self.recordings),
            "total": self.total().to_json(),
            "games": games,
            "problems": problems,
            "each": [report.to_json() for report in self.recordings],
        }


def _sum(reports: list[RecordingReport]) -> ActionTally:
    result = ActionTally()
    for report in reports:
        if report.usable:
            result.merge(report.tally)
    return result


def check_dataset(
    root: Path,
    *,
    workers: int = 1,
    decode: bool = False,
    on_found: Callable[[int], None] = lambda count: None,
    progress: Callable[[int, int], None] = lambda frames, recordings: None,
) -> DatasetReport:
    """Check every recording under a folder.

    Args:
        root: The folder.
        workers: Worker processes; 1: this one does it.
        decode: Decode every frame of every video; else the first and the last.
        on_found: Told how many recordings there are.
        progress: Told of frames and recordings as they are checked.
    """
    paths = _candidates(root)
    on_found(len(paths))
    reports: list[RecordingReport] = []

    def take_report(report: RecordingReport) -> None:
        reports.append(report)
        progress(report.tally.frames, 1)

    if workers <= 1 or len(paths) < 2:
        for path in paths:
            take_report(check_recording(path, root, decode=decode))
    else:
        todo = list(reversed(paths))
        config = {"root": str(root), "decode": decode}

        def take(connection: Connection, path: Path) -> bool:
            take_report(RecordingReport.from_json(receive(connection, f"checking {path}")))
            return True

        with worker_processes(_work, config, min(workers, len(paths)), name="check") as connections:
            share_out(connections, lambda _busy: todo.pop() if todo else None, lambda path: {"path": str(path)}, take)
    return DatasetReport(root, sorted(reports, key=lambda report: report.path))


def _candidates(root: Path) -> list[Path]:
    """Return the recordings, whole or unfinished, and the folders that have a video and no annotation."""
    found = set(list_recordings(root))
    found |= {path.parent for path in root.rglob("*.mp4") if not _inside_part(path.parent, root)}
    found |= {path for path in root.rglob(f".*{PART_SUFFIX}") if path.is_dir()}
    return sorted(found)


def _inside_part(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def check_recording(folder: Path, root: Path, *, decode: bool = False) -> RecordingReport:
    """Return what one recording holds and what is wrong with it; never raises for what is wrong with it."""
    report = RecordingReport(path=folder.relative_to(root).as_posix())
    if folder.name.startswith(".") and folder.name.endswith(PART_SUFFIX):
        report.found(Problem.UNFINISHED, "it was never closed")
        return report
    recording = _checked_annotation(folder, report)
    _check_videos(folder, recording, report, decode=decode)
    if recording is not None:
        _check_sidecar(folder, recording, report)
    return report


def _checked_annotation(folder: Path, report: RecordingReport) -> Recording | None:
    try:
        recording = read_recording(folder)
    except PlayserveError as error:
        report.found(problem_of(error) or Problem.BAD_ANNOTATION, str(error))
        return None
    about = recording.metadata
    report.env, report.env_subtype, report.fps = about.env, about.env_subtype, about.fps
    report.measured_fps = recording.measured_fps
    long_enough = len(recording.frames) >= report.fps  # jitter is no rate
    if long_enough and report.measured_fps and abs(report.measured_fps / report.fps - 1) > _RATE_SLACK:
        detail = f"{folder}: {report.measured_fps:.2f} frames a second by their times, {report.fps:g} by the metadata"
        report.found(Problem.OFF_RATE, detail)
    report.problems.update(recording.problems)
    report.tally = tally(recording)
    if not report.tally.known:
        report.found(Problem.NO_ACTIONS, f"none of {len(recording.frames)} frames has a known action")
    return recording


def _check_videos(folder: Path, recording: Recording | None, report: RecordingReport, *, decode: bool) -> None:
    paths = [video_path(folder, height, width) for height, width in video_sizes(folder)]
    if not paths:
        report.found(Problem.NO_VIDEO, f"{folder}: no video that is named <H>x<W>.mp4")
    frames = None if recording is None else len(recording.frames)
    for path in paths:
        for problem, detail in _wrong_with(path, frames, report, decode=decode):
            report.found(problem, detail)
    full = folder / FULL_VIDEO
    if full.exists():
        for _, detail in _wrong_with(full, frames, report, decode=decode):
            report.found(Problem.FULL_VIDEO, detail)


def _wrong_with(
    path: Path, frames: int | None, report: RecordingReport, *, decode: bool
) -> Iterator[tuple[Problem, str]]:
    """Yield what is wrong with one video; its number of frames goes into the report."""
    try:
        with VideoReader(path) as video:
            report.videos[path.name] = video.num_frames
            if video.truncated:
                yield Problem.TRUNCATED_VIDEO, f"{path}: {video.num_frames} of {video.declared_frames} frames are there"
            if frames not in (None, video.declared_frames):
                yield Problem.FRAME_COUNT, f"{path}: {video.declared_frames} frames, {frames} annotations"
            _decode(video, whole=decode)
    except PlayserveError as error:
        yield problem_of(error) or Problem.BAD_VIDEO, str(error)


def _decode(video: VideoReader, *, whole: bool) -> None:
    if whole:
        for _ in video.frames():
            pass
        return
    for number in {0, video.num_frames - 1}:
        video.read(number, 1)


def _check_sidecar(folder: Path, recording: Recording, report: RecordingReport) -> None:
    try:
        sidecar = read_sidecar(folder)
    except PlayserveError as error:
        report.found(Problem.BAD_SIDECAR, str(error))
        return
    for name, array in (sidecar.arrays if sidecar is not None else {}).items():
        if len(array) != len(recording.frames):
            detail = f"{folder / ANNOTATION}: {len(recording.frames)} frames, sidecar {name!r} has {len(array)}"
            report.found(Problem.BAD_SIDECAR, detail)


def _work(connection: Connection, config: str) -> None:
    settings = json.loads(config)
    root = Path(settings["root"])
    with worker_life(connection) as jobs:
        for job in jobs:
            send(connection, check_recording(Path(job["path"]), root, decode=settings["decode"]).to_json())
