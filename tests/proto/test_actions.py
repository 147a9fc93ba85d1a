"""What of a human's action a policy can be told."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playserve.actions import DesktopAction, action_to_proto, clip_action, executed_from_proto, merge_executed
from playserve.errors import BadActionError
from playserve.specs import DesktopActionSpec, DiscreteActionSpec
from playserve.v1 import types_pb2 as pb

DESKTOP = DesktopActionSpec(keys=("KeyW", "Space"), buttons=(0, 1), max_mouse_px=50.0, scroll=True)


@given(
    keys=st.frozensets(st.sampled_from(["KeyW", "KeyA", "Space", "F13", ""])),
    buttons=st.frozensets(st.integers(0, 5)),
    motion=st.tuples(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30)),
    scroll=st.floats(-1e30, 1e30),
    scrolls=st.booleans(),
)
def test_a_clipped_action_fits_and_one_that_fits_is_not_changed(keys, buttons, motion, scroll, scrolls):
    spec = dataclasses.replace(DESKTOP, scroll=scrolls)
    action = DesktopAction(keys, buttons, *motion, scroll)
    clipped = clip_action(action, spec)
    assert isinstance(clipped, DesktopAction)
    message = action_to_proto(clipped, spec)
    assert clip_action(clipped, spec) == clipped
    assert clipped.keys == keys & {"KeyW", "Space"}
    assert clipped.buttons == buttons & {0, 1}
    assert clipped.mouse_dx_px == (motion[0] if abs(motion[0]) <= 50 else math.copysign(50, motion[0]))
    assert clipped.scroll == (scroll if scrolls else 0.0)
    human, policy = pb.ACTION_SOURCE_HUMAN, pb.ACTION_SOURCE_POLICY
    assert executed_from_proto(message, human, spec) == executed_from_proto(message, policy, spec)


@pytest.mark.parametrize(
    ("action", "spec", "match"),
    [
        (5, DiscreteActionSpec(n=5), "action 5, wanted an index 0..4"),
        (-1, DiscreteActionSpec(n=5), "action -1"),
        (True, DiscreteActionSpec(n=5), "action True"),
        (DesktopAction(), DiscreteActionSpec(n=5), "wanted an index"),
        (1, DESKTOP, "wanted a DesktopAction"),
        (DesktopAction(mouse_dx_px=math.nan), DESKTOP, "wanted finite numbers"),
        (DesktopAction(mouse_dy_px=math.inf), DESKTOP, "wanted finite numbers"),
        (DesktopAction(scroll=-math.inf), DESKTOP, "wanted finite numbers"),
    ],
)
def test_what_cannot_be_clipped_is_refused(action, spec, match):
    with pytest.raises(BadActionError, match=match):
        clip_action(action, spec)


def test_what_was_executed_by_its_source():
    index = pb.Action(index=3)
    spec = DiscreteActionSpec(n=5)
    sources = [pb.ACTION_SOURCE_POLICY, pb.ACTION_SOURCE_HUMAN, pb.ACTION_SOURCE_NONE, pb.ACTION_SOURCE_UNKNOWN]
    assert [executed_from_proto(index, source, spec) for source in sources] == [3, 3, None, None]
    for source in (0, 9, -1):
        with pytest.raises(BadActionError, match=f"action source {source}"):
            executed_from_proto(index, source, spec)
    for source in sources[:2]:
        with pytest.raises(BadActionError):
            executed_from_proto(pb.Action(), source, spec)
        with pytest.raises(BadActionError):
            executed_from_proto(pb.Action(index=5), source, spec)
    wild = pb.Action(desktop=pb.DesktopAction(keys=["F13", "KeyW"], mouse_dx_px=99))
    assert executed_from_proto(wild, pb.ACTION_SOURCE_HUMAN, DESKTOP) == DesktopAction(
        keys=frozenset({"KeyW"}), mouse_dx_px=50.0
    )
    with pytest.raises(BadActionError, match="F13"):
        executed_from_proto(wild, pb.ACTION_SOURCE_POLICY, DESKTOP)


def test_two_actions_as_one_hold_what_the_newer_holds_and_move_as_far_as_both():
    older = DesktopAction(frozenset({"KeyW"}), frozenset({0}), 3.0, -2.0, 1.0)
    newer = DesktopAction(frozenset({"Space"}), frozenset(), 4.0, 5.0, -3.0)
    assert merge_executed(older, newer) == DesktopAction(frozenset({"Space"}), frozenset(), 7.0, 3.0, -2.0)
    assert merge_executed(older, DesktopAction()) == DesktopAction(mouse_dx_px=3.0, mouse_dy_px=-2.0, scroll=1.0)
