"""One Play stream of the fake server: a reader thread fills an inbox, the call's own thread empties it in order."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from playserve.errors import (
    AlreadyOpenError,
    DrainingError,
    MalformedMessageError,
    NotOpenError,
    PlayserveError,
    QueueFullError,
    ServerUnavailableError,
    SessionClosedError,
    SessionExpiredError,
    SupersededError,
    to_status,
)
from playserve.settings import DropReason, Pace
from playserve.specs import GapMode, PolicyKind
from playserve.testing.faults import Settings
from playserve.testing.sessions import Session, Table
from playserve.v1 import policy_service_pb2 as ps

__all__ = ["Inbox", "PlayStream"]


# gRPC may report the end of a lost stream a moment before it says that the call is over.
_LOSS_S = 0.05


class Inbox:
    """What a stream's client has sent and the server has not looked at yet.

    Args:
        requests: The call's request iterator, of bytes.
        message: What they are messages of.
        context: The call.
    """

    def __init__(self, requests: Iterator[bytes], message: Any, context: grpc.ServicerContext) -> None:
        self._queue: queue.SimpleQueue[tuple[float, Any]] = queue.SimpleQueue()
        self._requests, self._message, self._context = requests, message, context
        # Wakes the consumer when the call ends without the reader noticing.
        context.add_callback(lambda: self.put(None))
        threading.Thread(target=self._read, name="fake-reader", daemon=True).start()

    def _read(self) -> None:
        try:
            for request in self._requests:
                self.put(self._message.FromString(request))
            time.sleep(_LOSS_S)
            if self._context.is_active():  # else the stream was lost
                self.put(self._message(close=ps.Close(reason="half-close")))
        except DecodeError as error:
            self.put(MalformedMessageError(f"the bytes are no message of this method: {error}"))
        except Exception:  # noqa: BLE001, S110 - the stream was lost: gRPC raises a bare Exception here
            pass
        self.put(None)

    def put(self, item: Any) -> None:
        """Append a message, an error that ends the stream, or None for its end."""
        self._queue.put((time.monotonic(), item))

    def get(self, timeout_s: float | None) -> tuple[float, Any]:
        """Return when the next message came and the message; None at the end of the stream."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            raise SessionExpiredError(f"nothing was heard for {timeout_s} s") from None

    def drain(self) -> list[tuple[float, Any]]:
        """Return everything that waits."""
        items = []
        while True:
            try:
                items.append(self._queue.get_nowait())
            except queue.Empty:
                return items


