"""The token cache: a folder of mapped arrays, written once: recorded games as a world or an agent learns them.

``<folder>/<array>.bin`` are raw, little-endian and C-contiguous; ``<folder>/cache.json`` describes them and is keyed by
digests of the data and of the tokenizer; ``<folder>/tokenizer`` is the tokenizer's checkpoint. The folder appears under
its name when it is whole.

Shape legend: N frames of all episodes end to end, E episodes, K tokens of a frame, V codes, H numbers of an action,
P probes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError, DataLossError, NotFoundError, StateError
from playserve.files import read_json, write_json
from playserve_trainer.data.split import held_out_episodes
from playserve_trainer.data.tokens.arrays import map_array
from playserve_trainer.data.tokens.filling import fill

if TYPE_CHECKING:
    from playserve_trainer.data.tokens.games import GameSource
    from playserve_trainer.models.tokenizer import Tokenizer

__all__ = ["FORMAT_VERSION", "INDEX_NAME", "TOKENIZER_NAME", "TokenCache", "cache_digest", "cache_folder",
           "load_tokenizer", "open_cache", "write_cache"]  # fmt: skip

FORMAT_VERSION = 1
INDEX_NAME = "cache.json"
#: Folder of the tokenizer's checkpoint in that of the cache.
TOKENIZER_NAME = "tokenizer"

# Tokens are kept as uint16.
_MAX_CODES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCache:
    """Recorded games as tokens; every array is mapped and read-only.

    Attributes:
        tokens_NK: uint16, tokens of each frame; K is 0 where no tokenizer was given.
        frames: uint8 [N, H, W, C], the frames themselves as the tokenizer saw them, where asked for; else None.
        executed_NH: int32, the action executed upon each frame, after seeing it; -1 unknown or none.
        labels_NH: int32, the expert's action upon each frame; -1: none to learn.
        reward_N: float32, the reward that followed the action executed upon each frame.
        terminated_E: bool, whether the game ended by itself: with the episode's last frame, upon which nothing is done
            (recordings of a desktop keep it), or by what was done upon it (Atari, NetHack).
        starts_E: int64, first frame of each episode.
        lengths_E: int64, frames of each episode.
        names_E: Name of each episode, unique.
        seeds_E: int64, seed of each episode; -1 unknown.
        places_E: float64, between 0 and 1: below the held-out share, an episode is held out.
        probes_NP: float32, inner state at each frame, which no learner may see.
        probe_names: Name of each probe.
        held_out_E: bool, whether an episode is held out.
        action: "spec": the ActionSpec as JSON (protobuf's mapping of playserve.v1.ActionSpec); "heads": choices of each
            of the H numbers; for desktop actions also "combos" (see
            :class:`playserve_trainer.models.tokenizer.actions.ComboActions`), by which an index is keys and mouse.
        game: "game" ("doom", "breakout", ...), "rate_hz" (0: turn based), "frame_skip" and what else is known.
        vocabulary: V; 0 where no tokenizer was given.
        frame_shape: H, W, C of the frames.
        digest: Of data, tokenizer and format: equal digests, equal caches.
        data_digest: Of the data.
        tokenizer: Digest of the tokenizer (:meth:`playserve_trainer.models.tokenizer.Tokenizer.digest`); empty: none.
        folder: Where the cache lies.
        damaged: (unit, what is wrong) of what was left out.
    """

    tokens_NK: NDArray[np.uint16]
    frames: NDArray[np.uint8] | None
    executed_NH: NDArray[np.int32]
    labels_NH: NDArray[np.int32]
    reward_N: NDArray[np.float32]
    terminated_E: NDArray[np.bool_]
    starts_E: NDArray[np.int64]
    lengths_E: NDArray[np.int64]
    names_E: tuple[str, ...]
    seeds_E: NDArray[np.int64]
    places_E: NDArray[np.float64]
    probes_NP: NDArray[np.float32]
    probe_names: tuple[str, ...]
    held_out_E: NDArray[np.bool_]
    action: Mapping[str, Any]
    game: Mapping[str, Any]
    vocabulary: int
    frame_shape: tuple[int, int, int]
    digest: str
    data_digest: str
    tokenizer: str
    folder: Path
    damaged: tuple[tuple[str, str], ...] = ()

    @property
    def num_frames(self) -> int:
        """N, frames of all episodes."""
        return len(self.reward_N)

    @property
    def num_tokens(self) -> int:
        """K, tokens of a frame."""
        return int(self.tokens_NK.shape[1])

    @property
    def heads(self) -> tuple[int, ...]:
        """Choices of each of the H numbers of an action."""
        return tuple(int(n) for n in self.action["heads"])

    def select(self, *, held_out: bool) -> NDArray[np.int64]:
        """Return the indices of the episodes of one side of the split."""
        return np.flatnonzero(self.held_out_E == held_out)

    def frames_of(self, episodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices int64 of every frame of some episodes, in their order."""
        if not len(episodes):
            return np.zeros(0, np.int64)
        return np.concatenate([np.arange(self.starts_E[e], self.starts_E[e] + self.lengths_E[e]) for e in episodes])


def cache_digest(data_digest: str, tokenizer: str, *, keep_frames: bool) -> str:
    """Return the digest of the cache of some data by a tokenizer (its digest; empty: none)."""
    key = json.dumps([FORMAT_VERSION, data_digest, tokenizer, keep_frames])
    return hashlib.sha256(key.encode()).hexdigest()


def cache_folder(root: Path, game: str, tokens: int | str) -> Path:
    """Return the folder of a game's cache of so many tokens a frame: `root` itself, or else the one in it of that name.

    Nothing says that a cache is there.
    """
    return root if (root / INDEX_NAME).is_file() else root / f"{game}-{tokens}"


def _held_out(places: Sequence[float], fraction: float) -> NDArray[np.bool_]:
    """Return which episodes are held out, bool [E]; those of one place lie on one side (see data/split.py)."""
    distinct = sorted(set(places))
    sides = dict(zip(distinct, held_out_episodes(distinct, fraction), strict=True))
    return np.array([sides[place] for place in places], np.bool_)


def open_cache(folder: Path, *, held_out: float | None = None) -> TokenCache:
    """Map the cache in `folder`; nothing of its arrays is read.

    Args:
        folder: Where :func:`write_cache` put it.
        held_out: Share of the episodes to hold out; None: as it was written.

    Raises:
        NotFoundError: There is no cache.
        DataLossError: The cache is damaged, or of another format.
    """
    index = read_json(folder / INDEX_NAME)
    if index is None:
        raise NotFoundError(f"{folder} holds no token cache; make one with `playserve data tokenize`")
    if index.get("format_version") != FORMAT_VERSION:
        raise DataLossError(
            f"{folder / INDEX_NAME}: format version {index.get('format_version')!r}; this playserve reads "
            f"{FORMAT_VERSION}"
        )
    try:
        return _assemble(folder, index, held_out)
    except (KeyError, TypeError, ValueError) as error:
        raise DataLossError(f"{folder / INDEX_NAME} is damaged: {error!r}") from error


def _assemble(folder: Path, index: Mapping[str, Any], held_out: float | None) -> TokenCache:
    arrays = {name: map_array(folder, name, tuple(shape)) for name, shape in index["arrays"].items()}
    lengths_E = np.array(arrays["lengths"])
    places_E = np.array(arrays["places"])
    fraction = float(index["held_out"]) if held_out is None else held_out
    height, width, channels = index["frame_shape"]
    names = tuple(str(name) for name in index["names"])
    if len(names) != len(lengths_E) or int(lengths_E.sum()) != len(arrays["reward"]):
        raise DataLossError(
            f"{folder}: {len(names)} names, {len(lengths_E)} lengths of {int(lengths_E.sum())} frames, "
            f"{len(arrays['reward'])} rewards"
        )
    return TokenCache(
        tokens_NK=arrays["tokens"],
        frames=arrays.get("frames"),
        executed_NH=arrays["executed"],
        labels_NH=arrays["labels"],
        reward_N=arrays["reward"],
        terminated_E=np.array(arrays["terminated"]),
        starts_E=np.cumsum(lengths_E) - lengths_E,
        lengths_E=lengths_E,
        names_E=names,
        seeds_E=np.array(arrays["seeds"]),
        places_E=places_E,
        probes_NP=arrays["probes"],
        probe_names=tuple(index["probe_names"]),
        held_out_E=_held_out(places_E.tolist(), fraction),
        action=index["action"],
        game=index["game"],
        vocabulary=int(index["vocabulary"]),
        frame_shape=(int(height), int(width), int(channels)),
        digest=str(index["digest"]),
        data_digest=str(index["data_digest"]),
        tokenizer=str(index["tokenizer"]),
        folder=folder,
        damaged=tuple((str(unit), str(error)) for unit, error in index["damaged"]),
    )


def load_tokenizer(cache: TokenCache) -> Tokenizer:
    """Return the tokenizer that made a cache, on the CPU, in eval mode.

    Raises:
        NotFoundError: The cache holds frames only.
        DataLossError: The checkpoint in its folder is damaged, or another tokenizer's.
    """
    from playserve_trainer import checkpoint
    from playserve_trainer.models.tokenizer import Tokenizer

    if not cache.tokenizer:
        raise NotFoundError(f"{cache.folder} was made without a tokenizer: it holds frames only")
    policy, _ = checkpoint.load(cache.folder / TOKENIZER_NAME)
    if not isinstance(policy, Tokenizer) or policy.digest() != cache.tokenizer:
        raise DataLossError(f"{cache.folder / TOKENIZER_NAME} is not the tokenizer that made the cache")
    return policy


def write_cache(
    folder: Path,
    games: GameSource,
    tokenizer: Tokenizer | None,
    *,
    keep_frames: bool = False,
    held_out: float = 0.1,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> TokenCache:
    """Write the cache of some games, or open it where it is there already.

    Units are decoded in threads of their own, ahead of the tokenizer. Damaged ones are named and left out.

    Args:
        folder: Where to; it appears when it is whole.
        games: What to tokenise.
        tokenizer: Makes the tokens, on its device; None: frames only (`keep_frames`).
        keep_frames: Whether the frames are kept beside their tokens.
        held_out: Share of the episodes to hold out, by the project's split.
        workers: Threads that decode.
        progress: Called with (units done, units).

    Raises:
        BadSettingError: Neither tokens nor frames are wanted, or the tokenizer takes frames of another shape.
        StateError: The folder holds something else.
        NoEpisodesError: No unit can be used.
    """
    from playserve_trainer import checkpoint

    _check(games, tokenizer, keep_frames)
    name = "" if tokenizer is None else tokenizer.digest()
    digest = cache_digest(games.digest, name, keep_frames=keep_frames)
    if folder.exists() and any(folder.iterdir()):
        return _existing(folder, digest, held_out)
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    part.mkdir(parents=True)
    try:
        index = fill(part, games, tokenizer, keep_frames, workers, progress)
        if tokenizer is not None:
            checkpoint.save(part / TOKENIZER_NAME, tokenizer, checkpoint.Manifest.describe(tokenizer))
        key = {"digest": digest, "data_digest": games.digest, "tokenizer": name, "held_out": held_out}
        index |= {"format_version": FORMAT_VERSION, **key}
        write_json(part / INDEX_NAME, index)
        with contextlib.suppress(OSError):  # a folder of the same name is there: another process was as quick
            os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return _existing(folder, digest, held_out)


def _check(games: GameSource, tokenizer: Tokenizer | None, keep_frames: bool) -> None:
    """Raise BadSettingError unless a cache of the games by the tokenizer would hold something."""
    if tokenizer is None and not keep_frames:
        raise BadSettingError("a cache without a tokenizer holds frames: give a tokenizer, or keep the frames")
    if tokenizer is not None and tokenizer.frame_shape != tuple(games.frame_shape):
        raise BadSettingError(
            f"the tokenizer takes frames of {list(tokenizer.frame_shape)}, the games have {list(games.frame_shape)}"
        )
    if tokenizer is not None and tokenizer.vocabulary > _MAX_CODES:
        raise BadSettingError(f"a cache has room for {_MAX_CODES} codes, the tokenizer has {tokenizer.vocabulary}")


def _existing(folder: Path, digest: str, held_out: float) -> TokenCache:
    try:
        cache = open_cache(folder, held_out=held_out)
    except NotFoundError:
        raise StateError(f"{folder} is not empty and holds no token cache: choose another folder") from None
    if cache.digest != digest:
        raise StateError(
            f"{folder} holds a cache of other data, or by another tokenizer (data {cache.data_digest[:16]}, tokenizer "
            f"{cache.tokenizer[:16] or 'none'}): choose another folder"
        )
    return cache
