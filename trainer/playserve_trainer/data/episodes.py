"""Recorded episodes of single frames, decoded once into flat arrays; damaged files are named, counted and left out.

Shape legend: E episodes, N steps of all episodes end to end, H and W of a frame.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import DataLossError, NotFoundError
from playserve_client.recordings import Episode, EpisodeMeta, list_episodes, read_episode, read_meta
from playserve_trainer.data.split import held_out_episodes, split_hash

__all__ = ["DataReport", "Episodes", "NoEpisodesError", "load_episodes"]

# Arrays that training reads; probes must never reach a learner.
_ARRAYS = ("frames", "executed", "label", "reward")


class NoEpisodesError(NotFoundError):
    """A directory has no episode that can be trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What was read, and what was not.

    Attributes:
        directory: Where it was looked for.
        episodes: Whole episodes.
        held_out_episodes: Those of them that are held out.
        samples: Steps to train on.
        held_out_samples: Steps held out.
        digest: sha256 over the names and bytes of the whole files: the same data, the same digest.
        mean_score: Mean score of the whole episodes: what the expert reached, noise included.
        damaged: (path, what is wrong) of each file left out.
    """

    directory: str
    episodes: int
    held_out_episodes: int
    samples: int
    held_out_samples: int
    digest: str
    mean_score: float
    damaged: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value."""
        value = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "damaged"}
        return {**value, "damaged": [{"path": path, "error": error} for path, error in self.damaged]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """Whole episodes, end to end.

    Attributes:
        frames_NHW: Single frames, uint8 [N, H, W]; memory or a scratch file.
        executed_N: Executed actions, int64.
        label_N: The expert's actions, int64.
        start_N: Index of the first step of each step's episode, int64.
        starts_E: Index of the first step of each episode, int64.
        lengths_E: Steps of each episode, int64.
        held_out_E: Whether an episode is held out, bool.
        metas: What the episodes are episodes of.
        report: For people.
    """

    frames_NHW: NDArray[np.uint8]
    executed_N: NDArray[np.int64]
    label_N: NDArray[np.int64]
    start_N: NDArray[np.int64]
    starts_E: NDArray[np.int64]
    lengths_E: NDArray[np.int64]
    held_out_E: NDArray[np.bool_]
    metas: tuple[EpisodeMeta, ...]
    report: DataReport

    def select(self, *, held_out: bool) -> NDArray[np.int64]:
        """Return the indices of the episodes of one side of the split."""
        return np.flatnonzero(self.held_out_E == held_out)

    def steps_of(self, episodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices of every step of some episodes, in their order."""
        if not len(episodes):
            return np.zeros(0, np.int64)
        return np.concatenate([np.arange(self.starts_E[e], self.starts_E[e] + self.lengths_E[e]) for e in episodes])


@dataclass(slots=True)
class _Good:
    """Files that are whole, as they are found."""

    metas: list[EpisodeMeta] = field(default_factory=list)
    executed: list[NDArray[Any]] = field(default_factory=list)
    label: list[NDArray[Any]] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)
    steps: int = 0


def load_episodes(
    directory: Path,
    *,
    held_out_fraction: float = 0.1,
    memory_limit_bytes: int = 4 << 30,
    scratch: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Episodes:
    """Read every whole episode under `directory`, once.

    Args:
        directory: Episodes of one game, in any depth.
        held_out_fraction: Share of the episodes to hold out; see :mod:`playserve_trainer.data.split`.
        memory_limit_bytes: Frames beyond this go to a scratch file that is mapped; it vanishes with the process.
        scratch: Folder of that file; None: the system's.
        progress: Called with (files read, files) after each file.

    Raises:
        NoEpisodesError: There is no whole episode, or no episode on one side of the split.
    """
    paths = list_episodes(directory)
    if not paths:
        raise NoEpisodesError(f"{directory} has no episode-*.npz; record some with `playserve data record`")
    damaged: list[tuple[str, str]] = []
    claims = list(_claims(paths, damaged))
    first = next((meta for _, meta in claims), None)
    frames_NHW, good = np.zeros((0, 0, 0), np.uint8), _Good()
    for number, (path, claim) in enumerate(claims):
        try:
            episode = _read(path, first)
        except DataLossError as error:
            damaged.append((str(path), str(error)))
            continue
        if not frames_NHW.size:
            shape = (sum(meta.steps for _, meta in claims[number:]), *episode.frames.shape[1:])
            frames_NHW = _allocate(shape, memory_limit_bytes, scratch)
        if len(episode) != claim.steps:  # the file was replaced between the two reads
            damaged.append((str(path), f"{path} changed while it was read"))
            continue
        if episode.frames.shape[1:] != frames_NHW.shape[1:]:
            damaged.append((str(path), f"{path}: frames are {episode.frames.shape[1:]}, not {frames_NHW.shape[1:]}"))
            continue
        frames_NHW[good.steps : good.steps + len(episode)] = episode.frames
        _keep(good, path, directory, episode)
        if progress is not None:
            progress(number + 1, len(claims))
    return _assemble(directory, frames_NHW, good, held_out_fraction, damaged)


def _claims(paths: Iterable[Path], damaged: list[tuple[str, str]]) -> Iterable[tuple[Path, EpisodeMeta]]:
    """Yield the files whose meta can be read and that hold at least one step."""
    for path in paths:
        try:
            meta = read_meta(path)
        except (DataLossError, OSError) as error:
            damaged.append((str(path), str(error)))
            continue
        if meta.steps > 0:
            yield path, meta


def _read(path: Path, first: EpisodeMeta | None) -> Episode:
    """Return the episode, if it fits the others."""
    try:
        episode = read_episode(path, arrays=_ARRAYS)
    except OSError as error:
        raise DataLossError(f"{path} cannot be read: {error}") from error
    meta = episode.meta
    if first is not None and (meta.env, meta.game, meta.action_names) != (first.env, first.game, first.action_names):
        raise DataLossError(
            f"{path} is an episode of {meta.env}/{meta.game} {meta.action_names}, the others are of "
            f"{first.env}/{first.game} {first.action_names}: train on one game's folder"
        )
    low, high = int(episode.label.min()), int(episode.label.max())
    if meta.action_names and not (low >= 0 and high < len(meta.action_names)):
        raise DataLossError(f"{path}: labels {low} to {high} are not within 0 to {len(meta.action_names) - 1}")
    if episode.frames.dtype != np.uint8 or episode.frames.ndim != 3:
        raise DataLossError(f"{path}: frames are {episode.frames.dtype} {episode.frames.shape}, not uint8 [T, H, W]")
    return episode


def _keep(good: _Good, path: Path, directory: Path, episode: Episode) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    good.digest.update(f"{path.relative_to(directory)} {digest}\n".encode())
    good.metas.append(episode.meta)
    good.executed.append(episode.executed)
    good.label.append(episode.label)
    good.steps += len(episode)


def _allocate(shape: tuple[int, ...], memory_limit_bytes: int, scratch: Path | None) -> NDArray[np.uint8]:
    """Return room for the frames. Pages are taken as they are written, so damaged files cost nothing."""
    if int(np.prod(shape, dtype=np.int64)) <= memory_limit_bytes:
        return np.empty(shape, np.uint8)
    # The file has no name: it goes when the mapping goes, also after a kill.
    with tempfile.TemporaryFile(dir=scratch) as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


def _assemble(
    directory: Path,
    frames_NHW: NDArray[np.uint8],
    good: _Good,
    held_out_fraction: float,
    damaged: list[tuple[str, str]],
) -> Episodes:
    lengths_E = np.array([meta.steps for meta in good.metas], np.int64)
    hashes = [split_hash(meta.env, meta.game, meta.seed) for meta in good.metas]
    held_out_E = np.array(held_out_episodes(hashes, held_out_fraction), np.bool_)
    if held_out_E.all() or (held_out_fraction > 0 and not held_out_E.any()):
        raise NoEpisodesError(
            f"{directory}: {len(lengths_E)} whole episodes, {len(damaged)} damaged; wanted at least "
            f"{2 if held_out_fraction else 1}, so that one can be learnt from and one held out"
            + "".join(f"\n  {error}" for _, error in damaged)
        )
    starts_E = np.cumsum(lengths_E) - lengths_E
    report = DataReport(
        directory=str(directory),
        episodes=len(lengths_E),
        held_out_episodes=int(held_out_E.sum()),
        samples=int(lengths_E[~held_out_E].sum()),
        held_out_samples=int(lengths_E[held_out_E].sum()),
        digest=good.digest.hexdigest(),
        mean_score=float(np.mean([meta.score for meta in good.metas])),
        damaged=tuple(damaged),
    )
    return Episodes(
        frames_NHW=frames_NHW[: good.steps],
        executed_N=np.concatenate(good.executed).astype(np.int64),
        label_N=np.concatenate(good.label).astype(np.int64),
        start_N=np.repeat(starts_E, lengths_E),
        starts_E=starts_E,
        lengths_E=lengths_E,
        held_out_E=held_out_E,
        metas=tuple(good.metas),
        report=report,
    )