class PlayStream:
    """Serves one Play call.

    Args:
        table: Policies and sessions.
        settings: Limits and faults of the server.
        principal: Who is calling.
        requests: The call's request iterator, of bytes.
        context: The call.
    """

    def __init__(
        self,
        table: Table,
        settings: Settings,
        principal: str,
        requests: Iterator[bytes],
        context: grpc.ServicerContext,
    ) -> None:
        self._table, self._settings, self._principal = table, settings, principal
        self._inbox = Inbox(requests, ps.PlayRequest, context)
        self._waiting: deque[tuple[float, Any]] = deque()
        self._refused: set[int] = set()
        self._caught_up = 0  # steps of the present pass that were only taken into the memory
        self._moved: ps.Moved | None = None

    def move(self, moved: ps.Moved) -> None:
        """End the stream by saying where its session lives now, from any thread; what waits is not taken."""
        self._moved = moved
        self._inbox.put(ps.PlayRequest())  # wakes it up

    def end(self, error: PlayserveError) -> None:
        """End the stream with `error`, from any thread."""
        self._inbox.put(error)

    def responses(self) -> Iterator[ps.PlayResponse]:
        """Yield every answer; a PlayserveError raised here ends the stream with its status."""
        _, first = self._inbox.get(self._settings.idle_timeout_s)
        if first is None:
            return
        if isinstance(first, PlayserveError):
            raise first
        if first.WhichOneof("message") != "open":
            raise NotOpenError(f"the first message is {first.WhichOneof('message') or 'empty'}, wanted open")
        if first.open.resume_token and (moved := self._table.moved(first.open.resume_token, self._principal)):
            yield ps.PlayResponse(moved=moved)
            return
        session, opened = self._open(first.open)
        ended = False
        try:
            yield ps.PlayResponse(opened=opened)
            while not ended:
                arrived, request = self._next()
                session.at_rest.wait()
                if self._moved is not None:
                    yield ps.PlayResponse(moved=self._moved)
                    return
                if request is None:
                    return
                if isinstance(request, PlayserveError):
                    ended = isinstance(request, SessionClosedError)
                    raise request
                ended = request.WhichOneof("message") == "close"
                yield from self._answer(session, request, arrived)
        except SessionExpiredError:
            ended = True
            raise
        finally:
            self._leave(session, ended)

    def _open(self, message: ps.Open) -> tuple[Session, ps.Opened]:
        if message.resume_token:
            session = self._table.resume(message.resume_token, self._principal)
            with session.lock:
                if session.stream is not None:
                    session.stream.end(SupersededError("the session was resumed on another stream"))
                session.negotiate(message.codecs)
                return session, self._attach(session, resumed=True)
        if self._settings.draining:
            raise DrainingError("the server takes no new sessions", retry_after_s=1.0)
        policy = self._table.find(message.policy, message.version)
        limit = self._settings.max_message_bytes
        session = self._table.open(policy, lambda: Session(policy, message, self._principal, limit))
        with session.lock:
            return session, self._attach(session, resumed=False)

    def _attach(self, session: Session, *, resumed: bool) -> ps.Opened:
        session.stream, session.detached_at = self, None
        return ps.Opened(
            session_id=session.session_id,
            resume_token=session.token,
            policy=self._table.describe(session.policy),
            codecs=[codec.value for codec in session.codecs],
            max_message_bytes=self._settings.max_message_bytes,
            idle_timeout_us=int(self._settings.idle_timeout_s * 1e6),
            detach_window_us=int(self._settings.detach_window_s * 1e6),
            max_steps_in_flight=self._settings.max_steps_in_flight,
            seed=session.memory.seed,
            config_revision=session.revision,
            resumed=resumed,
            last_seq=session.last_seq if resumed else 0,
            last_result=session.answered if resumed else None,
            episode_id=session.memory.episode_id,
        )

    def _leave(self, session: Session, ended: bool) -> None:
        with session.lock:
            if ended:
                self._table.end(session)
            if session.stream is self:
                session.stream, session.detached_at = None, time.monotonic()

    def _next(self) -> tuple[float, Any]:
        self._waiting.extend(self._inbox.drain())
        if not self._waiting:
            self._waiting.append(self._inbox.get(self._settings.idle_timeout_s))
            self._waiting.extend(self._inbox.drain())
        return self._waiting.popleft()

    def _answer(self, session: Session, request: ps.PlayRequest, arrived: float) -> Iterator[ps.PlayResponse]:
        kind = request.WhichOneof("message")
        if kind == "ping":
            yield ps.PlayResponse(pong=ps.Pong(nonce=request.ping.nonce))
            return
        if kind == "close":
            return
        seq = getattr(getattr(request, kind), "seq", 0) if kind else 0
        try:
            response = self._step(session, request.step, arrived) if kind == "step" else _other(session, request, kind)
        except PlayserveError as error:
            response = ps.PlayResponse(error=ps.StepError(seq=seq, status=to_status(error)))
        if response is None:
            return
        if response.HasField("result") and (drop := self._settings.take_drop()):
            if drop == "after":
                yield response
            raise ServerUnavailableError("the fake server dropped the stream")
        yield response

    def _step(self, session: Session, step: ps.Step, arrived: float) -> ps.PlayResponse | None:
        if step.seq in self._refused:
            self._refused.discard(step.seq)
            raise QueueFullError(f"more than {self._settings.max_steps_in_flight} steps wait unanswered")
        if (delay_s := self._settings.delay_s) > 0:
            time.sleep(delay_s)
            self._waiting.extend(self._inbox.drain())
        with session.lock:
            if session.stream is not self:
                return None  # superseded meanwhile; the error is in the inbox
            if (again := session.repeated(step)) is not None:
                return ps.PlayResponse(result=again)
            if (fault := self._settings.take_failure(step.seq)) is not None:
                raise fault
            self._table.follow(session)
            if session.pace is Pace.LIVE:
                result = self._live(session, step, arrived)
            else:
                # `step` was at the head of the queue, so the limit is on those behind it.
                self._refuse_excess()
                result = session.play(step)
        return None if result is None else ps.PlayResponse(result=result)

    def _live(self, session: Session, step: ps.Step, arrived: float) -> ps.StepResult | None:
        newer = sum(_is_step(request) for _, request in self._waiting)
        rule, budget_us = session.policy.spec.gap_rule, step.budget_us
        if session.policy.spec.kind is PolicyKind.WORLD or newer == 0:
            self._caught_up = 0
            if budget_us and session.policy.spec.kind is PolicyKind.AGENT and not step.observe_only:
                age_us = (time.monotonic() - arrived) * 1e6
                if age_us > budget_us:
                    return session.play(step, hidden=DropReason.STALE)
            return session.play(step)
        if rule.mode is GapMode.CATCH_UP and newer < rule.catch_up_frames:
            self._caught_up += 1
            if self._caught_up == rule.catch_up_frames:  # newer ones came one by one: this pass is full, and answers
                self._caught_up = 0
                return session.play(step)
            return session.play(step, hidden=DropReason.SUPERSEDED)
        session.drop(step, DropReason.SUPERSEDED)
        return None

    def _refuse_excess(self) -> None:
        """Mark steps beyond the limit; they fail in their turn, so that answers stay in order."""
        steps = 1
        for _, request in self._waiting:
            if _is_step(request) and request.step.seq not in self._refused:
                steps += 1
                if steps > self._settings.max_steps_in_flight:
                    self._refused.add(request.step.seq)


def _is_step(item: Any) -> bool:
    return isinstance(item, ps.PlayRequest) and item.WhichOneof("message") == "step"


def _other(session: Session, request: ps.PlayRequest, kind: str | None) -> ps.PlayResponse | None:
    with session.lock:
        if kind == "executed":
            session.executed(request.executed)
            return None
        if kind == "configure":
            return ps.PlayResponse(configured=session.configure(request.configure))
        if kind == "reset":
            return ps.PlayResponse(reset_done=session.reset(request.reset))
    if kind == "open":
        raise AlreadyOpenError("open came twice")
    raise MalformedMessageError("a message without content")
