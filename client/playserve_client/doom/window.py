"""A scenario in a window that is played at the desktop, and its score by the game's own counters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError
from playserve_client.doom.facts import EpisodeCounter
from playserve_client.doom.game import PROBES, DoomGame
from playserve_client.doom.maps import EVALUATION_SEED
from playserve_client.doom.scenarios import TICS_PER_FRAME, scenario_of
from playserve_client.evaluate.statistics import bootstrap_mean, normalised_score

__all__ = ["DoomWindow", "baseline_scores", "play_window"]

_ARMOR = PROBES.index("ARMOR")


class DoomWindow:
    """One scenario in a window, 40 tics a second. Close it.

    Args:
        scenario: A scenario.
        goal: One of its goals; None: its first.
        screen: Size of the window.
        max_frames: Frames (of two tics) after which an episode is cut.
    """

    def __init__(
        self, scenario: str, *, goal: str | None = None, screen: str = "320x240", max_frames: int = 1_050
    ) -> None:
        self.scenario = scenario_of(scenario)
        self.goal = self.scenario.goal(goal)
        self._max_frames = max_frames
        self._own_reward = self.goal is self.scenario.goals[0] and not self.scenario.made
        self._game = DoomGame(self.scenario, screen=screen, window=True)

    def play(self, seed: int) -> dict[str, Any]:
        """Watch one episode from its start to its end; return seed, score, steps, tics and facts.

        A step is a look at the game, every two tics, or fewer on a busy machine; the game does not wait.
        """
        game, counter = self._game, EpisodeCounter(self.scenario, PROBES)
        game.start(seed)
        score, probes = 0.0, game.probes()
        taken = False
        started = game.tics
        while not (game.over or taken or game.tics - started >= self._max_frames * TICS_PER_FRAME):
            monster = bool(game.view().of_category("Monster"))
            action, reward = game.watch()
            before, probes = probes, game.probes()
            counter.count(action, before, probes, monster=monster)
            score += reward
            taken = self.scenario.made and bool(probes[_ARMOR] > 0)
        facts = counter.facts(probes, self.goal, self.scenario)
        if not self._own_reward:
            score = float(self.goal.met(facts))
        return {"seed": seed, "score": score, "steps": counter.frames, "tics": game.tics - started, "facts": facts}

    def close(self) -> None:
        """Close the window."""
        self._game.close()


def play_window(
    window: DoomWindow,
    episodes: int,
    *,
    seed_start: int = EVALUATION_SEED,
    on_episode: Callable[[Mapping[str, Any]], None] = lambda _: None,
    baselines: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Watch `episodes` episodes; return them and their statistics, a JSON value.

    Those in which nobody did anything, before the first in which somebody does, are not counted: the player is not
    there yet.

    Args:
        window: An open window.
        episodes: How many.
        seed_start: Seed of the first.
        on_episode: Told of each that counts.
        baselines: Scores of "random" and "expert", for the normalised score.
    """
    found: list[dict[str, Any]] = []
    waited = 0
    while len(found) < episodes:
        episode = window.play(seed_start + len(found))
        if not found and episode["facts"]["idle_frames"] == episode["steps"]:
            waited += 1
            continue
        found.append(episode)
        on_episode(episode)
    scores = [episode["score"] for episode in found]
    interval = bootstrap_mean(scores)
    value: dict[str, Any] = {
        "scenario": window.scenario.name,
        "goal": window.goal.name,
        "episodes": found,
        "waited_episodes": waited,
        "mean": sum(scores) / len(scores),
        "interval": interval and asdict(interval),
    }
    if baselines:
        value["normalised"] = asdict(normalised_score(scores, baselines["random"], baselines["expert"]))
    return value


def baseline_scores(path: Path, scenario: str, goal: str) -> dict[str, list[float]]:
    """Return the scores of "random" and "expert" in a ``results.json`` of ``playserve rollout doom``.

    Raises:
        BadSettingError: It is none, is of something else, or lacks one of them.
    """
    try:
        report = json.loads(path.read_text())
        env = report["settings"]["env"]
        played = (env["family"], env["game"], env["options"]["goal"])
        scores = {
            kind: [float(episode["score"]) for episode in report["episodes"] if episode["row"] == kind]
            for kind in ("random", "expert")
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadSettingError(f"{path} is no results.json of playserve rollout doom: {error}") from error
    if played != ("doom", scenario, goal):
        raise BadSettingError(f"{path} is of {' '.join(played)}, not of doom {scenario} {goal}")
    for kind, values in scores.items():
        if not values:
            raise BadSettingError(f"{path} has no finished episode of {kind}")
    return scores
