"""Recorded games as seeds and keys: the Parquet files that hold them, and the one that the package carries."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from playserve.errors import DataLossError, NotFoundError
from playserve_client.nethack.keys import KEY_TO_ACTION

__all__ = ["SEEDING", "GameFileMissingError", "GameRecord", "GamesDamagedError", "carried_games", "read_games"]

#: How the recorded games were seeded; the file's metadata must say so.
SEEDING: Final = "core = disp = seed, reseed=False, fix_moon_phase=True"

_COLUMNS: Final = ("seed", "character", "score", "steps", "turns", "experience_level", "max_depth", "end", "keys")
_OPTIONAL: Final = ("birthday",)
_TEXTS: Final = ("character", "end")


class GamesDamagedError(DataLossError):
    """A file of games is not what it should be; the message says where."""


class GameFileMissingError(NotFoundError):
    """There is no such file of games."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GameRecord:
    """One recorded game.

    Attributes:
        seed: core and disp seed.
        character: Role, race, alignment and gender.
        score: Sum of its rewards.
        steps: Number of keys.
        turns: Turns of the game.
        experience_level: The player's, at the end.
        max_depth: Deepest level reached.
        end: "finished", or "stopped" (cut off from outside).
        keys: uint8 [steps], the key code of each step.
        birthday: Seconds since 1970 at which it began, as far as the game depends on it; None: unknown.
        game: What it was played with, such as "NetHack 3.6.7, nle 1.3.0, NetHackChallenge-v0".
        player: Who played.
    """

    seed: int
    character: str
    score: int
    steps: int
    turns: int
    experience_level: int
    max_depth: int
    end: str
    keys: NDArray[np.uint8] = field(repr=False)
    birthday: int | None = None
    game: str = ""
    player: str = ""

    @property
    def name(self) -> str:
        """Return the name of the game, such as "mon-hum-neu-mal-20000"."""
        return f"{self.character}-{self.seed}"


def carried_games() -> Path:
    """Return the file of games that the package carries; its README beside it says where they come from."""
    return Path(__file__).parent / "expert_games" / "mon-hum-neu-mal.parquet"


def read_games(path: Path) -> list[GameRecord]:
    """Return the games of a Parquet file, in its order.

    Raises:
        GameFileMissingError: There is no such file.
        GamesDamagedError: It is no Parquet file of games, or a game in it is damaged.
    """
    import pyarrow  # here: whoever only handles games needs no 40 MB for it
    import pyarrow.parquet

    path = Path(path)
    if not path.is_file():
        raise GameFileMissingError(f"there is no file {path}")
    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise GamesDamagedError(f"{path} cannot be read as Parquet: {error}") from error
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise GamesDamagedError(f"{path} has no column {', '.join(missing)}; it has {', '.join(table.column_names)}")
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if (seeding := metadata.get("seeding")) != SEEDING:
        raise GamesDamagedError(f"{path}: the games are seeded as {seeding!r}; {SEEDING!r} was expected")
    about = {"game": metadata.get("game", ""), "player": metadata.get("player", "")}
    columns = [*_COLUMNS, *(name for name in _OPTIONAL if name in table.column_names)]
    games = [_record(path, number, row, about) for number, row in enumerate(table.select(columns).to_pylist())]
    seen: set[str] = set()
    for game in games:
        if game.name in seen:
            raise GamesDamagedError(f"{path}: game {game.name} is there twice")
        seen.add(game.name)
    return games


def _record(path: Path, number: int, row: dict[str, Any], about: dict[str, str]) -> GameRecord:
    where = f"{path}: game {number} (seed {row['seed']})"
    for name, value in row.items():
        if name in _OPTIONAL and value is None:
            continue
        wanted = bytes if name == "keys" else str if name in _TEXTS else int
        if not isinstance(value, wanted):
            raise GamesDamagedError(f"{where}: {name} is {value!r:.60}, not of type {wanted.__name__}")
    if row["seed"] < 0:
        raise GamesDamagedError(f"{where}: the seed is negative")
    keys = np.frombuffer(row.pop("keys"), np.uint8)
    if len(keys) != row["steps"] or not len(keys):
        raise GamesDamagedError(f"{where}: {len(keys):,} keys for {row['steps']:,} steps")
    unknown = np.flatnonzero(KEY_TO_ACTION[keys] < 0)
    if len(unknown):
        raise GamesDamagedError(
            f"{where}: key {keys[unknown[0]]} at step {unknown[0]:,} is no action of NetHackChallenge"
        )
    return GameRecord(keys=keys, game=about["game"], player=about["player"], **row)
