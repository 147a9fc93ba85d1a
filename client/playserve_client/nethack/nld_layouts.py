"""Finds the games in folders of ttyrecs, through the index of nle.dataset, and says which keys are the player's.

Two layouts are known: ``nle``, which NLE writes and NLD-AA has (an xlogfile beside its ttyrecs, in any depth), and
``altorg``, which NLD-NAO has (ttyrecs in a folder for each player, ``xlogfile.*`` and ``blacklist.txt`` above them).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError, NotFoundError
from playserve_client.nethack.shard_format import GameMeta

__all__ = ["LAYOUTS", "Found", "NldGame", "find_games", "foreign_keys"]

#: Source that each layout's games are said to be of, if nobody says otherwise.
LAYOUTS: Final[Mapping[str, str]] = {"nle": "nld-aa", "altorg": "nld-nao"}

_SPACE, _ESC, _QUIT, _YES = 32, 27, 241, 121
# More closing screens than any game shows; a bot that leans on a key for longer did so itself.
_MAX_CLOSING: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class NldGame:
    """A game in ttyrecs.

    Attributes:
        meta: What its xlogfile says; steps and experience level are not known yet.
        paths: Its ttyrecs in order.
        version: Of the ttyrec format: 1 (screens), 2 (and keys) or 3 (and scores).
        quit: Whether it ended by the keys that quit.
    """

    meta: GameMeta
    paths: tuple[str, ...]
    version: int
    quit: bool

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return {
            "meta": self.meta.to_json(), "paths": list(self.paths), "version": self.version, "quit": self.quit
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> NldGame:
        """Return the game of a JSON value."""
        return cls(
            meta=GameMeta.from_json(value["meta"]),
            paths=tuple(value["paths"]),
            version=value["version"],
            quit=value["quit"],
        )


@dataclass(frozen=True, slots=True)
class Found:
    """What is in a folder.

    Attributes:
        layout: "nle" or "altorg".
        games: In the order of their names.
        damaged: (path, what is wrong) of folders whose index cannot be made.
        unfinished: ttyrecs of games that have no line in an xlogfile: their process was killed.
    """

    layout: str
    games: tuple[NldGame, ...]
    damaged: tuple[tuple[str, str], ...]
    unfinished: tuple[str, ...]


def foreign_keys(keys: NDArray[np.uint8], *, quit_game: bool) -> int:
    """Return how many of a game's last keys are not to be learnt.

    NLE answers the closing screens of a game itself, with spaces and ESC; and ends a game that it cuts off with M-q and
    y. From the keys alone nobody can tell NLE's spaces from those with which the player left the last messages, so all
    spaces and ESC that end a game count as NLE's (at most 64), and the M-q and y before them if the game ended so.
    Measured on 46 games: no key of NLE is missed; 0 to 28 of the bot's (4 in the mean) are lost with them.

    Args:
        keys: uint8 [T], all keys of the game.
        quit_game: Whether its end was to quit.
    """
    tail = keys[-_MAX_CLOSING:]
    others = np.flatnonzero((tail != _SPACE) & (tail != _ESC))
    closing = len(tail) - 1 - int(others[-1]) if len(others) else len(tail)
    before = keys[: len(keys) - closing]
    if quit_game and len(before) >= 2 and before[-2] == _QUIT and before[-1] == _YES:
        closing += 2
    return closing


def find_games(directory: Path, *, layout: str = "auto", source: str | None = None) -> Found:
    """Return the games in a folder.

    Args:
        directory: Where to look.
        layout: "nle", "altorg", or "auto".
        source: What the games are said to be from; None: by the layout.

    Raises:
        NotFoundError: There is no xlogfile.
    """
    if not directory.is_dir():
        raise NotFoundError(f"there is no folder {directory}")
    if layout not in ("auto", *LAYOUTS):
        raise BadSettingError(f"layout is auto, {' or '.join(LAYOUTS)}, not {layout!r}")
    if layout == "auto":
        layout = "altorg" if any(directory.glob("xlogfile.*")) else "nle"
    source = source or LAYOUTS[layout]
    if layout == "altorg":
        return _find_altorg(directory, source)
    return _find_nle(directory, source)


def _find_nle(directory: Path, source: str) -> Found:
    folders = sorted({path.parent for path in directory.rglob("*.xlogfile")})
    if not folders:
        raise NotFoundError(
            f"{directory} has no *.xlogfile in any depth, and no xlogfile.*: wanted NLE's layout or NAO's"
        )
    damaged: list[tuple[str, str]] = []
    games = _distinct(_index_folders(folders, source, damaged), directory)
    named = {path for game in games for path in game.paths}
    bad = {path for path, _ in damaged}
    there = (str(path) for folder in folders if str(folder) not in bad for path in folder.glob("*.ttyrec*.bz2"))
    return Found("nle", tuple(games), tuple(damaged), tuple(sorted(set(there) - named)))


def _distinct(games: Iterable[NldGame], root: Path) -> list[NldGame]:
    """Return the games by their names; games of the same name, in folders of the same name, go by their whole path."""
    ordered = sorted(games, key=lambda game: (game.meta.name, game.paths))
    often = Counter(game.meta.name for game in ordered)

    def renamed(game: NldGame) -> NldGame:
        name = str(Path(game.paths[0]).relative_to(root)).partition(".ttyrec")[0]
        return replace(game, meta=replace(game.meta, name=name))

    return [game if often[game.meta.name] == 1 else renamed(game) for game in ordered]


def _index_folders(folders: Sequence[Path], source: str, damaged: list[tuple[str, str]]) -> Iterator[NldGame]:
    """Yield the games of some folders; where nle.dataset fails on one, the others are read without it."""
    import nle.dataset as nld

    with tempfile.TemporaryDirectory(prefix="playserve-nld-") as scratch:
        # It indexes ROOT/*/*.xlogfile: links bring folders of any depth to that.
        links = Path(scratch) / "root"
        links.mkdir()
        for number, folder in enumerate(folders):
            (links / f"{number:08d}").symlink_to(folder.resolve(), target_is_directory=True)
        try:
            rows = _rows(Path(scratch), links, nld.add_nledata_directory)
        except Exception as error:  # noqa: BLE001 - it asserts, and fails in many ways on damaged lines
            if len(folders) == 1:
                damaged.append((str(folders[0]), f"nle.dataset cannot index it: {type(error).__name__} {error}"))
                return
            half = len(folders) // 2
            yield from _index_folders(folders[:half], source, damaged)
            yield from _index_folders(folders[half:], source, damaged)
            return
    for row, paths in rows:
        real = [folders[int(Path(path).parts[0])] / Path(path).name for path in paths]
        # The same whatever folder above it is imported: by its name a game keeps its side of the split.
        name = f"{real[0].parent.resolve().name}/{real[0].name}".partition(".ttyrec")[0]
        version = _version(real[0].name)
        yield NldGame(
            meta=_meta(row, name, source, has_keys=version >= 2),
            paths=tuple(str(path) for path in real),
            version=version,
            quit=str(row["death"]).startswith("quit"),
        )


def _find_altorg(directory: Path, source: str) -> Found:
    import nle.dataset as nld

    if not (directory / "blacklist.txt").is_file():
        raise NotFoundError(f"{directory} has xlogfile.* but no blacklist.txt, which belongs to the altorg layout")
    with tempfile.TemporaryDirectory(prefix="playserve-nld-") as scratch:
        try:
            rows = _rows(Path(scratch), directory, nld.add_altorg_directory)
        except (ValueError, AssertionError, UnicodeDecodeError, sqlite3.Error) as error:
            raise BadSettingError(f"nle.dataset cannot index {directory}: {type(error).__name__} {error}") from error
    games = []
    for row, paths in rows:
        version = _version(paths[0])
        # The public index hides players behind numbers; so do our names.
        name = hashlib.sha256(paths[0].encode()).hexdigest()[:16]
        games.append(
            NldGame(
                meta=_meta(row, name, source, has_keys=version >= 2),
                paths=tuple(str(directory / path) for path in paths),
                version=version,
                quit=str(row["death"]).startswith("quit"),
            )
        )
    games.sort(key=lambda game: game.meta.name)
    named = {path for game in games for path in game.paths}
    there = {str(path) for path in directory.glob("*/*.ttyrec.bz2")}
    return Found("altorg", tuple(games), (), tuple(sorted(there - named)))


def _version(name: str) -> int:
    """Return the version of a ttyrec by its name: nle's index keeps only one for a whole folder."""
    return int(name.rpartition(".ttyrec")[2].removesuffix(".bz2") or 1)


