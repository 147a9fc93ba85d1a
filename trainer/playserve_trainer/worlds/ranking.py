"""How well a world ranks agents: their returns in it against their returns in the real game.

The tables are those of `playserve rollout`: one folder an agent and environment. Agents are paired by name and version.
The interval draws agents anew, and each drawn agent's episodes, on both sides; beside it stands the one of episodes
alone, which says how much of the doubt more episodes would take away. What is left of noise in the returns makes a
correlation smaller than that of the true returns.

Shape legend: A agents, S resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.errors import BadSettingError, DataLossError, NotFoundError, StateError
from playserve.files import read_json
from playserve_trainer.laws.correlation import interval, pearson, ranks, spearman

__all__ = ["FEWEST", "Played", "TooFewAgentsError", "rank_agents", "read_played"]

#: Fewest agents of which a rank correlation is told without being asked to.
FEWEST = 10
# Of fewer, nothing can be said at all.
_LEAST = 3
# Scores drawn at once: resamples of many episodes would not fit in memory.
_AT_ONCE = 2_000_000

Floats = NDArray[np.float64]


class TooFewAgentsError(StateError):
    """There are fewer agents on both sides than a correlation wants."""


@dataclass(frozen=True, slots=True)
class Played:
    """An agent's episodes in one environment.

    Attributes:
        policy: Name of the agent.
        version: Its version.
        title: Of the environment.
        row: Of the table.
        scores: One an episode.
        complete: Whether all planned episodes were played.
        folder: Of the table.
    """

    policy: str
    version: str
    title: str
    row: str
    scores: Floats
    complete: bool
    folder: Path


def read_played(folder: Path, row: str = "") -> Played:
    """Return an agent's episodes of the table in a folder of `playserve rollout`.

    Args:
        folder: Of the rollout.
        row: Key of the row; empty: the sampled agent's.

    Raises:
        NotFoundError: The folder holds no table.
        DataLossError: The table is damaged.
        BadSettingError: No agent played, or the row is not there, or several could be meant.
    """
    path = folder / "results.json"
    table = read_json(path)
    if table is None:
        raise NotFoundError(f"{folder} holds no table; wanted a folder that `playserve rollout --out` wrote")
    try:
        policy, version = str(table["policy"]["name"]), str(table["policy"]["version"])
        keys = [of["key"] for of in table["rows"] if of["role"] == "agent"]
        chosen = [key for key in keys if (key == row if row else key.partition("-")[0] == "sample")]
        if not policy or len(chosen) != 1:
            raise BadSettingError(
                f"{path}: wanted one row of an agent{f' with key {row!r}' if row else ', sampled'}; agents' rows are "
                f"{keys or 'none'}: name one with --row"
            )
        scores = np.array([float(of["score"]) for of in table["episodes"] if of["row"] == chosen[0]])
        title, complete = str(table["title"]), bool(table["complete"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataLossError(f"{path} is damaged: {error!r}") from error
    if not len(scores) or not np.isfinite(scores).all():
        raise DataLossError(f"{path}: row {chosen[0]} has {len(scores)} episodes, wanted some with finite scores")
    return Played(policy, version, title, chosen[0], scores, complete, folder)


def rank_agents(
    real: Sequence[Played], imagined: Sequence[Played], *, few: bool = False, resamples: int = 4000, seed: int = 0
) -> dict[str, Any]:
    """Return both returns of each agent that played on both sides, and the correlations, as a JSON value.

    Args:
        real: Agents in the real game.
        imagined: Agents in the world.
        few: Go on with fewer than :data:`FEWEST` agents.
        resamples: Draws of an interval.
        seed: Of the draws.

    Raises:
        BadSettingError: An agent comes twice, or the tables of a side are of several environments.
        TooFewAgentsError: Too few agents played on both sides.
        StateError: All agents have the same return on one side.
    """
    sides = [_by_agent(side, name) for side, name in ((real, "real"), (imagined, "imagined"))]
    both = sorted(set(sides[0]) & set(sides[1]))
    if len(both) < _LEAST or (len(both) < FEWEST and not few):
        raise TooFewAgentsError(
            f"{len(both)} agents played both in the real game and in the world; wanted {FEWEST} or more"
            + (f", or {_LEAST} with --few" if len(both) >= _LEAST or few else "")
        )
    scores = [[side[agent].scores for agent in both] for side in sides]
    means = [np.array([of.mean() for of in side]) for side in scores]
    for name, side_A in zip(("real", "imagined"), means, strict=True):
        if np.ptp(side_A) == 0:
            raise StateError(f"all {len(both)} agents have the same {name} return: they cannot be ranked")
    rows = [
        {
            "policy": agent[0], "version": agent[1],
            "real": _summary(sides[0][agent]), "imagined": _summary(sides[1][agent]),
            "real_rank": float(of_real), "imagined_rank": float(of_imagined),
        }
        for agent, of_real, of_imagined in zip(both, *(ranks(-of)[0] for of in means), strict=True)
    ]  # fmt: skip
    alone, together = _draws(scores, resamples, seed)
    found: dict[str, Any] = {
        "real": {"title": real[0].title}, "imagined": {"title": imagined[0].title},
        "agents": sorted(rows, key=lambda row: row["real_rank"]),
        "resamples": resamples, "seed": seed, "notes": _notes(sides, both),
    }  # fmt: skip
    for name, of in (("spearman", spearman), ("pearson", pearson)):
        found[name] = {
            "value": float(of(means[0], means[1])[0]),
            "agents_and_episodes": interval(of(*together)),
            "episodes": interval(of(*alone)),
        }
    return found


def _by_agent(side: Sequence[Played], name: str) -> dict[tuple[str, str], Played]:
    titles = sorted({of.title for of in side})
    if len(titles) > 1:
        raise BadSettingError(f"the {name} tables are of several environments: {'; '.join(titles)}")
    found: dict[tuple[str, str], Played] = {}
    for of in side:
        key = (of.policy, of.version)
        if key in found:
            raise BadSettingError(
                f"{of.policy} {of.version} comes twice among the {name} tables, in {found[key].folder} and "
                f"{of.folder}: put shards together with `playserve rollout merge`"
            )
        found[key] = of
    return found


def _summary(of: Played) -> dict[str, Any]:
    count = len(of.scores)
    se = float(of.scores.std(ddof=1) / math.sqrt(count)) if count > 1 else None
    return {"mean": float(of.scores.mean()), "se": se, "episodes": count, "row": of.row, "complete": of.complete}


def _draws(
    scores: Sequence[Sequence[Floats]], resamples: int, seed: int
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Return mean returns [S, A] of both sides with episodes drawn anew, and with agents drawn anew, too.

    An agent that is drawn twice brings two draws of its episodes.
    """
    rng = np.random.default_rng([0x72616E6B, seed])
    agents = len(scores[0])
    alone = tuple(_means(side, np.tile(np.arange(agents), (resamples, 1)), rng) for side in scores)
    drawn_SA = rng.integers(agents, size=(resamples, agents))
    together = tuple(_means(side, drawn_SA, rng) for side in scores)
    return (alone[0], alone[1]), (together[0], together[1])


