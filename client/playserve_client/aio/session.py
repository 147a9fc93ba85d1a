"""One game on one stream, asyncio. The sync twin is `playserve_client.session`."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Self

from playserve.codec import Action
from playserve.errors import PlayserveError, StateError, TimeoutExceededError, UnsupportedError
from playserve.settings import ActionSource, Consent, Sampling
from playserve.specs import PolicyKind
from playserve.v1 import policy_service_pb2 as ps
from playserve_client.aio.streams import Signal, Stream
from playserve_client.inputs import Frame
from playserve_client.results import StepResult
from playserve_client.routing import try_elsewhere
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

__all__ = ["Session"]


class Session(SessionView):
    """One session. :meth:`playserve_client.aio.PolicyClient.play` makes it: ``async with`` or ``await`` opens it.

    It behaves as :class:`playserve_client.Session` does, resuming included.

    Args:
        dial: Takes an address (None: the client's own) and gives the stub's Play method.
        core: State machine.
        metadata: Metadata of the calls.
        timeout_s: Longest wait for any answer, unless the call says otherwise.
        resume: Whether to resume after a lost stream.
        on_close: Called once, when the session is closed.
        places: Gives the addresses at which it may be opened, best first; None among them: the client's own.
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
        places: Callable[[], Awaitable[Sequence[str | None]]],
    ) -> None:
        self._places = places
        self._dial, self._core, self._metadata = dial, core, metadata
        self._timeout_s, self._resume, self._on_close = timeout_s, resume, on_close
        self._changed = Signal()
        self._closing = asyncio.Event()
        self._stream: Stream | None = None
        self._connected = False
        self._last_sent = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        if not self._tasks:
            try:
                await self._open_somewhere()
            except BaseException:
                await self.detach()
                raise
            self._tasks.append(asyncio.create_task(self._keep_alive(), name="playserve-ping"))
        return self

    async def _open_somewhere(self) -> None:
        """Open at the best server that does not refuse."""
        *others, last = await self._places()
        resuming = self._core.resuming
        for address in others:
            try:
                await self._open_at(address)
            except PlayserveError as error:
                if not try_elsewhere(error, resuming=resuming):
                    raise
                if self._stream is not None:
                    self._stream.cancel()
                await asyncio.wait(self._tasks)
            else:
                return
        await self._open_at(last)

    async def _open_at(self, address: str | None) -> None:
        self._core.dial_elsewhere(address)
        self._tasks = [asyncio.create_task(self._run(), name="playserve-stream")]
        await self._wait(lambda: self._connected, self._timeout_s, "Open")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- playing

    async def step(self, frame: Frame, *, ticks: int = 0, timeout_s: float | None = None) -> Action:
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
        seq = await self.send_step(frame, ticks=ticks)
        return (await self._result_of(seq, timeout_s)).action

    async def step_world(
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
        seq = await self.send_step({} if inputs is None else inputs, ticks=ticks, action=action)
        return await self._result_of(seq, timeout_s)

    async def _result_of(self, seq: int, timeout_s: float | None) -> StepResult:
        """Wait for the answer to a step, or to a later one."""
        found: list[StepResult] = []

        def answered() -> bool:
            result = self._core.take_until(seq)
            if result is not None:
                found.append(result)
            return result is not None

        try:
            await self._wait(answered, self._timeout_s if timeout_s is None else timeout_s, f"step {seq}")
        except TimeoutExceededError as error:
            error.seq = seq
            raise
        return found[0]

    async def send_step(
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
        return request.step.seq

    async def recv(self, timeout_s: float | None = None) -> StepResult:
        """Return the next result; raise the error of a step (with its `seq`), or the one that ended the session."""
        await self._wait(self._core.has_next, self._timeout_s if timeout_s is None else timeout_s, "a result")
        return self._core.take()

    def poll(self) -> StepResult | None:
        """Return the newest result that has come, without waiting, and forget older ones; None: nothing has come."""
        return self._core.take_newest()

    async def executed(self, seq: int, action: Action | None, source: ActionSource = ActionSource.HUMAN) -> None:
        """Say what was really done in the game in answer to step `seq`; before the next step is sent.

        Where the server refuses it, the next :meth:`step` or :meth:`recv` raises an error of that `seq`.
        """
        self._send(self._core.executed_request(seq, action, source))

    # ---- settings and episodes

    async def configure(
        self,
        *,
        instruction: str | None = None,
        sampling: Sampling | None = None,
        consent: Consent | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Change settings for every step sent from now on; None: as it is. Return the settings revision."""
        return await self._ask(lambda: self._core.configure(instruction, sampling, consent), timeout_s)

    async def reset(
        self, episode_id: int | None = None, seed: int | None = None, *, timeout_s: float | None = None
    ) -> int:
        """Begin an episode with an empty memory, by default the next one; return its id."""
        return await self._ask(lambda: self._core.reset(episode_id, seed), timeout_s)

    async def ping(self, timeout_s: float | None = None) -> float:
        """Return the round trip to the server in seconds."""
        started = time.monotonic()
        await self._ask(self._core.ping, timeout_s)
        return time.monotonic() - started

    async def _ask(self, make: Callable[[], Ticket], timeout_s: float | None) -> int:
        ticket = make()
        self._send(ticket.request)
        limit = self._timeout_s if timeout_s is None else timeout_s
        await self._wait(lambda: ticket.done, limit, ticket.kind.capitalize())
        if ticket.error is not None:
            raise ticket.error
        return ticket.value

    # ---- ending

    async def close(self, reason: str = "") -> None:
        """End the session; wait a little for the server to agree. Never raises what the server thinks of it."""
        first = not self._closing.is_set()
        self._closing.set()
        if first and self._stream is not None:
            if self._connected:
                self._stream.send(ps.PlayRequest(close=ps.Close(reason=reason)))
                self._stream.half_close()
            else:
                self._stream.cancel()
        await self._finish(first)

    async def detach(self) -> bytes:
        """Leave the stream without ending the session; return the token that resumes it within the detach window."""
        first = not self._closing.is_set()
        self._closing.set()
        if self._stream is not None:
            self._stream.cancel()
        await self._finish(first)
        return self._core.opened.resume_token if self._core.opened is not None else b""

    async def _finish(self, first: bool) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=min(CLOSE_WAIT_S, self._timeout_s))
        for task in self._tasks:
            if not task.done():
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if first:
            self._core.fail(StateError("it is closed"))
            self._changed.notify()
            self._on_close(self)

    # ---- the stream

    async def _wait(self, ready: Callable[[], bool], timeout_s: float, what: str) -> None:
        ok = False

        def over() -> bool:
            nonlocal ok
            ok = ready()
            return ok or self._core.error is not None

        await self._changed.wait(over, timeout_s, what)
        if not ok and self._core.error is not None:
            raise self._core.error

    def _send(self, request: ps.PlayRequest) -> None:
        """Send now, or leave it to the resume: what matters is in the core's log."""
        if self._core.error is not None:
            raise self._core.error
        if self._connected and self._stream is not None:
            self._last_sent = time.monotonic()
            self._stream.send(request)

    async def _run(self) -> None:
        """Dial, read, and dial again after a lost stream."""
        lost_at: float | None = None
        backoff_s = FIRST_BACKOFF_S
        while True:
            error = await self._one_stream()
            if self._connected:
                self._connected, lost_at, backoff_s = False, None, FIRST_BACKOFF_S
            now = time.monotonic()
            again, lost_at = lost_at is not None, now if lost_at is None else lost_at
            sent_on = self._core.moved and error is None
            if not self._may_go_on(error, now - lost_at, sent_on=sent_on, again=again):
                self._core.fail(ended_by(error, closing=self._closing.is_set()))
                self._changed.notify()
                return
            if sent_on:
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_s * random.uniform(0.5, 1.0)):
                    await self._closing.wait()
            backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)

    def _may_go_on(self, error: PlayserveError | None, lost_s: float, *, sent_on: bool, again: bool) -> bool:
        opened = self._core.opened
        willing = self._resume or (self._core.redirected and sent_on)
        if not willing or self._closing.is_set():
            return False
        if opened is None:
            return sent_on
        return lost_s < opened.detach_window_us / 1e6 and may_resume(error, moved=self._core.moved, again=again)

    async def _one_stream(self) -> PlayserveError | None:
        try:
            self._stream = Stream(self._dial(self._core.address), self._metadata)
            return await self._stream.run(self._core.open_request(), self._timeout_s, self._on_message)
        except Exception as error:  # noqa: BLE001 - the session's task must not die in silence
            return StateError(f"could not dial: {type(error).__name__}: {error}")

    def _on_message(self, stream: Stream, response: ps.PlayResponse) -> None:
        if response.HasField("opened"):
            for request in self._core.on_opened(response.opened):
                stream.send(request)
            self._connected = True
        else:
            self._core.on_response(response)
        self._changed.notify()

    async def _keep_alive(self) -> None:
        interval_s = ping_interval_s(self.opened)
        while not self._closing.is_set() and self._core.error is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s / 3):
                    await self._closing.wait()
            if self._connected and time.monotonic() - self._last_sent > interval_s * 2 / 3:
                with contextlib.suppress(PlayserveError):
                    self._send(ps.PlayRequest(ping=ps.Ping()))