def _rows(scratch: Path, root: Path, add: Callable[[str, str, str], None]) -> list[tuple[dict[str, Any], list[str]]]:
    """Return (row of the table of games, relative paths of its ttyrecs) of each game under a root."""
    import nle.dataset as nld

    database = str(scratch / "index.db")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        nld.db.create(database)
        add(str(root), "games", database)
    dataset = nld.TtyrecDataset("games", batch_size=1, dbfilename=database)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for row in connection.execute("SELECT * FROM games ORDER BY gameid")]
    return [(row, dataset.get_paths(row["gameid"])) for row in rows if dataset.get_paths(row["gameid"])]


def _meta(row: Mapping[str, Any], name: str, source: str, *, has_keys: bool) -> GameMeta:
    def first_known(*names: str) -> str:
        return next((str(row[key]) for key in names if str(row[key]) not in ("-1", "")), "?")

    parts = (first_known("role"), first_known("race"), first_known("align0", "align"), first_known("gender0", "gender"))
    return GameMeta(
        name=name,
        character="-".join(parts).lower(),
        source=source,
        score=int(row["points"]),
        steps=0,
        turns=int(row["turns"]) if int(row["turns"]) >= 0 else None,
        depth=int(row["maxlvl"]) if int(row["maxlvl"]) >= 0 else None,
        end=str(row["death"]),
        has_keys=has_keys,
    )
