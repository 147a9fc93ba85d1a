"""Held state becomes edges: nothing is pressed twice, nothing stays down, and whatever fails is still lifted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError
from playserve_client.actuate import KEYS, ActuationError, Actuator, DryRunBackend

ACTIONS = st.builds(
    DesktopAction,
    keys=st.frozensets(st.sampled_from(["KeyW", "KeyA", "Space", "ShiftLeft", "Fn"])),
    buttons=st.frozensets(st.integers(0, 6)),
    mouse_dx_px=st.floats(-500, 500),
    mouse_dy_px=st.floats(-500, 500),
    scroll=st.sampled_from([0.0, 1.0, -2.0, 0.5]),
)


class Desktop:
    """A backend that is a desktop: it knows what is down, and does not like to be told twice."""

    def __init__(self, fails: frozenset[str] = frozenset()) -> None:
        self.down: set[str] = set()
        self.at = [0, 0, 0]
        self.edges: list[str] = []
        self.fails = set(fails)
        self.flushed = self.closed = 0

    def can_press(self, code: str) -> bool:
        return code in KEYS

    def _edge(self, name: str, down: bool) -> None:
        if name in self.fails:
            raise ActuationError(name)
        assert (name in self.down) != down, f"{name} {'pressed' if down else 'lifted'} twice"
        (self.down.add if down else self.down.discard)(name)
        self.edges.append(("+" if down else "-") + name)

    def key(self, code: str, down: bool) -> None:
        assert code in KEYS
        self._edge(code, down)

    def button(self, button: int, down: bool) -> None:
        assert button in range(5)
        self._edge(f"button {button}", down)

    def move(self, dx: int, dy: int) -> None:
        assert dx or dy
        self.at[0] += dx
        self.at[1] += dy
        self.edges.append("move")

    def scroll(self, steps: int) -> None:
        assert steps
        self.at[2] += steps

    def flush(self) -> None:
        self.flushed += 1

    def close(self) -> None:
        self.closed += 1


class Notes:
    def __init__(self, desktop: Desktop) -> None:
        self.desktop, self.held = desktop, set[str]()

    def note(self, name: str, down: bool) -> None:
        # Told before it is down, and only after it is up: there is no moment at which a kill leaves it down.
        assert name not in self.desktop.down
        (self.held.add if down else self.held.discard)(name)


def names(action: DesktopAction) -> set[str]:
    return {code for code in action.keys if code in KEYS} | {f"button {b}" for b in action.buttons if b < 5}


@given(played=st.lists(ACTIONS, max_size=12), scale=st.sampled_from([1.0, 0.3, 2.5]))
def test_any_sequence_of_actions_holds_what_the_last_one_says(played: list[DesktopAction], scale: float) -> None:
    desktop = Desktop()
    notes = Notes(desktop)
    with Actuator(desktop, mouse_scale=scale, witness=notes) as actuator:
        for action in played:
            actuator.apply(action)
            assert desktop.down == names(action) == notes.held == names(actuator.held)
        # Parts of pixels are not lost, however small the steps.
        for axis, field in enumerate(("mouse_dx_px", "mouse_dy_px")):
            assert abs(desktop.at[axis] - scale * sum(getattr(action, field) for action in played)) < 1.001
        assert desktop.flushed == len(played)
    assert desktop.down == notes.held == set()
    assert desktop.closed == 1


def test_edges_only() -> None:
    desktop = Desktop()
    actuator = Actuator(desktop)
    actuator.apply(DesktopAction(keys=frozenset({"KeyW"}), buttons=frozenset({0}), mouse_dx_px=5.0))
    actuator.apply(DesktopAction(keys=frozenset({"KeyW", "KeyA"})))
    actuator.apply(DesktopAction(keys=frozenset({"KeyA"})))
    # A shot goes where the action aims: motion before buttons.
    assert desktop.edges == ["+KeyW", "move", "+button 0", "-button 0", "+KeyA", "-KeyW"]


def test_keys_that_nobody_has_are_reported_not_pressed() -> None:
    actuator = Actuator(Desktop())
    actuator.apply(DesktopAction(keys=frozenset({"Fn", "KeyW"}), buttons=frozenset({7})))
    assert actuator.unknown == {"Fn", "button 7"}
    assert actuator.held == DesktopAction(keys=frozenset({"KeyW"}))


def test_one_key_that_cannot_be_lifted_does_not_keep_the_others_down() -> None:
    desktop = Desktop()
    actuator = Actuator(desktop)
    actuator.apply(DesktopAction(keys=frozenset({"KeyA", "KeyW"}), buttons=frozenset({0})))
    desktop.fails = {"KeyA"}
    with pytest.raises(ActuationError, match="KeyA"):
        actuator.release_all()
    assert desktop.down == {"KeyA"}
    desktop.fails = set()
    actuator.release_all()  # it is still known to be down
    assert desktop.down == set()


def test_a_press_that_fails_counts_as_held() -> None:
    desktop = Desktop(fails=frozenset({"KeyA"}))
    actuator = Actuator(desktop)
    with pytest.raises(ActuationError):
        actuator.apply(DesktopAction(keys=frozenset({"KeyA"})))
    assert actuator.held.keys == {"KeyA"}


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), 101.0])
def test_a_mouse_scale_that_makes_no_sense_is_refused(scale: float) -> None:
    with pytest.raises(BadSettingError, match="mouse scale"):
        Actuator(Desktop(), mouse_scale=scale)


def test_a_dry_run_says_every_edge() -> None:
    said: list[str] = []
    actuator = Actuator(DryRunBackend(said.append))
    actuator.apply(DesktopAction(frozenset({"KeyW"}), frozenset({2}), 3.0, -2.0, 1.0))
    actuator.release_all()
    assert said == ["press KeyW", "move +3 -2", "press button 2", "scroll +1", "release KeyW", "release button 2"]
