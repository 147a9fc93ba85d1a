"""Recording of many episodes of any game: worker processes, resume after a kill, a summary.

A *recorder* is made in each worker from ``module:factory`` and its settings; its ``record(seed, on_steps)`` returns an
Episode.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from playserve.errors import BadSettingError, DataLossError, ServerFault
from playserve.files import write_json
from playserve_client.envs.registry import load_factory
from playserve_client.recordings import Episode, EpisodeMeta, episode_path, read_episode, write_episode
from playserve_client.workers import send, share_out, worker_life, worker_processes

__all__ = ["Job", "Progress", "Recorder", "Report", "record_episodes"]


class Recorder(Protocol):
    """Plays and returns one episode at a time."""

    def record(self, seed: int, on_steps: Callable[[int], None] = ...) -> Episode:
        """Return the episode of `seed`."""


#: Called with (steps just played, episodes just finished).
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to record, and where.

    Attributes:
        recorder: ``module:factory`` of the recorder.
        settings: Its settings, a JSON object.
        env: Environment family.
        game: Game of the family.
        out: Root folder of recordings.
        seed_start: First seed; the seeds after it follow one by one.
        episodes: Episodes wanted, or None.
        steps: Steps wanted, or None; the episode that reaches them is played to its end.
        workers: Worker processes.
        matching: Fields that an episode which is already there must have, by dotted name of its meta.
    """

    recorder: str
    settings: Mapping[str, Any]
    env: str
    game: str
    out: Path
    seed_start: int = 0
    episodes: int | None = None
    steps: int | None = None
    workers: int = 1
    matching: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.episodes is None) == (self.steps is None):
            raise BadSettingError("recording takes a number of episodes or a number of steps: one of them")
        wanted = self.episodes if self.episodes is not None else self.steps
        if (wanted or 0) < 1 or self.workers < 1 or self.seed_start < 0:
            raise BadSettingError(
                f"episodes, steps and workers are at least 1 and seeds at least 0, not {wanted}, {self.workers}, "
                f"{self.seed_start}"
            )

    def path(self, seed: int) -> Path:
        """Return the file of the episode of `seed`."""
        return episode_path(self.out, self.env, self.game, seed)


@dataclass(slots=True)
class Report:
    """What a run found and made.

    Attributes:
        metas: Every episode of the job, those found included.
        kept: Episodes that were there before.
        damaged: Files that were there, were damaged, and are recorded again.
        new_steps: Steps that this run recorded.
        seconds: How long it took.
        interrupted: Whether it was stopped before its end.
    """

    metas: list[EpisodeMeta] = field(default_factory=list)
    kept: int = 0
    damaged: list[Path] = field(default_factory=list)
    new_steps: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def steps(self) -> int:
        """Steps of all episodes."""
        return sum(meta.steps for meta in self.metas)

    def to_json(self, job: Job) -> dict[str, Any]:
        """Return the summary for programs."""
        scores = [meta.score for meta in self.metas]
        return {
            "env": job.env,
            "game": job.game,
            "settings": dict(job.settings),
            "episodes": len(self.metas),
            "kept": self.kept,
            "frames": self.steps,
            "score_mean": statistics.fmean(scores) if scores else None,
            "score_min": min(scores, default=None),
            "score_max": max(scores, default=None),
            "damaged": [str(path) for path in self.damaged],
            "recorded_frames": self.new_steps,
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.new_steps / self.seconds, 1) if self.seconds else None,
            "workers": job.workers,
            "interrupted": self.interrupted,
            "scores": {str(meta.seed): meta.score for meta in sorted(self.metas, key=lambda m: m.seed)},
        }


def record_episodes(job: Job, progress: Progress = lambda _steps, _episodes: None) -> Report:
    """Record what is missing of `job`, write ``summary.json`` beside the episodes, and return the report.

    Whole episodes that are there already count; damaged ones are recorded again. After SIGINT the report says
    `interrupted` and no partial file is left.

    Raises:
        BadSettingError: An episode that is already there was recorded with other settings.
        ServerFault: A worker died or its recorder failed.
    """
    started = time.monotonic()
    report = Report()
    folder = job.path(job.seed_start).parent
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    try:
        _run(job, report, progress)
    except KeyboardInterrupt:
        report.interrupted = True
    report.seconds = time.monotonic() - started
    write_json(folder / "summary.json", report.to_json(job))
    return report


