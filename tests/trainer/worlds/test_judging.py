"""What is measured of a world: a perfect one gets what its tokenizer gets, and every baseline is what it says."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from playserve.errors import BadSettingError
from playserve_trainer.data.token_clips import arriving_rewards
from playserve_trainer.worlds import judging
from playserve_trainer.worlds.dreams import Dream, Dreamer
from playserve_trainer.worlds.judging import JudgeSettings, judge
from playserve_trainer.worlds.starts import Start, Trail, choose_starts
from playserve_trainer.worlds.subject import Subject

SETTINGS = JudgeSettings(starts=24, horizons=(1, 3, 6), resamples=200, batch=7)


class Oracle(Dreamer):
    """Dreams what really happened, as far as tokens tell it."""

    subject: Subject

    def dream(self, starts: Sequence[Start], trail: Trail, tokens_BCK: np.ndarray[Any, Any]) -> Dream:
        cache = self.subject.cache
        tokens_BTK = np.asarray(cache.tokens_NK[trail.place_BT]).astype(np.int64)
        last_B1 = np.array([[start.steps] for start in starts])
        ends_B1 = cache.terminated_E[[start.episode for start in starts]][:, None]
        step_T = np.arange(1, tokens_BTK.shape[1] + 1)
        return Dream(
            tokens_BTK,
            self.subject.decoded(tokens_BTK),
            arriving_rewards(cache)[trail.place_BT],
            (step_T == last_B1) & ends_B1,
            np.full(tokens_BTK.shape[:2], 0.25, np.float32),
        )


@pytest.fixture
def perfect(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(Oracle, "subject", subject, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(judging, "Dreamer", Oracle)
        return judge(subject, SETTINGS)


def test_a_perfect_world_gets_what_its_tokenizer_gets(perfect: dict[str, Any]) -> None:
    for part in perfect["at"].values():
        for measure in ("psnr", "ssim", "probe_error", "frechet"):
            assert part[measure]["dream"] == part[measure]["reconstruction"]
        assert part["tokens"]["dream"]["mean"] == 1.0
        assert part["tokens"]["versus_repeat"]["mean"] > 0
        assert part["reward"]["steps"]["dream"]["mean"] == 1.0
        assert part["reward"]["sum_error"]["dream"]["mean"] == 0.0
        assert part["end"]["agree"]["mean"] == 1.0
        assert part["uncertainty"]["mean"] == 0.25
    late = perfect["at"]["6"]
    assert late["end"]["found"]["mean"] == late["reward"]["found"]["mean"] == late["reward"]["true"]["mean"] == 1.0
    assert 0 < late["end"]["real"]["mean"] < 1
    assert late["reward"]["real_sum"] == late["reward"]["dreamed_sum"]


def test_baselines_are_what_they_say(perfect: dict[str, Any], subject: Subject) -> None:
    cache = subject.cache
    starts = [s for s in choose_starts(cache, SETTINGS.starts, given=2, seed=0) if s.steps >= 3]
    assert perfect["at"]["3"]["starts"] == len(starts)
    assert cache.frames is not None
    now = np.array([cache.starts_E[s.episode] + s.frame for s in starts])
    squared = np.square(cache.frames[now].astype(float) - cache.frames[now + 3]).mean((1, 2, 3))
    psnr = 10 * math.log10(255**2 / squared.mean())
    assert perfect["at"]["3"]["psnr"]["repeat"]["mean"] == pytest.approx(psnr)
    same = (cache.tokens_NK[now] == cache.tokens_NK[now + 3]).mean()
    assert perfect["at"]["3"]["tokens"]["repeat"]["mean"] == pytest.approx(same)
    columns = cache.probes_NP[:, 0]
    spread = columns[cache.frames_of(cache.select(held_out=False))].std()
    moved = math.sqrt(np.square(columns[now] - columns[now + 3]).mean()) / spread
    # The column is read exactly off a real frame.
    assert perfect["at"]["3"]["probes"]["column"]["repeat"]["mean"] == pytest.approx(moved, abs=0.02)
    assert perfect["at"]["3"]["probes"]["column"]["real"]["mean"] < 0.02
    other = np.array([cache.starts_E[s.other] + s.frame + 3 for s in starts if cache.lengths_E[s.other] > s.frame + 3])
    assert perfect["at"]["3"]["psnr"]["other"]["n"] == len(other)


def test_an_untrained_world_is_told_from_a_perfect_one(subject: Subject, perfect: dict[str, Any]) -> None:
    found = judge(subject, SETTINGS)
    assert found["at"]["3"]["tokens"]["dream"]["mean"] < 0.6
    assert found["at"]["3"]["tokens"]["versus_repeat"]["high"] < 0
    assert found["at"]["3"]["psnr"]["repeat"] != found["at"]["3"]["psnr"]["dream"]
    assert found["settings"]["given"] == 2
    assert found["starts"] == perfect["starts"]
    json.dumps(found, allow_nan=False)


def test_the_same_settings_give_the_same_numbers_whatever_the_batch(subject: Subject) -> None:
    first = judge(subject, SETTINGS)
    again = judge(subject, dataclasses.replace(SETTINGS, batch=24))
    assert first["at"]["3"]["tokens"] == again["at"]["3"]["tokens"]
    assert first["curve"][-1]["psnr"]["dream"] == pytest.approx(again["curve"][-1]["psnr"]["dream"], rel=1e-3)


def test_horizons_that_no_start_reaches_are_missing(subject: Subject) -> None:
    longest = int(subject.cache.lengths_E.max())
    found = judge(subject, JudgeSettings(starts=4, horizons=(1, longest), resamples=10))
    assert found["at"][str(longest)] is None
    assert found["at"]["1"]["starts"] == 4


def test_without_kept_frames_what_the_tokens_stand_for_is_the_truth(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = dataclasses.replace(subject, cache=dataclasses.replace(subject.cache, frames=None))
    monkeypatch.setattr(judging, "kept_probes", lambda *_: None)  # they were fitted on the frames
    found = judge(bare, SETTINGS)
    assert found["at"]["1"]["psnr"]["reconstruction"]["mean"] == 100.0


@pytest.mark.parametrize("horizons", [(), (0, 5), (5, 1), (5, 5)])
def test_horizons_rise_from_1(horizons: tuple[int, ...]) -> None:
    with pytest.raises(BadSettingError, match="rising"):
        JudgeSettings(horizons=horizons)
