"""Moments of Doom recordings of which the right answer is known, and pairs of them that want different things.

A moment is the last of L frames of one episode whose action is the expert's. Recorders of Doom write scenario and goal
beside the recording; within one of them only the frames say what is right now, so that what A's expert does is right
whatever was done before. Two moments of one scenario and goal, of two recordings, whose experts now do different
things, make a pair.

Shape legend: N frames of all recordings, H heads of an action.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from playserve.errors import PlayserveError
from playserve.p2p.vocabulary import Vocabulary
from playserve_client.p2p.sidecar import read_sidecar
from playserve_trainer.causality.clips import Window
from playserve_trainer.data.p2p import Recordings

__all__ = ["EXPERTS_WITH_MEMORY", "Decisions", "Moments", "Pair", "Task", "differing", "draw_pairs", "find_moments"]

#: Goals whose expert remembers something that L frames need not show; their right answers are a little uncertain.
EXPERTS_WITH_MEMORY = frozenset({"hold_fire", "avoid", "dodge"})

# Draws for each pair that is wanted, before a task is said to have no more.
_TRIES = 50


class Task(NamedTuple):
    """A scenario and a goal."""

    scenario: str
    goal: str

    def __str__(self) -> str:
        return f"{self.scenario}/{self.goal}"


class Pair(NamedTuple):
    """Two moments, each the window of L frames that ends with it: frames are of `a`, past actions of `b`."""

    a: Window
    b: Window


@dataclass(frozen=True, slots=True)
class Moments:
    """The moments of a task.

    Attributes:
        firsts: First frames of the windows, by recording.
    """

    firsts: dict[int, NDArray[np.int64]]


class Decisions:
    """What an action decides: the keys, the buttons, and to which side the mouse moves on each axis.

    How far it moves is left out: neighbouring bins of a motion are no two opinions.

    Args:
        vocabulary: Of the tokens.
    """

    names = ("key", "button", "dx", "dy")

    def __init__(self, vocabulary: Vocabulary) -> None:
        dx, dy = vocabulary.centres()
        self._keys, self._sides = vocabulary.max_keys, (np.sign(dx).astype(np.int64), np.sign(dy).astype(np.int64))

    def of(self, tokens_H: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
        """Return the decisions of an action by name; two that are equal are one decision."""
        tokens = [int(token) for token in tokens_H]
        sides = [(int(side[token]),) for side, token in zip(self._sides, tokens[-2:], strict=True)]
        return (tuple(tokens[: self._keys]), tuple(tokens[self._keys : -2]), *sides)


def find_moments(
    recordings: Recordings, chosen: NDArray[np.int64], length: int
) -> tuple[dict[Task, Moments], dict[str, str]]:
    """Return the moments of each task, and why recordings were left out, by folder.

    Args:
        recordings: All.
        chosen: Indices of those to take.
        length: L.
    """
    found: dict[Task, Moments] = {}
    left_out: dict[str, str] = {}
    starts_R = recordings.starts_R
    for recording in chosen.tolist():
        task = _task(recordings, recording)
        if isinstance(task, str):
            left_out[recordings.folders[recording]] = task
            continue
        its = slice(starts_R[recording], starts_R[recording] + recordings.lengths_R[recording])
        step = np.arange(int(recordings.lengths_R[recording]))
        began = np.maximum.accumulate(np.where(recordings.begins_N[its], step, 0))
        last = np.flatnonzero(np.asarray(recordings.learnt_N[its]) & (step - began + 1 >= length))
        if len(last):
            found.setdefault(task, Moments({})).firsts[recording] = last - length + 1
        else:
            left_out[recordings.folders[recording]] = f"no episode has an expert's action after {length} frames"
    return found, left_out


def _task(recordings: Recordings, recording: int) -> Task | str:
    """Return the task of a recording, or why it has none."""
    try:
        sidecar = read_sidecar(recordings.directory / recordings.folders[recording])
    except PlayserveError as error:
        return str(error)
    if sidecar is None:
        return "it has no sidecar, so that nobody knows what is right"
    scenario, goal = sidecar.episode.get("scenario"), sidecar.episode.get("goal")
    if recordings.games[recording][0] != "doom" or not isinstance(scenario, str) or not isinstance(goal, str):
        return "its sidecar names no scenario and goal of Doom, so that nobody knows what is right"
    return Task(scenario, goal)


def draw_pairs(
    recordings: Recordings, task: Task, moments: Moments, length: int, wanted: int, decisions: Decisions, seed: int
) -> list[Pair]:
    """Return up to `wanted` pairs of different recordings, each also the other way round, so twice as many.

    Both ways, because then a policy that always answers the same agrees with frames and history equally often.
    """
    sources = sorted(moments.firsts)
    if len(sources) < 2:
        return []
    rng = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(str(task).encode()).digest()[:4], "big")])
    starts_R, pairs = recordings.starts_R, dict[Pair, None]()
    for _ in range(_TRIES * wanted):
        if len(pairs) >= 2 * wanted:
            break
        a, b = (_draw(rng, moments, sources[i]) for i in rng.choice(len(sources), 2, replace=False))
        said = [
            decisions.of(recordings.tokens_NH[starts_R[window.recording] + window.first + length - 1])
            for window in (a, b)
        ]
        if said[0] != said[1]:
            pairs |= dict.fromkeys((Pair(a, b), Pair(b, a)))
    return list(pairs)


def _draw(rng: np.random.Generator, moments: Moments, recording: int) -> Window:
    return Window(recording, int(rng.choice(moments.firsts[recording])))


def differing(one: Sequence[object], other: Sequence[object]) -> list[int]:
    """Return the indices of the decisions in which two actions differ."""
    return [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
