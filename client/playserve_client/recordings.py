"""The file of one recorded episode of any game: arrays over the steps of the episode, and what it is an episode of.

An episode is one ``.npz`` (a zip of ``.npy`` members, readable by ``numpy.load(path, allow_pickle=False)``) at
``<root>/<env>/<game>/episode-<seed>.npz``. It appears under that name only when it is whole; the zip's checksums tell
damage later. T is the number of steps; step t is one decision of the agent.

=========  =========  ===========  ====================================================================
array      dtype      shape        meaning
=========  =========  ===========  ====================================================================
executed   int16      [T]          index of the action that was sent to the game; -1: unknown
label      int16      [T]          index of the action that the expert chose; -1: unknown
reward     float32    [T]          unclipped reward of the step
probes     uint8      [T, P]       inner state that no learner may see (Atari: the 128 bytes of RAM)
frames     uint8      [T, 84, 84]  Atari only: the single frame on which ``label[t]`` was chosen
=========  =========  ===========  ====================================================================

Frames are stored once and stacked when they are read (:func:`stack_frames`). Other games may add arrays of length T.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import DataLossError

__all__ = [
    "FORMAT_VERSION", "REQUIRED_ARRAYS", "UNKNOWN", "Episode", "EpisodeMeta", "episode_path", "list_episodes",
    "read_episode", "read_meta", "stack_frames", "write_episode",
]  # fmt: skip

FORMAT_VERSION = 1

#: dtype of the arrays that every episode of every game has; all are [T, ...].
REQUIRED_ARRAYS: dict[str, str] = {"executed": "int16", "label": "int16", "reward": "float32", "probes": "uint8"}

#: Stands in `label` or `executed` where nobody knows the action.
UNKNOWN = -1

_META = "meta"
# A fixed date: the same episode is the same bytes.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
# What zipfile and numpy raise on damaged bytes; NotImplementedError and RuntimeError stand for flipped zip flags.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, ValueError, TypeError, KeyError, EOFError, NotImplementedError,
    RuntimeError, SyntaxError, OSError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeMeta:
    """What an episode is an episode of.

    Attributes:
        env: Environment family, such as "atari".
        game: Game of the family, such as "breakout".
        seed: Seed of the episode; with the executed actions it determines the episode.
        steps: T.
        score: Sum of the unclipped rewards.
        terminated: Whether the game ended by itself.
        truncated: Whether it was cut at a number of steps.
        action_names: Name of each action index.
        frame_skip: Emulator frames a step, 1 where the word means nothing.
        stickiness: Probability that the emulator repeats the previous action.
        noops: No-ops played before the first step.
        epsilon: Probability that a step executed a uniformly random action.
        expert: Name of the expert.
        expert_version: Its version.
        packages: Version of each package that shaped the data.
        recorded_at: UTC, ISO 8601.
        format_version: Version of this format.
        extra: Whatever else a game's recorder wants to keep.
    """

    env: str
    game: str
    seed: int
    steps: int
    score: float
    terminated: bool
    truncated: bool
    action_names: tuple[str, ...]
    frame_skip: int = 1
    stickiness: float = 0.0
    noops: int = 0
    epsilon: float = 0.0
    expert: str = ""
    expert_version: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    recorded_at: str = ""
    format_version: int = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        value = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**value, "action_names": list(self.action_names)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EpisodeMeta:
        """Return the meta of a JSON value; what is missing, or unknown, raises ValueError."""
        version = value.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(f"episode format is version {version!r}; this playserve reads version {FORMAT_VERSION}")
        try:
            return cls(**{**value, "action_names": tuple(value["action_names"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"episode meta is incomplete or has unknown keys: {error}") from error


class Episode:
    """One recorded episode, or the part of it that was read.

    Attributes:
        meta: What it is an episode of.
        arrays: Every array by name, [T, ...] each; the module's docstring has the table.
    """

    def __init__(self, *, meta: EpisodeMeta, **arrays: NDArray[Any]) -> None:
        self.meta = meta
        self.arrays: Mapping[str, NDArray[Any]] = arrays
        for name, array in arrays.items():
            wanted = REQUIRED_ARRAYS.get(name)
            if wanted is not None and array.dtype != wanted:
                raise ValueError(f"array {name!r} is {array.dtype}, not {wanted}")
            if array.ndim < 1 or array.shape[0] != meta.steps:
                raise ValueError(f"array {name!r} has shape {array.shape}, but the episode has {meta.steps} steps")
            if name in ("label", "executed") and array.size:
                low, high = int(array.min()), int(array.max())
                if low < UNKNOWN or high >= len(meta.action_names):
                    raise ValueError(f"array {name!r} has actions {low} to {high} of {len(meta.action_names)}")

    def _array(self, name: str) -> NDArray[Any]:
        try:
            return self.arrays[name]
        except KeyError:
            raise KeyError(f"array {name!r} was not read; there are {', '.join(sorted(self.arrays))}") from None

    @property
    def frames(self) -> NDArray[np.uint8]:
        """Single frames, uint8 [T, 84, 84]; frame t is what ``label[t]`` was chosen on."""
        return self._array("frames")

    @property
    def executed(self) -> NDArray[np.int16]:
        """Executed actions, int16 [T]."""
        return self._array("executed")

    @property
    def label(self) -> NDArray[np.int16]:
        """The expert's actions, int16 [T]."""
        return self._array("label")

    @property
    def reward(self) -> NDArray[np.float32]:
        """Unclipped rewards, float32 [T]."""
        return self._array("reward")

    @property
    def probes(self) -> NDArray[np.uint8]:
        """Inner state, uint8 [T, P]."""
        return self._array("probes")

    def __len__(self) -> int:
        return self.meta.steps


