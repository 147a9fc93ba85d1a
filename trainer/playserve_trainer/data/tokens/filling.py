"""Fills a token cache: units are decoded in threads of their own, ahead of the tokenizer.

Shape legend: N frames of an episode, K tokens of a frame, H, W, C of a frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import PlayserveError
from playserve_trainer.data.episodes import NoEpisodesError
from playserve_trainer.data.split import unique_names
from playserve_trainer.data.tokens.arrays import ArrayWriter

if TYPE_CHECKING:
    from playserve_trainer.data.tokens.games import GameEpisode, GameSource
    from playserve_trainer.models.tokenizer import Tokenizer

__all__ = ["fill", "tokenise"]

# Frames that a tokenizer is given at once: enough to fill it, few enough for a processor's caches.
_BATCH_CPU = 64
_BATCH_GPU = 2048


def fill(
    part: Path,
    games: GameSource,
    tokenizer: Tokenizer | None,
    keep_frames: bool,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Write every array of a cache; return what its index says of them.

    Args:
        part: Where to.
        games: What to tokenise.
        tokenizer: Makes the tokens; None: frames only.
        keep_frames: Whether the frames are kept, too.
        workers: Threads that decode.
        progress: Called with (units done, units).

    Raises:
        NoEpisodesError: No unit can be used.
    """
    heads, probes = len(games.action["heads"]), len(games.probe_names)
    rows: dict[str, tuple[int, ...]] = {
        "tokens": (tokenizer.num_tokens if tokenizer else 0,), "executed": (heads,), "labels": (heads,), "reward": (),
        "probes": (probes,), "lengths": (), "seeds": (), "places": (), "terminated": (),
    }  # fmt: skip
    if keep_frames:
        rows["frames"] = tuple(games.frame_shape)
    names, damaged = list[str](), list[tuple[str, str]]()
    with ArrayWriter(part, rows) as writer:
        for unit, found in enumerate(_read_ahead(games, workers)):
            if isinstance(found, PlayserveError):
                damaged.append((str(unit), str(found)))
            else:
                for episode in found:
                    names.append(episode.name)
                    _add(writer, episode, tokenizer, keep_frames)
            if progress is not None:
                progress(unit + 1, len(games))
    if not names:
        raise NoEpisodesError(
            f"none of {len(games)} recordings can be used" + "".join(f"\n  {error}" for _, error in damaged[:20])
        )
    return {
        "arrays": writer.shapes, "names": list(unique_names(names)),
        "probe_names": list(games.probe_names), "action": dict(games.action), "game": dict(games.game),
        "vocabulary": tokenizer.vocabulary if tokenizer else 0, "frame_shape": list(games.frame_shape),
        "damaged": damaged,
    }  # fmt: skip


def _add(writer: ArrayWriter, episode: GameEpisode, tokenizer: Tokenizer | None, keep_frames: bool) -> None:
    frames_NHWC = episode.frames_NHWC
    tokens_NK = np.zeros((len(frames_NHWC), 0), np.uint16)
    if tokenizer is not None:
        tokens_NK = tokenise(tokenizer, frames_NHWC)
    writer.add(
        tokens=tokens_NK,
        executed=episode.executed_NA,
        labels=episode.labels_NA,
        reward=episode.reward_N,
        probes=episode.probes_NP,
        lengths=np.array([len(frames_NHWC)]),
        seeds=np.array([episode.seed]),
        places=np.array([episode.place]),
        terminated=np.array([episode.terminated]),
    )
    if keep_frames:
        writer.add(frames=frames_NHWC)


def tokenise(tokenizer: Tokenizer, frames_NHWC: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Return the tokens uint16 [N, K] of frames uint8 [N, H, W, C], in batches that suit the tokenizer's device."""
    import torch

    device = tokenizer.device()
    rows = _BATCH_CPU if device.type == "cpu" else _BATCH_GPU
    tokens_NK = np.empty((len(frames_NHWC), tokenizer.num_tokens), np.uint16)
    for start in range(0, len(frames_NHWC), rows):
        frames = torch.from_numpy(frames_NHWC[start : start + rows]).to(device, non_blocking=True)
        tokens_NK[start : start + rows] = tokenizer.encode(frames).cpu().numpy()
    return tokens_NK


def _read_ahead(games: GameSource, workers: int) -> Iterator[Sequence[GameEpisode] | PlayserveError]:
    """Yield each unit's episodes, in order, or what is wrong with it; `workers` units are read ahead."""

    def read(unit: int) -> Sequence[GameEpisode] | PlayserveError:
        try:
            return games.read(unit)
        except PlayserveError as error:
            return error

    with ThreadPoolExecutor(workers, thread_name_prefix="games") as pool:
        pending: deque[Future[Sequence[GameEpisode] | PlayserveError]] = deque()
        for unit in range(len(games)):
            pending.append(pool.submit(read, unit))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
