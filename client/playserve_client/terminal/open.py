"""From what a user names (a ttyrec file, a folder of them, one game of a folder) to a recording."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from playserve.errors import BadSettingError, NotFoundError
from playserve_client.terminal.recording import Recording
from playserve_client.terminal.ttyrec import Ttyrec

__all__ = ["GameEntry", "list_games", "open_game", "split_target"]

_TTYREC = re.compile(r"\.ttyrec[123]?(?:\.bz2|\.gz)?$")


@dataclass(frozen=True, slots=True)
class GameEntry:
    """A game of a folder.

    Attributes:
        name: Its path in the folder without the ending.
        path: The ttyrec file.
        facts: What the xlogfile beside it says.
    """

    name: str
    path: Path
    facts: dict[str, str] = field(default_factory=dict)


def split_target(target: str) -> tuple[Path, str]:
    """Split ``PATH#GAME``; a file whose own name has a # stays whole.

    Returns:
        The path, and the game's name or "".
    """
    if Path(target).exists():
        return Path(target), ""
    path, _, game = target.rpartition("#")
    return (Path(path), game) if path else (Path(target), "")


def list_games(folder: Path) -> list[GameEntry]:
    """Return the ttyrec games in `folder`, at any depth, in the order of their names; NLD's layouts among others.

    Facts come from NLE's xlogfiles (``nle.PID.xlogfile``), which name their ttyrecs.
    """
    facts: dict[Path, dict[str, str]] = {}
    for xlogfile in folder.rglob("*.xlogfile"):
        for line in xlogfile.read_text(encoding="utf-8", errors="replace").splitlines():
            values = dict(pair.partition("=")[::2] for pair in line.split("\t"))
            if "ttyrecname" in values:
                facts[xlogfile.parent / values["ttyrecname"]] = _facts_of(values)
    return [
        GameEntry(_TTYREC.sub("", str(path.relative_to(folder))), path, facts.get(path, {}))
        for path in sorted(folder.rglob("*.ttyrec*"))
        if _TTYREC.search(path.name) and path.is_file()
    ]


def _facts_of(values: dict[str, str]) -> dict[str, str]:
    wanted = {"score": "points", "turns": "turns", "deepest": "maxlvl", "end": "death"}
    facts = {name: values[key] for name, key in wanted.items() if values.get(key)}
    character = "-".join(values[key].lower() for key in ("role", "race", "align", "gender") if values.get(key))
    return {**facts, "character": character} if character else facts


def open_game(path: Path, game: str = "") -> Recording:
    """Open one game.

    Args:
        path: A ttyrec file, or a folder.
        game: Of a folder: the game's name, or a part of it that no other game's name has.

    Raises:
        NotFoundError: No such file or game.
        BadSettingError: Several games are meant, or none is named.
        DataLossError: The file holds no whole frame.
    """
    if not path.exists():
        raise NotFoundError(f"no file or folder {path}")
    if path.is_file():
        if game:
            raise BadSettingError(f"{path} is one game; '#{game}' is for folders")
        return Ttyrec(path)
    entry = _choose(path, list_games(path), game)
    return Ttyrec(entry.path, name=entry.name, facts=entry.facts)


def _choose(folder: Path, entries: list[GameEntry], game: str) -> GameEntry:
    if not entries:
        raise NotFoundError(f"{folder} holds no ttyrec file")
    found = [entry for entry in entries if entry.name == game] or [entry for entry in entries if game in entry.name]
    if len(found) == 1:
        return found[0]
    some = ", ".join(entry.name for entry in (found or entries)[:5])
    if not found:
        raise NotFoundError(f"{folder} has no game {game!r}; it has {some}, ...")
    raise BadSettingError(f"{len(found)} games of {folder} are meant by {game!r}: {some}, ...")
