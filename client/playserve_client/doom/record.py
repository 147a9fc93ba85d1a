"""Recording of many Doom episodes: worker processes, resume after a kill, a summary beside the recordings.

Recordings of a goal lie in ``OUT/<scenario>/<goal>/<uuid>``. Each is whole or not there; its sidecar says which number
it has, so that the same command goes on where it stopped.
"""

from __future__ import annotations

import datetime
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError, DataLossError
from playserve.files import write_json
from playserve_client.doom.experts import EXPERT_VERSION
from playserve_client.doom.recorder import DoomRecorder, DoomSettings
from playserve_client.p2p.recording import list_recordings
from playserve_client.p2p.sidecar import read_sidecar
from playserve_client.p2p.writer import PART_SUFFIX
from playserve_client.workers import Teller, receive, send, share_out, worker_life, worker_processes

__all__ = ["DoomJob", "DoomReport", "GoalReport", "record_doom"]

_LEFTOVER_S = 60.0

#: Called with (frames just written, recordings just finished).
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoomJob:
    """What to record, and where.

    Attributes:
        goals: Settings of each scenario and goal.
        out: Root folder.
        frames: Frames wanted of each goal, or None; the recording that reaches them is played to its end.
        recordings: Recordings wanted of each goal, or None.
        workers: Worker processes.
    """

    goals: Sequence[DoomSettings]
    out: Path
    frames: int | None = None
    recordings: int | None = None
    workers: int = 1

    def __post_init__(self) -> None:
        if (self.frames is None) == (self.recordings is None):
            raise BadSettingError("recording takes a number of frames or a number of recordings: one of them")
        wanted = self.frames if self.frames is not None else self.recordings
        if (wanted or 0) < 1 or self.workers < 1 or not self.goals:
            raise BadSettingError(f"frames, recordings, workers and goals are at least 1, not {wanted}, {self.workers}")
        names = [(settings.scenario, settings.goal) for settings in self.goals]
        if len(set(names)) < len(names):
            raise BadSettingError(f"a scenario and goal are named twice: {names}")

    def folder(self, settings: DoomSettings) -> Path:
        """Return the folder of a goal's recordings."""
        return self.out / settings.scenario / settings.goal


@dataclass(slots=True)
class GoalReport:
    """What there is of one goal.

    Attributes:
        settings: What is recorded.
        summaries: Of each recording, by number; those found included.
        kept: Recordings that were there before.
        busy: Recordings that are being played.
        next: Number to try next.
    """

    settings: DoomSettings
    summaries: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    kept: int = 0
    busy: int = 0
    next: int = 0

    @property
    def frames(self) -> int:
        """Frames of all recordings."""
        return sum(int(summary["frames"]) for summary in self.summaries.values())

    def episodes(self) -> list[Mapping[str, Any]]:
        """Return the episodes of all recordings, by number."""
        return [episode for number in sorted(self.summaries) for episode in self.summaries[number]["episodes"]]

    def to_json(self) -> dict[str, Any]:
        """Return the summary for programs."""
        episodes = self.episodes()
        scores = [float(episode["score"]) for episode in episodes]
        met = [bool(episode["facts"]["goal_met"]) for episode in episodes if "goal_met" in episode["facts"]]
        return {
            "scenario": self.settings.scenario,
            "goal": self.settings.goal,
            "settings": asdict(self.settings),
            "recordings": len(self.summaries),
            "kept": self.kept,
            "frames": self.frames,
            "perturbed_frames": sum(int(summary["perturbed"]) for summary in self.summaries.values()),
            "episodes": len(episodes),
            "score_mean": statistics.fmean(scores) if scores else None,
            "score_min": min(scores, default=None),
            "score_max": max(scores, default=None),
            "goal_met": statistics.fmean(met) if met else None,
        }


@dataclass(slots=True)
class DoomReport:
    """What a run found and made.

    Attributes:
        goals: One entry a goal.
        damaged: Recordings that were there, were damaged, and were removed.
        new_frames: Frames that this run wrote.
        seconds: How long it took.
        interrupted: Whether it was stopped before its end.
    """

    goals: list[GoalReport]
    damaged: list[Path] = field(default_factory=list)
    new_frames: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    def to_json(self, job: DoomJob) -> dict[str, Any]:
        """Return the summary for programs."""
        return {
            "env": "doom",
            "goals": [goal.to_json() for goal in self.goals],
            "frames": sum(goal.frames for goal in self.goals),
            "damaged": [str(path) for path in self.damaged],
            "recorded_frames": self.new_frames,
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.new_frames / self.seconds, 1) if self.seconds else None,
            "workers": job.workers,
            "interrupted": self.interrupted,
        }


