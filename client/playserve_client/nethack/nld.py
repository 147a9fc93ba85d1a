"""Imports folders of ttyrecs (NLD-AA, NLD-NAO, games recorded by NLE) into shards, with worker processes, resumable."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve.files import write_json
from playserve_client.nethack.nld_layouts import Found, NldGame, find_games
from playserve_client.nethack.shard_writer import ShardWriter, recover_shards
from playserve_client.nethack.tty_dataset import TtyDataset
from playserve_client.nethack.ttyrec_import import FrameDecoder, import_game
from playserve_client.workers import Teller, dismiss, receive, send, share_out, worker_life, worker_processes

__all__ = ["ImportReport", "import_nld"]

# A worker leaves when it next looks, and finishes its shard before.
_PATIENCE_S = 20.0

#: Called with (frames just decoded, games just finished).
Progress = Callable[[int, int], None]


@dataclass(slots=True, kw_only=True)
class ImportReport:
    """What an import found and made.

    Attributes:
        directory: What was imported.
        out: Where to.
        layout: "nle" or "altorg".
        found: Games in the folder.
        imported: Games imported by this run.
        kept: Games that were in `out` before.
        frames: Frames imported by this run.
        masked: Frames among them whose keys are not to be learnt.
        damaged: (path, what is wrong) of games and folders that were skipped.
        unfinished: ttyrecs without a line in an xlogfile: skipped.
        seconds: How long it took.
        interrupted: Whether it was stopped before its end.
    """

    directory: str
    out: str
    layout: str = ""
    found: int = 0
    imported: int = 0
    kept: int = 0
    frames: int = 0
    masked: int = 0
    damaged: list[tuple[str, str]] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        value = {name: getattr(self, name) for name in self.__dataclass_fields__}
        value["damaged"] = [{"path": path, "error": error} for path, error in self.damaged]
        value["seconds"] = round(self.seconds, 3)
        value["frames_per_second"] = round(self.frames / self.seconds, 1) if self.seconds else None
        return value


@dataclass(slots=True)
class _Queue:
    """Games still to be imported, and when it is enough."""

    games: deque[NldGame]
    steps: int | None
    done_steps: int

    def next(self) -> NldGame | None:
        if not self.games or (self.steps is not None and self.done_steps >= self.steps):
            return None
        return self.games.popleft()


def import_nld(
    directory: Path,
    out: Path,
    *,
    layout: str = "auto",
    source: str | None = None,
    games: int | None = None,
    steps: int | None = None,
    workers: int = 1,
    progress: Progress = lambda _frames, _games: None,
    on_found: Callable[[int], None] = lambda _games: None,
) -> ImportReport:
    """Import a folder; games that are in `out` already are kept, and count.

    Args:
        directory: ttyrecs in NLE's or in NAO's layout.
        out: Folder of the shards.
        layout: "nle", "altorg" or "auto".
        source: What the games are said to be from; None: "nld-aa" or "nld-nao".
        games: Take the first so many games; None: all.
        steps: Stop when so many frames are there; games that have begun are finished.
        workers: Worker processes; 0: within this one.
        progress: For a bar.
        on_found: Called once with the number of games that will be looked at.

    Raises:
        NotFoundError: There are no games.
        BadSettingError: A number is impossible.
        ServerFault: A worker died.
    """
    if workers < 0 or (games is not None and games < 1) or (steps is not None and steps < 1):
        raise BadSettingError(f"games and steps are at least 1, workers at least 0, not {games}, {steps}, {workers}")
    began = time.monotonic()
    found = find_games(directory, layout=layout, source=source)
    report = ImportReport(directory=str(directory), out=str(out), layout=found.layout)
    report.found, report.damaged, report.unfinished = len(found.games), list(found.damaged), list(found.unfinished)
    out.mkdir(parents=True, exist_ok=True)
    recover_shards(out)
    queue = _missing(found, out, report, games, steps)
    on_found(report.kept + len(queue.games))
    progress(0, report.kept)
    provenance = {"importer": "nld", "layout": found.layout, "nle": version("nle"), "directory": str(directory)}
    try:
        if workers == 0:
            _run_here(queue, out, provenance, report, progress)
        else:
            _run_workers(queue, out, provenance, report, progress, min(workers, max(1, len(queue.games))))
    except KeyboardInterrupt:
        report.interrupted = True
    report.seconds = time.monotonic() - began
    write_json(out / "import.json", report.to_json())
    return report


def _missing(found: Found, out: Path, report: ImportReport, games: int | None, steps: int | None) -> _Queue:
    there: dict[tuple[str, str], int] = {}
    try:
        dataset = TtyDataset.open(out)
    except (NotFoundError, DataLossError):
        pass  # nothing there, or nothing whole: damaged shards are imported again
    else:
        there = {
            (meta.source, meta.name): int(frames) for meta, frames in zip(dataset.games, dataset.lengths, strict=True)
        }
    wanted = found.games[:games]
    missing = [game for game in wanted if (game.meta.source, game.meta.name) not in there]
    report.kept = len(wanted) - len(missing)
    kept_steps = sum(there.get((game.meta.source, game.meta.name), 0) for game in wanted)
    return _Queue(deque(missing), steps, kept_steps)


def _run_here(
    queue: _Queue, out: Path, provenance: Mapping[str, Any], report: ImportReport, progress: Progress
) -> None:
    with FrameDecoder() as decoder, ShardWriter(out, provenance=provenance) as writer:
        while (game := queue.next()) is not None:
            try:
                result = import_game(game, writer, decoder, lambda frames: progress(frames, 0))
            except DataLossError as error:
                report.damaged.append((game.paths[0], str(error)))
            else:
                _count(report, queue, result.frames, result.masked)
            progress(0, 1)


def _count(report: ImportReport, queue: _Queue, frames: int, masked: int) -> None:
    report.imported += 1
    report.frames += frames
    report.masked += masked
    queue.done_steps += frames


def _run_workers(
    queue: _Queue, out: Path, provenance: Mapping[str, Any], report: ImportReport, progress: Progress, workers: int
) -> None:
    def take(connection: Connection, game: NldGame) -> bool:
        message = receive(connection, f"importing {game.paths[0]}")
        if "progress" in message:
            progress(message["progress"], 0)
            return False
        if "damaged" in message:
            report.damaged.append((game.paths[0], message["damaged"]))
        else:
            _count(report, queue, message["frames"], message["masked"])
        progress(0, 1)
        return True

    config = {"out": str(out), "provenance": dict(provenance)}
    with worker_processes(_work, config, workers, name="import", patience_s=_PATIENCE_S) as connections:
        share_out(connections, lambda _busy: queue.next(), NldGame.to_json, take)
        dismiss(connections, "finishing its shard")


def _work(connection: Connection, config: str) -> None:
    """Live in a worker process: import one game after another until the parent says so, or is gone."""
    options = json.loads(config)
    with worker_life(connection) as jobs:
        with (
            FrameDecoder() as decoder,
            ShardWriter(Path(options["out"]), provenance=options["provenance"]) as writer,
        ):
            for job in jobs:
                tell = Teller(connection)
                try:
                    result = import_game(NldGame.from_json(job), writer, decoder, tell)
                except DataLossError as error:
                    answer: dict[str, Any] = {"damaged": str(error)}
                else:
                    answer = {"frames": result.frames, "masked": result.masked}
                tell.flush()
                send(connection, answer)
        send(connection, {"closed": True})
