import dataclasses

import numpy as np
import pytest

from playserve.actions import DesktopAction
from playserve_trainer.demo.doom.panel import HEIGHT, WIDTH, Moment, Panel

pytest.importorskip("PIL")

LIT = (84, 205, 181)
MOMENT = Moment(
    screen=np.full((240, 320, 3), 70, np.uint8), seen=np.full((96, 96, 3), 200, np.uint8), action=DesktopAction(),
    instruction="fetch the green vest and then some more words that do not fit on one line", title="two vests: green",
    seconds=1.5, counters="health 100, score 0", round_trip_ms=9.5, model_ms=7.0,
)  # fmt: skip


def lit(action: DesktopAction) -> np.ndarray:
    picture = Panel().draw(dataclasses.replace(MOMENT, action=action))
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert picture.dtype == np.uint8
    return (picture == LIT).all(axis=2)


def test_what_is_held_lights_up_where_it_is() -> None:
    idle, forward, left = (lit(DesktopAction(frozenset(keys))) for keys in ((), ("KeyW",), ("KeyA",)))
    assert not idle.any()
    assert forward.sum() > 500
    assert np.argwhere(forward)[:, 0].mean() < np.argwhere(left)[:, 0].mean()  # W is above A
    assert lit(DesktopAction(buttons=frozenset({0}))).sum() > 100


def test_the_mouse_bar_points_where_the_mouse_goes() -> None:
    right, left = (np.argwhere(lit(DesktopAction(mouse_dx_px=dx)))[:, 1].mean() for dx in (30.0, -30.0))
    assert left < right
    assert lit(DesktopAction(mouse_dx_px=5000.0)).sum() == lit(DesktopAction(mouse_dx_px=61.0)).sum()


def test_game_and_inset_are_in_the_picture() -> None:
    picture = Panel().draw(MOMENT)
    assert (picture[100, 100] == 70).all()
    assert (picture[480 + 60, WIDTH - 60] == 200).all()