def _means(scores: Sequence[Floats], agents_SA: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    means_SA = np.empty(agents_SA.shape)
    for agent, of in enumerate(scores):
        its = np.nonzero(agents_SA == agent)
        rows = max(1, _AT_ONCE // len(of))
        counts = [min(rows, len(its[0]) - at) for at in range(0, len(its[0]), rows)]
        means = [of[rng.integers(len(of), size=(count, len(of)))].mean(1) for count in counts]
        means_SA[its] = np.concatenate([np.empty(0), *means])
    return means_SA


def _notes(sides: Sequence[dict[tuple[str, str], Played]], both: Sequence[tuple[str, str]]) -> list[str]:
    notes = []
    for side, name in zip(sides, ("the real game", "the world"), strict=True):
        if alone := sorted(set(side) - set(both)):
            listed = ", ".join(f"{policy} {version}" for policy, version in alone)
            notes.append(f"played in {name} only, and left out: {listed}")
        if short := [f"{p} {v}" for p, v in both if not side[p, v].complete]:
            notes.append(f"not all episodes in {name} are finished: {', '.join(short)}")
        if any(len(side[agent].scores) < 2 for agent in both):
            notes.append(f"with one episode of an agent in {name}, its error is not in the intervals")
    if len(both) < FEWEST:
        notes.append(f"{len(both)} agents: the intervals are rough, and say little of other agents")
    return notes
