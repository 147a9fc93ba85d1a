"""One Rollout stream: many environments, any subset of them a message."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import grpc

from playserve.codec import Decoder, negotiate
from playserve.errors import (
    AlreadyOpenError,
    BadRowError,
    BadSettingError,
    EngineFailedError,
    MalformedMessageError,
    NotOpenError,
    PlayserveError,
)
from playserve.settings import check_instruction
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve_services.aborting import abort
from playserve_services.auth.gate import Caller
from playserve_services.inference import convert
from playserve_services.inference.core import InferenceCore, OpenRequest
from playserve_services.inference.decoding import Executed, refuse_world
from playserve_services.inference.embedding import EpisodeInstructions, Waiting
from playserve_services.inference.inbox import next_message
from playserve_services.inference.loader import PolicyLoader
from playserve_services.inference.outbox import Outbox
from playserve_services.inference.sampling import derive_seed
from playserve_services.inference.sessions import Answer, Frame, Session, Slot

__all__ = ["RolloutStream"]

_log = logging.getLogger(__name__)


class RolloutStream:
    """See the module's docstring; the arguments are those of `PlayStream`."""

    def __init__(
        self,
        core: InferenceCore,
        loader: PolicyLoader,
        context: grpc.aio.ServicerContext[Any, Any],
        caller: Caller,
        embedders: Executor,
        max_message_bytes: int,
    ) -> None:
        self._core = core
        self._loader = loader
        self._context = context
        self._caller = caller
        self._embedders = embedders
        self._max_message_bytes = max_message_bytes
        self._outbox = Outbox(context, core.metrics.outboxes)
        self._session: Session | None = None
        self._decoder: Decoder | None = None
        self._instructions: EpisodeInstructions | None = None  # of policies that take one
        self._seed = 0

    async def run(self) -> None:
        """Serve the stream to its end; its environments' slots are free then."""
        reader = asyncio.create_task(self._read())
        try:
            await self._outbox.run()
        finally:
            reader.cancel()
            if self._instructions is not None:
                self._instructions.cancel()
            if self._session is not None:
                self._core.detach(self._session)
        if self._outbox.error is not None:
            await abort(self._context, self._outbox.error)

    async def _read(self) -> None:
        try:
            await self._open(await next_message(self._context))
            while self._session is not None and not self._session.ended:
                await self._outbox.room()
                request = await next_message(self._context)
                if request is None or request.WhichOneof("message") == "close":
                    if self._instructions is not None:
                        await self._instructions.settled()
                    self._core.close(self._session)  # what comes after it does not count
                    return
                self._handle(self._session, request)
        except PlayserveError as error:
            self._core.metrics.error("" if self._session is None else self._session.policy.spec.name, error.reason)
            self._outbox.close(error)
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001 - one stream must not take others with it
            _log.exception("a Rollout stream failed")
            self._outbox.close(EngineFailedError("the server failed; see its log"))

    async def _open(self, request: Any) -> None:
        if request is None or request.WhichOneof("message") != "open":
            came = "nothing" if request is None else request.WhichOneof("message") or "an empty message"
            raise NotOpenError(f"the first message must be RolloutOpen; {came} came")
        message: ps.RolloutOpen = request.open
        if message.num_envs < 1:
            raise BadSettingError(f"num_envs {message.num_envs}, wanted at least 1")
        seed = message.seed if message.HasField("seed") else secrets.randbits(63)
        version = self._core.catalog.choose(message.policy, message.version, seed)
        policy = await self._loader.acquire(message.policy, version)
        refuse_world(policy.spec, "a row of a rollout has no action for it")
        session = self._core.open(
            OpenRequest(
                policy=policy,
                principal=self._caller.name,
                caller=self._caller,
                settings=convert.open_settings(
                    message.sampling if message.HasField("sampling") else None, message.extras
                ),
                num_slots=message.num_envs,
                rollout=True,
                seed=seed,
                client=message.client,
                # JPEG packs one image; rows are stacked.
                codecs=frozenset(negotiate(message.codecs, policy.spec.inputs)) - {pb.CODEC_JPEG},
            )
        )
        self._session = session
        self._seed = session.slots[0].seed
        self._decoder = Decoder(policy.spec.inputs, session.codecs, self._max_message_bytes)
        if policy.spec.takes_instruction:
            self._instructions = EpisodeInstructions(
                self._core,
                session,
                self._embedders,
                lambda env_id, error: self._refuse(session, env_id, error),
                self._core.limits.max_steps_in_flight,
            )
        session.sink = self._answer
        session.on_end = self._outbox.close
        session.on_step_error = lambda slot, seq, error: self._outbox.put(convert.row_error(slot.row, error))
        self._outbox.put(
            ps.RolloutResponse(
                opened=ps.RolloutOpened(
                    session_id=session.session_id,
                    policy=policy.to_proto(self._core.catalog.aliases_of(policy)),
                    codecs=convert.codec_list(session.codecs),
                    max_message_bytes=self._max_message_bytes,
                    max_steps_in_flight=self._core.limits.max_steps_in_flight,
                    seed=self._seed,
                    idle_timeout_us=self._core.limits.idle_timeout_ns // 1000,
                )
            )
        )

    def _handle(self, session: Session, request: ps.RolloutRequest) -> None:
        self._core.heard(session)
        kind = request.WhichOneof("message")
        try:
            if kind == "step":
                self._step(session, request.step)
            elif kind == "ping":
                self._outbox.put(ps.RolloutResponse(pong=ps.Pong(nonce=request.ping.nonce)))
            elif kind == "open":
                raise AlreadyOpenError(f"rollout {session.session_id} is open already")
            else:
                raise MalformedMessageError("a message without content, or of a kind that this server does not know")
        except PlayserveError as error:
            self._refuse(session, None, error)

    def _refuse(self, session: Session, env_id: int | None, error: PlayserveError) -> None:
        self._core.metrics.error(session.policy.spec.name, error.reason)
        self._outbox.put(convert.row_error(env_id, error))

    def _step(self, session: Session, step: ps.RolloutStep) -> None:
        """Check the whole message before any row of it enters a mailbox."""
        arrived_ns = time.monotonic_ns()
        slots = self._slots(session, step)
        assert self._decoder is not None  # noqa: S101 - set with the session
        stacked = self._decoder.decode_rows(step.inputs, len(slots))
        texts = step.episode_instructions
        for text in set(texts):
            check_instruction(text)
        refused, later = self._executed(session, step)
        seeds = step.episode_seeds or [derive_seed(self._seed, episode) for episode in step.episode_ids]
        decode_ns = time.monotonic_ns() - arrived_ns
        for i, slot in enumerate(slots):
            if slot.row in refused:
                continue  # answered by its error
            frame = Frame(
                seq=slot.seen_seq + 1,
                episode_id=step.episode_ids[i],
                inputs={name: array[i] for name, array in stacked.items()},
                arrived_ns=arrived_ns,
                settings=session.settings,
                episode_seed=seeds[i],
                decode_ns=decode_ns,
            )
            if self._instructions is not None:
                item = Waiting(frame, texts[i] if texts else "", later.pop(slot.row, ()))
                self._instructions.take(slot, item)
                continue
            try:
                self._core.arrive(slot, frame)
            except PlayserveError as error:
                self._refuse(session, slot.row, error)
        if self._instructions is not None:
            for env_id, told in later.items():
                self._instructions.take(session.slots[env_id], Waiting(None, told=told))
        self._core.pump_soon()

    def _executed(self, session: Session, step: ps.RolloutStep) -> tuple[set[int], dict[int, tuple[Executed, ...]]]:
        """Take note of what was executed; return the environments where that was refused, and what has to wait."""
        told = [(self._slot(session, row.env_id), row) for row in step.executed]
        refused: dict[int, PlayserveError] = {}
        later: dict[int, tuple[Executed, ...]] = {}
        for slot, row in told:
            try:
                action = convert.executed_action(session.policy, row.action, row.source)
                if self._instructions is not None and self._instructions.waits(slot.row):
                    later[slot.row] = (action,)
                else:
                    slot.executed(slot.seen_seq, action)
            except PlayserveError as error:
                refused[slot.row] = error
        for env_id, why in refused.items():
            self._refuse(session, env_id, why)
        return set(refused), later

    def _slot(self, session: Session, env_id: int) -> Slot:
        if env_id >= len(session.slots):
            raise BadRowError(f"environment {env_id}; this rollout has {len(session.slots)}, numbered from 0")
        return session.slots[env_id]

    def _slots(self, session: Session, step: ps.RolloutStep) -> list[Slot]:
        n = len(step.env_ids)
        if n == 0:
            raise BadRowError("a step without rows")
        columns = len(step.episode_seeds), len(step.episode_instructions)
        if len(step.episode_ids) != n or not {*columns} <= {0, n}:
            raise BadRowError(
                f"{n} env_ids, {len(step.episode_ids)} episode_ids, {columns[0]} episode_seeds, {columns[1]} "
                f"episode_instructions; wanted {n} of each, or no seeds and no instructions"
            )
        if len(set(step.env_ids)) != n:
            raise BadRowError(f"an environment twice among {list(step.env_ids)}")
        return [self._slot(session, env_id) for env_id in step.env_ids]

    def _answer(self, answers: Sequence[Answer]) -> None:
        self._outbox.put(convert.rollout_message(answers, time.monotonic_ns()))
