"""Plays NetHack episodes again and records them as ttyrec3 files with their xlogfile, laid out as NLD-AA is.

``nle.dataset.add_nledata_directory`` reads the folder. Nothing is recorded during play: an episode is its seed and its
keys, and playing them again costs little.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError, DataLossError
from playserve_client.envs.registry import make_env
from playserve_client.evaluate.families.base import AGENTS, Progress, Recordings
from playserve_client.evaluate.journal import Journal, Result
from playserve_client.evaluate.plan import Settings

__all__ = ["FOLDER", "first_episodes", "record_ttyrecs"]

#: In the run's folder.
FOLDER = "ttyrec"


def first_episodes(settings: Settings, journal: Journal, count: int) -> list[Result]:
    """Return the first `count` finished episodes of the agent, or of the first player where there is no agent."""
    rows = settings.rows()
    chosen = [row for row in rows if row.kind in AGENTS] or rows
    planned = [a for row in chosen[:1] for a in row.assignments(settings.seed_start, settings.shard)]
    return [journal.results[a.row, a.number] for a in planned if journal.has(a)][:count]


def record_ttyrecs(settings: Settings, journal: Journal, count: int, progress: Progress) -> Recordings:
    """Write the first `count` episodes into ``OUT/ttyrec``, in the place of what lay there."""
    # The environment tells absolute paths.
    made, folder = Recordings(), (journal.out / FOLDER).resolve()
    temporary = folder.with_name(f".{FOLDER}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    options = {**settings.env.factory_options(None), "ttyrec_dir": str(temporary)}
    env: Any = make_env(settings.env.family, settings.env.game, **options)
    try:
        for result in first_episodes(settings, journal, count):
            try:
                path = _play(env, journal, result).relative_to(temporary)
                made.files.append({
                    "kind": "ttyrec3",
                    "path": f"{FOLDER}/{path}",
                    "row": result.row,
                    "number": result.number,
                    "env_seed": result.env_seed,
                    "score": result.score,
                    "steps": result.steps,
                    "facts": dict(result.facts),
                })  # fmt: skip
            except (BadSettingError, DataLossError, FileNotFoundError) as error:
                made.notes.append(f"no recording of {result.row} episode {result.number}: {error}")
            progress(result.steps, 1)
    finally:
        env.close()
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    return made


def _play(env: Any, journal: Journal, result: Result) -> Path:
    """Play one episode again; return its file."""
    actions = journal.actions(result)
    env.reset(seed=result.env_seed)
    score, ended, info = 0.0, False, {}
    for step, action in enumerate(actions):
        _, reward, terminated, truncated, info = env.step(action)
        score += float(reward)
        ended = terminated or truncated
        if ended and step + 1 < len(actions):
            break
    if not ended or score != result.score or len(actions) != result.steps or "ttyrec" not in info:
        raise DataLossError(
            f"replayed it scores {score:g}, played {result.score:g} in {result.steps} steps: the game is not a "
            "function of its seed and its keys here"
        )
    return Path(info["ttyrec"])
