"""Films of the served policy: it plays over gRPC at the game's own speed, and every frame says how it went.

The latency in the picture is that of the very episode, measured while it was played; drawing comes afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playserve.actions import DesktopAction
from playserve.errors import ShapeMismatchError
from playserve.files import replacing, write_json
from playserve.settings import Pace
from playserve_trainer.demo.doom.panel import HEIGHT, WIDTH, Moment, Panel
from playserve_trainer.demo.doom.plan import POLICY

__all__ = ["film_paths", "make_film"]

_RATE_HZ = 20.0
#: Episodes that are looked at. Where not all fit into a film it shows the best, and says so.
_TRIES = 3
# Short episodes are filmed one after another, until there is something to see.
_LEAST_S, _MOST_EPISODES, _PAUSE_FRAMES = 8.0, 10, 10
_CRF = 27


def film_paths(out: Path, scenario: str, goal: str) -> tuple[Path, Path]:
    """Return where a film and its description lie."""
    stem = f"{scenario}-{goal}".replace("_", "-")
    return out / "films" / f"{stem}.mp4", out / "films" / f"{stem}.json"


def make_film(
    server: str, scenario: str, goal: str, out: Path, *, seconds: float, seed: int, tries: int = _TRIES
) -> dict[str, Any]:
    """Play some episodes, film all or the best; return what the film shows, which lies beside it as JSON.

    Args:
        server: "host:port".
        scenario: What is played.
        goal: What is asked for, by a phrasing that was never trained on.
        out: Folder of the recipe.
        seconds: Longest film.
        seed: Of the first episode.
        tries: Episodes to choose from; more are played where they are short.
    """
    played: list[_Episode] = []
    while len(played) < tries or (len(played) < _MOST_EPISODES and _seconds(played) < _LEAST_S):
        played.append(_play(server, scenario, goal, seed + len(played), seconds))
    shown = played if _seconds(played) <= seconds else [max(played, key=_Episode.rank)]
    moments = [moment for episode in shown for moment in episode.moments]
    path, described = film_paths(out, scenario, goal)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, _with_pauses(shown))
    trips = sorted(moment.round_trip_ms for moment in moments)
    value = {
        "path": f"films/{path.name}",
        "scenario": scenario,
        "goal": goal,
        "instruction": moments[0].instruction,
        "episodes": [episode.to_json() for episode in shown],
        "tries": len(played),
        "score": sum(e.score for e in shown) / len(shown),
        "goal_met": _all_met(shown),
        "frames": len(moments),
        "whole": all(e.whole for e in shown),
        "round_trip_ms": {"p50": trips[len(trips) // 2], "p99": trips[min(len(trips) - 1, int(0.99 * len(trips)))]},
        "bytes": path.stat().st_size,
    }
    write_json(described, value)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class _Episode:
    """What was played; `whole` says whether it came to its end."""

    seed: int
    moments: list[Moment]
    score: float
    facts: Mapping[str, Any]
    whole: bool

    def rank(self) -> tuple[bool, float]:
        """Return what the best episode has most of."""
        return bool(self.facts.get("goal_met", True)), self.score

    def to_json(self) -> dict[str, Any]:
        """Return what is told of it."""
        return {
            "seed": self.seed,
            "score": self.score,
            "goal_met": self.facts.get("goal_met"),
            "frames": len(self.moments),
            "facts": dict(self.facts),
        }


def _seconds(episodes: Sequence[_Episode]) -> float:
    return sum(len(episode.moments) for episode in episodes) / _RATE_HZ


def _with_pauses(episodes: Sequence[_Episode]) -> list[Moment]:
    """Return all moments; between two episodes the last one stands still."""
    if len(episodes) == 1:
        return episodes[0].moments
    return [moment for e in episodes for moment in (*e.moments, *e.moments[-1:] * _PAUSE_FRAMES)]


def _all_met(episodes: Sequence[_Episode]) -> bool | None:
    met = [episode.facts.get("goal_met") for episode in episodes]
    return None if None in met else all(met)


def _play(server: str, scenario: str, goal: str, seed: int, seconds: float) -> _Episode:
    """Play one episode in real time."""
    from playserve_client.client import PolicyClient
    from playserve_client.envs.doom import DoomEnv

    env = DoomEnv(scenario, goal=goal, max_steps=max(1, round(seconds * _RATE_HZ)))
    moments: list[Moment] = []
    try:
        observation, info = env.reset(seed=seed)
        with (
            PolicyClient(server) as client,
            client.play(POLICY, pace=Pace.LOCKSTEP, instruction=info["instruction"], seed=seed) as session,
        ):
            due, over = time.monotonic(), False
            while not over:
                seq = session.send_step({"frame": observation["frame"]})
                result = session.recv()
                (action,) = result.actions
                if not isinstance(action, DesktopAction):
                    raise ShapeMismatchError(f"step {seq}: action {action!r}, wanted keyboard and mouse")
                moments.append(Moment(
                    screen=env.screen().copy(), seen=observation["frame"], action=action, instruction=env.instruction,
                    title=f"{scenario.replace('_', ' ')}: {goal.replace('_', ' ')}", seconds=env.steps / _RATE_HZ,
                    counters=_counters(env), round_trip_ms=1e3 * (result.round_trip_s or 0.0),
                    model_ms=result.times.compute_us / 1e3,
                ))  # fmt: skip
                observation, _, terminated, truncated, last = env.step(action)
                over = terminated or truncated
                due += 1 / _RATE_HZ
                time.sleep(max(0.0, due - time.monotonic()))
        facts = last["episode_facts"]
        return _Episode(seed=seed, moments=moments, score=env.score, facts=facts, whole=facts["end"] != "max_steps")
    finally:
        env.close()


def _counters(env: Any) -> str:
    """Return the game's counters that mean something in the scenario."""
    from playserve_client.doom.game import PROBES

    value = dict(zip(PROBES, env.probes(), strict=True))
    parts = [f"health {value['HEALTH']:.0f}"]
    if env.scenario.attacks:
        parts += [f"kills {value['KILLCOUNT']:.0f}", f"ammo {value['SELECTED_WEAPON_AMMO']:.0f}"]
    if env.scenario.made:
        parts.append(f"armor {value['ARMOR']:.0f}")
    return ", ".join([*parts, f"score {env.score:g}"])


def _write(path: Path, moments: list[Moment]) -> None:
    from playserve_client.p2p.video import VideoSettings, VideoWriter

    panel, settings = Panel(), VideoSettings(crf=_CRF, preset="veryfast")
    with replacing(path) as part, VideoWriter(part, WIDTH, HEIGHT, _RATE_HZ, settings) as writer:
        for moment in moments:
            writer.write(panel.draw(moment))
