"""Turns a file of games as keys into a dataset: replays them with worker processes, resumable, checked one by one.

Each worker reads the file itself and writes its own shards.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve.files import write_json
from playserve_client.nethack.games import GameRecord, read_games
from playserve_client.nethack.replay import Replayer, ReplayMismatchError
from playserve_client.nethack.shards import GameMeta, ShardWriter, TtyDataset, recover_shards
from playserve_client.workers import Teller, dismiss, receive, send, share_out, worker_life, worker_processes

__all__ = ["SOURCE", "TTYREC_FOLDER", "ReplayReport", "ReplaySettings", "replay_dataset"]

#: `source` of the games in the dataset.
SOURCE: Final = "keys"
#: Folder of the ttyrecs, in the dataset's.
TTYREC_FOLDER: Final = "nle_data"

# A worker leaves when it next tells something, and finishes its shard before.
_PATIENCE_S: Final = 20.0

#: Called with (frames just replayed, games just finished).
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """What is kept of each game besides the terminal.

    Attributes:
        blstats: The bottom lines as numbers.
        inventory: The inventory's glyphs.
        ttyrec: ttyrec files, in ``OUT/nle_data``, besides the shards.
    """

    blstats: bool = False
    inventory: bool = False
    ttyrec: bool = False


@dataclass(slots=True, kw_only=True)
class ReplayReport:
    """What a run found and made.

    Attributes:
        file: The file of games.
        out: The dataset.
        found: Games in the file.
        kept: Wanted games that were in `out` before.
        replayed: Games that this run replayed and wrote.
        frames: Their frames.
        mismatched: (name, what is wrong) of games that did not come out as recorded, and are left out.
        dated: Games among `replayed` of which the file does not say when they began, and which needed a search.
        seconds: How long it took.
        interrupted: Whether it was stopped before its end.
    """

    file: str
    out: str
    found: int = 0
    kept: int = 0
    replayed: int = 0
    frames: int = 0
    mismatched: list[tuple[str, str]] = field(default_factory=list)
    dated: list[str] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        value = asdict(self)
        value["mismatched"] = [{"game": name, "error": error} for name, error in self.mismatched]
        value["seconds"] = round(self.seconds, 3)
        value["frames_per_second"] = round(self.frames / self.seconds, 1) if self.seconds else None
        return value


def replay_dataset(
    file: Path,
    out: Path,
    *,
    games: int | None = None,
    steps: int | None = None,
    settings: ReplaySettings | None = None,
    workers: int = 1,
    progress: Progress = lambda _frames, _games: None,
    on_found: Callable[[int, int], None] = lambda _games, _frames: None,
) -> ReplayReport:
    """Replay the games of a file into shards; games that are in `out` already are kept, and count.

    Which games are wanted is a function of the file, `games` and `steps` alone.

    Args:
        file: Games as keys, as :func:`playserve_client.nethack.games.read_games` reads them.
        out: Folder of the shards; ``replay.json`` in it gets the report.
        games: Take the first so many games.
        steps: Take the first games that have so many steps together.
        settings: What to keep besides the terminal.
        workers: Worker processes; 0: within this one.
        progress: For a bar.
        on_found: Called once with the games and frames that are wanted.

    Raises:
        BadSettingError: A number is impossible.
        GameFileMissingError, GamesDamagedError: The file is not there, or not what it should be.
        ServerFault: A worker died.
    """
    if workers < 0 or (games is not None and games < 1) or (steps is not None and steps < 1):
        raise BadSettingError(f"games and steps are at least 1, workers at least 0, not {games}, {steps}, {workers}")
    began = time.monotonic()
    report = ReplayReport(file=str(file), out=str(out))
    records = read_games(file)
    report.found = len(records)
    wanted = _wanted(records, games, steps)
    on_found(len(wanted), sum(records[row].steps for row in wanted))
    out.mkdir(parents=True, exist_ok=True)
    recover_shards(out)
    there = _names_in(out)
    missing = [row for row in wanted if records[row].name not in there]
    report.kept = len(wanted) - len(missing)
    progress(sum(records[row].steps for row in wanted) - sum(records[row].steps for row in missing), report.kept)
    job = _Job(file, out, settings or ReplaySettings(), records)
    try:
        if workers == 0:
            _run_here(job, missing, report, progress)
        elif missing:
            _run_workers(job, missing, report, progress, min(workers, len(missing)))
    except KeyboardInterrupt:
        report.interrupted = True
    report.seconds = time.monotonic() - began
    write_json(out / "replay.json", report.to_json())
    return report


@dataclass(frozen=True, slots=True)
class _Job:
    file: Path
    out: Path
    settings: ReplaySettings
    records: list[GameRecord]

    def provenance(self) -> dict[str, Any]:
        return {"importer": "replay", "nle": version("nle"), "file": self.file.name, **asdict(self.settings)}


def _wanted(records: list[GameRecord], games: int | None, steps: int | None) -> list[int]:
    wanted, total = [], 0
    for row, record in enumerate(records[:games]):
        if steps is not None and total >= steps:
            break
        wanted.append(row)
        total += record.steps
    return wanted


def _names_in(out: Path) -> set[str]:
    try:
        return {meta.name for meta in TtyDataset.open(out).games if meta.source == SOURCE}
    except (NotFoundError, DataLossError):  # nothing there, or nothing whole
        return set()


class _GameWriter:
    """Replays one game after another into shards; a context manager."""

    def __init__(self, job: _Job) -> None:
        self._settings = job.settings
        self._ttyrecs = job.out / TTYREC_FOLDER if job.settings.ttyrec else None
        self._writer = ShardWriter(job.out, provenance=job.provenance())
        self._replayers: dict[tuple[str, bool], Replayer] = {}

    def __enter__(self) -> _GameWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.abort()
        self._writer.close()
        for replayer in self._replayers.values():
            replayer.close()

    def write(self, game: GameRecord, on_frames: Callable[[int], None]) -> bool:
        """Write a game; return whether its birthday had to be looked for.

        Raises:
            ReplayMismatchError: It does not come out as recorded.
        """
        checker = self._replayer(game.character, recorded=False)
        # A ttyrec of a game that then does not match would stay: there it is looked at before.
        if not self._settings.ttyrec or checker.matches(game, game.birthday):
            try:
                self._write(game, on_frames)
            except ReplayMismatchError:
                if game.birthday is not None:
                    raise
            else:
                return False
        birthday = checker.find_birthday(game) if game.birthday is None else game.birthday
        # Where none fits, this raises what does not fit.
        self._write(replace(game, birthday=birthday), on_frames)
        return True

    def _write(self, game: GameRecord, on_frames: Callable[[int], None]) -> None:
        replayer = self._replayer(game.character, recorded=self._settings.ttyrec)
        writer, meta, frames = self._writer, _meta(game), 0
        writer.begin(meta)
        try:
            for chunk in replayer.replay(game):
                writer.append(chunk)
                frames += len(chunk)
                on_frames(len(chunk))
        except BaseException:
            writer.abort()
            on_frames(-frames)
            raise
        writer.end(replace(meta, end=replayer.end or game.end))

    def _replayer(self, character: str, *, recorded: bool) -> Replayer:
        key = character, recorded
        if key not in self._replayers:
            self._replayers[key] = Replayer(
                character,
                blstats=self._settings.blstats,
                inventory=self._settings.inventory,
                ttyrec_dir=self._ttyrecs if recorded else None,
            )
        return self._replayers[key]


def _meta(game: GameRecord) -> GameMeta:
    return GameMeta(
        name=game.name,
        character=game.character,
        source=SOURCE,
        score=game.score,
        steps=game.steps,
        turns=game.turns,
        experience_level=game.experience_level,
        depth=game.max_depth,
        end=game.end,
        seed=game.seed,
    )


def _run_here(job: _Job, rows: list[int], report: ReplayReport, progress: Progress) -> None:
    with _GameWriter(job) as writer:
        for row in rows:
            game = job.records[row]
            try:
                searched = writer.write(game, lambda frames: progress(frames, 0))
            except ReplayMismatchError as error:
                _count(report, game, str(error), False)
            else:
                _count(report, game, None, searched)
            progress(0, 1)


def _count(report: ReplayReport, game: GameRecord, error: str | None, searched: bool) -> None:
    if error is not None:
        report.mismatched.append((game.name, error))
        return
    report.replayed += 1
    report.frames += game.steps
    if searched:
        report.dated.append(game.name)


def _run_workers(job: _Job, rows: list[int], report: ReplayReport, progress: Progress, workers: int) -> None:
    todo = deque(rows)

    def take(connection: Connection, row: int) -> bool:
        game = job.records[row]
        message = receive(connection, f"replaying {game.name}")
        if "progress" in message:
            progress(message["progress"], 0)
            return False
        _count(report, game, message["mismatch"], message["searched"])
        progress(0, 1)
        return True

    config = {"file": str(job.file), "out": str(job.out), "settings": asdict(job.settings)}
    with worker_processes(_work, config, workers, name="replay", patience_s=_PATIENCE_S) as connections:
        share_out(connections, lambda _busy: todo.popleft() if todo else None, lambda row: {"row": row}, take)
        dismiss(connections, "finishing its shard")


def _work(connection: Connection, config: str) -> None:
    """Live in a worker process: replay one game after another until the parent says so, or is gone."""
    options = json.loads(config)
    with worker_life(connection) as jobs:
        file = Path(options["file"])
        job = _Job(file, Path(options["out"]), ReplaySettings(**options["settings"]), read_games(file))
        with _GameWriter(job) as writer:
            for message in jobs:
                answer: dict[str, Any] = {"mismatch": None, "searched": False}
                tell = Teller(connection)
                try:
                    answer["searched"] = writer.write(job.records[message["row"]], tell)
                except ReplayMismatchError as error:
                    answer["mismatch"] = str(error)
                tell.flush()
                send(connection, answer)
        send(connection, {"closed": True})