def episode_path(root: Path, env: str, game: str, seed: int) -> Path:
    """Return where the episode of `seed` lies under `root`."""
    return root / env / game / f"episode-{seed:08d}.npz"


def list_episodes(directory: Path) -> list[Path]:
    """Return the episodes anywhere under `directory`, sorted; none if there is no such directory."""
    return sorted(directory.rglob("episode-*.npz"))


def write_episode(path: Path, episode: Episode) -> None:
    """Write `episode` to `path`, atomically: a kill leaves the file whole or absent."""
    missing = sorted(REQUIRED_ARRAYS.keys() - episode.arrays.keys())
    if missing:
        raise ValueError(f"an episode to be written lacks {', '.join(missing)}")
    meta = np.frombuffer(json.dumps(episode.meta.to_json(), sort_keys=True).encode(), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for name, array in {_META: meta, **episode.arrays}.items():
                    # Level 1: 7 KB of Atari frame become about 0.4 KB; higher levels cost more than the emulator.
                    info = zipfile.ZipInfo(f"{name}.npy", _ZIP_DATE)
                    info.compress_type = zipfile.ZIP_DEFLATED
                    info._compresslevel = 1  # type: ignore[attr-defined]  # a ZipInfo does not take the archive's level
                    with archive.open(info, "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def read_episode(path: Path, *, arrays: Collection[str] | None = None) -> Episode:
    """Return the episode at `path`; every array that is read is checked against its checksum.

    Args:
        path: The file.
        arrays: Names of the arrays to read; None reads all.

    Raises:
        DataLossError: The file is damaged, truncated, lacks an array or is of another format. The message names it.
        FileNotFoundError: There is no such file.
    """
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        meta = _read_meta_member(archive)
        stored = {name.removesuffix(".npy") for name in archive.namelist()} - {_META}
        wanted = set(arrays) if arrays is not None else stored | set(REQUIRED_ARRAYS)
        if wanted - stored:
            raise ValueError(f"it has no array {', '.join(sorted(wanted - stored))}")
        return Episode(meta=meta, **{name: _read_member(archive, name) for name in sorted(wanted)})


def read_meta(path: Path) -> EpisodeMeta:
    """Return only the meta of the episode at `path`; raises as :func:`read_episode` does."""
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        return _read_meta_member(archive)


def stack_frames(frames: NDArray[np.uint8], steps: NDArray[np.integer[Any]], depth: int = 4) -> NDArray[np.uint8]:
    """Return what the agent saw at `steps`, as the environment stacks it.

    Args:
        frames: Single frames of one episode, [T, 84, 84].
        steps: Step indices, [N].
        depth: Frames in a stack.

    Returns:
        uint8 [N, 84, 84, depth], oldest first; before the first frame of the episode that frame is repeated.
    """
    index_NK = np.maximum(np.asarray(steps)[:, None] + np.arange(1 - depth, 1), 0)
    return np.ascontiguousarray(np.moveaxis(frames[index_NK], 1, -1))


@contextlib.contextmanager
def _damage_named(path: Path) -> Any:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise
    except _DAMAGE as error:
        raise DataLossError(f"{path} is not a whole episode: {error or type(error).__name__}") from error


def _read_meta_member(archive: zipfile.ZipFile) -> EpisodeMeta:
    value = json.loads(_read_member(archive, _META).tobytes())
    if not isinstance(value, dict):
        raise ValueError("episode meta is not a JSON object")
    return EpisodeMeta.from_json(value)


def _read_member(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Return one array. The size that its header claims is checked before anything is allocated."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        shape, dtype = _read_header(member)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or size != info.file_size - member.tell():
            raise ValueError(f"array {name!r} claims {dtype} {shape}, but has {info.file_size} bytes")
        array = np.empty(shape, dtype)
        view = array.reshape(-1).view(np.uint8)
        done = 0
        while done < size:
            chunk = member.read(min(1 << 20, size - done))
            if not chunk:
                raise EOFError(f"array {name!r} ends after {done} of {size} bytes")
            view[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
            done += len(chunk)
        if member.read(1):  # also takes zipfile to the end, where it compares the checksum
            raise ValueError(f"array {name!r} goes on past its end")
    return array


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    if version != (1, 0):
        raise ValueError(f"npy version {version} is not (1, 0)")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
    if fortran:
        raise ValueError("the array is in Fortran order")
    return shape, dtype
