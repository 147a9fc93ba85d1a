"""The side that takes: `playserve.v1.StateTransferService`. A session that came waits for its player, DETACHED."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

import grpc

from playserve.errors import (
    AlreadyOpenError,
    DataLossError,
    DrainingError,
    EngineFailedError,
    LayoutMismatchError,
    MalformedMessageError,
    PlayserveError,
    TimeoutExceededError,
)
from playserve.settings import Pace, VersionPolicy
from playserve.v1 import state_transfer_service_pb2 as st
from playserve.v1 import state_transfer_service_pb2_grpc
from playserve_services.aborting import abort
from playserve_services.auth.keys import MAX_PRINCIPAL
from playserve_services.inference import convert
from playserve_services.inference.catalog import LoadedPolicy
from playserve_services.inference.core import InferenceCore
from playserve_services.inference.embedding import embed
from playserve_services.inference.handoff.engine_calls import between_batches
from playserve_services.inference.handoff.exports import (
    Contents,
    Delta,
    LastExport,
    SnapshotReader,
    export_limit,
    groups_of,
)
from playserve_services.inference.handoff.metrics import HandoffMetrics
from playserve_services.inference.inbox import next_message
from playserve_services.inference.loader import PolicyLoader
from playserve_services.inference.record import SlotRecord
from playserve_services.inference.sessions import EndReason, Session, SessionState, Slot
from playserve_services.inference.slots import SlotLease, StateBlob

__all__ = ["StateTransferServicer"]

_log = logging.getLogger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]

#: A giver that is silent for so long has gone, and its slot is free again.
_RESERVED_S = 10.0
_SESSION_ID = re.compile(r"[0-9a-z-]{1,64}")


class StateTransferServicer(state_transfer_service_pb2_grpc.StateTransferServiceServicer):
    """Takes sessions of other replicas.

    Args:
        core: Owns the sessions.
        loader: Finds policies.
        embedders: Threads that embed instructions.
        address: Returns where players reach this server; empty: where the giver reaches it.
        metrics: Counted here.
    """

    def __init__(
        self,
        core: InferenceCore,
        loader: PolicyLoader,
        embedders: Executor,
        address: Callable[[], str],
        metrics: HandoffMetrics,
    ) -> None:
        self._core = core
        self._loader = loader
        self._embedders = embedders
        self._address = address
        self._metrics = metrics

    async def TransferState(self, request_iterator: Any, context: Context) -> None:  # type: ignore[override]
        """Take one session, or refuse it; then it stays where it is."""
        reader = _Reader(context)
        lease: SlotLease | None = None
        session: Session | None = None
        try:
            header = await reader.header()
            policy = await self._policy(header)
            (lease,) = policy.pool.allocate(1)
            await context.write(st.TransferStateResponse(accepted=st.StateAccepted(reserved_us=int(_RESERVED_S * 1e6))))
            session = self._session(header, policy, lease)
            taking = _Taking(self._core, session, reader)
            await taking.run()
            self._own(session)
            await context.write(self._committed(session))
        except PlayserveError as error:
            self._undo(lease, session)
            self._metrics.refused.labels(error.reason or error.code.name).inc()
            _log.info("a session of another server was not taken: %s", error)
            await abort(context, error)
        except BaseException:  # the giver has gone, or the server stops
            self._undo(lease, session)
            self._metrics.refused.labels("LOST").inc()
            raise

    async def _policy(self, header: st.StateHeader) -> LoadedPolicy:
        """Return the version that a session needs, ready to play it."""
        core = self._core
        if core.draining:
            raise DrainingError("this server is draining and takes no sessions", retry_after_s=5.0)
        if core.engine_dead:
            raise EngineFailedError("the engine of this server has failed")
        if not _SESSION_ID.fullmatch(header.session_id) or not 0 < len(header.principal) <= MAX_PRINCIPAL:
            raise MalformedMessageError("a session that is offered has an id, and whose it is")
        policy = await self._loader.acquire(header.policy, header.version)
        if policy.pool.digest != header.state_layout or policy.pool.bytes_per_slot != header.state_bytes:
            raise LayoutMismatchError(
                f"policy {header.policy!r} version {header.version!r} has layout {policy.pool.digest} of "
                f"{policy.pool.bytes_per_slot} bytes here; {header.state_layout} of {header.state_bytes} came"
            )
        await embed(policy, self._embedders, header.open.instruction)
        if core.has(header.session_id):
            raise AlreadyOpenError(f"session {header.session_id} lives here")
        return policy

    def _session(self, header: st.StateHeader, policy: LoadedPolicy, lease: SlotLease) -> Session:
        """Return the session, which nobody knows of yet."""
        now_ns = time.monotonic_ns()
        opening = header.open
        session = Session(
            session_id=header.session_id,
            principal=header.principal,
            policy=policy,
            live=Pace.from_proto(opening.pace) is Pace.LIVE,
            follow=VersionPolicy.from_proto(opening.version_policy) is VersionPolicy.FOLLOW,
            rate_hz=opening.rate_hz,
            settings=convert.open_settings(opening.sampling, opening.extras, opening.instruction, opening.consent),
            opened_ns=now_ns,
            heard_ns=now_ns,
            client=opening.client,
            state=SessionState.DETACHED,
            admitted=True,
        )
        session.slots = [Slot(lease, session, 0, opening.episode_id, opening.seed)]
        return session

    def _own(self, session: Session) -> None:
        if self._core.draining:
            raise DrainingError("this server is draining and takes no sessions", retry_after_s=5.0)
        if self._core.has(session.session_id):
            raise AlreadyOpenError(f"session {session.session_id} lives here")
        session.detached_ns = session.heard_ns = time.monotonic_ns()
        self._core.register(session)
        self._core.metrics.came(session)
        self._metrics.taken.labels(session.policy.spec.name).inc()

    def _committed(self, session: Session) -> st.TransferStateResponse:
        return st.TransferStateResponse(
            committed=st.StateCommitted(address=self._address(), resume_token=session.resume_token)
        )

    def _undo(self, lease: SlotLease | None, session: Session | None) -> None:
        if session is not None and self._core.owns(session):
            self._core.end(session, EndReason.STREAM_LOST)
        elif lease is not None:
            lease.pool.release(lease)


class _Reader:
    """What the giver sends, in its order."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def next(self) -> st.TransferStateRequest:
        """Return the next message.

        Raises:
            TimeoutExceededError: None came in time.
            MalformedMessageError: The giver sends no more, or what it sends is no message.
        """
        try:
            request = await asyncio.wait_for(next_message(self._context), _RESERVED_S)
        except TimeoutError as error:
            raise TimeoutExceededError(f"the giver was silent for {_RESERVED_S:g} s") from error
        if request is None:
            raise MalformedMessageError("the giver ended the transfer before its commit")
        message: st.TransferStateRequest = request
        return message

    async def header(self) -> st.StateHeader:
        """Return the first message's header."""
        request = await self.next()
        if request.WhichOneof("message") != "header":
            raise MalformedMessageError("a transfer begins with a StateHeader")
        return request.header


