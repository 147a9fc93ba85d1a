"""Who plays, what is held and when it is let go: the state machine of live play, without I/O.

Its driver tells it what happens and when, on a monotonic clock, and does what it says:

::

    in front, POLICY  --real key, button, mouse-->  HUMAN      everything that the policy holds is lifted, at once
    in front, HUMAN   --resume hotkey----------->   POLICY
    any               --window loses the focus-->   the same, but not in front: nothing is captured, pressed or sent
    any               --panic hotkey, an error-->   ended

While the policy plays, each frame has a deadline. An answer after it, or to a frame from before control changed hands,
is stale and never applied. After `max_missed` deadlines in a row everything is lifted, and frames go up only now and
then, until an answer is in time again. While a person plays, frames go up to be observed only.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass

from playserve.actions import DesktopAction
from playserve.errors import BadSettingError
from playserve.settings import ActionSource
from playserve_client.play.human import ButtonEvent, HumanEvent, HumanState, KeyEvent, MotionEvent

__all__ = ["IDLE", "Apply", "Control", "Effect", "FramePlan", "PlayCore", "Release", "Rules", "Tally"]

#: Nothing held, nothing moved.
IDLE = DesktopAction()


class Control(enum.Enum):
    """Who plays while the window is in front."""

    POLICY = "policy"
    HUMAN = "human"


@dataclass(frozen=True, slots=True)
class Release:
    """Lift everything."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Make `action` the held state and move the mouse; it answers the frame captured at `captured_at`."""

    action: DesktopAction
    captured_at: float


