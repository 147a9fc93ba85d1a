"""Players that need no server: the baselines and the expert, played inside the workers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from playserve.actions import Action
from playserve.errors import BadActionError, BadSettingError, DataLossError
from playserve_client.experts import EXPERTS, make_expert
from playserve_client.recordings import list_episodes, read_episode

__all__ = ["Player", "has_expert", "make_player", "most_frequent_action"]


class Player(Protocol):
    """Chooses actions by itself."""

    def reset(self, seed: int) -> None:
        """Begin an episode whose draws are seeded with `seed`."""

    def act(self, env: Any) -> Action:
        """Return the next action: an index from 0, or keyboard and mouse where the environment takes them."""


class _Random:
    def __init__(self, num_actions: int) -> None:
        self._num_actions = num_actions
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def act(self, env: Any) -> int:
        return int(self._rng.integers(self._num_actions))


class _RandomDesktop:
    """Draws from the action space, whatever that holds to be random."""

    def __init__(self) -> None:
        self._seed: int | None = None

    def reset(self, seed: int) -> None:
        self._seed = seed

    def act(self, env: Any) -> Action:
        if self._seed is not None:
            env.action_space.seed(self._seed)
            self._seed = None
        action: Action = env.action_space.sample()
        return action


class _Constant:
    def __init__(self, action: int) -> None:
        self._action = action

    def reset(self, seed: int) -> None:
        pass

    def act(self, env: Any) -> int:
        return self._action


class _Expert:
    def __init__(self, game: str) -> None:
        self._expert = make_expert(game)

    def reset(self, seed: int) -> None:
        self._expert.reset()

    def act(self, env: Any) -> int:
        return self._expert.act(env.ram())


def has_expert(family: str, game: str) -> bool:
    """Return whether a scripted expert plays `game`."""
    return family == "atari" and game in EXPERTS


def make_player(kind: str, *, game: str, num_actions: int, action: int | None) -> Player:
    """Return a new player: "random", "constant" (of `action`) or "expert"."""
    if not num_actions:
        if kind == "random":
            return _RandomDesktop()
        raise BadSettingError(f"there is no player {kind!r} of keyboard and mouse for this environment")
    if kind == "random":
        return _Random(num_actions)
    if kind == "constant" and action is not None:
        if not 0 <= action < num_actions:
            raise BadActionError(f"most frequent action {action} is not within 0 to {num_actions - 1}")
        return _Constant(action)
    if kind == "expert":
        return _Expert(game)
    raise BadSettingError(f"there is no player {kind!r} with action {action}")


def most_frequent_action(directory: Path, game: str) -> tuple[int, float]:
    """Return the expert's most frequent action in the recordings of `game` under `directory`, and its share."""
    counts = np.zeros(0, np.int64)
    for labels in _labels(list_episodes(directory), game):
        new = np.bincount(labels, minlength=len(counts))
        new[: len(counts)] += counts
        counts = new
    if not counts.sum():
        raise BadSettingError(f"{directory} holds no recorded steps of {game!r}")
    return int(counts.argmax()), float(counts.max() / counts.sum())


def _labels(paths: Iterable[Path], game: str) -> Iterable[Any]:
    for path in paths:
        try:
            episode = read_episode(path, arrays=["label"])
        except DataLossError:
            continue
        if episode.meta.game == game:
            yield episode.label
