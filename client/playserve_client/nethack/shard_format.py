"""What a shard of NetHack games looks like on disk: a folder of flat arrays and a manifest that describes them.

``shard-<id>/manifest.json`` names the format, the games and the sha256 of every ``<array>.bin``. The arrays are raw,
little-endian, C-contiguous; the games lie in them one behind the other, each at its own offset in each array.

================  ==========  ========  ==================================================================
array             dtype       row       one row for
================  ==========  ========  ==================================================================
cursor            uint8       [2]       frame: row and column
keys              uint8       []        frame: the key that answered it
scores            int32       []        frame: score in the game
expert            bool        []        frame: whether the key is the expert's
delta_ends        uint32      []        frame: changes of the game up to and with this frame
delta_positions   uint16      []        change: which group of four cells, 0 to 479
delta_chars       uint8       [4]       change: the group's new characters
delta_colors      uint8       [4]       change: the group's new colours
keyframe_chars    uint8       [1920]    every `keyframe_every`-th frame of a game, from the first
keyframe_colors   uint8       [1920]    the same
inventory_index   uint32      []        frame: row of `inventory` (optional, as all below)
inventory         int16       [55]      inventory glyphs, where they differ from the frame before
blstats_index     uint32      []        frame: row of `blstats`
blstats           int64       [27]      bottom line statistics, where they differ from the frame before
================  ==========  ========  ==================================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np

__all__ = [
    "ARRAYS", "FORMAT_NAME", "FORMAT_VERSION", "JOURNAL", "MANIFEST", "PART_SUFFIX", "REQUIRED", "SHARD_PREFIX",
    "ArraySpec", "GameEntry", "GameMeta", "game_digest",
]  # fmt: skip

FORMAT_NAME: Final = "playserve-nethack-shard"
FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
#: While a shard is written: one line of JSON for each whole game; locked by its writer.
JOURNAL: Final = "journal.jsonl"
SHARD_PREFIX: Final = "shard-"
PART_SUFFIX: Final = ".part"


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """dtype and shape of one row of an array."""

    dtype: str
    row: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.row, dtype=np.int64))


#: Every array of the format.
ARRAYS: Mapping[str, ArraySpec] = MappingProxyType(
    {
        "cursor": ArraySpec("|u1", (2,)),
        "keys": ArraySpec("|u1"),
        "scores": ArraySpec("<i4"),
        "expert": ArraySpec("|b1"),
        "delta_ends": ArraySpec("<u4"),
        "delta_positions": ArraySpec("<u2"),
        "delta_chars": ArraySpec("|u1", (4,)),
        "delta_colors": ArraySpec("|u1", (4,)),
        "keyframe_chars": ArraySpec("|u1", (1920,)),
        "keyframe_colors": ArraySpec("|u1", (1920,)),
        "inventory_index": ArraySpec("<u4"),
        "inventory": ArraySpec("<i2", (55,)),
        "blstats_index": ArraySpec("<u4"),
        "blstats": ArraySpec("<i8", (27,)),
    }
)

#: Arrays of every game.
REQUIRED: Final = tuple(name for name in ARRAYS if not name.startswith(("inventory", "blstats")))


@dataclass(frozen=True, slots=True, kw_only=True)
class GameMeta:
    """What a game is; None where nobody knows.

    Attributes:
        name: Unique among the games of its source.
        character: As NLE writes it, such as "mon-hum-neu-mal".
        source: Where the game comes from: "keys", "nld-aa", "nld-nao", "recorded"...
        score: Points at its end.
        steps: Keys of the player; frames that follow the last of them are closing screens.
        turns: Turns of the game.
        experience_level: The player's, at the end.
        depth: Deepest level reached.
        end: How it ended.
        seed: core and disp seed, where known.
        has_keys: False: screens only; no learner can imitate them.
    """

    name: str
    character: str
    source: str
    score: int
    steps: int
    turns: int | None = None
    experience_level: int | None = None
    depth: int | None = None
    end: str = ""
    seed: int | None = None
    has_keys: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GameMeta:
        """Return the meta of a JSON value; what is missing, or unknown, raises TypeError."""
        return cls(**value)


@dataclass(frozen=True, slots=True, kw_only=True)
class GameEntry:
    """A game in a shard.

    Attributes:
        meta: What it is.
        frames: Its length.
        spans: (first row, rows) in each array that holds a part of it.
        sha256: Over its rows in all arrays: the same game, the same digest, in whatever shard it is.
    """

    meta: GameMeta
    frames: int
    spans: Mapping[str, tuple[int, int]]
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        spans = {name: list(span) for name, span in self.spans.items()}
        return {"meta": self.meta.to_json(), "frames": self.frames, "spans": spans, "sha256": self.sha256}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GameEntry:
        """Return the entry of a JSON value.

        Raises:
            TypeError, KeyError, ValueError: Something is missing or is not what it should be.
        """
        spans = {str(name): (int(first), int(rows)) for name, (first, rows) in value["spans"].items()}
        entry = cls(
            meta=GameMeta.from_json(value["meta"]),
            frames=int(value["frames"]),
            spans=spans,
            sha256=str(value["sha256"]),
        )
        for name in REQUIRED:
            if name not in spans:
                raise KeyError(name)
        if entry.frames < 1 or any(spans[name][1] != entry.frames for name in ("cursor", "keys", "delta_ends")):
            raise ValueError(f"{entry.meta.name} has {entry.frames} frames, but its arrays have other lengths")
        if any(first < 0 or rows < 0 for first, rows in spans.values()) or not spans.keys() <= ARRAYS.keys():
            raise ValueError(f"{entry.meta.name} has impossible offsets {spans}")
        return entry


def game_digest(pieces: Iterable[tuple[str, Iterable[memoryview]]]) -> str:
    """Return the sha256 of a game.

    Args:
        pieces: Its bytes by array name, in the order of :data:`ARRAYS`.
    """
    digest = hashlib.sha256()
    for name, views in pieces:
        digest.update(f"{name}\n".encode())
        for view in views:
            digest.update(view)
    return digest.hexdigest()
