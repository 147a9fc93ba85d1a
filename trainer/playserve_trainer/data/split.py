"""Which episodes are held out: by a hash of the seed, so that an episode keeps its side when the data grow."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from playserve.errors import BadSettingError

__all__ = ["held_out_episodes", "split_hash"]


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
