"""What a table of results needs of an expert's games: how they ended, and which keys it pressed after which.

A file of it for the games that the package carries lies beside this module. It is made, and any other is, by

    python -m playserve_client.nethack.expert_statistics GAMES.parquet --out expert_statistics.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve_client.nethack.keys import KEY_TO_ACTION, NUM_ACTIONS

if TYPE_CHECKING:
    from playserve_client.nethack.games import GameRecord
    from playserve_client.nethack.tty_dataset import TtyDataset

__all__ = ["ExpertGame", "ExpertStatistics", "carried_statistics", "count_keys", "main", "read_statistics"]

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertGame:
    """One recorded game.

    Attributes:
        name: Its seed, or the name of its file.
        score: Points in the game.
        steps: Keys.
        turns: Turns of the game; None where nobody knows, as with the next two.
        experience_level: At the end.
        depth: Deepest level reached.
        end: How it ended, in one word or several.
    """

    name: str
    score: float
    steps: int
    turns: int | None
    experience_level: int | None
    depth: int | None
    end: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertStatistics:
    """Key statistics and results of an expert's games.

    Attributes:
        expert: Who played, such as "AutoAscend".
        character: Of the games; "" where they differ.
        source: Where the games are from, for people.
        counts: int64 [121], how often each action was chosen.
        bigram: int64 [121, 121], how often (previous action, action) came.
        games: The games.
    """

    expert: str
    character: str
    source: str
    counts: NDArray[np.int64]
    bigram: NDArray[np.int64]
    games: tuple[ExpertGame, ...]

    def to_bytes(self) -> bytes:
        """Return the content of a file."""
        previous, action = np.nonzero(self.bigram)
        value = {
            "format_version": FORMAT_VERSION,
            "expert": self.expert,
            "character": self.character,
            "source": self.source,
            "made_by": "python -m playserve_client.nethack.expert_statistics GAMES --out FILE",
            "counts": self.counts.tolist(),
            "bigram": np.stack([previous, action, self.bigram[previous, action]], axis=1).tolist(),
            "game_fields": list(ExpertGame.__dataclass_fields__),
            "games": [list(asdict(game).values()) for game in self.games],
        }
        lines = (f"{json.dumps(key)}: {json.dumps(item, separators=(',', ':'))}" for key, item in value.items())
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes, where: str = "the file") -> ExpertStatistics:
        """Return the statistics of a file's content; DataLossError where it is damaged."""
        try:
            value = json.loads(content)
            if (version := value["format_version"]) != FORMAT_VERSION:
                raise BadSettingError(f"{where} is of format version {version}, wanted {FORMAT_VERSION}")
            bigram = np.zeros((NUM_ACTIONS, NUM_ACTIONS), np.int64)
            table = np.array(value["bigram"], np.int64).reshape(-1, 3)
            bigram[table[:, 0], table[:, 1]] = table[:, 2]
            counts = np.array(value["counts"], np.int64)
            if counts.shape != (NUM_ACTIONS,) or not counts.any() or counts.min() < 0 or bigram.min() < 0:
                raise DataLossError(f"{where} is damaged: it holds no counts of {NUM_ACTIONS} actions")
            games = tuple(ExpertGame(**dict(zip(value["game_fields"], game, strict=True))) for game in value["games"])
            return cls(
                expert=value["expert"],
                character=value["character"],
                source=value["source"],
                counts=counts,
                bigram=bigram,
                games=games,
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise DataLossError(f"{where} is damaged: {error}") from error

    @classmethod
    def of_records(cls, records: Sequence[GameRecord], source: str, expert: str = "AutoAscend") -> ExpertStatistics:
        """Return the statistics of games kept as keys."""
        if not records:
            raise BadSettingError(f"{source} holds no games")
        counts, bigram = count_keys(record.keys for record in records)
        characters = {record.character for record in records}
        games = tuple(
            ExpertGame(
                name=f"{record.seed}",
                score=float(record.score),
                steps=int(record.steps),
                turns=int(record.turns),
                experience_level=int(record.experience_level),
                depth=int(record.max_depth),
                end=record.end,
            )
            for record in records
        )
        character = characters.pop() if len(characters) == 1 else ""
        return cls(expert=expert, character=character, source=source, counts=counts, bigram=bigram, games=games)

    @classmethod
    def of_dataset(cls, dataset: TtyDataset, source: str) -> ExpertStatistics:
        """Return the statistics of the games in shards that have keys; masked keys are not counted."""
        from playserve_client.nethack.stats import key_statistics

        wanted = [number for number, meta in enumerate(dataset.games) if meta.has_keys]
        if not wanted:
            raise BadSettingError(f"{source} holds no games with keys")
        metas = [dataset.games[number] for number in wanted]
        keys = key_statistics(dataset, wanted)
        characters = {meta.character for meta in metas}
        games = tuple(
            ExpertGame(
                name=meta.name if meta.seed is None else f"{meta.seed}",
                score=float(meta.score),
                steps=meta.steps,
                turns=meta.turns,
                experience_level=meta.experience_level,
                depth=meta.depth,
                end=meta.end,
            )
            for number, meta in zip(wanted, metas, strict=True)
        )
        known = {meta.source for meta in metas} <= {"keys", "nld-aa"}
        return cls(
            expert="AutoAscend" if known else "expert",
            character=characters.pop() if len(characters) == 1 else "",
            source=f"{len(games)} games of {source} (digest {dataset.digest[:12]})",
            counts=keys.counts,
            bigram=keys.bigram,
            games=games,
        )


def count_keys(games: Iterable[NDArray[np.uint8]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (counts [121], bigram [121, 121] of (previous, action)) of the keys of each game, uint8 [steps]."""
    counts = np.zeros(NUM_ACTIONS, np.int64)
    bigram = np.zeros(NUM_ACTIONS * NUM_ACTIONS, np.int64)
    for keys in games:
        actions = KEY_TO_ACTION[keys].astype(np.int64)
        known = actions >= 0
        counts += np.bincount(actions[known], minlength=NUM_ACTIONS)
        pairs = known[:-1] & known[1:]
        pair = actions[:-1][pairs] * NUM_ACTIONS + actions[1:][pairs]
        bigram += np.bincount(pair, minlength=NUM_ACTIONS * NUM_ACTIONS)
    return counts, bigram.reshape(NUM_ACTIONS, NUM_ACTIONS)


def read_statistics(path: Path) -> ExpertStatistics:
    """Return the statistics of shards, of a file of games as keys (parquet), or of a file that this module wrote."""
    if path.is_dir():
        from playserve_client.nethack.tty_dataset import TtyDataset

        return ExpertStatistics.of_dataset(TtyDataset.open(path), f"{path.name}")
    if not path.exists():
        raise NotFoundError(f"{path} is not there")
    if path.suffix == ".json":
        return ExpertStatistics.from_bytes(path.read_bytes(), str(path))
    from playserve_client.nethack.games import read_games

    records = read_games(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return ExpertStatistics.of_records(records, f"{len(records)} games of {path.name} (sha256 {digest})")


def carried_statistics() -> Path:
    """Return the file of the games that the package carries."""
    return Path(__file__).with_name("expert_statistics.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Count a file of games."""
    parser = argparse.ArgumentParser(prog="python -m playserve_client.nethack.expert_statistics", description=__doc__)
    parser.add_argument("games", type=Path, help="games as keys (a parquet file), or a folder of shards")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    args.out.write_bytes(read_statistics(args.games).to_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
