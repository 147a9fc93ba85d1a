"""What an episode amounts to: the game's counters, and how a person would say it was played.

Counted a frame, by the action that was held from it to the next:

* *idle*: no key or button that the scenario knows is held, and the mouse does not move.
* *jitter*: the mouse turns back (motion to the other side than in the frame before), or a key is swapped for its
  opposite (A and D, W and S). Nobody turns round within 50 ms.
* *shot*: ammunition goes down. Where it is endless: the button is held and the weapon, which was ready, is not any
  more, or is still not 14 tics after the last shot, which is a pistol's time for one.
* *shot at nothing*: no living monster was on the screen in the last 3 frames. A *miss* is a shot that hit nobody.
* *wall*: keys that move the player have been held for 2 frames, not opposite ones, and it moved less than 1 map unit
  (of about 13 a frame on free ground).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playserve.actions import DesktopAction
from playserve_client.doom.scenarios import TICS_PER_FRAME, TICS_PER_S, Goal, Scenario

__all__ = ["FRAMES_PER_S", "PER_100_S", "EpisodeCounter"]

FRAMES_PER_S = TICS_PER_S / TICS_PER_FRAME
#: Facts that are told for 100 s of play: seconds of idling and of pushing a wall, and how often the others happened.
PER_100_S = ("idle", "wall", "jitter", "shots_at_nothing", "misses")

_OPPOSITES = (("KeyA", "KeyD"), ("KeyD", "KeyA"), ("KeyW", "KeyS"), ("KeyS", "KeyW"))
_SIGHT_FRAMES = 3
_HELD_SHOT_FRAMES = 14 // TICS_PER_FRAME
_STUCK_UNITS = 1.0

Probes = NDArray[np.float64]


class EpisodeCounter:
    """Counts one episode.

    Args:
        scenario: What is played.
        probes: Names of the game variables, in order.
    """

    def __init__(self, scenario: Scenario, probes: tuple[str, ...]) -> None:
        self._scenario = scenario
        self._at = {name: index for index, name in enumerate(probes)}
        self._keys = frozenset(scenario.keys)
        self.frames = 0
        self._counts = dict.fromkeys(("idle", "wall", "jitter", "shots", "shots_at_nothing", "medkits"), 0)
        self._last_action = DesktopAction()
        self._moved_before = False
        self._since_monster = _SIGHT_FRAMES
        self._since_shot = 0

    def count(self, action: DesktopAction, before: Probes, after: Probes, *, monster: bool) -> None:
        """Count one frame.

        Args:
            action: What was held.
            before: Game variables of the frame.
            after: Of the next one.
            monster: Whether a living monster is on the screen of the frame.
        """
        counts = self._counts
        self.frames += 1
        self._since_monster = 0 if monster else self._since_monster + 1
        keys = action.keys & self._keys
        buttons = action.buttons & ({0} if self._scenario.attacks else set())
        dx = action.mouse_dx_px if self._scenario.turns else 0.0
        counts["idle"] += not (keys or buttons or dx)
        counts["jitter"] += self._jitters(keys, dx)
        counts["wall"] += self._pushes(keys, before, after)
        shots = self._shots(bool(buttons), before, after)
        counts["shots"] += shots
        if self._since_monster >= _SIGHT_FRAMES:
            counts["shots_at_nothing"] += shots
        counts["medkits"] += int(self._get(after, "HEALTH") > self._get(before, "HEALTH"))
        self._last_action = DesktopAction(keys, frozenset(buttons), dx)

    def facts(self, final: Probes, goal: Goal, scenario: Scenario) -> dict[str, Any]:
        """Return the facts of the episode that ended with these game variables."""
        counts = self._counts
        hits = int(self._get(final, "HITCOUNT"))
        values: dict[str, Any] = {
            "kills": int(self._get(final, "KILLCOUNT")),
            "hits": hits,
            "shots": counts["shots"],
            "shots_at_nothing": counts["shots_at_nothing"],
            "misses": max(0, counts["shots"] - hits),
            "medkits": counts["medkits"],
            "armor": int(self._get(final, "ARMOR")),
            "health": max(0, int(self._get(final, "HEALTH"))),
            "damage": int(self._get(final, "DAMAGECOUNT")),
            "damage_taken": int(self._get(final, "DAMAGE_TAKEN")),
            "idle_frames": counts["idle"],
            "wall_frames": counts["wall"],
            "jitter": counts["jitter"],
        }
        values.update(self._per_100_s(values))
        values["goal"] = goal.name
        if scenario.asks:
            values["goal_met"] = goal.met(values)
            values["did"] = next((other.name for other in scenario.goals if other.met(values)), "neither")
        return values

    def _per_100_s(self, values: Mapping[str, Any]) -> dict[str, float]:
        seconds = max(self.frames, 1) / FRAMES_PER_S
        totals = {
            "idle": values["idle_frames"] / FRAMES_PER_S,
            "wall": values["wall_frames"] / FRAMES_PER_S,
            **{name: values[name] for name in ("jitter", "shots_at_nothing", "misses")},
        }
        return {f"{name}_per_100s": round(100 * totals[name] / seconds, 3) for name in PER_100_S}

    def _jitters(self, keys: frozenset[str], dx: float) -> bool:
        last = self._last_action
        swapped = any(
            old in last.keys and new in keys and new not in last.keys and old not in keys for old, new in _OPPOSITES
        )
        return swapped or dx * last.mouse_dx_px < 0

    def _pushes(self, keys: frozenset[str], before: Probes, after: Probes) -> bool:
        forward = ("KeyW" in keys) - ("KeyS" in keys)
        right = ("KeyD" in keys) - ("KeyA" in keys)
        moves = bool(forward or right)
        held, self._moved_before = moves and self._moved_before, moves
        way = [self._get(after, axis) - self._get(before, axis) for axis in ("POSITION_X", "POSITION_Y")]
        return held and math.hypot(*way) < _STUCK_UNITS

    def _shots(self, held: bool, before: Probes, after: Probes) -> int:
        weapon = self._get(before, "SELECTED_WEAPON")
        if not self._scenario.attacks or weapon != self._get(after, "SELECTED_WEAPON"):  # -1 in death
            return 0
        if not self._scenario.endless_ammo:
            spent = self._get(before, "SELECTED_WEAPON_AMMO") - self._get(after, "SELECTED_WEAPON_AMMO")
            return int(spent) if spent > 0 else 0
        self._since_shot += 1
        if not held or self._get(after, "ATTACK_READY") > 0:
            return 0
        if self._get(before, "ATTACK_READY") > 0 or self._since_shot >= _HELD_SHOT_FRAMES:
            self._since_shot = 0
            return 1
        return 0

    def _get(self, probes: Probes, name: str) -> float:
        return float(probes[self._at[name]])
