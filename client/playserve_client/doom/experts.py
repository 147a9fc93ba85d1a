"""Scripted experts: they see labels, depth, walls and game variables, and play as a person with keys and mouse would.

Mouse motion is one of the centres of Open P2P's bins, so that decoding a token by its centre gives back the expert's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError
from playserve_client.doom.dodging import Dodger
from playserve_client.doom.navigation import Navigator
from playserve_client.doom.scenarios import DEGREES_PER_PIXEL, Scenario
from playserve_client.doom.view import Seen, View

__all__ = ["EXPERT_VERSION", "Expert", "Needs", "make_expert", "needs_of", "turn"]

#: Counts up when any expert plays differently.
EXPERT_VERSION = 2

# Centres of dx bins, pixels; more than 15 degrees in 50 ms is no turn of a person.
_CENTRES = (0, 1, 2, 5, 9, 15, 24, 38, 61)
_LEFT_BUTTON = frozenset({0})
_IDLE = DesktopAction()
# Who walks turns no more than this, degrees, for its own sake.
_STRAIGHT = 2.0
# Who only watches looks elsewhere after so many frames.
_WATCH_FRAMES = 10
# A search turns by this, pixels: 6 degrees a frame, and always to the right: which way it went before does not show in
# a frame, and a learner that has to guess goes to and fro.
_SEARCH_PX = 24


class Expert(Protocol):
    """Plays one scenario and goal."""

    def reset(self) -> None:
        """Begin an episode."""

    def act(self, view: View) -> DesktopAction:
        """Return what to hold until the next frame."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What the game has to tell an expert beside labels."""

    depth: bool = False
    walls: bool = False


def turn(bearing: float, still: float = 0.0) -> float:
    """Return the mouse motion, pixels, that turns by up to 15 degrees towards a bearing; none if that is `still` off.

    Who corrects what does not matter trembles, and so would who learns from it.
    """
    if abs(bearing) < still:
        return 0.0
    wanted = abs(bearing) / DEGREES_PER_PIXEL
    centre = min(_CENTRES, key=lambda pixels: abs(pixels - wanted))
    return float(centre if bearing > 0 else -centre)


def _action(*keys: str, dx: float = 0.0, fire: bool = False) -> DesktopAction:
    return DesktopAction(frozenset(keys), _LEFT_BUTTON if fire else frozenset(), dx)


def _half_width(view: View, thing: Seen, radius: float = 20.0) -> float:
    """Return how far, degrees, the look may miss a thing's middle and still hit it."""
    return max(0.7, 57.3 * 0.75 * radius / max(view.distance(thing.x, thing.y), 1.0))


def _cheapest(view: View, things: list[Seen], degree_cost: float) -> Seen | None:
    """Return what is near and nearly ahead, if there is anything.

    Who turns to it makes it cheaper still; so nothing has to be remembered, which no frame would show a learner.
    """

    def cost(thing: Seen) -> float:
        return view.distance(thing.x, thing.y) + degree_cost * abs(view.bearing(thing.x, thing.y))

    return min(things, key=cost, default=None)


class _Basic:
    """Steps sideways until the monster is ahead, then shoots."""

    def reset(self) -> None:
        pass

    def act(self, view: View) -> DesktopAction:
        monster = view.nearest(view.of_category("Monster"))
        if monster is None:
            return _IDLE
        # Speed carries on: what counts is where the player will be when it stands.
        off = monster.y - view.variables["POSITION_Y"] - 8 * view.variables["VELOCITY_Y"]
        if abs(off) < 12:
            return _action(fire=True)
        return _action("KeyA" if off > 0 else "KeyD")


class _Shooter:
    """Turns to the monster that is most urgent and holds the trigger while it is ahead.

    Single shots would be more accurate (24.9 instead of 20.9 in ``defend_the_center``), but when to press again does
    not show in a frame, and a learner that presses a little late is not a shooter.
    """

    fires = True

    def reset(self) -> None:
        pass

    def act(self, view: View) -> DesktopAction:
        target = self._choose(view, view.of_category("Monster"))
        if target is None:
            return _action(dx=_SEARCH_PX)
        # The middle of what is seen of it, where a wall hides the rest.
        bearing = view.column_bearing(target.middle_px)
        half = _half_width(view, target) * min(1.0, view.shown(target))
        return _action(dx=turn(bearing, 0.5 * half), fire=self.fires and abs(bearing) < half)

    def _choose(self, view: View, monsters: list[Seen]) -> Seen | None:
        return _cheapest(view, monsters, 3)


