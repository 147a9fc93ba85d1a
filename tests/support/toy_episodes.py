"""Episodes of a toy game: the label is where the frame is bright."""

from __future__ import annotations

import numpy as np

from playserve_client.recordings import Episode, EpisodeMeta

ACTIONS = ("NOOP", "FIRE", "RIGHT", "LEFT")


def toy_episode(seed: int, steps: int, *, game: str = "toy", score: float = 1.0) -> Episode:
    """Return an episode whose label is the bright quadrant of its newest frame."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, steps)
    frames = rng.integers(0, 60, (steps, 84, 84)).astype(np.uint8)
    for t in range(steps):
        top, left = divmod(int(label[t]), 2)
        frames[t, 42 * top : 42 * top + 42, 42 * left : 42 * left + 42] += 150
    executed = np.where(rng.random(steps) < 0.2, rng.integers(0, 4, steps), label)
    meta = EpisodeMeta(
        env="atari", game=game, seed=seed, steps=steps, score=score, terminated=True, truncated=False,
        action_names=ACTIONS, frame_skip=4,
    )  # fmt: skip
    return Episode(
        meta=meta,
        frames=frames,
        label=label.astype(np.int16),
        executed=executed.astype(np.int16),
        reward=np.zeros(steps, np.float32),
        probes=np.zeros((steps, 128), np.uint8),
    )
