"""Which episodes are held out: by a hash of the seed, so that an episode never changes sides when the data grow."""

from __future__ import annotations

import hashlib

from playserve.errors import BadSettingError

__all__ = ["is_held_out"]


def is_held_out(env: str, game: str, seed: int, fraction: float) -> bool:
    """Return whether the episode is held out from training.

    Raising `fraction` only adds episodes to those held out.

    Args:
        env: Environment family of the episode.
        game: Its game.
        seed: Its seed.
        fraction: Share of the episodes to hold out, 0 to below 1.
    """
    if not 0.0 <= fraction < 1.0:
        raise BadSettingError(f"the held-out fraction is at least 0 and below 1, not {fraction}")
    digest = hashlib.sha256(f"{env}/{game}/{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64
