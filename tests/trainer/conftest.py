"""Recordings of a toy game, written with the real writer: the label is where the frame is bright."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from toy_episodes import toy_episode

from playserve_client.recordings import episode_path, write_episode


@pytest.fixture
def record_toy(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that records toy episodes of some seeds, and returns the root of the recordings."""

    def record(seeds: range = range(6), steps: int = 60, game: str = "toy", root: Path | None = None) -> Path:
        root = root or tmp_path / "recordings"
        for seed in seeds:
            # Lengths differ, so that off-by-one errors at the seams show.
            write_episode(episode_path(root, "atari", game, seed), toy_episode(seed, steps + seed % 5, game=game))
        return root

    return record
