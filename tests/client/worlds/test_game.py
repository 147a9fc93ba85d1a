"""A world in real time: what is sent, what is shown, and what becomes of actions that find no room."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_world import fake_world, frame_of, world_spec

from playserve.actions import DesktopAction
from playserve.errors import QueueFullError, TimeoutExceededError, UnsupportedError
from playserve.settings import Pace
from playserve.specs import DesktopActionSpec, PolicyKind, PolicySpec, TensorSpec
from playserve.testing import FakePolicyServer
from playserve_client.client import PolicyClient
from playserve_client.session import Session
from playserve_client.worlds.game import WorldGame
from playserve_client.worlds.view import check_world, idle_action


@pytest.fixture
def world() -> Iterator[tuple[FakePolicyServer, Session, list[Any]]]:
    seen: list[Any] = []
    with FakePolicyServer({"coins": fake_world(world_spec(), episode_steps=6, seen=seen)}) as server:
        with PolicyClient(server.address) as client, client.play("coins", pace=Pace.LIVE, seed=3) as session:
            yield server, session, seen


def until(game: WorldGame, done: Callable[[], bool], action: int = 0) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        game.tick(action)
        time.sleep(0.002)


def test_what_is_done_moves_the_world_and_is_shown(world: Any) -> None:
    _, session, seen = world
    game = WorldGame(session, 20.0)
    until(game, lambda: game.newest is not None)
    assert (game.newest.frame == frame_of(session.spec, (3, 8))).all()  # type: ignore[union-attr]
    assert all(action == 0 for _, action in seen)
    until(game, lambda: (0, 4) in seen, action=4)  # after those that were under way
    assert seen[-1] == (0, 4)
    assert game.score.frames > 0


def test_a_world_that_is_over_waits_for_the_next_one(world: Any) -> None:
    _, session, seen = world
    game = WorldGame(session, 20.0)
    until(game, lambda: game.over, action=5)
    steps = session.last_seq
    game.tick(5)
    assert session.last_seq == steps, "nothing is sent to a world that is over"
    assert game.score.reward > 0
    game.begin()
    until(game, lambda: game.score.steps >= 2)
    assert seen[-1][0] == 1
    assert game.score.episode == 1
    assert len(game.report()["rewards"]) == 2


def test_few_steps_are_under_way_and_what_was_not_sent_goes_with_the_next(world: Any) -> None:
    server, session, seen = world
    game = WorldGame(session, 20.0)
    server.set_delay(0.05)
    for _ in range(10):
        game.tick(4)
    assert session.last_seq <= 3
    assert game.score.waited >= 7
    until(game, lambda: not game._under_way or len(seen) > 3, action=1)


def test_a_refused_action_is_done_with_the_next_one() -> None:
    class Refusing:
        """A session that refuses its second step."""

        episode_id, last_seq = 0, 0

        def __init__(self) -> None:
            self.sent: list[Any] = []
            self.errors: list[QueueFullError] = []

        def send_step(self, frame: Any, *, action: Any, episode_id: int) -> int:
            self.last_seq += 1
            self.sent.append(action)
            if self.last_seq == 2:
                error = QueueFullError("full")
                error.seq = 2
                self.errors.append(error)
            return self.last_seq

        def recv(self, timeout_s: float) -> Any:
            if self.errors:
                raise self.errors.pop()
            raise TimeoutExceededError("nothing")

    session = Refusing()
    game = WorldGame(session, 20.0)  # type: ignore[arg-type]
    for dx in (1.0, 2.0, 4.0):
        game.tick(DesktopAction(mouse_dx_px=dx))
    assert [action.mouse_dx_px for action in session.sent] == [1.0, 2.0, 6.0]
    assert game.score.refused == 1


def test_only_worlds_that_show_pictures_can_be_played_in() -> None:
    spec = world_spec(side=20, channels=1)
    assert check_world(spec) == (20, 20)
    agent = PolicySpec(name="a", family="f", inputs=(), action=spec.action)
    blind = PolicySpec(name="b", family="f", inputs=(), action=spec.action, kind=PolicyKind.WORLD)
    needy = PolicySpec(
        name="n", family="f", kind=PolicyKind.WORLD, action=spec.action, outputs=spec.outputs,
        inputs=(TensorSpec(name="start", dtype="uint8", shape=(2, 2)),),
    )  # fmt: skip
    for wrong, text in ((agent, "no world"), (blind, "'frame'"), (needy, "start")):
        with pytest.raises(UnsupportedError, match=text):
            check_world(wrong)
    assert idle_action(spec.action) == 0
    assert idle_action(DesktopActionSpec(keys=())) == DesktopAction()
