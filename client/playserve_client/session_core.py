"""The state machine of one session on the client's side, without I/O: both clients, sync and async, drive this one.

It builds messages, keeps what may have to be sent again after a lost stream, and sorts what comes back. It is not
thread-safe: its driver holds a lock.

What has to be sent again lies in a log, in order. An answer to step s proves that everything up to s has arrived,
because a stream is ordered; so the log is cut there, and after a resume at the server's `last_seq`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from playserve.codec import Action, action_to_proto, clip_action
from playserve.errors import PlayserveError, ServerUnavailableError, StateError, from_status
from playserve.settings import (
    ActionSource,
    Consent,
    Extras,
    Pace,
    Sampling,
    VersionPolicy,
    check_instruction,
    check_rate,
)
from playserve.specs import Codec, PolicySpec
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve_client.inputs import Frame, InputPacker
from playserve_client.results import StepResult
from playserve_client.tracing import SessionTracer

__all__ = ["PING_INTERVAL_S", "SessionCore", "Ticket", "open_message"]

#: How long a session may be silent before its client pings.
PING_INTERVAL_S = 15.0
# Steps kept to be sent again. Only somebody who observes for long without an answer comes near it; the oldest
# observations are then lost with the stream, as a gap in seq that the server accepts.
_LOG_STEPS = 256
# Servers that send a player on, one after another, before somebody is tired of it.
_MAX_MOVES = 8


def open_message(
    policy: str,
    *,
    version: str,
    version_policy: VersionPolicy,
    pace: Pace,
    seed: int | None,
    sampling: Sampling | None,
    instruction: str,
    extras: Extras | None,
    rate_hz: float,
    episode_id: int,
    consent: Consent | None,
) -> ps.Open:
    """Return the Open of a new session; the driver adds codecs and client."""
    return ps.Open(
        policy=policy,
        version=version,
        version_policy=version_policy.value,
        pace=pace.value,
        rate_hz=check_rate(rate_hz),
        seed=seed,
        sampling=sampling.to_proto() if sampling is not None else None,
        instruction=check_instruction(instruction),
        extras=extras.to_proto() if extras is not None else None,
        consent=consent.to_proto() if consent is not None else None,
        episode_id=episode_id,
    )


@dataclass(slots=True, eq=False)
class Ticket:
    """A question whose answer somebody waits for: Configure, Reset or Ping.

    Attributes:
        kind: "configure", "reset" or "ping".
        request: The message, to be sent again after a lost stream.
        done: Whether the answer is here.
        value: Revision, episode id or nonce of the answer.
        error: The failure, instead.
    """

    kind: str
    request: ps.PlayRequest
    done: bool = False
    value: int = 0
    error: PlayserveError | None = None

    def finish(self, value: int = 0, error: PlayserveError | None = None) -> None:
        """Take the answer."""
        self.done, self.value, self.error = True, value, error


class SessionCore:
    """One session; see the module.

    Args:
        opening: The Open of a new session, or one with a resume token.
        codecs: Packings to offer besides raw, best first.
        client: Who is calling.
        route: Routing key of its streams.
        tracer: Traces its steps; None: nobody does.
    """

    def __init__(
        self,
        opening: ps.Open,
        codecs: Sequence[Codec],
        client: pb.ClientInfo,
        route: str = "",
        tracer: SessionTracer | None = None,
    ) -> None:
        self._opening, self._preferred, self._client = opening, tuple(codecs), client
        self._opening.codecs.extend(codec.value for codec in self._preferred)
        self._opening.client.CopyFrom(client)
        self.opened: ps.Opened | None = None
        self.spec: PolicySpec | None = None
        self.pace = Pace(opening.pace or ps.PACE_LOCKSTEP)
        self.error: PlayserveError | None = None
        self.last_result: StepResult | None = None
        self.last_seq = 0
        self.episode_id = opening.episode_id
        self.route = route
        self.tracer = tracer
        self.moved = False  # the server has said that the session lives elsewhere, where it was not opened yet
        self.address: str | None = None  # where it lives; None: the one address that the client dials
        self._moves = 0
        self._packer: InputPacker | None = None
        self._token = opening.resume_token
        self._log: deque[ps.PlayRequest | Ticket] = deque()
        self._log_steps = 0
        self._sent_at: dict[int, float] = {}
        self._inbox: deque[StepResult | PlayserveError] = deque()
        self._pings: dict[int, Ticket] = {}
        self._nonce = 0

    # ---- what goes up

    @property
    def resuming(self) -> bool:
        """Whether its first Open resumes a session."""
        return bool(self._opening.resume_token)

    @property
    def redirected(self) -> bool:
        """Whether a server has named another one to open the new session at."""
        return self.moved and self.opened is None and not self.resuming

    def dial_elsewhere(self, address: str | None) -> None:
        """Begin anew at another server, after one has refused to open the session."""
        self.error, self.moved, self.address = None, False, address

    def open_request(self) -> ps.PlayRequest:
        """Return the first message of a stream: the Open, or one that resumes what was opened before."""
        if self.opened is None:
            return ps.PlayRequest(open=self._opening)
        codecs = [codec.value for codec in self._preferred]
        return ps.PlayRequest(open=ps.Open(resume_token=self._token, codecs=codecs, client=self._client))

    def step_request(
        self,
        frame: Frame,
        *,
        ticks: int = 0,
        budget_us: int = 0,
        observe_only: bool = False,
        action: Action | None = None,
        capture_time_ns: int | None = None,
        episode_id: int | None = None,
    ) -> ps.PlayRequest:
        """Return the next Step; its seq is `last_seq` from now on."""
        spec, packer = self._ready()
        began_ns = 0 if self.tracer is None else time.monotonic_ns()
        step = ps.Step(
            seq=self.last_seq + 1,
            episode_id=self.episode_id if episode_id is None else episode_id,
            ticks=ticks,
            inputs=packer.step(frame),
            capture_time_ns=time.monotonic_ns() if capture_time_ns is None else capture_time_ns,
            budget_us=budget_us,
            observe_only=observe_only,
            action=None if action is None else action_to_proto(action, spec.action),
        )
        request = ps.PlayRequest(step=step)
        self.last_seq += 1
        self.episode_id = max(self.episode_id, step.episode_id)
        if not observe_only:
            self._sent_at[self.last_seq] = time.monotonic()
            if self.tracer is not None:
                self.tracer.encoded(self.last_seq, step.capture_time_ns, began_ns)
        self._log.append(request)
        self._log_steps += 1
        while self._log_steps > _LOG_STEPS and isinstance(self._log[0], ps.PlayRequest):
            self._log_steps -= self._log.popleft().WhichOneof("message") == "step"  # type: ignore[union-attr]
        return request

    def executed_request(self, seq: int, action: Action | None, source: ActionSource) -> ps.PlayRequest:
        """Return the Executed that says what was done in answer to step `seq`."""
        spec, _ = self._ready()
        if action is not None and source is ActionSource.HUMAN:
            action = clip_action(action, spec.action)
        message = None if action is None else action_to_proto(action, spec.action)
        request = ps.PlayRequest(executed=ps.Executed(seq=seq, action=message, source=source.value))
        self._log.append(request)
        return request

    def configure(
        self, instruction: str | None = None, sampling: Sampling | None = None, consent: Consent | None = None
    ) -> Ticket:
        """Return the ticket of a Configure."""
        self._ready()
        message = ps.Configure(
            instruction=None if instruction is None else check_instruction(instruction),
            sampling=None if sampling is None else sampling.to_proto(),
            consent=None if consent is None else consent.to_proto(),
        )
        return self._ask("configure", ps.PlayRequest(configure=message))

    def reset(self, episode_id: int | None = None, seed: int | None = None) -> Ticket:
        """Return the ticket of a Reset; without an id, of the episode after this one."""
        self._ready()
        self.episode_id = self.episode_id + 1 if episode_id is None else episode_id
        return self._ask("reset", ps.PlayRequest(reset=ps.Reset(episode_id=self.episode_id, seed=seed)))

    def ping(self) -> Ticket:
        """Return the ticket of a Ping."""
        self._nonce += 1
        ticket = Ticket("ping", ps.PlayRequest(ping=ps.Ping(nonce=self._nonce)))
        self._pings[self._nonce] = ticket
        return ticket

    def _ask(self, kind: str, request: ps.PlayRequest) -> Ticket:
        ticket = Ticket(kind, request)
        self._log.append(ticket)
        return ticket

    def _ready(self) -> tuple[PolicySpec, InputPacker]:
        if self.error is not None:
            raise self.error
        if self.spec is None or self._packer is None:
            raise StateError("the session is not open yet")
        return self.spec, self._packer

    # ---- what comes down

    def on_opened(self, opened: ps.Opened) -> list[ps.PlayRequest]:
        """Take the answer to `open_request`; return what has to be sent again, in order."""
        again = self.opened is not None
        self.opened, self.moved, self._moves, self._token = opened, False, 0, opened.resume_token
        self.spec = PolicySpec.from_proto(opened.policy)
        self._packer = InputPacker(self.spec, self._preferred, frozenset(opened.codecs))
        if self.tracer is not None:
            self.tracer.opened(opened.session_id, self.spec.name, self.spec.version)
        last = StepResult.from_proto(opened.last_result, self.spec) if opened.HasField("last_result") else None
        if not again:
            self.last_seq, self.last_result, self.episode_id = opened.last_seq, last, opened.episode_id
            return []
        self._cut_log(opened.last_seq)
        if last is not None and last.seq in self._sent_at:
            self._settle(last)
        self._lose_answers(opened, last)
        # A ticket's answer was lost when its message came before the cut, or when its episode has begun.
        for entry in [e for e in self._log if isinstance(e, Ticket) and e.kind == "reset"]:
            if entry.request.reset.episode_id <= opened.episode_id:
                self._remove(entry)
                entry.finish(entry.request.reset.episode_id)
        requests = [entry.request if isinstance(entry, Ticket) else entry for entry in self._log]
        return [r for r in requests if not (r.HasField("executed") and r.executed.seq < opened.last_seq)] + [
            ticket.request for ticket in self._pings.values()
        ]

    def _cut_log(self, seq: int) -> None:
        """Forget what came before step `seq`, and the step: it has arrived.

        A Configure stays until it is answered: an instruction takes effect later than the steps behind it. Sent twice
        it does what it does once.
        """
        reached = [i for i, entry in enumerate(self._log) if _step_seq(entry) and _step_seq(entry) <= seq]
        kept: deque[ps.PlayRequest | Ticket] = deque()
        for _ in range(reached[-1] + 1 if reached else 0):
            entry = self._log.popleft()
            self._log_steps -= bool(_step_seq(entry))
            if isinstance(entry, Ticket):
                if entry.kind == "configure":
                    kept.append(entry)
                else:
                    entry.finish(entry.request.reset.episode_id)
        self._log.extendleft(reversed(kept))

    def _lose_answers(self, opened: ps.Opened, last: StepResult | None) -> None:
        """Answers from before the last one are gone when their stream is; nobody shall wait for them."""
        answered = last.seq if last is not None else 0
        for seq in [seq for seq in self._sent_at if seq < answered]:
            del self._sent_at[seq]
            error = ServerUnavailableError(
                f"the answer to step {seq} was lost with its stream; the memory has steps up to {opened.last_seq}"
            )
            error.seq = seq
            if self.pace is Pace.LOCKSTEP:
                self._inbox.append(error)

    def on_response(self, response: ps.PlayResponse) -> None:
        """Sort one message of an open stream."""
        kind = response.WhichOneof("message")
        if kind == "result":
            self._on_result(response.result)
        elif kind == "error":
            self._on_error(response.error)
        elif kind == "configured":
            self._finish("configure", response.configured.revision)
        elif kind == "reset_done":
            self._finish("reset", response.reset_done.episode_id)
        elif kind == "pong":
            ticket = self._pings.pop(response.pong.nonce, None)
            if ticket is not None:
                ticket.finish(response.pong.nonce)
        elif kind == "moved":
            self._on_moved(response.moved)

    def _on_moved(self, message: ps.Moved) -> None:
        self._moves += 1
        if self._moves > _MAX_MOVES:
            raise StateError(f"the session was said to have moved {self._moves} times, and is nowhere")
        self.moved, self.address, self._token = True, message.address, message.resume_token
        if self.opened is None:  # the stream was to resume a session, which had moved before
            self._opening.resume_token = message.resume_token

    def _on_result(self, message: ps.StepResult) -> None:
        sent = self._sent_at.get(message.seq)
        round_trip_s = None if sent is None else time.monotonic() - sent
        spec, _ = self._ready()
        try:
            result = StepResult.from_proto(message, spec, round_trip_s)
        except PlayserveError as error:  # a server that breaks its own spec
            error.seq = message.seq
            self._forget(message.seq)
            self._inbox.append(error)
            return
        self._settle(result)
        self._cut_log(result.seq)

    def _settle(self, result: StepResult) -> None:
        self.last_result = result
        if self.tracer is not None:
            self.tracer.answered(result.seq, live=self.pace is Pace.LIVE)
        if self.pace is Pace.LIVE:  # waiting older steps were dropped, and the result says so
            for seq in [seq for seq in self._sent_at if seq < result.seq]:
                del self._sent_at[seq]
        self._sent_at.pop(result.seq, None)
        self._inbox.append(result)

    def _on_error(self, message: ps.StepError) -> None:
        error = from_status(message.status)
        if message.seq == 0:
            ticket = next((entry for entry in self._log if isinstance(entry, Ticket)), None)
            if ticket is not None:
                self._remove(ticket)
                ticket.finish(error=error)
                return
        else:
            error.seq = message.seq
            self._forget(message.seq)
            if self.tracer is not None:
                self.tracer.failed(message.seq, error)
        self._inbox.append(error)

    def _forget(self, seq: int) -> None:
        """A refused step, or a refused Executed, must not be sent again."""
        self._sent_at.pop(seq, None)
        messages = [entry for entry in self._log if isinstance(entry, ps.PlayRequest)]
        steps = (entry for entry in messages if _step_seq(entry) == seq)
        executed = (entry for entry in messages if entry.HasField("executed") and entry.executed.seq == seq)
        refused = next(steps, None) or next(executed, None)
        if refused is not None:
            self._remove(refused)
            self._log_steps -= bool(_step_seq(refused))

    def _remove(self, entry: ps.PlayRequest | Ticket) -> None:
        # By identity: messages compare by content, and the same action may have been executed twice.
        self._log = deque(other for other in self._log if other is not entry)

    def _finish(self, kind: str, value: int) -> None:
        ticket = next((entry for entry in self._log if isinstance(entry, Ticket) and entry.kind == kind), None)
        if ticket is not None:
            self._remove(ticket)
            ticket.finish(value)

    def fail(self, error: PlayserveError) -> None:
        """End the session with `error`; the first one stands."""
        if self.error is None:
            self.error = error
            if self.tracer is not None:
                self.tracer.closed()
        for entry in self._log:
            if isinstance(entry, Ticket):
                entry.finish(error=self.error)
        for ticket in self._pings.values():
            ticket.finish(error=self.error)
        self._log.clear()
        self._pings.clear()
        self._log_steps = 0

    # ---- what the user takes

    def has_next(self) -> bool:
        """Return whether :meth:`take` has something to give or to raise."""
        return bool(self._inbox) or self.error is not None

    def take(self) -> StepResult:
        """Return the next result, or raise the next step's error or, when nothing is left, the session's."""
        if not self._inbox:
            raise self.error if self.error is not None else StateError("nothing has come")
        item = self._inbox.popleft()
        if isinstance(item, PlayserveError):
            raise item
        return item

    def take_until(self, seq: int) -> StepResult | None:
        """Take results up to the first of step `seq` or a later one; None when it has not come. Errors are raised."""
        while self.has_next():
            result = self.take()
            if result.seq >= seq:
                return result
        return None

    def take_newest(self) -> StepResult | None:
        """Take everything that waits and return the newest result, or None. Errors are raised."""
        newest = None
        while self.has_next() and (self._inbox or newest is None):
            newest = self.take()
        return newest


def _step_seq(entry: ps.PlayRequest | Ticket) -> int:
    """Return the seq of a Step in the log, else 0."""
    return entry.step.seq if isinstance(entry, ps.PlayRequest) and entry.HasField("step") else 0
