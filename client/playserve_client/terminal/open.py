"""From what a user names (a ttyrec file, a folder or a file of games, one game of those) to a recording."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from playserve.errors import BadSettingError, NotFoundError
from playserve_client.nethack.games import carried_games
from playserve_client.terminal.recording import Recording, ReplayedRecording, ShardRecording
from playserve_client.terminal.ttyrec import Ttyrec

if TYPE_CHECKING:
    from playserve_client.nethack.shards import GameMeta

__all__ = ["EXPERT", "GameEntry", "choose_game", "list_games", "open_game", "split_target"]

#: What users call the games that the package carries.
EXPERT = "expert"
_TTYREC = re.compile(r"\.ttyrec[123]?(?:\.bz2|\.gz)?$")


@dataclass(frozen=True, slots=True)
class GameEntry:
    """A game that can be opened.

    Attributes:
        name: Of a ttyrec, its path in the folder without the ending; of other games their name.
        facts: What is known of it before it is opened.
        open: Opens it.
    """

    name: str
    facts: dict[str, str]
    open: Callable[[], Recording]


def split_target(target: str) -> tuple[Path, str]:
    """Split ``PATH#GAME``; a file whose own name has a # stays whole, and `EXPERT` is the file that we carry.

    Returns:
        The path, and the game's name or "".
    """
    if Path(target).exists():
        return Path(target), ""
    path, mark, game = target.rpartition("#") if "#" in target else (target, "", "")
    if path == EXPERT and not Path(path).exists():
        return carried_games(), game
    return (Path(path), game) if path else (Path(mark + game), "")


def open_game(path: Path, game: str = "") -> Recording:
    """Open one game.

    Args:
        path: What `list_games` takes.
        game: The game's name, or a part of it that no other game's name has; "" for the only one.

    Raises:
        NotFoundError: No such file or game.
        BadSettingError: Several games are meant.
        DataLossError: The file holds no whole frame.
    """
    return choose_game(path, list_games(path), game).open()


def choose_game(path: Path, entries: Sequence[GameEntry], game: str) -> GameEntry:
    """Return the game of that name, or the only one that has `game` in its name."""
    found = [entry for entry in entries if entry.name == game] or [entry for entry in entries if game in entry.name]
    if len(found) == 1:
        return found[0]
    some = ", ".join(entry.name for entry in (found or entries)[:4])
    if not found:
        raise NotFoundError(f"{path} has no game {game!r}; it has {some} and others")
    raise BadSettingError(f"{len(found)} games of {path} have {game!r} in their name: {some} and others")


def list_games(path: Path) -> list[GameEntry]:
    """Return the games that `path` holds.

    Args:
        path: A ttyrec file, a Parquet file of seeds and keys, or a folder: of our shards, where there are any, else of
            ttyrecs at any depth (NLD's layouts among others).

    Raises:
        NotFoundError: There is no such path, or no game in it.
        DataLossError: There are games, and no whole one.
    """
    if not path.exists():
        raise NotFoundError(f"no file or folder {path}")
    if path.is_file():
        return _games_of_keys(path) if path.suffix == ".parquet" else [GameEntry(path.name, {}, partial(Ttyrec, path))]
    entries = _shard_games(path) if any(path.glob("shard-*/manifest.json")) else _ttyrec_games(path)
    if not entries:
        raise NotFoundError(f"{path} holds no recorded game")
    return entries


def _games_of_keys(path: Path) -> list[GameEntry]:
    from playserve_client.nethack.games import read_games

    return [
        GameEntry(
            game.name,
            {"score": str(game.score), "turns": str(game.turns), "deepest": str(game.max_depth), "end": game.end},
            partial(ReplayedRecording, game),
        )
        for game in read_games(path)
    ]


def _shard_games(folder: Path) -> list[GameEntry]:
    from playserve_client.nethack.shards import TtyDataset

    dataset = TtyDataset.open(folder)
    count = Counter(meta.name for meta in dataset.games)
    entries = []
    for index, meta in enumerate(dataset.games):
        name = meta.name if count[meta.name] == 1 else f"{meta.source}/{meta.name}"
        facts = _facts_of_meta(meta)
        entries.append(GameEntry(name, facts, partial(ShardRecording, dataset, index, name=name, facts=facts)))
    return entries


def _facts_of_meta(meta: GameMeta) -> dict[str, str]:
    values = {
        "score": meta.score,
        "turns": meta.turns,
        "deepest": meta.depth,
        "experience level": meta.experience_level,
        "end": meta.end,
        "character": meta.character,
        "seed": meta.seed,
    }
    return {name: str(value) for name, value in values.items() if value not in (None, "")}


def _ttyrec_games(folder: Path) -> list[GameEntry]:
    """Return the ttyrecs at any depth; NLE's xlogfiles (``nle.PID.xlogfile``) name those that they tell of."""
    told: dict[Path, dict[str, str]] = {}
    for xlogfile in folder.rglob("*.xlogfile"):
        for line in xlogfile.read_text(encoding="utf-8", errors="replace").splitlines():
            values = dict(pair.partition("=")[::2] for pair in line.split("\t"))
            if "ttyrecname" in values:
                told[xlogfile.parent / values["ttyrecname"]] = _facts_of_line(values)
    entries = []
    for path in sorted(folder.rglob("*.ttyrec*")):
        if _TTYREC.search(path.name) and path.is_file():
            name, facts = _TTYREC.sub("", path.relative_to(folder).as_posix()), told.get(path, {})
            entries.append(GameEntry(name, facts, partial(Ttyrec, path, name=name, facts=facts)))
    return entries


def _facts_of_line(values: dict[str, str]) -> dict[str, str]:
    wanted = {"score": "points", "turns": "turns", "deepest": "maxlvl", "end": "death"}
    facts = {name: values[key] for name, key in wanted.items() if values.get(key)}
    character = "-".join(values[key].lower() for key in ("role", "race", "align", "gender") if values.get(key))
    return {**facts, "character": character} if character else facts
