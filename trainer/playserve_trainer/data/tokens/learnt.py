"""What is learnt from a token cache, and the report of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from playserve_trainer.data.episodes import DataReport
from playserve_trainer.data.split import share_digest, share_of_episodes
from playserve_trainer.data.tokens.cache import TokenCache

__all__ = ["learnt_episodes", "report_of"]


def learnt_episodes(cache: TokenCache, share: float) -> NDArray[np.int64]:
    """Return the indices int64 of the episodes, not held out, that make up a share (above 0, at most 1) of frames."""
    return share_of_episodes(cache.select(held_out=False), cache.places_E.tolist(), cache.lengths_E, share)


def report_of(cache: TokenCache, *, directory: str, digest: str, share: float, samples: int) -> DataReport:
    """Return the report of a run on a cache.

    Args:
        cache: The cache.
        directory: The run's data, as it was given.
        digest: Of what all of them are: the cache, or its data.
        share: Of the episodes, that is learnt from.
        samples: How many are learnt from.
    """
    held_out = cache.held_out_E
    scores = [float(cache.reward_N[s : s + n].sum()) for s, n in zip(cache.starts_E, cache.lengths_E, strict=True)]
    return DataReport(
        directory=directory,
        episodes=len(held_out),
        held_out_episodes=int(held_out.sum()),
        samples=samples,
        held_out_samples=int(cache.lengths_E[held_out].sum()),
        digest=share_digest(digest, share),
        mean_score=sum(scores) / len(scores),
        damaged=cache.damaged,
    )
