"""What a person holds, and the action that a world gets for it."""

from __future__ import annotations

import pytest

from playserve.actions import DesktopAction
from playserve.specs import DesktopActionSpec, DiscreteActionSpec
from playserve_client.worlds.bindings import Bindings, Held

ATARI = ("NOOP", "FIRE", "UP", "RIGHT", "LEFT", "DOWN", "UPRIGHT", "UPLEFT", "UPFIRE", "UPRIGHTFIRE")
COMBOS = ("NOOP", "KeyW", "KeyW+Mouse0", "TurnLeft", "TurnRight", "KeyW+TurnRight", "Mouse0")


def holding(*keys: str, buttons: tuple[int, ...] = (), dx: float = 0.0) -> DesktopAction:
    return DesktopAction(frozenset(keys), frozenset(buttons), dx)


@pytest.mark.parametrize(
    ("held", "name"),
    [
        (holding(), "NOOP"),
        (holding("ArrowLeft"), "LEFT"),
        (holding("KeyA"), "LEFT"),
        (holding("KeyW", "ArrowRight"), "UPRIGHT"),
        (holding("KeyW", "KeyD", "Space"), "UPRIGHTFIRE"),
        (holding("KeyW", buttons=(0,)), "UPFIRE"),
        (holding("ArrowDown", "Space"), "FIRE"),  # there is no DOWNFIRE: half of it, the first that there is
        (holding("KeyQ", "Enter"), "NOOP"),
    ],
)
def test_named_actions_are_what_is_held(held: DesktopAction, name: str) -> None:
    assert ATARI[Bindings(DiscreteActionSpec(n=len(ATARI), names=ATARI)).action(held)] == name  # type: ignore[index]


@pytest.mark.parametrize(
    ("held", "name"),
    [
        (holding("KeyW"), "KeyW"),
        (holding("KeyW", dx=12.0), "KeyW+TurnRight"),
        (holding(dx=-12.0), "TurnLeft"),
        (holding(dx=1.0), "NOOP"),
        (holding("ArrowLeft"), "TurnLeft"),
        (holding("KeyW", buttons=(0,)), "KeyW+Mouse0"),
    ],
)
def test_combinations_of_keys_and_turns_are_what_is_held(held: DesktopAction, name: str) -> None:
    bindings = Bindings(DiscreteActionSpec(n=len(COMBOS), names=COMBOS))
    assert COMBOS[bindings.action(held)] == name  # type: ignore[index]
    assert bindings.uses_mouse


def test_digits_choose_where_names_say_nothing() -> None:
    bindings = Bindings(DiscreteActionSpec(n=4))
    assert [bindings.action(holding(*keys)) for keys in ((), ("Digit3",), ("Digit9",))] == [0, 3, 0]
    assert not bindings.uses_mouse
    assert "digits" in bindings.help()


def test_keyboard_and_mouse_go_as_far_as_the_world_knows_them() -> None:
    bindings = Bindings(DesktopActionSpec(keys=("KeyW",), buttons=(0,), max_mouse_px=30))
    assert bindings.action(holding("KeyW", "KeyX", buttons=(0, 2), dx=99)) == holding("KeyW", buttons=(0,), dx=30)
    assert bindings.uses_mouse


def test_a_tap_between_two_steps_is_held_in_one_and_motion_is_given_once() -> None:
    held = Held()
    held.key("KeyW", down=True)
    held.key("KeyW", down=False)
    held.key("KeyD", down=True)
    held.button(0, down=True)
    held.button(0, down=False)
    held.moved(3, -1)
    held.moved(2, 0, scroll=1)
    assert held.take() == DesktopAction(frozenset({"KeyW", "KeyD"}), frozenset({0}), 5, -1, 1)
    assert held.take() == DesktopAction(frozenset({"KeyD"}))
    held.release()
    assert held.take() == DesktopAction()