def record_doom(job: DoomJob, progress: Progress = lambda _frames, _recordings: None) -> DoomReport:
    """Record what is missing of `job`, write ``summary.json`` into its folder, and return the report.

    Whole recordings that are there already count. After SIGINT the report says `interrupted`.

    Raises:
        BadSettingError: A recording that is already there was made with other settings.
        ServerFault: A worker died or its game failed.
    """
    started = time.monotonic()
    report = DoomReport([GoalReport(settings) for settings in job.goals])
    job.out.mkdir(parents=True, exist_ok=True)
    try:
        for goal in report.goals:
            _find(job, goal, report, progress)
        _run(job, report, progress)
    except KeyboardInterrupt:
        report.interrupted = True
    report.seconds = time.monotonic() - started
    write_json(job.out / "summary.json", report.to_json(job))
    return report


def _find(job: DoomJob, goal: GoalReport, report: DoomReport, progress: Progress) -> None:
    """Count what is there of one goal."""
    folder = job.folder(goal.settings)
    if not folder.is_dir():
        return
    _remove_leftovers(folder)
    for path in list_recordings(folder):
        try:
            sidecar = read_sidecar(path)
            summary = dict(sidecar.episode) if sidecar is not None else {}
            index, frames = int(summary["index"]), int(summary["frames"])
        except (DataLossError, KeyError, ValueError):
            report.damaged.append(path)
            shutil.rmtree(path)
            continue
        _check_matching(path, summary, goal.settings)
        goal.summaries[index] = summary
        goal.kept += 1
        progress(frames, 1)


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left behind; what was written to a moment ago may be another command's."""
    now = datetime.datetime.now(datetime.UTC).timestamp()
    for part in folder.glob(f".*{PART_SUFFIX}"):
        newest = max(path.stat().st_mtime for path in (part, *part.iterdir()))
        if now - newest > _LEFTOVER_S:
            shutil.rmtree(part, ignore_errors=True)


def _check_matching(path: Path, summary: Mapping[str, Any], settings: DoomSettings) -> None:
    wanted = {**asdict(settings), "expert_version": EXPERT_VERSION}
    found = {**summary.get("settings", {}), "expert_version": summary.get("expert_version")}
    for key, value in wanted.items():
        if found.get(key) != value:
            raise BadSettingError(
                f"{path} was recorded with {key} {found.get(key)!r}, not {value!r}; record into another folder"
            )


def _run(job: DoomJob, report: DoomReport, progress: Progress) -> None:
    def next_recording(_busy: int) -> tuple[GoalReport, int] | None:
        for goal in report.goals:
            if _wants_more(job, goal):
                while goal.next in goal.summaries:
                    goal.next += 1
                goal.settings.seeds(goal.next)  # raises where there are no more
                goal.busy += 1
                goal.next += 1
                return goal, goal.next - 1
        return None

    def start(work: tuple[GoalReport, int]) -> Mapping[str, Any]:
        goal, index = work
        return {"settings": asdict(goal.settings), "folder": str(job.folder(goal.settings)), "index": index}

    def take(connection: Connection, work: tuple[GoalReport, int]) -> bool:
        goal, index = work
        message = receive(connection, f"recording {goal.settings.scenario} {goal.settings.goal}, number {index}")
        if "progress" in message:
            report.new_frames += int(message["progress"])
            progress(int(message["progress"]), 0)
            return False
        goal.summaries[index] = message["summary"]
        goal.busy -= 1
        progress(0, 1)
        return True

    if any(_wants_more(job, goal) for goal in report.goals):
        with worker_processes(_work, {}, job.workers, name="record-doom", patience_s=5.0) as connections:
            share_out(connections, next_recording, start, take)


def _wants_more(job: DoomJob, goal: GoalReport) -> bool:
    """Tell whether a goal needs another recording, going by the mean length so far."""
    if job.recordings is not None:
        return len(goal.summaries) + goal.busy < job.recordings
    mean = goal.frames / len(goal.summaries) if goal.summaries else float(max(goal.settings.min_frames, 1))
    return goal.frames + goal.busy * mean < (job.frames or 0)


def _work(connection: Connection, _config: str) -> None:
    """Live in a worker process: write one recording after another until the parent closes the pipe."""
    recorder: DoomRecorder | None = None
    try:
        with worker_life(connection) as jobs:
            for job in jobs:
                if recorder is None or recorder.settings != DoomSettings(**job["settings"]):
                    if recorder is not None:
                        recorder.close()
                    recorder = DoomRecorder(**job["settings"])
                tell = Teller(connection, every=200)
                summary = recorder.record(int(job["index"]), Path(job["folder"]), tell)
                tell.flush()
                send(connection, {"summary": summary})
    finally:
        if recorder is not None:
            recorder.close()