class _Taking:
    """One session's memory on its way into a slot that nobody plays in yet."""

    def __init__(self, core: InferenceCore, session: Session, reader: _Reader) -> None:
        self._core, self._session, self._reader = core, session, reader
        self._slot = session.slots[0]
        self._lease = self._slot.lease
        self._pool = self._lease.pool
        self._snapshot: SnapshotReader | None = None
        self._follows = ""  # digest of the snapshot or delta that came last and whole
        self._last = bytearray()  # the export that has come last, if it is no snapshot
        self._at = 0  # bytes of the export that comes now
        self._whole = False  # it has come to its end
        self._into_snapshot = False
        self._limit = export_limit(self._pool)

    async def run(self) -> None:
        """Take everything up to the commit into the slot.

        Raises:
            PlayserveError: What came is damaged, or does not fit.
        """
        while True:
            request = await self._reader.next()
            kind = request.WhichOneof("message")
            if kind == "chunk":
                await self._chunk(request.chunk)
            elif kind == "commit":
                await self._commit(request.commit)
                return
            else:
                raise MalformedMessageError(f"{kind or 'nothing'} came; chunks or a commit were wanted")

    async def _chunk(self, chunk: st.StateChunk) -> None:
        data = chunk.data
        if chunk.offset == 0:
            # Which of the two it is, its header says; that of a snapshot is told in the message before its tensors.
            is_snapshot = not chunk.last and data == SnapshotReader(self._pool).head
            if is_snapshot:
                self._snapshot, self._follows = SnapshotReader(self._pool), ""
            self._last, self._at, self._whole = bytearray(), 0, False
            self._into_snapshot = is_snapshot
        elif chunk.offset != self._at or self._whole:
            raise MalformedMessageError(f"a chunk at {chunk.offset}; {self._at} was wanted")
        self._at += len(data)
        if self._at > self._limit:
            raise LayoutMismatchError(f"an export of {self._at} bytes or more; {self._limit} are the most")
        self._whole = chunk.last
        if not self._into_snapshot:
            self._last += data
            if chunk.last:
                await self._delta()
            return
        assert self._snapshot is not None  # noqa: S101 - made with its first chunk
        pieces = self._snapshot.feed(data)
        if pieces:
            await between_batches(self._core.engine, lambda: self._write(pieces))
        if self._whole:
            self._follows = self._snapshot.digest

    async def _delta(self) -> None:
        """Put what has come into the slot, if it is a delta; a last export waits for its commit."""
        if "record" in StateBlob.unverified(self._last).header:
            return
        delta, digest = await asyncio.to_thread(Delta.unpack, bytes(self._last), self._pool)
        if delta.follows != self._follows:
            raise DataLossError("a delta that follows another export than the one that came")
        await self._put(delta.parts)
        self._follows = digest

    def _write(self, pieces: list[tuple[str, int, memoryview]]) -> None:
        """Engine's thread."""
        for name, begin, data in pieces:
            self._pool.write_chunk(self._lease.slot, name, data, begin)

    async def _commit(self, commit: st.StateCommit) -> None:
        if self._into_snapshot or not self._whole:
            raise DataLossError("a commit before the last export has come to its end")
        last = LastExport.unpack(self._last, commit.sha256, self._pool)
        self._check(last, commit)
        await self._put(last.parts)
        record: SlotRecord = last.record
        record.restore(self._slot)
        self._session.opened_ns -= record.age_us * 1000
        if commit.HasField("last_result"):
            self._slot.last_answer = convert.answer_of(commit.last_result, self._slot)

    def _check(self, last: LastExport, commit: st.StateCommit) -> None:
        record, spec = last.record, self._session.policy.spec
        if (record.layout, record.policy, record.version) != (self._pool.digest, spec.name, spec.version):
            raise LayoutMismatchError(
                f"a state of policy {record.policy!r} version {record.version!r}; {spec.name!r} {spec.version!r} was "
                "offered"
            )
        if last.follows and last.follows != self._follows:
            raise DataLossError("the last export follows another one than that which came")
        if record.entered_seq != commit.last_seq:
            raise DataLossError(f"a commit of step {commit.last_seq}; the state has step {record.entered_seq}")

    async def _put(self, contents: Contents) -> None:
        """Write parts of the memory into the slot."""
        data_of = iter(contents)
        for group in groups_of(self._pool, [part for part, _ in contents]):
            pieces = [next(data_of) for _ in group]
            await between_batches(self._core.engine, partial(self._write_parts, pieces))

    def _write_parts(self, pieces: Contents) -> None:
        """Engine's thread."""
        for part, data in pieces:
            self._pool.write_part(self._lease.slot, part, data)
