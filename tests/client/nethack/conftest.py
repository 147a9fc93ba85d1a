"""Games to test with: drawn ones, and the shared recordings where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from playserve_client.nethack.shards import GameMeta, ShardWriter
from playserve_client.nethack.tty import TtyChunk

_REPO = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return ../shared/data (or shared/data); its tests are skipped where it is not."""
    for folder in (_REPO.parent / "shared" / "data", _REPO / "shared" / "data"):
        if (folder / "nld-aa-mini").is_dir():
            return folder
    pytest.skip("missing data: ../shared/data/nld-aa-mini")


class Drawn:
    """Draws games that change as NetHack's do: a cell, a line, or all of the screen."""

    def __call__(
        self, seed: int, frames: int, *, inventory: bool = False, blstats: bool = False, every: int = 3
    ) -> TtyChunk:
        rng = np.random.default_rng(seed)
        chars, colors = np.full((24, 80), 32, np.uint8), np.zeros((24, 80), np.int8)
        all_chars, all_colors = np.empty((frames, 24, 80), np.uint8), np.empty((frames, 24, 80), np.int8)
        for t in range(frames):
            kind = rng.integers(0, 8)
            if kind == 0:
                chars, colors = rng.integers(0, 256, (24, 80), np.uint8), rng.integers(0, 32, (24, 80), np.int8)
            elif kind < 4:
                row = rng.integers(0, 24)
                chars[row], colors[row] = rng.integers(32, 127, 80), rng.integers(0, 16)
            elif kind < 7:
                chars[rng.integers(0, 24), rng.integers(0, 80)] = rng.integers(32, 127)
                colors[rng.integers(0, 24), rng.integers(0, 80)] = rng.integers(0, 16)
            all_chars[t], all_colors[t] = chars, colors
        changing = np.arange(frames) // every
        return TtyChunk(
            all_chars,
            all_colors,
            rng.integers(0, 80, (frames, 2)).astype(np.uint8),
            rng.integers(0, 256, frames, np.uint8),
            np.cumsum(rng.integers(0, 50, frames)).astype(np.int32),
            rng.random(frames) < 0.9,
            (changing[:, None] * np.arange(27)) if blstats else None,
            (changing[:, None] + np.arange(55)).astype(np.int16) if inventory else None,
        )

    def part(self, chunk: TtyChunk, start: int, stop: int) -> TtyChunk:
        """Return some frames of a chunk."""
        values = (getattr(chunk, name) for name in TtyChunk.__dataclass_fields__)
        return TtyChunk(*(None if value is None else value[start:stop] for value in values))

    def equal(self, left: TtyChunk, right: TtyChunk) -> None:
        """Assert that two chunks are the same."""
        for name in TtyChunk.__dataclass_fields__:
            a, b = getattr(left, name), getattr(right, name)
            assert (a is None) == (b is None), name
            if a is not None:
                assert a.dtype == b.dtype, name
                np.testing.assert_array_equal(a, b, err_msg=name)

    def meta(self, seed: int, frames: int, *, has_keys: bool = True) -> GameMeta:
        """Return the meta of a drawn game."""
        return GameMeta(
            name=f"game-{seed:03d}",
            character="mon-hum-neu-mal",
            source="drawn",
            score=100 * seed,
            steps=frames,
            seed=seed,
            end="killed by a newt while praying",
            has_keys=has_keys,
        )

    def write(self, writer: ShardWriter, seed: int, game: TtyChunk, *, has_keys: bool = True) -> None:
        """Write a whole game."""
        writer.begin(self.meta(seed, len(game), has_keys=has_keys))
        writer.append(game)
        writer.end()


@pytest.fixture(scope="session")
def drawn() -> Drawn:
    """Return what draws games."""
    return Drawn()
