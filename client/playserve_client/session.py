"""One game on one stream, sync. The async twin is `playserve_client.aio.session`."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from playserve.codec import Action
from playserve.errors import PlayserveError, StateError, TimeoutExceededError, UnsupportedError
from playserve.settings import ActionSource, Consent, Sampling
from playserve.specs import PolicyKind
from playserve.v1 import policy_service_pb2 as ps
from playserve_client.inputs import Frame
from playserve_client.results import StepResult
from playserve_client.session_core import SessionCore, Ticket
from playserve_client.session_view import (
    CLOSE_WAIT_S,
    FIRST_BACKOFF_S,
    LAST_BACKOFF_S,
    SessionView,
    ended_by,
    may_resume,
    ping_interval_s,
)
from playserve_client.streams import Stream

__all__ = ["Session"]


class Session(SessionView):
    """One session. :meth:`playserve_client.PolicyClient.play` makes it, open; a context manager that closes it.

    When its stream is lost the session goes on by itself: it dials again within the server's detach window, sends
    again what the server has not seen, and waits for what is outstanding. Methods may be called from several threads,
    but results go to whoever takes them first.

    Args:
        dial: Takes an address (None: the client's own) and gives the stub's Play method.
        core: State machine.
        metadata: Metadata of the calls.
        timeout_s: Longest wait for any answer, unless the call says otherwise.
        resume: Whether to resume after a lost stream.
        on_close: Called once, when the session is closed.
    """

    def __init__(
        self,
        dial: Callable[[str | None], Callable[..., Any]],
        core: SessionCore,
        *,
        metadata: Any,
        timeout_s: float,
        resume: bool,
        on_close: Callable[[Session], None],
    ) -> None:
        self._dial, self._core, self._metadata = dial, core, metadata
        self._timeout_s, self._resume, self._on_close = timeout_s, resume, on_close
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._stream: Stream | None = None
        self._connected = False
        self._lost_at: float | None = None
        self._backoff_s = FIRST_BACKOFF_S
        self._last_sent = time.monotonic()
        self._keeper = threading.Thread(target=self._keep_alive, name="playserve-ping", daemon=True)
        self._connect()
        try:
            self._wait(lambda: self._connected, timeout_s, "Open")
        except BaseException:
            self.detach()
            raise
        self._keeper.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- playing

    def step(self, frame: Frame, *, ticks: int = 0, timeout_s: float | None = None) -> Action:
        """Send one observation, wait for its answer and return the first action; `last_result` holds the rest.

        Args:
            frame: One array, where the policy has one required input, or arrays by input name.
            ticks: Game ticks since the last step; 0 means 1.
            timeout_s: Longest wait; None: the client's own.

        Raises:
            PlayserveError: The error of this step, or of an `executed` before it; its `seq` says which.
        """
        if self.spec.kind is PolicyKind.WORLD:
            raise UnsupportedError(f"{self.spec.name!r} is a world: use step_world(action)")
        seq = self.send_step(frame, ticks=ticks)
        return (self._result_of(seq, timeout_s)).action

    def step_world(
        self, action: Action, inputs: Frame | None = None, *, ticks: int = 0, timeout_s: float | None = None
    ) -> StepResult:
        """Do something in a world, and wait for what it then shows: `outputs` of the result, by name.

        At LIVE, a newer step that is sent meanwhile may be answered instead; its result is returned then.

        Args:
            action: What is done; at the first step of an episode, in a world that begins.
            inputs: Arrays by input name, of worlds that take any; None: none.
            ticks: Game ticks since the last step; 0 means 1.
            timeout_s: Longest wait; None: the client's own.

        Raises:
            UnsupportedError: The policy is no world.
            PlayserveError: The error of this step, which has not happened then.
        """
        if self.spec.kind is not PolicyKind.WORLD:
            raise UnsupportedError(f"{self.spec.name!r} is no world: use step(frame)")
        seq = self.send_step({} if inputs is None else inputs, ticks=ticks, action=action)
        return self._result_of(seq, timeout_s)

    def _result_of(self, seq: int, timeout_s: float | None) -> StepResult:
        """Wait for the answer to a step, or to a later one."""
        found: list[StepResult] = []

        def answered() -> bool:
            result = self._core.take_until(seq)
            if result is not None:
                found.append(result)
            return result is not None

        try:
            self._wait(answered, self._timeout_s if timeout_s is None else timeout_s, f"step {seq}")
        except TimeoutExceededError as error:
            error.seq = seq
            raise
        return found[0]

    def send_step(
        self,
        frame: Frame,
        *,
        ticks: int = 0,
        budget_us: int = 0,
        observe_only: bool = False,
        action: Action | None = None,
        capture_time_ns: int | None = None,
        episode_id: int | None = None,
    ) -> int:
        """Send one observation without waiting; return its seq, which the result of :meth:`recv` carries.

        Args:
            frame: As for :meth:`step`.
            ticks: Game ticks since the last step; 0 means 1.
            budget_us: Time after which the answer is of no use; 0: the server's own rule.
            observe_only: Update the memory and send no answer: somebody else is in control.
            action: The action to apply, for worlds.
            capture_time_ns: When the frame was captured, on any clock of this client; None: now.
            episode_id: Episode of the step; one higher than the current begins an episode. None: the current.
        """
        with self._changed:
            request = self._core.step_request(
                frame,
                ticks=ticks,
                budget_us=budget_us,
                observe_only=observe_only,
                action=action,
                capture_time_ns=capture_time_ns,
                episode_id=episode_id,
            )
            self._send(request)
            if self._core.tracer is not None:
                self._core.tracer.sent(self._core.last_seq)
            return self._core.last_seq

    def recv(self, timeout_s: float | None = None) -> StepResult:
        """Return the next result; raise the error of a step (with its `seq`), or the one that ended the session."""
        with self._changed:
            self._wait(self._core.has_next, self._timeout_s if timeout_s is None else timeout_s, "a result")
            return self._core.take()

    def poll(self) -> StepResult | None:
        """Return the newest result that has come, without waiting, and forget older ones; None: nothing has come."""
        with self._changed:
            return self._core.take_newest()

    def executed(self, seq: int, action: Action | None, source: ActionSource = ActionSource.HUMAN) -> None:
        """Say what was really done in the game in answer to step `seq`; before the next step is sent.

        Where the server refuses it, the next :meth:`step` or :meth:`recv` raises an error of that `seq`.
        """
        with self._changed:
            self._send(self._core.executed_request(seq, action, source))

    # ---- settings and episodes

    def configure(
        self,
        *,
        instruction: str | None = None,
        sampling: Sampling | None = None,
        consent: Consent | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Change settings for every step sent from now on; None: as it is. Return the settings revision."""
        return self._ask(lambda: self._core.configure(instruction, sampling, consent), timeout_s)

    def reset(self, episode_id: int | None = None, seed: int | None = None, *, timeout_s: float | None = None) -> int:
        """Begin an episode with an empty memory, by default the next one; return its id."""
        return self._ask(lambda: self._core.reset(episode_id, seed), timeout_s)

    def ping(self, timeout_s: float | None = None) -> float:
        """Return the round trip to the server in seconds."""
        started = time.monotonic()
        self._ask(self._core.ping, timeout_s)
        return time.monotonic() - started

    def _ask(self, make: Callable[[], Ticket], timeout_s: float | None) -> int:
        with self._changed:
            ticket = make()
            self._send(ticket.request)
            limit = self._timeout_s if timeout_s is None else timeout_s
            self._wait(lambda: ticket.done, limit, ticket.kind.capitalize())
        if ticket.error is not None:
            raise ticket.error
        return ticket.value

    # ---- ending

    def close(self, reason: str = "") -> None:
        """End the session; wait a little for the server to agree. Never raises what the server thinks of it."""
        with self._changed:
            first, stream = not self._closing.is_set(), self._stream
            self._closing.set()
            if first and stream is not None and self._connected:
                stream.send(ps.PlayRequest(close=ps.Close(reason=reason)))
                stream.half_close()
            elif first and stream is not None:
                stream.cancel()
        self._finish(stream, first)

    def detach(self) -> bytes:
        """Leave the stream without ending the session; return the token that resumes it within the detach window."""
        with self._changed:
            first, stream = not self._closing.is_set(), self._stream
            self._closing.set()
            if stream is not None:
                stream.cancel()
        self._finish(stream, first)
        return self._core.opened.resume_token if self._core.opened is not None else b""

    def _finish(self, stream: Stream | None, first: bool) -> None:
        if stream is not None and not stream.join(min(CLOSE_WAIT_S, self._timeout_s)):
            stream.cancel()
            stream.join(CLOSE_WAIT_S)
        if self._keeper.is_alive():
            self._keeper.join(CLOSE_WAIT_S)
        if first:
            with self._changed:
                self._core.fail(StateError("it is closed"))
                self._changed.notify_all()
            self._on_close(self)

    # ---- the stream

    def _wait(self, ready: Callable[[], bool], timeout_s: float, what: str) -> None:
        ok = False

        def over() -> bool:
            nonlocal ok
            ok = ready()
            return ok or self._core.error is not None

        with self._changed:
            if not self._changed.wait_for(over, timeout_s):
                raise TimeoutExceededError(f"{what} was not answered in {timeout_s:g} s")
            if not ok and self._core.error is not None:
                raise self._core.error

    def _send(self, request: ps.PlayRequest) -> None:
        """Send now, or leave it to the resume: what matters is in the core's log."""
        if self._core.error is not None:
            raise self._core.error
        if self._connected and self._stream is not None:
            self._stream.send(request)
            self._last_sent = time.monotonic()

    def _connect(self) -> None:
        """Dial; in the constructor, or in the reader thread of a stream that was lost."""
        method = self._dial(self._core.address)
        stream = Stream(
            method, self._core.open_request(), self._metadata, self._timeout_s, self._on_message, self._on_end
        )
        with self._changed:
            if self._closing.is_set():
                stream.cancel()
            self._stream = stream
            stream.start()  # under the lock: whoever finds a stream may wait for its thread

    def _on_message(self, stream: Stream, response: ps.PlayResponse) -> None:
        with self._changed:
            if response.HasField("opened"):
                for request in self._core.on_opened(response.opened):
                    stream.send(request)
                self._connected, self._lost_at, self._backoff_s = True, None, FIRST_BACKOFF_S
            else:
                self._core.on_response(response)
            self._changed.notify_all()

    def _on_end(self, stream: Stream, error: PlayserveError | None) -> None:
        now = time.monotonic()
        with self._changed:
            self._connected = False
            self._lost_at = now if self._lost_at is None else self._lost_at
            opened = self._core.opened
            sent_on = self._core.moved and error is None
            willing = self._resume or (self._core.redirected and sent_on)
            again = willing and (opened is not None or sent_on) and not self._closing.is_set()
            if again and opened is not None:
                in_time = now - self._lost_at < opened.detach_window_us / 1e6
                again = in_time and may_resume(error, moved=self._core.moved, again=self._lost_at != now)
            if not again:
                self._core.fail(ended_by(error, closing=self._closing.is_set()))
                self._changed.notify_all()
                return
            delay_s = 0.0 if sent_on else self._backoff_s * random.uniform(0.5, 1.0)
            self._backoff_s = min(2 * self._backoff_s, LAST_BACKOFF_S)
        self._closing.wait(delay_s)
        try:
            self._connect()  # cancelled at once where the session has been closed meanwhile
        except Exception as failure:  # noqa: BLE001 - a reader thread must not die in silence
            with self._changed:
                self._core.fail(StateError(f"could not dial again: {failure}"))
                self._changed.notify_all()

    def _keep_alive(self) -> None:
        interval_s = ping_interval_s(self.opened)
        while not self._closing.wait(interval_s / 3) and self._core.error is None:
            with self._changed, contextlib.suppress(PlayserveError):
                if self._connected and time.monotonic() - self._last_sent > interval_s * 2 / 3:
                    self._send(ps.PlayRequest(ping=ps.Ping()))
