"""From what a user names (a ttyrec file, a folder of games, one game of a folder) to a recording."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from playserve.errors import BadSettingError, NotFoundError
from playserve_client.terminal.recording import Recording, ShardRecording
from playserve_client.terminal.ttyrec import Ttyrec

if TYPE_CHECKING:
    from playserve_client.nethack.shards import GameMeta

__all__ = ["GameEntry", "choose_game", "list_games", "open_game", "split_target"]

_TTYREC = re.compile(r"\.ttyrec[123]?(?:\.bz2|\.gz)?$")


@dataclass(frozen=True, slots=True)
class GameEntry:
    """A game of a folder.

    Attributes:
        name: Of a ttyrec, its path in the folder without the ending; of a game in shards, its name there.
        facts: What the folder says of it.
        open: Opens it.
    """

    name: str
    facts: dict[str, str]
    open: Callable[[], Recording]


def split_target(target: str) -> tuple[Path, str]:
    """Split ``PATH#GAME``; a file whose own name has a # stays whole.

    Returns:
        The path, and the game's name or "".
    """
    if Path(target).exists():
        return Path(target), ""
    path, _, game = target.rpartition("#")
    return (Path(path), game) if path else (Path(target), "")


def open_game(path: Path, game: str = "") -> Recording:
    """Open one game.

    Args:
        path: A ttyrec file, or a folder of ttyrecs or of our shards.
        game: Of a folder: the game's name, or a part of it that no other game's name has.

    Raises:
        NotFoundError: No such file or game.
        BadSettingError: Several games are meant.
        DataLossError: The file holds no whole frame.
    """
    if path.is_dir():
        return choose_game(path, list_games(path), game).open()
    if game and path.exists():
        raise BadSettingError(f"{path} is one game; '#{game}' is for folders")
    return Ttyrec(path)


def choose_game(folder: Path, entries: Sequence[GameEntry], game: str) -> GameEntry:
    """Return the game of that name, or the only one that has `game` in its name."""
    found = [entry for entry in entries if entry.name == game] or [entry for entry in entries if game in entry.name]
    if len(found) == 1:
        return found[0]
    some = ", ".join(entry.name for entry in (found or entries)[:4])
    if not found:
        raise NotFoundError(f"{folder} has no game {game!r}; it has {some} and others")
    raise BadSettingError(f"{len(found)} games of {folder} have {game!r} in their name: {some} and others")


def list_games(folder: Path) -> list[GameEntry]:
    """Return the games in `folder`: our shards, where there are any, else its ttyrecs (NLD's layouts among others).

    Raises:
        NotFoundError: There are none.
        DataLossError: There are shards, and no whole one.
    """
    entries = _shard_games(folder) if any(folder.glob("shard-*/manifest.json")) else _ttyrec_games(folder)
    if not entries:
        raise NotFoundError(f"{folder} holds no recorded game")
    return entries


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
