"""One Play stream: reads its messages, feeds its session, writes its answers."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import grpc

from playserve.codec import Decoder, negotiate
from playserve.errors import (
    AlreadyOpenError,
    DrainingError,
    EngineFailedError,
    MalformedMessageError,
    NoFreeSlotError,
    NotOpenError,
    PlayserveError,
    SeqNotIncreasingError,
    StepFailedError,
)
from playserve.settings import Consent, Pace, VersionPolicy, check_instruction
from playserve.specs import Merge
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve_services.aborting import abort
from playserve_services.auth.gate import Caller
from playserve_services.inference import convert
from playserve_services.inference.access import over_quota, shed
from playserve_services.inference.core import InferenceCore, OpenRequest
from playserve_services.inference.embedding import embed
from playserve_services.inference.inbox import next_message
from playserve_services.inference.keeping import SessionKeeper
from playserve_services.inference.loader import PolicyLoader
from playserve_services.inference.outbox import Outbox
from playserve_services.inference.runtime import Array
from playserve_services.inference.sessions import Answer, Arrival, Frame, Session
from playserve_services.inference.tracing import StreamTrace
from playserve_services.inference.watching import Watching

__all__ = ["PlayStream"]

_log = logging.getLogger(__name__)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class PlayStream:
    """See the module's docstring.

    Args:
        core: Owns the session.
        loader: Finds the policy.
        context: The stream.
        caller: Who calls.
        decoders: Threads that unpack JPEG.
        embedders: Threads that embed instructions.
        max_message_bytes: What Opened announces.
        watching: Who watches sessions.
        keeper: Records sessions; None: nobody does.
        trace: Traces its steps; None: nobody does.
    """

    def __init__(
        self,
        core: InferenceCore,
        loader: PolicyLoader,
        context: grpc.aio.ServicerContext[Any, Any],
        caller: Caller,
        decoders: Executor,
        embedders: Executor,
        max_message_bytes: int,
        watching: Watching,
        keeper: SessionKeeper | None = None,
        trace: StreamTrace | None = None,
    ) -> None:
        self._trace = trace
        self._core = core
        self._watching = watching
        self._keeper = keeper
        self._loader = loader
        self._context = context
        self._caller = caller
        self._decoders = decoders
        self._embedders = embedders
        self._configuring: list[asyncio.Task[None]] = []  # changes that are not in force yet, oldest first
        self._max_message_bytes = max_message_bytes
        self._outbox = Outbox(context if trace is None else trace.writing(context), core.metrics.outboxes)
        self._session: Session | None = None
        self._decoder: Decoder | None = None
        self._has_jpeg = False
        self._takes_instruction = False
        self._sums = False  # some input of a step that is left out goes to the next one
        self._attached = False

    async def run(self) -> None:
        """Serve the stream to its end."""
        reader = asyncio.create_task(self._read())
        try:
            await self._outbox.run()
        finally:
            reader.cancel()
            for task in self._configuring:
                task.cancel()
            # Only the stream that holds the session may detach it: a newer one may have taken it over.
            if self._session is not None and self._attached:
                self._core.metrics.streams_lost.labels(self._session.policy.spec.name).inc()
                self._core.detach(self._session)
        if self._outbox.error is not None:
            await abort(self._context, self._outbox.error)

    async def _read(self) -> None:
        try:
            await self._open(await next_message(self._context))
            while (session := self._current()) is not None:
                if self._outbox.full:
                    await self._outbox.room()
                request = await next_message(self._context)
                if session.held:
                    await self._settled(session)
                if self._current() is None:
                    return
                if request is None or request.WhichOneof("message") == "close":
                    self._core.close(session)  # what comes after it does not count
                    return
                self._outbox.hold()
                try:
                    await self._handle(session, request)
                finally:
                    await self._outbox.flush()
        except PlayserveError as error:
            self._core.metrics.error("" if self._session is None else self._session.policy.spec.name, error.reason)
            self._outbox.close(error)
        except asyncio.CancelledError:
            raise
        except grpc.aio.AbortError:
            self._outbox.close()
        except Exception:  # noqa: BLE001 - one stream must not take others with it
            _log.exception("a Play stream failed")
            self._outbox.close(EngineFailedError("the server failed; see its log"))

    # -- open and resume ------------------------------------------------------------------------------------------

    async def _open(self, request: Any) -> None:
        if request is None or request.WhichOneof("message") != "open":
            came = "nothing" if request is None else request.WhichOneof("message") or "an empty message"
            raise NotOpenError(f"the first message must be Open; {came} came")
        message: ps.Open = request.open
        if message.resume_token:
            moving = self._core.moving(message.resume_token, self._caller.name)
            if moving is not None:
                await self._settled(moving)
            home = self._core.moves.where(message.resume_token, self._caller.name)
            if home is not None:
                self._go_to(home.address, home.token)
                self._outbox.close()
                return
            session = self._core.resume(message.resume_token, self._caller.name, self._caller)
            session.codecs = frozenset(negotiate(message.codecs, session.policy.spec.inputs))
            self._attach(session)
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._core.when_idle(session, lambda: _settle(idle))
            await idle  # an answer that is made meanwhile goes into Opened, not before it
            if self._current() is not None:
                self._begin(session, resumed=True)
            return
        live = Pace.from_proto(message.pace) is Pace.LIVE
        follow = VersionPolicy.from_proto(message.version_policy) is VersionPolicy.FOLLOW
        seed = message.seed if message.HasField("seed") else secrets.randbits(63)
        version = self._core.catalog.choose(message.policy, message.version, seed)
        policy = await self._loader.acquire(message.policy, version)
        sampling = message.sampling if message.HasField("sampling") else None
        consent = message.consent if message.HasField("consent") else None
        settings = convert.open_settings(sampling, message.extras, message.instruction, consent)
        await embed(policy, self._embedders, settings.instruction)
        asked = OpenRequest(
            policy=policy,
            principal=self._caller.name,
            caller=self._caller,
            settings=settings,
            live=live,
            follow=follow,
            rate_hz=convert.live_rate(policy, message.rate_hz, live),
            seed=seed,
            episode_id=message.episode_id,
            client=message.client,
            codecs=frozenset(negotiate(message.codecs, policy.spec.inputs)),
        )
        try:
            session = self._core.open(asked)
        except (NoFreeSlotError, DrainingError):
            address = None if self._core.elsewhere is None else await self._core.elsewhere(policy)
            if address is None:
                raise
            self._go_to(address, b"")
            self._outbox.close()
            return
        self._attach(session)
        self._begin(session, resumed=False)

    def _attach(self, session: Session) -> None:
        self._session = session
        self._attached = True
        self._decoder = Decoder(session.policy.spec.inputs, session.codecs, self._max_message_bytes)
        self._has_jpeg = pb.CODEC_JPEG in session.codecs
        self._takes_instruction = session.policy.spec.takes_instruction
        self._sums = any(spec.merge is Merge.SUM for spec in session.policy.spec.inputs)
        session.on_end = self._ended
        session.on_moved = self._go_to

    def _current(self) -> Session | None:
        """Return the session while it is this stream's: not over, and not taken over by a newer stream."""
        return self._session if self._attached else None

    def _begin(self, session: Session, resumed: bool) -> None:
        session.sink = self._answer
        session.on_step_error = lambda slot, seq, error: self._outbox.put(convert.step_error(seq, error))
        self._outbox.put(ps.PlayResponse(opened=self._opened(session, resumed)))

    async def _settled(self, session: Session) -> None:
        """Wait until a session that is being moved has left, or stays."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._core.moves.when_over(session, lambda: _settle(over))
        await over

    def _go_to(self, address: str, token: bytes) -> None:
        self._outbox.put(ps.PlayResponse(moved=ps.Moved(address=address, resume_token=token)))

    def _ended(self, error: PlayserveError | None) -> None:
        self._attached = False
        self._outbox.close(error)

    def _opened(self, session: Session, resumed: bool) -> ps.Opened:
        limits, slot = self._core.limits, session.slots[0]
        opened = ps.Opened(
            session_id=session.session_id,
            resume_token=session.resume_token,
            policy=session.policy.to_proto(self._core.catalog.aliases_of(session.policy)),
            codecs=convert.codec_list(session.codecs),
            max_message_bytes=self._max_message_bytes,
            idle_timeout_us=limits.idle_timeout_ns // 1000,
            detach_window_us=limits.detach_window_ns // 1000,
            max_steps_in_flight=limits.max_steps_in_flight,
            seed=slot.seed,
            config_revision=session.settings.revision,
            resumed=resumed,
            episode_id=slot.seen_episode,
        )
        if resumed:
            opened.last_seq = slot.entered_seq
            if slot.last_answer is not None:
                opened.last_result.CopyFrom(convert.result_message(slot.last_answer, time.monotonic_ns()).result)
        return opened

    # -- messages -------------------------------------------------------------------------------------------------

    async def _handle(self, session: Session, request: ps.PlayRequest) -> None:
        self._core.heard(session)
        kind = request.WhichOneof("message")
        seq = 0
        try:
            if kind == "step":
                seq = request.step.seq
                await self._step(session, request.step)
            elif kind == "executed":
                seq = request.executed.seq
                executed = request.executed
                action = convert.executed_action(session.policy, executed.action, executed.source)
                session.slots[0].executed(seq, action)
                if self._keeper is not None:
                    self._keeper.executed(session, seq, action, executed.source)
            elif kind == "ping":
                self._outbox.put(ps.PlayResponse(pong=ps.Pong(nonce=request.ping.nonce)))
            elif kind == "reset":
                seed = request.reset.seed if request.reset.HasField("seed") else None
                self._core.reset(session, request.reset.episode_id, seed)
                self._outbox.put(ps.PlayResponse(reset_done=ps.ResetDone(episode_id=request.reset.episode_id)))
            elif kind == "configure":
                self._configure(session, request.configure)
            elif kind == "open":
                raise AlreadyOpenError(f"session {session.session_id} is open already")
            else:
                raise MalformedMessageError("a message without content, or of a kind that this server does not know")
        except PlayserveError as error:
            self._core.metrics.error(session.policy.spec.name, error.reason)
            if seq == 0 and self._configuring:  # it has no number: the client knows it by its order
                refusal = convert.step_error(seq, error)
                self._in_turn(lambda: self._outbox.put(refusal))
            else:
                self._outbox.put(convert.step_error(seq, error))

    async def _step(self, session: Session, step: ps.Step) -> None:
        arrived_ns = time.monotonic_ns()
        if step.seq == 0:
            raise SeqNotIncreasingError("step 0; a session's steps are numbered from 1")
        assert self._decoder is not None  # noqa: S101 - set with the session
        slot = session.slots[0]
        if slot.last_answer is not None and slot.last_answer.frame.seq == step.seq:
            self._answer([slot.last_answer])
            return
        too_many = over_quota(session, arrived_ns)
        if too_many and not self._sums:  # not worth unpacking
            shed(self._core, slot, self._frame(session, step, {}, arrived_ns))
            self._show(session, step)
            return
        if self._has_jpeg and any(tensor.codec == pb.CODEC_JPEG for tensor in step.inputs):
            loop = asyncio.get_running_loop()
            inputs = await loop.run_in_executor(self._decoders, self._decoder.decode_step, step.inputs)
            if self._current() is None:
                return
        else:
            inputs = self._decoder.decode_step(step.inputs)
        if self._takes_instruction and not session.policy.runtime.knows_instruction(session.settings.instruction):
            await self._read_again(session)
            if self._current() is None:
                return
        frame = self._frame(session, step, inputs, arrived_ns)
        if too_many:
            shed(self._core, slot, frame)
            self._show(session, step)
            return
        if self._core.arrive(slot, frame) is Arrival.REPEATED and slot.last_answer is not None:
            self._answer([slot.last_answer])
            return
        self._show(session, step)
        if self._keeper is not None:
            self._keeper.frame(session, frame)
        self._core.pump_soon()

    def _show(self, session: Session, step: ps.Step) -> None:
        if self._watching:
            self._watching.step(session, step)

    @staticmethod
    def _frame(session: Session, step: ps.Step, inputs: Mapping[str, Array], arrived_ns: int) -> Frame:
        frame = Frame(
            seq=step.seq,
            episode_id=step.episode_id,
            inputs=inputs,
            arrived_ns=arrived_ns,
            settings=session.settings,
            ticks=step.ticks or 1,
            decode_ns=time.monotonic_ns() - arrived_ns,
            observe_only=step.observe_only,
            capture_time_ns=step.capture_time_ns,
        )
        if session.policy.is_world:
            frame.executed = convert.world_action(session.policy, step.action)
            frame.executed_known = frame.executed_told = True
        if step.budget_us:
            frame.budget = True
            frame.deadline_ns = arrived_ns + step.budget_us * 1000
        return frame

    async def _read_again(self, session: Session) -> None:
        """Embed the instruction in force once more: so many others were read since that it was forgotten."""
        try:
            await embed(session.policy, self._embedders, session.settings.instruction)
        except PlayserveError as error:
            raise StepFailedError(str(error)) from error

    def _configure(self, session: Session, message: ps.Configure) -> None:
        text = message.instruction if message.HasField("instruction") else session.settings.instruction
        slow = text != session.settings.instruction and session.policy.spec.takes_instruction
        if not slow and not self._configuring:
            self._apply(session, _changes(message))
            return
        # The game goes on under the old settings until the new instruction is embedded. What is changed after it waits
        # for it: clients know their Configured by its order.
        embedding = asyncio.create_task(self._read_changes(session, message))
        self._in_turn(lambda: self._settle_changes(session, embedding), embedding)

    async def _read_changes(self, session: Session, message: ps.Configure) -> dict[str, Any] | PlayserveError:
        try:
            changes = _changes(message)
            if "instruction" in changes:
                await embed(session.policy, self._embedders, changes["instruction"])
        except PlayserveError as error:
            return error
        return changes

    def _settle_changes(self, session: Session, embedding: asyncio.Task[dict[str, Any] | PlayserveError]) -> None:
        changes = embedding.result()
        if isinstance(changes, PlayserveError):
            self._core.metrics.error(session.policy.spec.name, changes.reason)
            self._outbox.put(convert.step_error(0, changes))
        elif self._current() is session:
            self._apply(session, changes)

    def _in_turn(self, answer: Callable[[], None], *first: asyncio.Task[Any]) -> None:
        """Call `answer` after the changes of settings that were asked for before, and after `first`."""
        wait_for = {*self._configuring[-1:], *first}

        async def wait() -> None:
            try:
                await asyncio.wait(wait_for)
            except asyncio.CancelledError:  # the stream is over
                for task in first:
                    task.cancel()
                raise
            if self._session is not None and self._session.held:
                await self._settled(self._session)  # what is changed now would stay behind
            answer()

        task = asyncio.create_task(wait())
        self._configuring.append(task)
        task.add_done_callback(self._configuring.remove)

    def _apply(self, session: Session, changes: dict[str, Any]) -> None:
        settings = self._core.configure(session, **changes)
        self._outbox.put(ps.PlayResponse(configured=ps.Configured(revision=settings.revision)))

    def _answer(self, answers: Sequence[Answer]) -> None:
        now_ns = time.monotonic_ns()
        for answer in answers:
            message = convert.result_message(answer, now_ns)
            if self._trace is not None:
                self._trace.answered(answer, now_ns)
            self._outbox.put(message)
            if self._watching:
                self._watching.result(answer.slot.session, message.result)


def _changes(message: ps.Configure) -> dict[str, Any]:
    """Return the fields of `Settings` that a Configure changes; raises BadSettingError."""
    changes: dict[str, Any] = {}
    if message.HasField("instruction"):
        changes["instruction"] = check_instruction(message.instruction)
    if message.HasField("sampling"):
        changes |= convert.sampling_settings(message.sampling)
    if message.HasField("consent"):
        allowed = Consent.from_proto(message.consent)
        changes |= {"watch": allowed.watch, "record": allowed.record}
    return changes
