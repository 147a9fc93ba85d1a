"""What of a cache is learnt from, and the report of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_cache import tiny_cache

from playserve_trainer.data.split import share_digest
from playserve_trainer.data.tokens.cache import cache_folder
from playserve_trainer.data.tokens.learnt import learnt_episodes, report_of


def test_a_share_is_learnt_and_the_report_says_so(tmp_path: Path) -> None:
    cache = tiny_cache(tmp_path / "bars-4", episodes=8)
    everything, half = learnt_episodes(cache, 1.0), learnt_episodes(cache, 0.5)
    assert everything.tolist() == cache.select(held_out=False).tolist()
    assert set(half) < set(everything)
    report = report_of(cache, directory="d", digest="all", share=0.5, samples=11)
    assert (report.directory, report.samples, report.digest) == ("d", 11, share_digest("all", 0.5))
    assert (report.episodes, report.held_out_episodes) == (8, int(cache.held_out_E.sum()))
    assert report.held_out_samples == len(cache.frames_of(cache.select(held_out=True)))
    assert report.mean_score == pytest.approx(float(np.sum(cache.reward_N)) / 8)


def test_a_cache_is_the_folder_itself_or_the_one_of_its_name(tmp_path: Path) -> None:
    cache = tiny_cache(tmp_path / "bars-4", episodes=2)
    assert cache_folder(tmp_path, "bars", 4) == cache_folder(tmp_path, "bars", "4") == cache.folder
    assert cache_folder(cache.folder, "bars", 9) == cache.folder
