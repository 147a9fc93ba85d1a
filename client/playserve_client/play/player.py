"""Plays: 20 times a second a picture goes up, and when an answer comes its keys are pressed. The I/O around PlayCore.

Three threads meet here, under one lock: the loop that captures and sends, the one that takes answers, and the watcher
of a person's hands. Everything that presses or lifts a key happens under that lock, in the order in which the state
machine said so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from playserve.actions import Action, DesktopAction, clip_action
from playserve.errors import PlayserveError, TimeoutExceededError
from playserve.settings import ActionSource
from playserve_client.actuate import Actuator
from playserve_client.capture import Image, Target
from playserve_client.play.core import Apply, Effect, FramePlan, PlayCore
from playserve_client.play.human import HumanEvent
from playserve_client.play.scene import Eye, Scene, desktop_action_of
from playserve_client.play.stats import PlayStats
from playserve_client.results import StepResult
from playserve_client.session import Session

__all__ = ["Heart", "Keeper", "Player"]

# The focus is asked for this often between two frames.
_GLANCE_S = 0.01
# A loop that stood still for longer has lost track of what is held.
_STALL_S = 0.5
_RECV_S = 0.25
_ERRORS_IN_A_ROW = 10


class Keeper(Protocol):
    """Keeps what was played."""

    def add(self, frame: Image, plan: FramePlan, captured_at: float) -> None:
        """Take a frame as the policy sees it, and what was done until it was captured."""
        ...


class Heart(Protocol):
    """Is told that the player lives."""

    def alive(self) -> None:
        """Take one beat."""
        ...


class Player:
    """See the module. :meth:`run` blocks; the other methods may be called from any thread.

    Args:
        session: At LIVE pace; whoever made it closes it.
        scene: The game's window.
        actuator: Presses keys; nothing is held when :meth:`run` has ended, however it did.
        core: The state machine.
        stats: Numbers.
        keeper: Keeps a recording; None: nobody does.
        heart: Is told at each frame that this loop lives; None: nobody is.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        session: Session,
        scene: Scene,
        actuator: Actuator,
        core: PlayCore,
        stats: PlayStats,
        *,
        keeper: Keeper | None = None,
        heart: Heart | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session, self._scene, self._actuator, self.core, self.stats = session, scene, actuator, core, stats
        self._keeper, self._heart, self._clock = keeper, heart, clock
        self._eye = Eye(session.spec)
        self._action_spec = desktop_action_of(session.spec)
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._error: Exception | None = None
        if session.tracer is not None:
            session.tracer.told_of_actions = True

    # ---- from other threads

    def on_human(self, event: HumanEvent) -> None:
        """A real device did something."""
        with self._lock:
            self._do(self.core.human(self._clock(), event))

    def pause(self) -> None:
        """Give control to the person."""
        with self._lock:
            self._do(self.core.pause())

    def resume(self) -> None:
        """Give control to the policy."""
        with self._lock:
            self._do(self.core.resume(self._clock()))

    def stop(self, why: str) -> None:
        """End; safe in a signal handler, which must not wait for the lock."""
        self.core.ended = self.core.ended or why
        self._over.set()

    # ---- the loop

    def run(self, seconds: float | None = None) -> str:
        """Play until somebody ends it; return why.

        Args:
            seconds: Longest time to play; None: for ever.

        Raises:
            PlayserveError: What ended it, where that was an error.
        """
        receiver = threading.Thread(target=self._receive, name="playserve-answers", daemon=True)
        receiver.start()
        try:
            self._loop(None if seconds is None else self._clock() + seconds)
        except PlayserveError as error:
            self._fail(error)
        finally:
            with self._lock:
                self._over.set()
                self.core.end("an error" if self._error is not None else "it was stopped")
                self._actuator.release_all()
            receiver.join()
        if self._error is not None:
            raise self._error
        return self.core.ended or ""

    def _loop(self, until: float | None) -> None:
        period_s = self.core.rules.period_s
        due = self._clock()
        while not self._over.is_set():
            now = self._clock()
            if until is not None and now >= until:
                self.stop("its time was over")
                return
            self._frame(now)
            due += period_s
            late_s = self._clock() - due
            if late_s > 0:  # never two frames in a hurry: the missed ones are counted as ticks
                due += (late_s // period_s + 1) * period_s
            if late_s > _STALL_S:
                with self._lock:
                    self._do(self.core.stall())
            self._wait(due)

    def _wait(self, due: float) -> None:
        """Wait for the next frame, with an eye on the focus."""
        while not self._over.is_set() and (left_s := due - self._clock()) > 0:
            if left_s <= _GLANCE_S:
                self._over.wait(left_s)
            else:
                self._over.wait(_GLANCE_S)
                self._see()

    def _see(self) -> Target:
        """Look where the game is; whoever is no longer in front stops here."""
        target = self._scene.look()
        with self._lock:
            self._do(self.core.focus(self._clock(), target.in_front, target.reason))
        return target

    def _frame(self, now: float) -> None:
        if self._heart is not None:
            self._heart.alive()
        with self._lock:
            self._do(self.core.tick(now))
        target = self._see()
        if not self.core.wants_frame(now):
            return
        with self._lock:
            plan = self._tell(self._clock())
        captured_at = self._clock()
        picture, after = self._scene.grab(target)
        with self._lock:
            self._do(self.core.focus(self._clock(), after.in_front, after.reason))
            if picture is None or not self.core.in_front or self.core.ended is not None:
                return
        frame = self._eye.see(picture)
        self.stats.frame(captured_at, self._clock() - captured_at)
        self._send(frame, plan, captured_at)
        if self._keeper is not None:
            self._keeper.add(frame, plan, captured_at)

    def _tell(self, now: float) -> FramePlan:
        """Say what was done since the last frame; before the capture, so that no answer waits for it."""
        plan, last = self.core.frame(now), self._session.last_seq
        if last and plan.executed is not None:
            self._session.executed(last, self._told(plan.executed), plan.source)
        elif last:
            self._session.executed(last, None, ActionSource.UNKNOWN)
        return plan

    def _send(self, frame: Image, plan: FramePlan, captured_at: float) -> None:
        # Under the lock: the answer must not come before its question is written down.
        with self._lock:
            seq = self._session.send_step(
                {self._eye.name: frame},
                ticks=plan.ticks,
                budget_us=int(self.core.rules.deadline_s * 1e6),
                observe_only=plan.observe_only,
                capture_time_ns=int(captured_at * 1e9),
            )
            self.core.sent(seq, captured_at, observe_only=plan.observe_only)

    def _told(self, action: DesktopAction) -> Action:
        """Return what the policy can be told of an action: two answers within one frame can add up to too much."""
        return clip_action(action, self._action_spec)

    # ---- answers

    def _receive(self) -> None:
        errors = 0
        while not self._over.is_set():
            asked_at = self._clock()
            try:
                result = self._session.recv(_RECV_S)
            except TimeoutExceededError as error:
                if self._clock() - asked_at < _RECV_S / 2:  # the session's own end, not the end of our patience
                    self._fail(error)
            except PlayserveError as error:
                self.stats.error(error)
                errors += 1
                if error.seq is None or errors >= _ERRORS_IN_A_ROW:
                    self._fail(error)
            except Exception as error:  # noqa: BLE001 - whatever it is, keys must not stay down for it
                self._fail(error)
            else:
                errors = 0
                self._answer(result)

    def _answer(self, result: StepResult) -> None:
        self.stats.result(result)
        action = result.action
        if not isinstance(action, DesktopAction):
            return
        tracer = self._session.tracer
        began_ns = 0 if tracer is None else time.monotonic_ns()
        try:
            # Asked again at the last moment: a press must not reach another window.
            in_front = self._scene.glance()
            with self._lock:
                applied = self.core.tally.applied
                self._do(self.core.focus(self._clock(), in_front.in_front, in_front.reason))
                self._do(self.core.result(self._clock(), result.seq, action), result.times.compute_us / 1e3)
                in_time = self.core.tally.applied != applied
            if tracer is not None:
                tracer.applied(result.seq, began_ns, in_time=in_time)
        except PlayserveError as error:
            self._fail(error)

    def _do(self, effects: list[Effect], model_ms: float = 0.0) -> None:
        """Carry out what the state machine says; the lock is held."""
        try:
            for effect in effects:
                if isinstance(effect, Apply):
                    self._actuator.apply(effect.action)
                    self.stats.applied(effect.captured_at, self._clock(), model_ms)
                else:
                    self._actuator.release_all()
        except Exception as error:  # noqa: BLE001 - it may come in any thread, and ends the game
            self._fail(error)
        if self.core.ended is not None:
            self._over.set()

    def _fail(self, error: Exception) -> None:
        """End with an error; the loop lifts what is held and raises it."""
        with self._lock:
            self._error = self._error or error
            self.core.ended = self.core.ended or f"{type(error).__name__}: {error}"
            self._over.set()
