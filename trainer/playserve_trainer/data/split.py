"""Which episodes are held out: by a hash of the seed, so that an episode keeps its side when the data grow."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError

__all__ = ["held_out_episodes", "share_digest", "share_of_episodes", "split_hash", "unique_names"]


def split_hash(env: str, game: str, seed: int) -> float:
    """Return the place of an episode between 0 and 1; those below the held-out fraction are held out."""
    digest = hashlib.sha256(f"{env}/{game}/{seed}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def held_out_episodes(hashes: Sequence[float], fraction: float) -> list[bool]:
    """Return for each episode whether it is held out from training.

    Raising `fraction`, or adding episodes, moves no episode from one side to the other, but for this: where chance
    leaves one side empty, the episode nearest to it goes there.

    Args:
        hashes: Of each episode, see :func:`split_hash`.
        fraction: Share of the episodes to hold out, 0 (none) to below 1.
    """
    if not 0.0 <= fraction < 1.0:
        raise BadSettingError(f"the held-out fraction is at least 0 and below 1, not {fraction}")
    held_out = [value < fraction for value in hashes]
    if fraction > 0 and len(hashes) > 1:
        if not any(held_out):
            held_out[hashes.index(min(hashes))] = True
        elif all(held_out):
            held_out[hashes.index(max(hashes))] = False
    return held_out


def share_of_episodes(
    chosen: NDArray[np.int64], hashes: Sequence[float], lengths: NDArray[np.int64], share: float
) -> NDArray[np.int64]:
    """Return the episodes, of those that are learnt from, that make up a share of their steps, in the same order.

    They are taken whole, in the order of their hashes, until the number of steps is as near to the share as it gets:
    what a smaller share takes lies within what a larger one takes. At least one is taken.

    Args:
        chosen: Indices of the episodes that are learnt from.
        hashes: Of every episode, see :func:`split_hash`.
        lengths: Steps of every episode.
        share: Above 0, at most 1.
    """
    if share >= 1.0 or not len(chosen):
        return chosen
    order = chosen[np.argsort(np.asarray(hashes)[chosen], kind="stable")]
    steps = np.cumsum(lengths[order])
    taken = max(1, int(np.argmin(np.abs(np.concatenate([[0], steps]) - share * steps[-1]))))
    return np.sort(order[:taken])


def share_digest(digest: str, share: float) -> str:
    """Return the digest of a share of the data with a digest; of all of them it is theirs."""
    return digest if share >= 1.0 else hashlib.sha256(f"{digest} {share!r}".encode()).hexdigest()


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names; those that come again get a number."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(found)
