"""The inference core: sessions, batches and answers, free of any transport.

One owner: every method runs on the event loop's thread. The engine thread only runs the batches that `_pump` hands it
and gives each back in one call. Tests drive the same class with an inline engine and a clock of their own.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from playserve.errors import (
    AccessDeniedError,
    DrainingError,
    EngineFailedError,
    NoFreeSlotError,
    PlayserveError,
    QuotaExceededError,
    SessionClosedError,
    SessionExpiredError,
    SessionNotFoundError,
    StepFailedError,
    SupersededError,
)
from playserve_services.inference.access import give_back, hand_over, lease_slots
from playserve_services.inference.batcher import Batcher
from playserve_services.inference.catalog import Catalog, LoadedPolicy
from playserve_services.inference.dispatch import PlannedSlot, plan_batch
from playserve_services.inference.engine import Batch, BatchResult, Engine
from playserve_services.inference.following import follow
from playserve_services.inference.metrics import Metrics
from playserve_services.inference.moves import Moves
from playserve_services.inference.opening import CoreLimits, OpenRequest
from playserve_services.inference.sessions import (
    Answer,
    Arrival,
    EndReason,
    Frame,
    Session,
    SessionState,
    Settings,
    Slot,
)

if TYPE_CHECKING:
    from playserve_services.auth.gate import Caller

__all__ = ["CoreLimits", "InferenceCore", "OpenRequest"]

_log = logging.getLogger(__name__)


class InferenceCore:
    """Owns every session of this process.

    Args:
        catalog: Loaded versions.
        limits: Limits.
        metrics: Counts everything.
        clock_ns: Monotonic clock.
        defer: Runs a function on this thread once everything that waits to be read has been read
            (`loop.call_soon`); None: at once.
    """

    def __init__(
        self,
        catalog: Catalog,
        limits: CoreLimits,
        metrics: Metrics,
        clock_ns: Callable[[], int],
        defer: Callable[[Callable[[], None]], Any] | None = None,
    ) -> None:
        self._defer = defer
        self._pump_is_due = False
        self.catalog = catalog
        self.limits = limits
        self.metrics = metrics
        self.draining = False
        self._clock_ns = clock_ns
        self._engine: Engine | None = None
        self._batcher = Batcher(limits.max_batch, limits.lockstep_patience_ns, limits.live_dispatch_ns)
        self._sessions: dict[str, Session] = {}
        self._by_token: dict[bytes, Session] = {}
        self._live_open = 0
        self._in_engine = 0
        self._idle_watchers: dict[str, list[Callable[[], None]]] = {}
        self.moves = Moves(self, clock_ns, limits.detach_window_ns)
        self.engine_dead = False
        #: Finds another server that has room for a version: where players are sent whom this one has none for.
        self.elsewhere: Callable[[LoadedPolicy], Awaitable[str | None]] | None = None
        #: Embeds an instruction for a version, in a thread that may wait; sessions follow to it when that is done.
        self.embed_soon: Callable[[LoadedPolicy, str], None] = lambda policy, text: None

    def attach_engine(self, engine: Engine) -> None:
        """Give the engine; its `on_result` is :meth:`on_result`."""
        self._engine = engine

    @property
    def engine(self) -> Engine:
        """The engine."""
        assert self._engine is not None, "no engine was attached"  # noqa: S101 - invariant
        return self._engine

    def __len__(self) -> int:
        """Return the number of sessions, detached ones included."""
        return len(self._sessions)

    def sessions(self) -> Iterable[Session]:
        """Return the sessions, oldest first."""
        return list(self._sessions.values())

    def find(self, session_id: str) -> Session:
        """Return a session by its public id, or raise SessionNotFoundError."""
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionNotFoundError(f"no session {session_id!r} here")
        return session

    def has(self, session_id: str) -> bool:
        """Return whether there is a session of this public id."""
        return session_id in self._sessions

    def owns(self, session: Session) -> bool:
        """Return whether a session is one of these, and not over."""
        return self._sessions.get(session.session_id) is session

    # -- opening and ending ---------------------------------------------------------------------------------------

    def open(self, request: OpenRequest) -> Session:
        """Open a session with all its slots, or raise and take none.

        Raises:
            DrainingError: The server takes no new sessions.
            AccessEndedError, QuotaExceededError: See :func:`lease_slots`.
            NoFreeSlotError: Not enough slots.
        """
        if self.draining:
            raise DrainingError("this server is draining and takes no new sessions", retry_after_s=5.0)
        if self.engine_dead:
            raise EngineFailedError("the engine of this server has failed")
        try:
            leases = lease_slots(request.policy, request.num_slots, request.caller, rollout=request.rollout)
        except (NoFreeSlotError, QuotaExceededError) as error:
            self.metrics.refused(request.policy.spec.name, error.reason)
            raise
        now_ns = self._clock_ns()
        session = Session(
            session_id=secrets.token_hex(8),
            principal=request.principal,
            policy=request.policy,
            live=request.live,
            follow=request.follow,
            rollout=request.rollout,
            caller=request.caller,
            rate_hz=request.rate_hz,
            settings=request.settings,
            opened_ns=now_ns,
            heard_ns=now_ns,
            client=request.client,
            codecs=request.codecs,
        )
        seed = secrets.randbits(63) if request.seed is None else request.seed
        session.slots = [Slot(lease, session, row, request.episode_id, seed) for row, lease in enumerate(leases)]
        self.register(session)
        self.metrics.opened(session)
        return session

    def register(self, session: Session) -> None:
        """Own a session from now on, which has its slots."""
        self._sessions[session.session_id] = session
        if not session.rollout:  # a rollout's environments end with its stream
            self._by_token[session.resume_token] = session
        self._live_open += session.live
        session.policy.sessions += 1

    def end(self, session: Session, reason: EndReason, error: PlayserveError | None = None) -> None:
        """End a session: its slots are free at once, its stream is told. Ending twice does nothing."""
        if session.ended:
            return
        session.move_to(SessionState.ENDED)
        session.end_reason = reason
        for slot in session.slots:
            slot.queue.clear()
            slot.lease.pool.release(slot.lease)
        del self._sessions[session.session_id]
        self._by_token.pop(session.resume_token, None)
        self._live_open -= session.live
        session.policy.sessions -= 1
        give_back(session)
        self.metrics.ended(session, reason)
        on_end = session.on_end
        session.let_stream_go()
        if on_end is not None:
            on_end(error)
        for callback in self._idle_watchers.pop(session.session_id, ()):  # nothing of it comes back
            callback()

    def close(self, session: Session) -> None:
        """End a session once everything outstanding is answered."""
        if session.ended or session.state is SessionState.DRAINING:
            return
        if session.outstanding == 0:
            self.end(session, EndReason.CLOSED)
        else:
            session.move_to(SessionState.DRAINING)

    def detach(self, session: Session) -> None:
        """Note that the stream is lost. Waiting frames are forgotten: the client sends them again when it resumes."""
        if session.ended:
            return
        if session.rollout or session.state is SessionState.DRAINING:
            # A closing session has nobody left to answer; a rollout's environments are gone with its stream.
            self.end(session, EndReason.STREAM_LOST)
            return
        if session.state is SessionState.OPEN:  # one that moves goes on moving
            session.move_to(SessionState.DETACHED)
        session.detached_ns = self._clock_ns()
        session.let_stream_go()
        for slot in session.slots:
            slot.drop_waiting()

    def moving(self, token: bytes, principal: str) -> Session | None:
        """Return the session of a token while it is being moved, for its owner; None: it is not. See :class:`Moves`."""
        session = self._by_token.get(token)
        mine = session is not None and session.principal == principal
        return session if mine and session is not None and session.state is SessionState.MOVING else None

    def resume(self, token: bytes, principal: str, caller: Caller | None = None) -> Session:
        """Give a session to a new stream. Its slots may still be busy: wait with :meth:`when_idle`.

        Raises:
            SessionNotFoundError: No session has that token; it may have expired.
            AccessDeniedError: It belongs to somebody else.
            AccessEndedError, QuotaExceededError: See :func:`hand_over`.
        """
        session = self._by_token.get(token)
        if session is None:
            raise SessionNotFoundError("no session has that resume token; it may have ended or expired")
        if session.principal != principal:
            raise AccessDeniedError("that session belongs to somebody else")
        if caller is not None:
            hand_over(session, caller)
        if session.state is SessionState.OPEN:
            # The old stream may be half dead without our knowing: the newer one wins.
            on_end = session.on_end
            self.detach(session)
            if on_end is not None:
                on_end(SupersededError("this session was resumed on another stream"))
        if session.state is not SessionState.DETACHED:
            raise SessionNotFoundError(f"the session is {session.state.value} and cannot be resumed")
        session.move_to(SessionState.OPEN)
        session.heard_ns = self._clock_ns()
        self.metrics.resumed(session)
        return session

    def when_idle(self, session: Session, callback: Callable[[], None]) -> None:
        """Call `callback` once no slot of the session is in the engine; at once if that is so now."""
        if not any(slot.busy for slot in session.slots):
            callback()
        else:
            self._idle_watchers.setdefault(session.session_id, []).append(callback)

    def _notify_idle(self, session: Session) -> None:
        if session.session_id in self._idle_watchers and not any(slot.busy for slot in session.slots):
            for callback in self._idle_watchers.pop(session.session_id):
                callback()

    # -- messages of a session ------------------------------------------------------------------------------------

    def heard(self, session: Session) -> None:
        """Note that the client is alive."""
        session.heard_ns = self._clock_ns()

    def arrive(self, slot: Slot, frame: Frame) -> Arrival:
        """Take a frame; it is answered through the session's sink. Raises what `Slot.arrive` raises.

        Call :meth:`pump_soon` after the last frame of a message.
        """
        session = slot.session
        if frame.budget is False and session.live and session.rate_hz > 0:
            frame.deadline_ns = frame.arrived_ns + int(1e9 / session.rate_hz)
        if session.follow and not slot.busy and not slot.queued:
            follow(session, self.catalog, self.embed_soon)
        before = session.frames_dropped
        arrival = slot.arrive(frame, self.limits.max_steps_in_flight)
        if arrival is Arrival.QUEUED and not slot.busy:
            self._batcher.add(slot, frame.arrived_ns)
        if session.frames_dropped != before:
            self.metrics.dropped(session, session.frames_dropped - before)
        return arrival

    def reset(self, session: Session, episode_id: int, seed: int | None) -> None:
        """Begin a new episode in a play session."""
        session.slots[0].reset(episode_id, seed)

    def configure(self, session: Session, **changes: Any) -> Settings:
        """Change settings for frames that arrive from now on; return them with their new revision."""
        session.settings = replace(session.settings, revision=session.settings.revision + 1, **changes)
        return session.settings

    # -- batches --------------------------------------------------------------------------------------------------

    def pump_soon(self) -> None:
        """Pump after the other messages that have come: frames that arrive together go into one batch."""
        if self._defer is None or len(self._sessions) == 1:
            self.pump()
        elif not self._pump_is_due:
            self._pump_is_due = True
            self._defer(self._pump_when_due)

    def _pump_when_due(self) -> None:
        self._pump_is_due = False
        self.pump()

    def pump(self) -> None:
        """Hand the engine its next batch, if it is free and something waits."""
        while self._in_engine == 0 and self._batcher.waiting:
            picked = self._batcher.pick(self._clock_ns(), self._live_open > 0)
            if picked is None:
                return
            policy, slots = picked
            if slots:
                self._in_engine += 1
                self.engine.submit(plan_batch(policy, slots, self._clock_ns(), self.metrics))

    def on_result(self, batch: Batch, result: BatchResult) -> None:
        """Take a batch back from the engine: scatter its results, and send the next."""
        self._in_engine -= 1
        policy, planned = batch.tag
        size = len(batch.rounds[0])
        if result.rounds is None:
            self._scatter_failure(policy, planned, result.error)
        else:
            compute_s = (result.finished_ns - result.started_ns) / 1e9
            rounds = len(batch.rounds)  # more than one where frames catch up
            policy.time_model.observe(sum(map(len, batch.rounds)) / rounds, compute_s / rounds)
            self.metrics.batch(policy, size, policy.runtime.padded(size), compute_s)
            self._scatter(policy, planned, result, size)
        self.pump()

    def _scatter(self, policy: LoadedPolicy, planned: Sequence[PlannedSlot], result: BatchResult, size: int) -> None:
        assert result.rounds is not None  # noqa: S101 - the caller checked
        answers: dict[str, tuple[Session, list[Answer]]] = {}
        for plan in planned:
            if not plan.lease.valid():
                continue  # the session ended meanwhile; its slot may be somebody else's by now
            slot, frame = plan.slot, plan.frames[-1]
            round_, index = plan.place
            rows = result.rounds[round_]
            slot.busy = False
            action = tuple(rows.actions[index])
            # Nobody plays the action of a step that is not answered.
            slot.last_action = None if frame.observe_only else action if rows.executed is None else rows.executed[index]
            if not frame.observe_only:
                answer = Answer(
                    slot, frame, action,
                    rows.log_probs[index].tolist() if rows.log_probs is not None and frame.settings.log_prob else None,
                    float(rows.values[index]) if rows.values is not None and frame.settings.value else None,
                    {name: array[index] for name, array in rows.outputs.items()},
                    policy.spec.version, plan.dropped,
                    result.started_ns - frame.arrived_ns, result.finished_ns - result.started_ns, size,
                    None if rows.decoded is None else rows.decoded[index],
                )  # fmt: skip
                slot.last_answer = answer
                slot.session.steps += 1
                answers.setdefault(slot.session.session_id, (slot.session, []))[1].append(answer)
            follow(slot.session, self.catalog, self.embed_soon)
            if slot.queue:
                self._batcher.add(slot, self._clock_ns())
        for session, of_session in answers.values():
            self._deliver(session, of_session)
        for plan in planned:
            self._after_batch(plan.slot.session)

    def _deliver(self, session: Session, answers: list[Answer]) -> None:
        """Give a session its answers; one that cannot take them must not cost the others theirs."""
        try:
            self.metrics.answered(session, answers, self._clock_ns())
            if session.sink is not None:
                session.sink(answers)
        except Exception:  # noqa: BLE001 - the session ends, the loop goes on
            _log.exception("answers of session %s could not be sent", session.session_id)
            self.end(session, EndReason.ENGINE_FAILED, EngineFailedError("the answer could not be sent"))

    def _after_batch(self, session: Session) -> None:
        if session.state is SessionState.DRAINING and session.outstanding == 0:
            self.end(session, EndReason.CLOSED)
        if self._idle_watchers:
            self._notify_idle(session)

    def _scatter_failure(self, policy: LoadedPolicy, planned: Sequence[PlannedSlot], error: Exception | None) -> None:
        """Memoryless policies lose one step; for others nobody knows what the memory holds, so the session ends."""
        for plan in planned:
            if not plan.lease.valid():
                continue
            slot, session = plan.slot, plan.slot.session
            slot.busy = False
            if not plan.frames[-1].observe_only:
                slot.dropped = plan.dropped + slot.dropped
            self.metrics.error(policy.spec.name, StepFailedError.reason)
            if policy.pool.layout:
                self.end(session, EndReason.ENGINE_FAILED, EngineFailedError("the step could not be computed"))
                continue
            if session.on_step_error is not None:
                for frame in plan.frames:
                    session.on_step_error(slot, frame.seq, StepFailedError("the step could not be computed"))
            if slot.queue:
                self._batcher.add(slot, self._clock_ns())
            self._after_batch(session)

    # -- state of a slot ------------------------------------------------------------------------------------------

    def export_state(self, session: Session, done: Callable[[bytearray | None, Exception | None], None]) -> None:
        """Export the memory of a play session that has nothing in the engine (see :meth:`when_idle`).

        It is copied in pieces between the batches of others; frames that arrive meanwhile wait. `done(blob, None)` gets
        the bytes of a `StateBlob`, which :meth:`import_state` takes here or elsewhere; `done(None, error)` says what
        failed.
        """

        def finish(blob: bytearray | None, error: Exception | None) -> None:
            self.let_go(session)
            done(blob, error)

        from playserve_services.inference import transfer  # it needs pydantic, which a bare machine with a GPU lacks

        transfer.export_state(self.engine, session, finish)

    def import_state(self, session: Session, data: bytes | bytearray, done: Callable[[Exception | None], None]) -> None:
        """Put an exported memory into a play session that has not stepped yet; `done` says what failed, or None.

        Raises:
            DataLossError: The bytes are not those of an export. One bit that is wrong is only found by `done`.
            LayoutMismatchError: Another layout.
        """

        def finish(error: Exception | None) -> None:
            self.let_go(session)
            done(error)

        from playserve_services.inference import transfer  # as above

        transfer.import_state(self.engine, session, data, finish)

    def let_go(self, session: Session) -> None:
        """Go on with a session whose memory was held still."""
        slot = session.slots[0]
        if slot.ready() and slot.lease.valid():
            self._batcher.add(slot, self._clock_ns())
            self.pump_soon()
        self._after_batch(session)

    def on_engine_death(self) -> None:
        """The engine thread is gone: nothing will be answered any more."""
        self.engine_dead = True
        for session in self.sessions():
            self.end(session, EndReason.ENGINE_FAILED, EngineFailedError("the engine of this server has failed"))

    # -- time -----------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """End sessions that were silent, or detached, for too long."""
        self.moves.tick()
        now_ns = self._clock_ns()
        limits = self.limits
        for session in self.sessions():
            if session.state is SessionState.DETACHED:
                if now_ns - session.detached_ns > limits.detach_window_ns:
                    self.end(session, EndReason.DETACH_EXPIRED)
            elif session.state is SessionState.MOVING:
                continue  # whoever moves it looks after it
            elif now_ns - session.heard_ns > limits.idle_timeout_ns and session.outstanding == 0:
                idle_s = (now_ns - session.heard_ns) / 1e9
                self.end(session, EndReason.EXPIRED, SessionExpiredError(f"nothing was heard for {idle_s:.0f} s"))

    def start_drain(self) -> None:
        """Take no new sessions from now on."""
        self.draining = True

    def end_all(self) -> None:
        """End what still plays: the drain's grace is over."""
        for session in self.sessions():
            self.end(session, EndReason.DRAINED, SessionClosedError("the server is shutting down"))
