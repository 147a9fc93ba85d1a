"""Writes games into shards, so that a kill costs the game being written and nothing else.

A shard grows in a folder ``shard-<id>.part``: whole games are appended to its arrays and then named in its journal,
on which the writer holds a lock. When the shard is large enough, or the writer closes, the manifest is written and the
folder takes its final name. :func:`recover_shards` finishes what dead writers left. Several processes may write into
one folder: each makes its own shards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError, ShapeMismatchError, StateError
from playserve_client.nethack.screens import ScreenEncoder
from playserve_client.nethack.shard_format import (
    ARRAYS,
    FORMAT_NAME,
    FORMAT_VERSION,
    JOURNAL,
    MANIFEST,
    PART_SUFFIX,
    SHARD_PREFIX,
    GameEntry,
    GameMeta,
    game_digest,
)  # fmt: skip
from playserve_client.nethack.tty import TTY_COLUMNS, TTY_ROWS, TtyChunk

__all__ = ["Recovery", "ShardWriter", "recover_shards"]

# Shape of one frame in each field of a chunk.
_FIELDS: Mapping[str, tuple[int, ...]] = {
    "chars": (TTY_ROWS, TTY_COLUMNS), "colors": (TTY_ROWS, TTY_COLUMNS), "cursor": (2,), "keys": (), "scores": (),
    "expert": (), "blstats": (27,), "inv_glyphs": (55,),
}  # fmt: skip


class ShardWriter:
    """Writes games into new shards of a folder; a context manager.

    The game being written is held in memory (about 350 bytes a frame) until its end.

    Args:
        out: The folder; made if absent.
        keyframe_every: Frames between two whole screens: what a random access reads at most before it begins.
        max_shard_bytes: A shard that is larger is finished, and another begun.
        provenance: Versions and settings that made the data; stands in the manifests.
    """

    def __init__(
        self,
        out: Path,
        *,
        keyframe_every: int = 64,
        max_shard_bytes: int = 512 << 20,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._out = out
        self._every = keyframe_every
        self._max_bytes = max_shard_bytes
        self._provenance = dict(provenance or {})
        self._shard: _OpenShard | None = None
        self._game: _Game | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
        self.close()

    def begin(self, meta: GameMeta) -> None:
        """Begin a game."""
        if self._game is not None:
            raise StateError(f"{self._game.meta.name} has not ended; end or abort it before {meta.name} begins")
        self._game = _Game(meta, self._every)

    def append(self, chunk: TtyChunk) -> None:
        """Add the next frames of the game.

        Raises:
            ShapeMismatchError: A field has another shape than :class:`TtyChunk` says, or comes and goes.
        """
        self._current("append").append(chunk)

    def end(self, meta: GameMeta | None = None, *, mask_last: int = 0) -> None:
        """End the game and put it on disk.

        Args:
            meta: What the game turned out to be, if that was not known when it began.
            mask_last: So many of the last keys proved not to be the expert's.
        """
        game = self._current("end")
        if not game.frames:
            raise BadSettingError(f"{game.meta.name} has no frames")
        game.mask_last(mask_last)
        if self._shard is None:
            self._shard = _OpenShard(self._out, self._every, self._provenance)
        try:
            self._shard.add(meta or game.meta, game)
        except BaseException:
            # Half a game may lie behind the whole ones, as after a kill: recover_shards cuts it off.
            self._shard.leave()
            self._shard = None
            raise
        self._game = None
        if self._shard.size >= self._max_bytes:
            self._finish()

    def abort(self) -> None:
        """Forget the game being written, if there is one."""
        self._game = None

    def close(self) -> None:
        """Finish the shard; the games that ended are whole and named. A game that has not ended raises."""
        if self._game is not None:
            raise StateError(f"{self._game.meta.name} has not ended; end or abort it before the writer closes")
        self._finish()

    def _finish(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.finish()

    def _current(self, what: str) -> _Game:
        if self._game is None:
            raise StateError(f"no game has begun: call begin() before {what}()")
        return self._game


class _Game:
    """The pieces of the game being written, as bytes for each array."""

    def __init__(self, meta: GameMeta, keyframe_every: int) -> None:
        self.meta = meta
        self.frames = 0
        self.pieces: dict[str, list[memoryview]] = {}
        self._encoder = ScreenEncoder(keyframe_every)
        self._deltas = 0
        self._last_rows: dict[str, NDArray[Any]] = {}
        self._row_counts: dict[str, int] = {}
        self._optional: tuple[bool, bool] | None = None

    def append(self, chunk: TtyChunk) -> None:
        self._check(chunk)
        for encoded in self._encoder.encode(chunk.chars, chunk.colors):
            self._put("delta_ends", self._deltas + np.cumsum(encoded.counts))
            self._deltas += len(encoded.positions)
            self._put("delta_positions", encoded.positions)
            self._put("delta_chars", encoded.chars)
            self._put("delta_colors", encoded.colors)
            self._put("keyframe_chars", encoded.keyframe_chars)
            self._put("keyframe_colors", encoded.keyframe_colors)
        for name in ("cursor", "keys", "scores", "expert"):
            self._put(name, getattr(chunk, name))
        if chunk.inv_glyphs is not None:
            self._put_changes("inventory", chunk.inv_glyphs)
        if chunk.blstats is not None:
            self._put_changes("blstats", chunk.blstats)
        self.frames += len(chunk)

    def mask_last(self, frames: int) -> None:
        if frames > 0:
            expert = np.frombuffer(b"".join(self.pieces["expert"]), np.uint8).copy()
            expert[-frames:] = 0
            self.pieces["expert"] = [expert.data]

    def _check(self, chunk: TtyChunk) -> None:
        for name, row in _FIELDS.items():
            array = getattr(chunk, name)
            if array is not None and array.shape != (len(chunk), *row):
                raise ShapeMismatchError(
                    f"{self.meta.name}: {name} is {list(array.shape)}; wanted {[len(chunk), *row]}, one row a key"
                )
        optional = (chunk.inv_glyphs is not None, chunk.blstats is not None)
        if self._optional is not None and optional != self._optional:
            raise ShapeMismatchError(
                f"{self.meta.name}: (inv_glyphs, blstats) are {optional}, and were {self._optional} in earlier frames"
            )
        self._optional = optional

    def _put(self, name: str, rows: NDArray[Any]) -> None:
        data = np.ascontiguousarray(rows).astype(ARRAYS[name].dtype)  # a copy: callers reuse their buffers
        self.pieces.setdefault(name, []).append(data.reshape(-1).view(np.uint8).data)

    def _put_changes(self, name: str, rows: NDArray[Any]) -> None:
        if not len(rows):
            return
        last = self._last_rows.get(name)
        changed = np.ones(len(rows), np.bool_)
        changed[1:] = (rows[1:] != rows[:-1]).any(axis=1)
        if last is not None:
            changed[0] = bool((rows[0] != last).any())
        count = self._row_counts.get(name, 0)
        self._put(f"{name}_index", count + np.cumsum(changed) - 1)
        self._put(name, rows[changed])
        self._row_counts[name] = count + int(changed.sum())
        self._last_rows[name] = rows[-1].copy()


class _OpenShard:
    """A shard that grows."""

    def __init__(self, out: Path, keyframe_every: int, provenance: Mapping[str, Any]) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        name = f"{SHARD_PREFIX}{stamp}-{os.getpid()}-{secrets.token_hex(4)}"
        self._final = out / name
        self._part = out / f"{name}{PART_SUFFIX}"
        # It takes the name of a part when its lock is held: nobody takes it for what a dead writer left.
        unborn = out / f".{name}"
        unborn.mkdir()
        self._journal = (unborn / JOURNAL).open("a")
        _lock(self._journal)
        self._header = _header(keyframe_every, provenance)
        _write_line(self._journal, self._header)
        unborn.rename(self._part)
        self._files: dict[str, IO[bytes]] = {}
        self._digests: dict[str, Any] = {}
        self._rows: dict[str, int] = {}
        self._games: list[GameEntry] = []
        self.size = 0

    def add(self, meta: GameMeta, game: _Game) -> None:
        spans = {}
        ordered = {name: game.pieces[name] for name in ARRAYS if name in game.pieces}
        for name, views in ordered.items():
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = (self._part / f"{name}.bin").open("ab")
                self._digests[name] = hashlib.sha256()
            for view in views:
                file.write(view)
                self._digests[name].update(view)
            file.flush()
            size = sum(len(view) for view in views)
            first, rows = self._rows.get(name, 0), size // ARRAYS[name].row_bytes
            spans[name] = (first, rows)
            self._rows[name] = first + rows
            self.size += size
        entry = GameEntry(meta=meta, frames=game.frames, spans=spans, sha256=game_digest(ordered.items()))
        self._games.append(entry)
        _write_line(self._journal, entry.to_json())

    def leave(self) -> None:
        """Leave the shard as it is."""
        files: list[IO[Any]] = [*self._files.values(), self._journal]
        for file in files:
            with contextlib.suppress(OSError):  # what could not be written cannot be flushed either
                file.close()

    def finish(self) -> None:
        for file in self._files.values():
            os.fsync(file.fileno())
            file.close()
        arrays = {name: (self._rows[name], self._digests[name].hexdigest()) for name in self._files}
        _finish(self._part, self._final, self._header, arrays, self._games)
        self._journal.close()


def _header(keyframe_every: int, provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "keyframe_every": keyframe_every,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "packages": {"playserve": version("playserve"), "numpy": np.__version__},
        "provenance": dict(provenance),
    }


def _lock(file: IO[str]) -> bool:
    """Lock a file for as long as it is open; return whether nobody else has it."""
    import fcntl  # here: shards are read, if not written, where there is none

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_line(file: IO[str], value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value) + "\n")
    file.flush()


def _finish(
    part: Path,
    final: Path,
    header: Mapping[str, Any],
    arrays: Mapping[str, tuple[int, str]],
    games: Sequence[GameEntry],
) -> None:
    """Write the manifest and give the shard its name."""
    manifest = {
        **header,
        "frames": sum(game.frames for game in games),
        "arrays": {
            name: {"dtype": ARRAYS[name].dtype, "row": list(ARRAYS[name].row), "rows": rows, "sha256": digest}
            for name, (rows, digest) in arrays.items()
        },
        "games": [game.to_json() for game in games],
    }
    with (part / f"{MANIFEST}.tmp").open("w") as file:
        json.dump(manifest, file)
        file.flush()
        os.fsync(file.fileno())
    (part / f"{MANIFEST}.tmp").rename(part / MANIFEST)
    part.rename(final)
    (final / JOURNAL).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found of writers that died.

    Attributes:
        shards: Shards that were finished.
        games: Whole games in them.
        lost: Games that were named but are damaged.
        emptied: Folders removed, because they held no whole game.
    """

    shards: int
    games: int
    lost: int
    emptied: int


