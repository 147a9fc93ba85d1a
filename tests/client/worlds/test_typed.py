"""NetHack's keys in a world's window: each key is a step, in order, and without one nothing happens."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fake_world import fake_world, world_spec

from playserve.settings import Pace
from playserve.specs import DesktopActionSpec, DiscreteActionSpec
from playserve.testing import FakePolicyServer
from playserve_client.client import PolicyClient
from playserve_client.nethack.keys import ACTION_NAMES
from playserve_client.worlds.bindings import Bindings, Held
from playserve_client.worlds.game import WorldGame
from playserve_client.worlds.typed import TypedKeys, bindings_of

SPEC = DiscreteActionSpec(n=len(ACTION_NAMES), names=ACTION_NAMES)


def _typed(*keys: tuple[str, str]) -> Held:
    held = Held()
    for code, text in keys:
        held.type(code, text)
    return held


def _named(name: str) -> int:
    return ACTION_NAMES.index(name)


def test_it_is_for_worlds_whose_actions_are_nethacks() -> None:
    for spec in (SPEC, DiscreteActionSpec(n=2, names=ACTION_NAMES[:2])):
        assert isinstance(bindings_of(spec), TypedKeys)
    for spec in (
        DiscreteActionSpec(n=2, names=("NOOP", "FIRE")),
        DiscreteActionSpec(n=121),
        DesktopActionSpec(keys=("KeyW",)),
    ):
        assert isinstance(bindings_of(spec), Bindings)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (("KeyH", "h"), "CompassDirection.W"),
        (("KeyH", "H"), "CompassDirectionLonger.W"),
        (("ArrowUp", ""), "CompassDirection.N"),
        (("Enter", "\r"), "MiscAction.MORE"),
        (("Escape", "\x1b"), "Command.ESC"),
        (("KeyD", "\x04"), "Command.KICK"),
        (("KeyP", chr(ord("p") + 128)), "Command.PRAY"),
        (("Digit7", "7"), "TextCharacters.NUM_7"),
    ],
)
def test_a_key_is_an_action(key: tuple[str, str], name: str) -> None:
    assert TypedKeys(SPEC).take(_typed(key), ready=True) == _named(name)


def test_keys_wait_for_room_and_what_means_nothing_is_passed_over() -> None:
    keys, held = TypedKeys(SPEC), _typed(("ShiftLeft", ""), ("KeyJ", "j"), ("", "€"), ("KeyK", "k"))
    assert keys.take(held, ready=False) is None
    found = [keys.take(held, ready=True) for _ in range(3)]
    assert found == [_named("CompassDirection.S"), _named("CompassDirection.N"), None]
    few = TypedKeys(DiscreteActionSpec(n=1, names=("CompassDirection.N",)))
    assert few.take(_typed(("KeyJ", "j"), ("KeyK", "k")), ready=True) == 0, "an action that the world has not"


def test_a_game_that_waits_begins_by_itself_and_then_steps_once_a_key() -> None:
    seen: list[Any] = []
    typed = [_named(f"CompassDirection.{name}") for name in ("S", "W", "W", "N")]
    world = fake_world(world_spec(action=SPEC), seen=seen)
    with FakePolicyServer({"coins": world}) as server, PolicyClient(server.address) as client:
        server.set_delay(0.03)  # it is slower than the fingers
        with client.play("coins", pace=Pace.LIVE, seed=3) as session:
            game, keys = WorldGame(session, 20.0), TypedKeys(SPEC)
            held = _typed(*(("", letter) for letter in "jhhk"))
            deadline = time.monotonic() + 20
            while game.score.steps < 5:
                assert time.monotonic() < deadline
                game.tick(keys.take(held, ready=game.ready))
                time.sleep(0.002)
            for _ in range(100):
                game.tick(keys.take(held, ready=game.ready))
                time.sleep(0.002)
            game.begin()
            while game.newest is None or len(seen) < 6:
                assert time.monotonic() < deadline
                game.tick(None)
                time.sleep(0.002)
    assert [action for episode, action in seen if episode == 0][1:] == typed
    assert [episode for episode, _ in seen] == [0] * 5 + [1]
