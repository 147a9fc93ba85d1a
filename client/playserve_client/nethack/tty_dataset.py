"""Reads shards of NetHack games: any frame of any game, and rows of games side by side for training.

Nothing is read before it is asked for; arrays are memory-mapped. Shape legend: E games, B rows, T steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError, DataLossError, NotFoundError
from playserve_client.nethack.screens import CELLS, GROUPS, Segment, decode_segments
from playserve_client.nethack.shard_format import (
    ARRAYS,
    FORMAT_NAME,
    FORMAT_VERSION,
    MANIFEST,
    PART_SUFFIX,
    SHARD_PREFIX,
    GameEntry,
    GameMeta,
)  # fmt: skip
from playserve_client.nethack.tty import TTY_COLUMNS, TTY_ROWS, TtyChunk

__all__ = ["NO_KEY", "ShardDamagedError", "TtyBatch", "TtyDataset"]

#: Stands in `previous_keys` in the first frame of a game.
NO_KEY = -1

# Games whose views are kept, each about 2 kB.
_MAX_OPEN = 8192


class ShardDamagedError(DataLossError):
    """A shard is not what its manifest says.

    Attributes:
        path: Its folder.
    """

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.path = path


@dataclass(frozen=True, slots=True)
class TtyBatch:
    """Frames of B rows.

    Attributes:
        chars: uint8 [B, T, 24, 80].
        colors: int8 [B, T, 24, 80].
        cursor: uint8 [B, T, 2].
        keys: uint8 [B, T].
        previous_keys: int16 [B, T], the key of the frame before in the same game, NO_KEY in a game's first frame.
        scores: int32 [B, T].
        expert: bool [B, T].
        blstats: int64 [B, T, 27], if asked for.
        inv_glyphs: int16 [B, T, 55], if asked for.
    """

    chars: NDArray[np.uint8]
    colors: NDArray[np.int8]
    cursor: NDArray[np.uint8]
    keys: NDArray[np.uint8]
    previous_keys: NDArray[np.int16]
    scores: NDArray[np.int32]
    expert: NDArray[np.bool_]
    blstats: NDArray[np.int64] | None = None
    inv_glyphs: NDArray[np.int16] | None = None

    @classmethod
    def empty(cls, rows: int, steps: int, *, blstats: bool = False, inventory: bool = False) -> TtyBatch:
        """Return a batch whose content is undefined, to be filled."""
        shape = (rows, steps)
        return cls(
            np.empty((*shape, TTY_ROWS, TTY_COLUMNS), np.uint8),
            np.empty((*shape, TTY_ROWS, TTY_COLUMNS), np.int8),
            np.empty((*shape, 2), np.uint8),
            np.empty(shape, np.uint8),
            np.empty(shape, np.int16),
            np.empty(shape, np.int32),
            np.empty(shape, np.bool_),
            np.empty((*shape, 27), np.int64) if blstats else None,
            np.empty((*shape, 55), np.int16) if inventory else None,
        )


class _Shard:
    """A shard whose arrays are mapped when they are first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            manifest = json.loads((path / MANIFEST).read_text())
            if (manifest["format"], manifest["version"]) != (FORMAT_NAME, FORMAT_VERSION):
                raise ShardDamagedError(
                    path,
                    f"format is {manifest['format']} version {manifest['version']}; this playserve reads "
                    f"{FORMAT_NAME} version {FORMAT_VERSION}",
                )
            self.keyframe_every = int(manifest["keyframe_every"])
            self.header = {name: manifest[name] for name in ("created_at", "packages", "provenance")}
            self.rows = {str(name): int(value["rows"]) for name, value in manifest["arrays"].items()}
            self.digests = {str(name): str(value["sha256"]) for name, value in manifest["arrays"].items()}
            self.games = tuple(GameEntry.from_json(game) for game in manifest["games"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ShardDamagedError(path, f"the manifest cannot be read: {error!r}") from error
        self._maps: dict[str, NDArray[Any]] = {}
        self._check_sizes()

    def _check_sizes(self) -> None:
        if self.keyframe_every < 1:
            raise ShardDamagedError(self.path, f"keyframe_every is {self.keyframe_every}")
        for name, rows in self.rows.items():
            if name not in ARRAYS:
                raise ShardDamagedError(self.path, f"array {name} is not of this format")
            try:
                size = self._file(name).stat().st_size
            except OSError as error:
                raise ShardDamagedError(self.path, f"{name}.bin cannot be read: {error}") from error
            if size != rows * ARRAYS[name].row_bytes:
                raise ShardDamagedError(
                    self.path, f"{name}.bin has {size} bytes; the manifest says {rows * ARRAYS[name].row_bytes}"
                )
        for game in self.games:
            for name, (first, rows) in game.spans.items():
                if first + rows > self.rows.get(name, 0):
                    raise ShardDamagedError(self.path, f"{game.meta.name} reaches behind the end of {name}.bin")

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.bin"

    def array(self, name: str) -> NDArray[Any]:
        """Return an array, mapped."""
        if name not in self._maps:
            spec, rows = ARRAYS[name], self.rows.get(name, 0)
            shape = (rows, *spec.row)
            # An empty file cannot be mapped. A plain view of a map is sliced ten times faster than np.memmap itself.
            mapped = np.memmap(self._file(name), spec.dtype, "r", shape=shape) if rows else np.empty(shape, spec.dtype)
            self._maps[name] = np.asarray(mapped)
        return self._maps[name]

    def verify(self, progress: Callable[[int], None] | None) -> None:
        """Compare every checksum; `progress` gets the bytes read, file by file."""
        for name, digest in self.digests.items():
            try:
                with self._file(name).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise ShardDamagedError(self.path, f"{name}.bin cannot be read: {error}") from error
            if found != digest:
                raise ShardDamagedError(self.path, f"sha256 of {name}.bin is {found}; the manifest says {digest}")
            if progress is not None:
                progress(self.rows[name] * ARRAYS[name].row_bytes)


class _Game:
    """The arrays of one game."""

    __slots__ = (
        "blstats", "blstats_index", "chars", "colors", "cursor", "ends", "every", "expert", "inventory",
        "inventory_index", "keyframe_chars", "keyframe_colors", "keys", "positions", "scores",
    )  # fmt: skip

    def __init__(self, shard: _Shard, entry: GameEntry) -> None:
        def take(name: str) -> NDArray[Any]:
            first, rows = entry.spans[name]
            return shard.array(name)[first : first + rows]

        self.every = shard.keyframe_every
        self.cursor, self.keys, self.scores, self.expert = take("cursor"), take("keys"), take("scores"), take("expert")
        self.ends, self.positions = take("delta_ends"), take("delta_positions")
        # Groups of four cells as one number each.
        self.chars, self.colors = (take(name).view(np.uint32).reshape(-1) for name in ("delta_chars", "delta_colors"))
        self.keyframe_chars = take("keyframe_chars").view(np.uint32)
        self.keyframe_colors = take("keyframe_colors").view(np.uint32)
        self.inventory = take("inventory") if "inventory" in entry.spans else None
        self.inventory_index = take("inventory_index") if self.inventory is not None else None
        self.blstats = take("blstats") if "blstats" in entry.spans else None
        self.blstats_index = take("blstats_index") if self.blstats is not None else None

    def segment(self, place: int, start: int, length: int) -> Segment:
        keyframe = start // self.every
        ends = self.ends[start : start + length]
        low, first, high = int(self.ends[keyframe * self.every]), int(ends[0]), int(ends[-1])
        return Segment(
            place,
            length,
            self.keyframe_chars[keyframe],
            self.keyframe_colors[keyframe],
            first - low,
            ends,
            self.positions[low:high],
            self.chars[low:high],
            self.colors[low:high],
        )


class TtyDataset:
    """Games in shards. Their order does not depend on who wrote them into which shard, or when.

    Attributes:
        directory: Where they are.
        games: What each is.
        lengths: int64 [E], their frames.
        digest: sha256 over all games: the same data, the same digest.
        damaged: Shards left out, with what is wrong.
        duplicates: Games left out because the same game is there already.
        unfinished: Shards that a writer is at, or that a dead one left (see `recover_shards`).
        provenance: What the writers said of each shard, by its folder's name.
    """

    def __init__(self, directory: Path, shards: Sequence[_Shard], damaged: Sequence[ShardDamagedError]) -> None:
        self.directory = directory
        self.damaged = tuple(damaged)
        self._shards = tuple(shards)
        found: dict[str, tuple[_Shard, GameEntry]] = {}
        for shard in shards:
            for entry in shard.games:
                found.setdefault(f"{entry.meta.source}/{entry.meta.name}/{entry.sha256}", (shard, entry))
        self.duplicates = sum(len(shard.games) for shard in shards) - len(found)
        self._take([found[name] for name in sorted(found, key=lambda name: _order(found[name][1]))])
        self.unfinished = len(list(directory.glob(f"{SHARD_PREFIX}*{PART_SUFFIX}")))
        self.provenance: Mapping[str, Any] = {shard.path.name: shard.header for shard in shards}

    def _take(self, where: Sequence[tuple[_Shard, GameEntry]]) -> None:
        self._where = tuple(where)
        self._open: dict[int, _Game] = {}
        self.games: tuple[GameMeta, ...] = tuple(entry.meta for _, entry in where)
        self.lengths: NDArray[np.int64] = np.array([entry.frames for _, entry in where], np.int64)
        digests = "".join(f"{entry.meta.name} {entry.sha256}\n" for _, entry in where)
        self.digest = hashlib.sha256(digests.encode()).hexdigest()

    @classmethod
    def open(cls, directory: Path) -> TtyDataset:
        """Open every shard in a folder. Sizes are checked, and damaged shards left out; checksums: :meth:`verify`.

        Raises:
            NotFoundError: There is no shard.
            DataLossError: There is no whole shard.
        """
        shards: list[_Shard] = []
        damaged: list[ShardDamagedError] = []
        for path in sorted(directory.glob(f"{SHARD_PREFIX}*")):
            if not path.is_dir() or path.name.endswith(PART_SUFFIX):
                continue
            try:
                shards.append(_Shard(path))
            except ShardDamagedError as error:
                damaged.append(error)
        if damaged and not shards:
            raise DataLossError(f"{directory}: all {len(damaged)} shards are damaged, such as {damaged[0]}")
        if not shards:
            raise NotFoundError(
                f"{directory} has no shards of NetHack games; make some with `playserve data import nld` or "
                "`playserve data replay`"
            )
        return cls(directory, shards, damaged)

    @property
    def frames_total(self) -> int:
        """Frames of all games."""
        return int(self.lengths.sum())

    @property
    def has_inventory(self) -> bool:
        """Whether every game has inventory glyphs."""
        return all("inventory" in entry.spans for _, entry in self._where)

    @property
    def has_blstats(self) -> bool:
        """Whether every game has bottom line statistics."""
        return all("blstats" in entry.spans for _, entry in self._where)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays on disk."""
        return sum(rows * ARRAYS[name].row_bytes for shard in self._shards for name, rows in shard.rows.items())

    def verify(self, progress: Callable[[int], None] | None = None) -> tuple[TtyDataset, tuple[ShardDamagedError, ...]]:
        """Compare every checksum.

        Args:
            progress: Called with the bytes of each file that was read.

        Returns:
            The dataset without the shards that proved damaged (this one, if none), and what is wrong with those.
        """
        good: list[_Shard] = []
        bad: list[ShardDamagedError] = []
        for shard in self._shards:
            try:
                shard.verify(progress)
                good.append(shard)
            except ShardDamagedError as error:
                bad.append(error)
        return (TtyDataset(self.directory, good, (*self.damaged, *bad)) if bad else self), tuple(bad)

    def subset(self, games: Sequence[int] | NDArray[np.int64]) -> TtyDataset:
        """Return the dataset of some of the games, in the order given."""
        other = TtyDataset(self.directory, self._shards, self.damaged)
        other._take([self._where[int(game)] for game in games])
        return other

    def keys(self, game: int) -> NDArray[np.uint8]:
        """Return the keys uint8 [T] of a game: a read-only view."""
        return self._game(game).keys

    def expert(self, game: int) -> NDArray[np.bool_]:
        """Return the expert mask bool [T] of a game: a read-only view."""
        return self._game(game).expert

    def scores(self, game: int) -> NDArray[np.int32]:
        """Return the scores int32 [T] of a game: a read-only view."""
        return self._game(game).scores

    def read(self, game: int, start: int = 0, stop: int | None = None) -> TtyChunk:
        """Return the frames from `start` up to `stop` (None: the end) of a game, in fresh memory."""
        stop = int(self.lengths[game]) if stop is None else stop
        if not 0 <= start < stop <= int(self.lengths[game]):
            raise BadSettingError(
                f"{self.games[game].name} has frames 0 to {self.lengths[game]}; asked for {start} to {stop}"
            )
        data = self._game(game)
        batch = self.frames(
            np.full((1, stop - start), game, np.int64),
            np.arange(start, stop)[None],
            blstats=data.blstats is not None,
            inventory=data.inventory is not None,
        )
        return TtyChunk(
            batch.chars[0],
            batch.colors[0],
            batch.cursor[0],
            batch.keys[0],
            batch.scores[0],
            batch.expert[0],
            None if batch.blstats is None else batch.blstats[0],
            None if batch.inv_glyphs is None else batch.inv_glyphs[0],
        )

    def frames(
        self,
        game_BT: NDArray[np.int64],
        step_BT: NDArray[np.int64],
        out: TtyBatch | None = None,
        *,
        blstats: bool = False,
        inventory: bool = False,
    ) -> TtyBatch:
        """Return the frames at some places: fastest where rows walk through games step by step.

        Args:
            game_BT: Which game.
            step_BT: Which frame of it.
            out: Where to put them (C-contiguous); None: fresh memory.
            blstats: Whether bottom line statistics are wanted, where `out` is None.
            inventory: Whether inventory glyphs are wanted, where `out` is None.

        Raises:
            BadSettingError: A place is not in the data, or a game lacks what is wanted.
        """
        rows, steps = game_BT.shape
        if out is None:
            out = TtyBatch.empty(rows, steps, blstats=blstats, inventory=inventory)
        if (game_BT < 0).any() or (game_BT >= len(self.games)).any():
            raise BadSettingError(f"games are 0 to {len(self.games) - 1}, not {game_BT.min()} to {game_BT.max()}")
        if (step_BT < 0).any() or (step_BT >= self.lengths[game_BT]).any():
            raise BadSettingError("a frame was asked for that lies behind the end of its game")
        begins_BT = np.ones((rows, steps), np.bool_)
        begins_BT[:, 1:] = (game_BT[:, 1:] != game_BT[:, :-1]) | (step_BT[:, 1:] != step_BT[:, :-1] + 1)
        places = np.flatnonzero(begins_BT)
        lengths = np.diff(places, append=rows * steps)
        flat = _flat(out)
        segments = []
        for place, length, game, step in zip(
            places.tolist(),
            lengths.tolist(),
            game_BT.reshape(-1)[places].tolist(),
            step_BT.reshape(-1)[places].tolist(),
            strict=True,
        ):
            data = self._game(game)
            segments.append(data.segment(place, step, length))
            _fill(flat, data, place, step, length)
        decode_segments(
            segments,
            out.chars.reshape(rows, steps, CELLS).view(np.uint32).reshape(rows, steps, GROUPS),
            out.colors.reshape(rows, steps, CELLS).view(np.uint32).reshape(rows, steps, GROUPS),
        )
        return out

    def _game(self, game: int) -> _Game:
        data = self._open.get(game)
        if data is None:
            if len(self._open) >= _MAX_OPEN:
                self._open.clear()  # views only: they are made again in microseconds
            data = self._open[game] = _Game(*self._where[game])
        return data


def _order(entry: GameEntry) -> tuple[Any, ...]:
    """Return what games are sorted by."""
    meta = entry.meta
    return meta.source, meta.character, meta.seed is None, meta.seed or 0, meta.name, entry.sha256


def _flat(out: TtyBatch) -> TtyBatch:
    """Return the same memory with rows and steps as one dimension; the screens are left out of it."""
    rows, steps = out.keys.shape
    count = rows * steps
    return replace(
        out,
        cursor=out.cursor.reshape(count, 2),
        keys=out.keys.reshape(count),
        previous_keys=out.previous_keys.reshape(count),
        scores=out.scores.reshape(count),
        expert=out.expert.reshape(count),
        blstats=None if out.blstats is None else out.blstats.reshape(count, 27),
        inv_glyphs=None if out.inv_glyphs is None else out.inv_glyphs.reshape(count, 55),
    )


def _fill(flat: TtyBatch, data: _Game, place: int, step: int, length: int) -> None:
    """Write what is not the screen."""
    to, where = slice(place, place + length), slice(step, step + length)
    keys = data.keys[where]
    flat.cursor[to] = data.cursor[where]
    flat.keys[to] = keys
    flat.previous_keys[place] = data.keys[step - 1] if step else NO_KEY
    flat.previous_keys[place + 1 : place + length] = keys[:-1]
    flat.scores[to] = data.scores[where]
    flat.expert[to] = data.expert[where]
    if flat.inv_glyphs is not None:
        if data.inventory is None or data.inventory_index is None:
            raise BadSettingError("inventory glyphs are wanted, but a game has none: replay it with its inventory")
        flat.inv_glyphs[to] = data.inventory[data.inventory_index[where]]
    if flat.blstats is not None:
        if data.blstats is None or data.blstats_index is None:
            raise BadSettingError("blstats are wanted, but a game has none: replay it with them")
        flat.blstats[to] = data.blstats[data.blstats_index[where]]
