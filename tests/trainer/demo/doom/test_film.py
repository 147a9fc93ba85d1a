"""Which episodes a film shows, and what it says of them. (That it is played and drawn for real: test_demo.)"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playserve.actions import DesktopAction
from playserve_trainer.demo.doom import film
from playserve_trainer.demo.doom.panel import Moment


def episodes(monkeypatch: pytest.MonkeyPatch, seconds: float, met: list[bool | None]) -> list[int]:
    """Replace the game: episode n lasts so long and scores n; return how many moments each written film has."""
    written: list[int] = []
    moment = Moment(
        screen=np.zeros((2, 2, 3), np.uint8), seen=np.zeros((2, 2, 3), np.uint8), action=DesktopAction(),
        instruction="run to the red jacket", title="", seconds=0.0, counters="", round_trip_ms=9.0, model_ms=8.0,
    )  # fmt: skip

    def play(_server: str, _scenario: str, _goal: str, seed: int, _seconds: float) -> Any:
        facts = {} if met[seed % len(met)] is None else {"goal_met": met[seed % len(met)]}
        moments = [moment] * round(20 * seconds)
        return film._Episode(seed=seed, moments=moments, score=float(seed), facts=facts, whole=True)

    def write(path: Path, moments: list[Moment]) -> None:
        path.write_bytes(b"film")
        written.append(len(moments))

    monkeypatch.setattr(film, "_play", play)
    monkeypatch.setattr(film, "_write", write)
    return written


def make(out: Path) -> dict[str, Any]:
    value = film.make_film("nowhere", "two_vests", "red", out, seconds=30.0, seed=0)
    assert json.loads(film.film_paths(out, "two_vests", "red")[1].read_text()) == value
    return value


def test_of_long_episodes_the_best_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = episodes(monkeypatch, 15.0, [True, True, False])
    value = make(tmp_path)
    assert ([e["seed"] for e in value["episodes"]], value["tries"], value["goal_met"]) == ([1], 3, True)
    assert written == [300]


def test_short_ones_are_shown_one_after_another_and_none_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written = episodes(monkeypatch, 2.0, [True, True, False])
    value = make(tmp_path)
    assert [e["seed"] for e in value["episodes"]] == [0, 1, 2, 3]  # eight seconds
    assert (value["score"], value["goal_met"], value["frames"]) == (1.5, False, 160)
    assert written == [4 * (40 + 10)]  # each stands still for half a second at its end


def test_very_short_ones_end_the_film_some_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    episodes(monkeypatch, 0.1, [None])
    value = make(tmp_path)
    assert (len(value["episodes"]), value["goal_met"]) == (10, None)