def _run(job: Job, report: Report, progress: Progress) -> None:
    seeds = _missing_seeds(job, report, progress)
    first = next(seeds, None)
    if first is None:
        return
    pending: int | None = first

    def next_seed(busy: int) -> int | None:
        nonlocal pending
        if pending is None or not _wants_more(job, report, busy):
            return None
        seed, pending = pending, next(seeds, None)
        return seed

    config = {"recorder": job.recorder, "settings": dict(job.settings), "out": str(job.out)}
    with worker_processes(_work, config, job.workers, name="record") as connections:
        share_out(
            connections,
            next_seed,
            lambda seed: {"seed": seed},
            lambda connection, seed: _handle(connection, seed, report, progress),
        )


def _missing_seeds(job: Job, report: Report, progress: Progress) -> Iterator[int]:
    """Yield the seeds to record, in order; whole episodes on the way are added to the report instead."""
    seed = job.seed_start
    while job.episodes is None or seed < job.seed_start + job.episodes:
        path = job.path(seed)
        if path.exists():
            try:
                meta = read_episode(path).meta
            except DataLossError:
                report.damaged.append(path)
                yield seed
            else:
                _check_matching(path, meta, job.matching)
                report.metas.append(meta)
                report.kept += 1
                progress(meta.steps, 1)
        else:
            yield seed
        if job.steps is not None and report.steps >= job.steps:
            return
        seed += 1


def _check_matching(path: Path, meta: EpisodeMeta, matching: Mapping[str, Any]) -> None:
    value = meta.to_json()
    flat = {**value, **{f"extra.{key}": item for key, item in meta.extra.items()}}
    for key, wanted in matching.items():
        if flat.get(key) != wanted:
            raise BadSettingError(
                f"{path} was recorded with {key} {flat.get(key)!r}, not {wanted!r}; record into another folder"
            )


def _wants_more(job: Job, report: Report, busy: int) -> bool:
    """Tell whether another episode is needed besides those being played, going by the mean length so far."""
    if job.steps is None:
        return True
    mean = report.steps / len(report.metas) if report.metas else 0.0
    return report.steps + busy * mean < job.steps


def _handle(connection: Connection, seed: int, report: Report, progress: Progress) -> bool:
    """Take one message of a worker; return whether its episode is done."""
    try:
        message = json.loads(connection.recv_bytes())
    except EOFError:
        raise ServerFault(f"a recording worker died in the episode of seed {seed}") from None
    if "error" in message:
        raise ServerFault(f"recording the episode of seed {seed} failed:\n{message['error']}")
    if "steps" in message:
        report.new_steps += message["steps"]
        progress(message["steps"], 0)
        return False
    report.metas.append(EpisodeMeta.from_json(message["meta"]))
    progress(0, 1)
    return True


def _work(connection: Connection, config: str) -> None:
    """Live in a worker process: record one seed after another until the parent closes the pipe."""
    options = json.loads(config)
    recorder: Recorder | None = None
    with worker_life(connection) as jobs:
        for job in jobs:
            if recorder is None:
                recorder = load_factory(options["recorder"])(**options["settings"])  # type: ignore[assignment]
            assert recorder is not None  # noqa: S101
            episode = recorder.record(job["seed"], lambda steps: send(connection, {"steps": steps}))
            meta = episode.meta
            write_episode(episode_path(Path(options["out"]), meta.env, meta.game, job["seed"]), episode)
            send(connection, {"meta": meta.to_json()})


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files of processes that are gone."""
    for path in folder.glob(".*.tmp"):
        owner = path.name.split(".")[-2]
        if owner.isdigit() and not _alive(int(owner)):
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