Effect = Release | Apply


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How strictly to play.

    Attributes:
        period_s: Time between two frames.
        deadline_s: Age of a frame beyond which its answer is stale.
        max_missed: Deadlines missed in a row after which everything is lifted.
        probe_s: Time between two frames after that.
        settle_s: How long after the window came to the front a person's mouse, and after a resume its motion, does
            not yet count as taking over: the hand that clicked is still on it.
        takeover_mouse_px: Motion since the last frame by which a person takes over.
        mouse_scale: Pixels of mouse motion for one that the policy means.
        takeover: Whether a person can take over; without it (a dry run) the person plays beside the policy, whose
            actions happen in words only.
        resume_key: Hotkey, a W3C code.
        panic_key: Hotkey, a W3C code.
    """

    period_s: float = 0.05
    deadline_s: float = 0.1
    max_missed: int = 3
    probe_s: float = 0.5
    settle_s: float = 0.5
    takeover_mouse_px: float = 1.0
    mouse_scale: float = 1.0
    takeover: bool = True
    resume_key: str = "BracketLeft"
    panic_key: str = "F12"

    def __post_init__(self) -> None:
        if min(self.period_s, self.deadline_s, self.probe_s, self.mouse_scale) <= 0 or self.max_missed < 1:
            raise BadSettingError(
                "period, deadline, probe and mouse scale are more than 0, and max_missed is 1 or more"
            )
        if self.resume_key == self.panic_key:
            raise BadSettingError(f"resume and panic are both {self.panic_key!r}, wanted two keys")


@dataclass(frozen=True, slots=True)
class FramePlan:
    """What to say of a frame that has been captured.

    Attributes:
        observe_only: Nobody wants an answer.
        executed: What was done since the frame before; None: nobody knows, or there is none.
        source: Who did it; UNKNOWN for the first frame after the window was not in front.
        ticks: Frames since the one before, itself included.
    """

    observe_only: bool
    executed: DesktopAction | None
    source: ActionSource
    ticks: int


@dataclass(slots=True)
class Tally:
    """What happened so far, in numbers.

    Attributes:
        frames: Frames captured.
        applied: Answers applied.
        stale: Answers that came and were not applied.
        missed: Frames without an answer in time.
        superseded: Frames that a newer one's answer stands for.
        skipped: Frames that were never captured because the loop was late.
        takeovers: Times that a person took over.
        focus_lost: Times that the window was no longer in front.
        starved: Times that everything was lifted because deadlines were missed.
    """

    frames: int = 0
    applied: int = 0
    stale: int = 0
    missed: int = 0
    superseded: int = 0
    skipped: int = 0
    takeovers: int = 0
    focus_lost: int = 0
    starved: int = 0


class PlayCore:
    """See the module. Times are seconds on one monotonic clock. Not thread-safe.

    Args:
        rules: How strictly to play.
        keys: Keys that can be pressed here; others in an action are left out.
        buttons: Buttons, likewise.
    """

    def __init__(self, rules: Rules, keys: frozenset[str], buttons: frozenset[int]) -> None:
        self.rules = rules
        self.control = Control.POLICY
        self.in_front = False
        self.reason = "its window has not been seen yet"
        self.ended: str | None = None
        self.tally = Tally()
        self.held = IDLE  # by the policy
        self._keys, self._buttons = keys, buttons
        self._human = HumanState(frozenset({rules.resume_key, rules.panic_key}))
        self._moved = IDLE  # by the policy since the last frame: its motion only
        self._human_played = False  # at any time since the last frame
        self._asked: OrderedDict[int, float] = OrderedDict()  # frames that wait for an answer: when captured
        self._misses = 0
        self._newest = 0  # seq of the newest answer
        self._last_frame: float | None = None  # when captured
        self._first = True  # the next frame is the first since the window came to the front
        self._last_sent = float("-inf")
        self._calm_until = {"motion": float("-inf"), "button": float("-inf")}

    # ---- who plays

    @property
    def starving(self) -> bool:
        """Return whether so many deadlines were missed that everything is lifted."""
        return self._misses >= self.rules.max_missed

    @property
    def state(self) -> str:
        """Return who is in control, for people."""
        if self.ended is not None:
            return "ended"
        if not self.in_front:
            return "waiting"
        if self.control is Control.HUMAN:
            return "human"
        return "policy (no answers in time)" if self.starving else "policy"

    def focus(self, now: float, in_front: bool, reason: str = "") -> list[Effect]:
        """The window came to the front, or is no longer there."""
        if in_front == self.in_front or self.ended is not None:
            self.reason = reason if not in_front else ""
            return []
        self.in_front, self.reason = in_front, reason
        if in_front:
            self._calm_until = dict.fromkeys(self._calm_until, now + self.rules.settle_s)
            self._human.forget()
            self._first = True
            return self._hand_over()
        self.tally.focus_lost += 1
        return self._hand_over()

    def human(self, now: float, event: HumanEvent) -> list[Effect]:
        """A real device did something."""
        if isinstance(event, KeyEvent) and event.down and event.code == self.rules.panic_key:
            return self.end("the panic hotkey was pressed")
        if isinstance(event, KeyEvent) and event.down and event.code == self.rules.resume_key:
            return self.resume(now)
        took_part = self._human.take(event)
        if not (took_part and self.in_front) or self.ended is not None or self.control is Control.HUMAN:
            return []
        if not self.rules.takeover:
            return []
        if isinstance(event, MotionEvent) and (
            now < self._calm_until["motion"] or self._human.moved_px < self.rules.takeover_mouse_px
        ):
            return []
        if isinstance(event, ButtonEvent) and now < self._calm_until["button"]:
            return []
        return self.pause()

    def pause(self) -> list[Effect]:
        """A person plays from now on."""
        if self.control is Control.HUMAN or self.ended is not None:
            return []
        self.control, self._human_played = Control.HUMAN, True
        self.tally.takeovers += 1
        return self._hand_over()

    def resume(self, now: float) -> list[Effect]:
        """The policy plays again."""
        if self.control is Control.POLICY or self.ended is not None:
            return []
        self.control = Control.POLICY
        self._calm_until["motion"] = now + self.rules.settle_s
        self._human_played = True  # this frame's share of it
        return self._hand_over()

    def end(self, why: str) -> list[Effect]:
        """Nobody plays any more: a hotkey, an error, a signal."""
        if self.ended is None:
            self.ended = why
        return self._hand_over()

    def stall(self) -> list[Effect]:
        """The loop stood still for so long that what is held may have been lifted by others."""
        return self._hand_over()

    def _hand_over(self) -> list[Effect]:
        """Lift everything, and make whatever is under way stale."""
        self._asked.clear()
        self._misses = 0
        self.held = IDLE
        return [Release()]

    # ---- frames and answers

    def tick(self, now: float) -> list[Effect]:
        """Time has passed: count frames whose deadline is over."""
        while self._asked and now - next(iter(self._asked.values())) > self.rules.deadline_s:
            self._asked.popitem(last=False)
            starving = self.starving
            self._misses += 1
            self.tally.missed += 1
            if self.starving and not starving:
                self.tally.starved += 1
                self.held = IDLE
                return [Release(), *self.tick(now)]
        return []

    def wants_frame(self, now: float) -> bool:
        """Return whether to capture now."""
        if self.ended is not None or not self.in_front:
            return False
        if self.control is Control.POLICY and self.starving:
            return not self._asked and now - self._last_sent >= self.rules.probe_s
        return True

    def frame(self, now: float) -> FramePlan:
        """Return what to say of a frame captured at `now`, and count what was done until then as said."""
        self.tally.frames += 1
        first, self._first = self._first, False
        ticks = 1
        if self._last_frame is not None:
            ticks = max(1, round((now - self._last_frame) / self.rules.period_s))
            self.tally.skipped += 0 if first else ticks - 1
        self._last_frame = now
        human = self._human.sample(self.rules.mouse_scale)
        played = self._human_played or self.control is Control.HUMAN or not self.rules.takeover
        if first:
            executed, source = None, ActionSource.UNKNOWN
        elif played:
            executed, source = human, ActionSource.HUMAN
        else:
            # As a recording has it: held when the frame was captured, motion since the one before.
            motion = self._moved
            executed = DesktopAction(
                self.held.keys, self.held.buttons, motion.mouse_dx_px, motion.mouse_dy_px, motion.scroll
            )
            source = ActionSource.POLICY
        self._moved, self._human_played = IDLE, self.control is Control.HUMAN
        return FramePlan(self.control is Control.HUMAN, executed, source, ticks)

    def sent(self, seq: int, captured_at: float, *, observe_only: bool) -> None:
        """The frame went up as step `seq`."""
        self._last_sent = captured_at
        if not observe_only and self.control is Control.POLICY and self.in_front and self.ended is None:
            self._asked[seq] = captured_at

    def result(self, now: float, seq: int, action: DesktopAction) -> list[Effect]:
        """The answer to step `seq` came."""
        before = self.tick(now)
        captured_at = self._asked.pop(seq, None)
        for older in [other for other in self._asked if other < seq]:
            del self._asked[older]
            self.tally.superseded += 1
        if captured_at is None or seq <= self._newest or self.ended is not None:
            self.tally.stale += 1
            return before
        self._newest = seq
        self._misses = 0
        self.tally.applied += 1
        done = DesktopAction(
            action.keys & self._keys, action.buttons & self._buttons,
            action.mouse_dx_px, action.mouse_dy_px, action.scroll,
        )  # fmt: skip
        self.held = DesktopAction(done.keys, done.buttons)
        self._moved = DesktopAction(
            mouse_dx_px=self._moved.mouse_dx_px + done.mouse_dx_px,
            mouse_dy_px=self._moved.mouse_dy_px + done.mouse_dy_px,
            scroll=self._moved.scroll + done.scroll,
        )
        return [*before, Apply(done, captured_at)]
