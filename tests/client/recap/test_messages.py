"""Between their messages and ours: names of keys and buttons, motion in whole pixels, frames that are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recap_client import action, frame

from playserve.actions import DesktopAction
from playserve.errors import (
    BadSettingError,
    MalformedMessageError,
    PlayserveError,
    ShapeMismatchError,
    SizeMismatchError,
)
from playserve.p2p.keys import code_of
from playserve.specs import DesktopActionSpec
from playserve.testing import default_spec, desktop_spec
from playserve_client.recap.messages import Eye, Hands, parse_frame

SPEC = DesktopActionSpec(
    keys=("KeyW", "Digit1", "ArrowDown", "ShiftLeft", "Space"), buttons=(0, 1, 2), max_mouse_px=501.0
)


def test_an_action_has_their_names_of_keys_and_buttons() -> None:
    held = DesktopAction(frozenset(SPEC.keys), frozenset({0, 1, 2}), 3.0, -7.0)
    told = action(Hands(SPEC).answer(9, held).SerializeToString())
    assert (told.id, told.dx, told.dy) == (9, 3, -7)
    assert set(told.keys) == {"w", "1", "DownArrow", "LeftShift", "Space"}
    assert {code_of(key) for key in told.keys} == held.keys
    assert told.buttons == ("0", "1", "2"), "left, right, middle"
    only = action(Hands(SPEC).answer(1, DesktopAction(buttons=frozenset({1}))).SerializeToString())
    assert only.buttons == ("2",), "our 1 is the middle one, and theirs is 2"


@given(st.lists(st.tuples(st.floats(-501, 501), st.floats(-501, 501)), max_size=30), st.data())
def test_no_motion_is_lost_by_whole_pixels_and_all_of_it_is_said_to_be_executed(
    motions: list[tuple[float, float]], data: st.DataObject
) -> None:
    hands = Hands(DesktopActionSpec(keys=("KeyW",), max_mouse_px=1e6))
    told, executed = np.zeros(2), np.zeros(2)
    assert hands.executed() is None
    for number, (dx, dy) in enumerate(motions):
        answer = hands.answer(number, DesktopAction(mouse_dx_px=dx, mouse_dy_px=dy)).mouse_action.mouse_delta_px
        told += (answer.x, answer.y)
        if data.draw(st.booleans()):
            done = hands.executed()
            assert done is not None
            executed += (done.mouse_dx_px, done.mouse_dy_px)
    done = hands.executed()
    if done is not None:
        executed += (done.mouse_dx_px, done.mouse_dy_px)
    assert executed.tolist() == told.tolist()
    assert np.abs(told - np.sum(motions, axis=0, initial=0.0) if motions else told).max() <= 0.51


def test_keys_stay_down_until_another_answer_and_motion_happens_once() -> None:
    hands = Hands(SPEC)
    hands.answer(1, DesktopAction(frozenset({"KeyW"}), frozenset({0}), 400.0, 1.0))
    hands.answer(2, DesktopAction(frozenset({"Space"}), frozenset(), 400.0, 1.0))
    assert hands.executed() == DesktopAction(frozenset({"Space"}), frozenset(), 501.0, 2.0), "clipped to what it knows"
    assert hands.executed() == DesktopAction(frozenset({"Space"}))


@given(st.binary(max_size=200))
def test_bytes_that_are_no_frame_are_an_error_of_ours_and_nothing_else(message: bytes) -> None:
    try:
        parsed = parse_frame(message)
    except PlayserveError:
        return
    assert len(parsed.data) == parsed.width * parsed.height * 3


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (b"\xff\xff\xff", MalformedMessageError),
        (b"", ShapeMismatchError),
        (frame(2, 2, bytes(11), 1), SizeMismatchError),
        (frame(2, 2, bytes(16), 1), SizeMismatchError),
        (frame(0, 2, b"", 1), ShapeMismatchError),
        (frame(-1, -4, bytes(12), 1), ShapeMismatchError),
        (frame(1 << 20, 1 << 20, b"", 1), ShapeMismatchError),
    ],
)
def test_a_frame_says_what_is_wrong_with_it(message: bytes, error: type[PlayserveError]) -> None:
    with pytest.raises(error, match=r"wanted|no Frame"):
        parse_frame(message)


def test_a_frame_of_the_right_size_is_passed_on_as_it_is_and_another_is_resized() -> None:
    eye = Eye(desktop_spec("p", size=4))
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    same = parse_frame(frame(4, 4, pixels.tobytes(), 1))
    assert eye.fits(same)
    assert (eye.see(same) == pixels).all()
    pytest.importorskip("PIL")
    from playserve.resize import HAMMING_V1, resize

    large = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    other = parse_frame(frame(8, 6, large.tobytes(), 1))
    assert not eye.fits(other)
    assert (eye.see(other) == resize(large, 4, 4, HAMMING_V1)).all()


def test_only_a_policy_of_one_picture_will_do() -> None:
    with pytest.raises(BadSettingError, match="one RGB picture"):
        Eye(default_spec("p"))  # its size is open
