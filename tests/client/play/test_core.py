"""The state machine of live play, held to its promises under whatever may happen in whatever order."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError
from playserve.settings import ActionSource
from playserve_client.play.core import IDLE, Apply, Control, Effect, PlayCore, Release, Rules
from playserve_client.play.human import ButtonEvent, HumanEvent, KeyEvent, MotionEvent, ScrollEvent

KEYS, BUTTONS = frozenset({"KeyW", "KeyA", "Space"}), frozenset({0, 2})
FORWARD = DesktopAction(keys=frozenset({"KeyW"}), mouse_dx_px=4.0)


def make(**rules: float) -> PlayCore:
    return PlayCore(Rules(**rules), KEYS, BUTTONS)  # type: ignore[arg-type]


def in_front(**rules: float) -> PlayCore:
    """Return a core whose window has been in front for long enough to have settled."""
    core = make(**rules)
    core.focus(0.0, True)
    return core


def ask(core: PlayCore, now: float, seq: int) -> None:
    assert core.wants_frame(now)
    plan = core.frame(now)
    core.sent(seq, now, observe_only=plan.observe_only)


def test_nothing_goes_up_before_the_window_is_in_front() -> None:
    core = make()
    assert not core.wants_frame(0.0)
    assert core.state == "waiting"
    core.focus(1.0, True)
    assert core.wants_frame(1.0)
    assert core.state == "policy"


def test_an_answer_in_time_is_applied_and_told_with_the_next_frame() -> None:
    core = in_front()
    ask(core, 1.0, 1)
    assert core.result(1.03, 1, FORWARD) == [Apply(FORWARD, 1.0)]
    plan = core.frame(1.05)
    assert (plan.executed, plan.source, plan.observe_only) == (FORWARD, ActionSource.POLICY, False)
    held = DesktopAction(keys=frozenset({"KeyW"}))
    assert core.frame(1.10).executed == held  # the key is still down, the mouse has stopped


def test_two_answers_within_a_frame_add_up_their_motion() -> None:
    core = in_front()
    ask(core, 1.0, 1)
    ask(core, 1.05, 2)
    core.result(1.06, 1, FORWARD)
    core.result(1.07, 2, DesktopAction(mouse_dx_px=3.0))
    assert core.frame(1.1).executed == DesktopAction(mouse_dx_px=7.0)


def test_a_late_answer_is_never_applied() -> None:
    core = in_front(deadline_s=0.1)
    ask(core, 1.0, 1)
    assert core.result(1.1001, 1, FORWARD) == []
    assert (core.tally.stale, core.tally.missed, core.tally.applied) == (1, 1, 0)


def test_an_older_answer_after_a_newer_one_is_stale() -> None:
    core = in_front()
    ask(core, 1.0, 1)
    ask(core, 1.05, 2)
    assert core.result(1.06, 2, FORWARD)
    assert core.result(1.07, 1, IDLE) == []
    assert core.tally.superseded == 1


def test_keys_that_this_keyboard_lacks_are_left_out() -> None:
    core = in_front()
    ask(core, 1.0, 1)
    asked = DesktopAction(keys=frozenset({"KeyW", "Numpad7"}), buttons=frozenset({0, 4}))
    done = DesktopAction(keys=frozenset({"KeyW"}), buttons=frozenset({0}))
    assert core.result(1.01, 1, asked) == [Apply(done, 1.0)]
    assert core.frame(1.05).executed == done


def test_missed_deadlines_lift_everything_and_frames_go_up_only_now_and_then() -> None:
    core = in_front(deadline_s=0.1, max_missed=3, probe_s=0.5)
    ask(core, 1.0, 1)
    core.result(1.01, 1, FORWARD)
    for i in range(3):
        ask(core, 1.05 + 0.05 * i, 2 + i)
    assert core.tick(1.16) == []
    assert core.held == DesktopAction(keys=frozenset({"KeyW"}))
    assert core.tick(1.26) == [Release()]
    assert core.starving
    assert core.held == IDLE
    assert not core.wants_frame(1.3)
    assert core.wants_frame(1.7)
    ask(core, 1.7, 5)
    assert not core.wants_frame(1.75)  # the probe is on its way
    assert core.result(1.72, 5, FORWARD) == [Apply(FORWARD, 1.7)]
    assert core.wants_frame(1.75)
    assert core.tally.starved == 1


@pytest.mark.parametrize("event", [KeyEvent("KeyA", True), KeyEvent("", True), ButtonEvent(0, True),
                                   MotionEvent(1.0, 0.0), ScrollEvent(1.0)])  # fmt: skip
def test_a_real_press_or_motion_takes_over_at_once(event: HumanEvent) -> None:
    core = in_front()
    ask(core, 1.0, 1)
    assert core.human(1.01, event) == [Release()]
    assert core.control is Control.HUMAN
    assert core.result(1.02, 1, FORWARD) == []  # asked before it
    plan = core.frame(1.05)
    assert (plan.observe_only, plan.source) == (True, ActionSource.HUMAN)


def test_releases_hotkeys_and_repeats_are_no_takeover() -> None:
    core = in_front()
    core.human(0.0, KeyEvent("KeyA", True))
    core.resume(1.0)
    for event in (
        KeyEvent("KeyA", True),
        KeyEvent("KeyA", False),
        ButtonEvent(0, False),
        KeyEvent("BracketLeft", False),
    ):
        assert core.human(2.0, event) == []
    assert core.control is Control.POLICY


def test_the_hand_that_clicked_into_the_window_is_no_takeover() -> None:
    core = make(settle_s=0.5)
    core.focus(1.0, True)
    assert core.human(1.1, ButtonEvent(0, True)) == []
    assert core.human(1.2, MotionEvent(30.0, 0.0)) == []
    assert core.human(1.3, KeyEvent("KeyA", True)) == [Release()]  # keys are meant


def test_what_a_person_does_is_told_in_the_policys_units() -> None:
    core = in_front(mouse_scale=2.0)
    core.frame(1.0)
    core.human(1.01, KeyEvent("KeyA", True))
    core.human(1.02, MotionEvent(10.0, -4.0))
    core.human(1.03, ButtonEvent(2, True))
    core.human(1.04, ButtonEvent(2, False))  # a click between two frames is not lost
    assert core.frame(1.05).executed == DesktopAction(
        keys=frozenset({"KeyA"}), buttons=frozenset({2}), mouse_dx_px=5.0, mouse_dy_px=-2.0
    )
    assert core.frame(1.1).executed == DesktopAction(keys=frozenset({"KeyA"}))


def test_resume_gives_control_back_and_the_frame_in_between_is_the_persons() -> None:
    core = in_front()
    core.human(1.0, KeyEvent("KeyA", True))
    core.human(1.01, KeyEvent("KeyA", False))
    core.frame(1.02)
    assert core.human(1.03, KeyEvent("BracketLeft", True)) == [Release()]
    plan = core.frame(1.07)
    assert (plan.source, plan.observe_only) == (ActionSource.HUMAN, False)
    assert core.frame(1.12).source is ActionSource.POLICY


def test_the_panic_hotkey_ends_it_for_good_even_out_of_focus() -> None:
    for core in (in_front(), make()):
        assert core.human(1.0, KeyEvent("F12", True)) == [Release()]
        assert core.ended
        assert core.resume(2.0) == core.pause() == []
        core.focus(3.0, True)
        assert not core.wants_frame(3.0)


def test_what_is_typed_into_other_windows_stays_there() -> None:
    core = in_front()
    core.frame(1.0)
    assert core.focus(1.01, False, "another window has the focus") == [Release()]
    for code in "KeyW", "KeyA":
        assert core.human(1.1, KeyEvent(code, True)) == []
        core.human(1.2, KeyEvent(code, False))
    core.human(1.3, MotionEvent(500.0, 0.0))
    core.focus(3.0, True)
    plan = core.frame(3.01)
    assert (plan.executed, plan.source, plan.ticks) == (None, ActionSource.UNKNOWN, 40)
    assert core.frame(3.06).executed == IDLE


def test_in_a_dry_run_the_person_plays_on() -> None:
    core = PlayCore(Rules(takeover=False), KEYS, BUTTONS)
    core.focus(0.0, True)
    core.frame(1.0)
    assert core.human(1.01, KeyEvent("KeyA", True)) == []
    plan = core.frame(1.05)
    assert (plan.source, plan.observe_only) == (ActionSource.HUMAN, False)
    assert plan.executed == DesktopAction(keys=frozenset({"KeyA"}))


def test_rules_that_make_no_sense_are_refused() -> None:
    with pytest.raises(BadSettingError, match="two keys"):
        Rules(resume_key="BracketLeft", panic_key="BracketLeft")
    with pytest.raises(BadSettingError, match="max_missed"):
        Rules(max_missed=0)


actions = st.builds(
    DesktopAction,
    keys=st.frozensets(st.sampled_from([*sorted(KEYS), "Numpad7"])),
    buttons=st.frozensets(st.sampled_from([0, 2, 4])),
    mouse_dx_px=st.sampled_from([-8.0, 0.0, 5.0]),
)
events: st.SearchStrategy[HumanEvent] = st.one_of(
    st.builds(KeyEvent, st.sampled_from(["KeyW", "KeyQ", "", "BracketLeft"]), st.booleans()),
    st.builds(ButtonEvent, st.sampled_from([0, 1]), st.booleans()),
    st.builds(MotionEvent, st.sampled_from([0.0, 3.0]), st.just(0.0)),
)


class Play(RuleBasedStateMachine):
    """A desktop that does what it likes, and a model of what must hold all the same."""

    @initialize()
    def begin(self) -> None:
        self.core = PlayCore(Rules(), KEYS, BUTTONS)
        self.now = 100.0
        self.seq = 0
        self.captured: dict[int, float] = {}  # that may be answered
        self.down = IDLE  # what an actuator that does as it is told holds
        self.carry_out(self.core.focus(self.now, True))

    def carry_out(self, effects: list[Effect], *, answer_to: int | None = None) -> None:
        for effect in effects:
            if isinstance(effect, Release):
                self.down = IDLE
                continue
            # The promises about every single press.
            assert self.core.ended is None
            assert self.core.in_front
            assert self.core.control is Control.POLICY
            assert answer_to in self.captured
            assert effect.captured_at == self.captured[answer_to]
            assert self.now - effect.captured_at <= self.core.rules.deadline_s
            assert effect.action.keys <= KEYS
            assert effect.action.buttons <= BUTTONS
            self.down = DesktopAction(effect.action.keys, effect.action.buttons)

    def forget_if_changed(self, before: tuple[object, ...]) -> None:
        """Answers to frames from before control changed hands are stale."""
        if before != (self.core.control, self.core.in_front, self.core.ended):
            self.captured.clear()

    def situation(self) -> tuple[object, ...]:
        return (self.core.control, self.core.in_front, self.core.ended)

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.05, 0.2, 1.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.carry_out(self.core.tick(self.now))

    @rule(front=st.booleans())
    def change_focus(self, front: bool) -> None:
        before = self.situation()
        self.carry_out(self.core.focus(self.now, front, "" if front else "elsewhere"))
        self.forget_if_changed(before)

    @rule(event=events)
    def a_person_does_something(self, event: HumanEvent) -> None:
        before = self.situation()
        self.carry_out(self.core.human(self.now, event))
        self.forget_if_changed(before)

    @rule()
    def resume(self) -> None:
        before = self.situation()
        self.carry_out(self.core.resume(self.now))
        self.forget_if_changed(before)

    @precondition(lambda self: self.seq > 20)
    @rule()
    def panic(self) -> None:
        self.a_person_does_something(KeyEvent("F12", True))

    @rule()
    def stall(self) -> None:
        self.carry_out(self.core.stall())
        self.captured.clear()

    @rule()
    def frame(self) -> None:
        if not self.core.wants_frame(self.now):
            return
        assert self.core.in_front
        assert self.core.ended is None
        plan = self.core.frame(self.now)
        self.seq += 1
        self.core.sent(self.seq, self.now, observe_only=plan.observe_only)
        assert plan.observe_only == (self.core.control is Control.HUMAN)
        if plan.source is ActionSource.POLICY:
            assert plan.executed is not None
            # Told as done is what an obedient actuator holds.
            assert (plan.executed.keys, plan.executed.buttons) == (self.down.keys, self.down.buttons)
        if not plan.observe_only:
            self.captured[self.seq] = self.now

    @rule(action=actions)
    def frame_and_answer(self, action: DesktopAction) -> None:
        self.frame()
        self.carry_out(self.core.result(self.now, self.seq, action), answer_to=self.seq)
        self.captured.clear()

    @precondition(lambda self: self.seq > 0)
    @rule(data=st.data(), action=actions)
    def answer(self, data: st.DataObject, action: DesktopAction) -> None:
        seq = data.draw(st.integers(max(1, self.seq - 5), self.seq))
        self.carry_out(self.core.result(self.now, seq, action), answer_to=seq)
        # No answer counts twice, and none after a newer one.
        self.captured = {other: at for other, at in self.captured.items() if other > seq}

    @invariant()
    def nothing_is_held_but_by_a_policy_in_control(self) -> None:
        if not hasattr(self, "core"):
            return
        if self.core.ended is not None or not self.core.in_front or self.core.control is Control.HUMAN:
            assert self.down == IDLE
        if self.core.starving:
            assert self.down == IDLE
        assert (self.core.held.keys, self.core.held.buttons) == (self.down.keys, self.down.buttons)


TestPlay = Play.TestCase
TestPlay.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