class _Watcher(_Shooter):
    """Looks at one monster after another and shoots at none."""

    fires = False

    def __init__(self) -> None:
        self._target: int | None = None
        self._frames = 0

    def reset(self) -> None:
        self._target, self._frames = None, 0

    def _choose(self, view: View, monsters: list[Seen]) -> Seen | None:
        self._frames += 1
        kept = [thing for thing in monsters if thing.number == self._target]
        if kept and self._frames < _WATCH_FRAMES:
            return kept[0]
        self._frames = 0
        others = [thing for thing in monsters if thing.number != self._target] or kept
        # The next to the right, and from the outermost back to the leftmost.
        here = view.bearing(kept[0].x, kept[0].y) if kept else -90.0
        bearings = {thing.number: view.bearing(thing.x, thing.y) for thing in others}
        following = [thing for thing in others if bearings[thing.number] > here] or others
        target = min(following, key=lambda thing: bearings[thing.number], default=None)
        self._target = None if target is None else target.number
        return target


class _Gatherer:
    """Walks to one medkit after another."""

    def __init__(self, category: str = "Health", name: str = "") -> None:
        self._category, self._name = category, name

    def reset(self) -> None:
        pass

    def act(self, view: View) -> DesktopAction:
        things = [thing for thing in view.of_category(self._category) if self._name in ("", thing.name)]
        target = _cheapest(view, things, 4)
        if target is None:
            return _action(dx=_SEARCH_PX)
        bearing = view.bearing(target.x, target.y)
        return _action(*(("KeyW",) if abs(bearing) < 25 else ()), dx=turn(bearing, _STRAIGHT))


class _Avoider:
    """Walks where no medkit is."""

    def __init__(self) -> None:
        self._side = 0

    def reset(self) -> None:
        self._side = 0

    def act(self, view: View) -> DesktopAction:
        assert view.depth is not None  # noqa: S101 - needs_of asks for it
        height, width = view.depth.shape
        ahead = float(view.depth[height // 2 - 10 : height // 2 + 10, width // 3 : -width // 3].mean())
        near = [
            thing
            for thing in view.of_category("Health")
            if (far := view.distance(thing.x, thing.y)) < 280
            and abs(view.bearing(thing.x, thing.y)) < min(60.0, 57.3 * 75 / max(far, 1.0))
        ]
        blocking = view.nearest(near)
        if blocking is not None:
            if not self._side:
                self._side = -1 if view.bearing(blocking.x, blocking.y) >= 0 else 1
            close = view.distance(blocking.x, blocking.y) < 130
            return _action(*(() if close else ("KeyW",)), dx=self._side * _SEARCH_PX)
        if ahead < 12:
            self._side = self._side or 1
            return _action(dx=self._side * _SEARCH_PX)
        self._side = 0
        return _action("KeyW")


class _Corridor:
    """Goes on to the vest; stops and shoots whoever is in sight."""

    def __init__(self) -> None:
        self._shooter = _Shooter()

    def reset(self) -> None:
        self._shooter.reset()

    def act(self, view: View) -> DesktopAction:
        vest = view.nearest(thing for thing in view.of_category("Armor"))
        # A sliver behind a corner cannot be hit; it stands aside when the player is nearer.
        in_sight = any(view.shown(monster) > 0.4 for monster in view.of_category("Monster"))
        if in_sight and view.variables["SELECTED_WEAPON_AMMO"] > 0:
            return self._shooter.act(view)
        bearing = view.bearing(vest.x, vest.y) if vest is not None else view.bearing(1312.0, 0.0)
        return _action(*(("KeyW",) if abs(bearing) < 40 else ()), dx=turn(bearing, _STRAIGHT))


_ANY: Mapping[tuple[str, str], tuple[Callable[[], Expert], Needs]] = {
    ("basic", "shoot_monster"): (_Basic, Needs()),
    ("defend_the_center", "defend_center"): (_Shooter, Needs()),
    ("defend_the_line", "shoot"): (_Shooter, Needs()),
    ("defend_the_line", "hold_fire"): (_Watcher, Needs()),
    ("health_gathering", "collect"): (_Gatherer, Needs()),
    ("health_gathering", "avoid"): (_Avoider, Needs(depth=True)),
    ("deadly_corridor", "corridor"): (_Corridor, Needs()),
    ("my_way_home", "find_vest"): (lambda: Navigator(lambda bearing: turn(bearing, _STRAIGHT)), Needs(walls=True)),
    ("take_cover", "dodge"): (Dodger, Needs(walls=True)),
    ("two_vests", "green"): (lambda: _Gatherer("Armor", "GreenArmor"), Needs()),
    ("two_vests", "red"): (lambda: _Gatherer("Armor", "BlueArmor"), Needs()),
}


def make_expert(scenario: Scenario, goal: str | None = None) -> Expert:
    """Return a new expert of a scenario's goal (None: its first)."""
    return _entry(scenario, goal)[0]()


def needs_of(scenario: Scenario, goal: str | None = None) -> Needs:
    """Return what the game has to tell that expert."""
    return _entry(scenario, goal)[1]


def _entry(scenario: Scenario, goal: str | None) -> tuple[Callable[[], Expert], Needs]:
    key = (scenario.name, scenario.goal(goal).name)
    if key not in _ANY:
        raise BadSettingError(f"there is no expert for {' '.join(key)}")
    return _ANY[key]
