"""What is played: ViZDoom's scenarios and our own map, their controls, their goals, and when a goal is met."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from playserve.errors import BadSettingError
from playserve_client.doom.phrasings import PHRASINGS, Phrasings

__all__ = ["DEGREES_PER_PIXEL", "KEYS", "SCENARIOS", "TICS_PER_FRAME", "TICS_PER_S", "Goal", "Scenario", "scenario_of"]

#: How far one pixel of mouse motion turns the player, degrees; to the right where the motion is.
DEGREES_PER_PIXEL = 0.25
#: Of the game, a frame; at 40 tics a second a frame is 50 ms.
TICS_PER_FRAME = 2
TICS_PER_S = 40

#: Key of each ViZDoom button that is held, in the order of the buttons; attack is mouse button 0, turning mouse dx.
KEYS: Mapping[str, str] = {
    "KeyW": "MOVE_FORWARD",
    "KeyS": "MOVE_BACKWARD",
    "KeyA": "MOVE_LEFT",
    "KeyD": "MOVE_RIGHT",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What an instruction asks for.

    Attributes:
        name: For programs.
        phrasings: Instructions that ask for it.
        fact: The episode's fact (a counter of the game) that says whether it was met; empty: met has no meaning.
        at_least: The lowest value of that fact that meets the goal, or None.
        at_most: The highest, or None.
    """

    name: str
    phrasings: Phrasings
    fact: str = ""
    at_least: float | None = None
    at_most: float | None = None

    def met(self, facts: Mapping[str, float]) -> bool:
        """Return whether an episode of these facts met the goal."""
        value = facts[self.fact]
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A map and its rules.

    Attributes:
        name: Of ViZDoom's scenario, or of ours.
        goals: The first is what the score asks for; more than one: only the instruction tells which.
        keys: Keys that do something (W3C codes).
        turns: Whether mouse dx turns.
        attacks: Whether mouse button 0 attacks.
        timeout_tics: Tics after which an episode is over by the scenario's own rules.
        endless_ammo: Whether shots cost no ammunition.
        made: Whether the map is made by :mod:`playserve_client.doom.maps`.
    """

    name: str
    goals: tuple[Goal, ...]
    keys: tuple[str, ...] = ()
    turns: bool = True
    attacks: bool = False
    timeout_tics: int = 2100
    endless_ammo: bool = False
    made: bool = False

    @property
    def asks(self) -> bool:
        """Return whether only the instruction tells what to do."""
        return len(self.goals) > 1

    def goal(self, name: str | None) -> Goal:
        """Return the goal of that name, None: the first; BadSettingError where there is none."""
        if name is None:
            return self.goals[0]
        for goal in self.goals:
            if goal.name == name:
                return goal
        raise BadSettingError(
            f"scenario {self.name!r} has no goal {name!r}; it has {', '.join(goal.name for goal in self.goals)}"
        )


def _one(name: str) -> tuple[Goal, ...]:
    return (Goal(name=name, phrasings=PHRASINGS[name]),)


_ALL = ("KeyW", "KeyS", "KeyA", "KeyD")

#: Every scenario by name.
SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            name="basic",
            goals=_one("shoot_monster"),
            keys=("KeyA", "KeyD"),
            turns=False,
            attacks=True,
            timeout_tics=300,
        ),
        Scenario(name="defend_the_center", goals=_one("defend_center"), attacks=True),
        Scenario(
            name="defend_the_line",
            goals=(
                Goal(name="shoot", phrasings=PHRASINGS["shoot"], fact="hits", at_least=2),
                Goal(name="hold_fire", phrasings=PHRASINGS["hold_fire"], fact="hits", at_most=1),
            ),
            attacks=True,
            endless_ammo=True,
        ),
        Scenario(
            name="health_gathering",
            goals=(
                Goal(name="collect", phrasings=PHRASINGS["collect"], fact="medkits", at_least=4),
                Goal(name="avoid", phrasings=PHRASINGS["avoid"], fact="medkits", at_most=3),
            ),
            keys=("KeyW",),
        ),
        Scenario(name="deadly_corridor", goals=_one("corridor"), keys=_ALL, attacks=True),
        Scenario(name="my_way_home", goals=_one("find_vest"), keys=("KeyW", "KeyA", "KeyD")),
        Scenario(name="take_cover", goals=_one("dodge"), keys=("KeyA", "KeyD"), turns=False),
        Scenario(
            name="two_vests",
            goals=(
                Goal(name="green", phrasings=PHRASINGS["green"], fact="armor", at_least=1, at_most=100),
                Goal(name="red", phrasings=PHRASINGS["red"], fact="armor", at_least=101),
            ),
            keys=("KeyW", "KeyS", "KeyA", "KeyD"),
            timeout_tics=700,
            made=True,
        ),
    )
}


def scenario_of(name: str) -> Scenario:
    """Return the scenario of that name; BadSettingError where there is none."""
    found = SCENARIOS.get(name)
    if found is None:
        close = difflib.get_close_matches(name, SCENARIOS, n=2, cutoff=0.5)
        hint = f"; close names: {', '.join(close)}" if close else ""
        raise BadSettingError(f"there is no Doom scenario {name!r}; there are {', '.join(SCENARIOS)}{hint}")
    return found