def recover_shards(out: Path) -> Recovery:
    """Finish the shards in a folder whose writers are dead; those of living writers are left alone."""
    shards = games = lost = emptied = 0
    for part in sorted(out.glob(f"{SHARD_PREFIX}*{PART_SUFFIX}")):
        try:
            journal = (part / JOURNAL).open("r+")
        except FileNotFoundError:
            continue  # finished, or recovered by another, in this moment
        with journal:
            if not _lock(journal) or not part.exists():
                continue
            header, named = _read_journal(journal.read())
            whole = _whole_games(part, named)
            lost += len(named) - len(whole)
            if not whole or header is None:
                shutil.rmtree(part)
                emptied += 1
                continue
            _finish(part, part.with_name(part.name.removesuffix(PART_SUFFIX)), header, _trim(part, whole), whole)
            shards, games = shards + 1, games + len(whole)
    return Recovery(shards, games, lost, emptied)


def _read_journal(text: str) -> tuple[dict[str, Any] | None, list[GameEntry]]:
    lines = text.splitlines()
    try:
        header = json.loads(lines[0])
    except (ValueError, IndexError):
        return None, []
    if header.get("version") != FORMAT_VERSION:
        return None, []
    games = []
    for line in lines[1:]:
        try:
            games.append(GameEntry.from_json(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            break  # the kill came within this line
    return header, games


def _whole_games(part: Path, named: Sequence[GameEntry]) -> list[GameEntry]:
    """Return the games up to the first whose bytes are not all there."""
    whole = []
    files = {path.stem: np.fromfile(path, np.uint8) for path in part.glob("*.bin")}
    nothing = np.zeros(0, np.uint8)
    for game in named:
        pieces = []
        for name in ARRAYS:
            if name in game.spans:
                first, rows = game.spans[name]
                size = ARRAYS[name].row_bytes
                pieces.append((name, [files.get(name, nothing)[first * size : (first + rows) * size].data]))
        if game_digest(pieces) != game.sha256:
            break
        whole.append(game)
    return whole


def _trim(part: Path, games: Sequence[GameEntry]) -> dict[str, tuple[int, str]]:
    """Cut the arrays behind the last whole game; return (rows, sha256) of each."""
    arrays = {}
    for path in sorted(part.glob("*.bin")):
        rows = max((sum(game.spans[path.stem]) for game in games if path.stem in game.spans), default=0)
        if not rows:
            path.unlink()
            continue
        os.truncate(path, rows * ARRAYS[path.stem].row_bytes)
        with path.open("rb") as file:
            arrays[path.stem] = (rows, hashlib.file_digest(file, "sha256").hexdigest())
    return arrays
