"""The side that gives: one session goes to one peer. Its game goes on but for the last few milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from playserve.errors import PlayserveError, SessionClosedError, StateError, TimeoutExceededError, from_rpc_error
from playserve.settings import Consent, Extras, MouseDecode, Sampling, SamplingMode
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import state_transfer_service_pb2 as st
from playserve_services.inference import convert
from playserve_services.inference.core import InferenceCore
from playserve_services.inference.handoff.engine_calls import between_batches
from playserve_services.inference.handoff.exports import (
    CHUNK_BYTES,
    Contents,
    Delta,
    LastExport,
    groups_of,
    snapshot_head,
)
from playserve_services.inference.handoff.peers import Peer
from playserve_services.inference.moves import NewHome
from playserve_services.inference.record import SlotRecord
from playserve_services.inference.sessions import Session, SessionState, Settings, Slot
from playserve_services.inference.slots import Part, SlotPool

__all__ = ["Given", "Giver"]

#: Memories that are no larger go while the session stands still, all at once.
_AT_ONCE_BYTES = 256 << 10
#: So often a snapshot is begun anew, where its episode has ended meanwhile.
_SNAPSHOTS = 3
#: So many deltas follow it at most, each of what was written while the one before it went.
_DELTAS = 8
#: A delta is worth sending if there is less to send than the last time, by this factor.
_SHRINKING = 0.75
_TRANSFER_S = 60.0
_GOODBYE_S = 1.0
_WILDCARDS = ("", "0.0.0.0", "::")  # noqa: S104 - nobody listens here: players cannot dial these
#: A session does not stand still for longer: it goes on here, and may be moved later.
_STILL_S = 1.0


@dataclass(frozen=True, slots=True)
class Given:
    """A session that has gone.

    Attributes:
        home: Where it lives now.
        pause_s: How long it stood still.
        bytes_sent: Of its memory.
    """

    home: NewHome
    pause_s: float
    bytes_sent: int


class Giver:
    """Gives sessions away; several at a time, of which one stands still. Event loop's thread only.

    Args:
        core: Owns them.
    """

    def __init__(self, core: InferenceCore) -> None:
        self._core = core
        self._turn = asyncio.Lock()
        self._calm = asyncio.Event()  # nobody stands still, so that snapshots may go on
        self._calm.set()

    async def give(self, session: Session, peer: Peer) -> Given:
        """Hand a session to a peer. If that fails it plays on here, as if nothing had been.

        Raises:
            PlayserveError: Why it stays.
        """
        moves = self._core.moves
        moves.begin(session)
        call: Any = None
        given = False
        try:
            async with asyncio.timeout(_TRANSFER_S):
                call = peer.transfer()
                transfer = _Transfer(self._core, session, peer, call, self._calm)
                await transfer.offer()
                await transfer.snapshot()
                async with self._turn:
                    home, pause_s = await self._finish(transfer)
                given = True
                await _half_close(call)
                return Given(home, pause_s, transfer.bytes_sent)
        except TimeoutError as error:
            raise TimeoutExceededError(f"{peer.address} did not take the session in time") from error
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.InvalidStateError as error:  # grpc.aio's, of a call that is over
            raise await _why(call) from error
        finally:
            if not given:
                moves.stay(session)
                if call is not None:
                    call.cancel()

    async def _finish(self, transfer: _Transfer) -> tuple[NewHome, float]:
        """Let the session stand still, send what has changed, and let it leave; return where to, and its pause."""
        async with asyncio.timeout(_STILL_S):
            await transfer.hold()
            began = time.monotonic()
            self._calm.clear()
            try:
                home = _reachable(await transfer.commit(), transfer.peer)
                transfer.check()
                self._core.moves.leave(transfer.session, home)
            finally:
                self._calm.set()
        return home, time.monotonic() - began


class _Transfer:
    """One call, from the offer to the commit."""

    def __init__(self, core: InferenceCore, session: Session, peer: Peer, call: Any, calm: asyncio.Event) -> None:
        self._core, self.session, self.peer, self._call, self._calm = core, session, peer, call, calm
        self._slot: Slot = session.slots[0]
        self._lease = self._slot.lease
        self._pool: SlotPool = self._lease.pool
        self._snapshot = ""  # the digest of what was sent last, while the game went on
        self._began = (0, 0)  # episodes and frames of the memory when that was begun
        self.bytes_sent = 0

    def check(self) -> None:
        """Raise SessionClosedError if the session is no longer there to be moved."""
        if self.session.state is not SessionState.MOVING:
            raise SessionClosedError(f"the session ended, or is closing, while it was moved ({self.session.state})")

    async def offer(self) -> None:
        """Send the header; return once a slot is reserved."""
        spec = self.session.policy.spec
        header = st.StateHeader(
            policy=spec.name,
            version=spec.version,
            state_layout=self._pool.digest,
            state_bytes=self._pool.bytes_per_slot,
            session_id=self.session.session_id,
            principal=self.session.principal,
            open=_open_of(self.session),
        )
        await self._call.write(st.TransferStateRequest(header=header))
        await self._answer("accepted")

    async def snapshot(self) -> None:
        """Send the whole memory while the game goes on, unless it is so small that it can wait."""
        if self._pool.bytes_per_slot <= _AT_ONCE_BYTES:
            return
        for _ in range(_SNAPSHOTS):
            if self._slot.fresh:
                return
            self._began = (self._slot.begun, self._slot.age)
            await self._send_snapshot()
            await self._deltas()
            if self._slot.begun == self._began[0]:
                return

    async def _deltas(self) -> None:
        """Send what was written meanwhile, and again, as long as that leaves less and less."""
        left = float(self._pool.bytes_per_slot)
        for _ in range(_DELTAS):
            now = (self._slot.begun, self._slot.age)
            if self._slot.fresh or now[0] != self._began[0]:
                return
            parts = self._changed()
            size = sum(map(self._pool.part_bytes, parts))
            if size <= _AT_ONCE_BYTES or size > _SHRINKING * left:
                return
            delta = Delta(self._snapshot, await self._read(parts, calm=True))
            data, digest = await asyncio.to_thread(delta.pack)
            await self._send_export(data, calm=True)
            self._snapshot, self._began, left = digest, now, size

    async def _send_snapshot(self) -> None:
        loop = asyncio.get_running_loop()
        head = snapshot_head(self._pool)
        digest = hashlib.sha256(head)
        await self._send(head, 0)
        at = len(head)
        for name, begin, end in self._pool.chunks(CHUNK_BYTES):
            await self._until_calm()
            piece = bytearray(end - begin)
            read = partial(self._pool.read_chunk, self._lease.slot, name, memoryview(piece), begin)
            await between_batches(self._core.engine, read)
            await loop.run_in_executor(None, digest.update, piece)
            await self._send(bytes(piece), at)
            at += len(piece)
        self._snapshot = digest.hexdigest()
        await self._send(digest.digest(), at, last=True)

    async def hold(self) -> None:
        """Return once nothing of the session is in the engine; nothing will be, until it has gone or stays."""
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def idle() -> bool:
            wanted = not held.done()
            if wanted:
                held.set_result(None)
            return wanted

        self._core.moves.hold(self.session, idle)
        await held
        self.check()

    def _changed(self) -> list[Part]:
        """Return what the receiver does not have of the memory."""
        if self._slot.fresh:
            return []
        begun, age = self._began
        if self._snapshot and self._slot.begun == begun:
            return self._pool.written(age, self._slot.age)
        self._snapshot = ""
        return self._pool.parts()

    async def commit(self) -> NewHome:
        """Send what the session is now; return where it lives once the receiver has it."""
        parts = self._changed()
        if self._slot.fresh:
            self._snapshot = ""
        contents = await self._read(parts)
        record = SlotRecord.of(self._slot, time.monotonic_ns())
        data, digest = LastExport(record, self._snapshot, contents).pack()
        await self._send_export(data)
        answer = self._slot.last_answer
        last = None if answer is None else convert.result_message(answer, time.monotonic_ns()).result
        commit = st.StateCommit(last_seq=self._slot.entered_seq, sha256=digest, last_result=last)
        await self._call.write(st.TransferStateRequest(commit=commit))
        committed = (await self._answer("committed")).committed
        return NewHome(committed.address, committed.resume_token)

    async def _until_calm(self) -> None:
        """Return while nobody stands still; raises as :meth:`check`."""
        await self._calm.wait()
        self.check()

    async def _read(self, parts: list[Part], *, calm: bool = False) -> Contents:
        """Return parts of the memory with their bytes; with `calm` read only while nobody stands still."""
        slot, pool, found = self._lease.slot, self._pool, list[bytearray]()
        for group in groups_of(pool, parts):
            if calm:
                await self._until_calm()
            read = partial(_read_parts, pool, slot, group)
            found += await between_batches(self._core.engine, read)
        return list(zip(parts, found, strict=True))

    async def _send_export(self, data: bytes, *, calm: bool = False) -> None:
        """Send an export in chunks; with `calm` only while nobody stands still."""
        for at in range(0, len(data), CHUNK_BYTES):
            if calm:
                await self._until_calm()
            piece = data[at : at + CHUNK_BYTES]
            await self._send(piece, at, last=at + len(piece) == len(data))

    async def _send(self, data: bytes, offset: int, *, last: bool = False) -> None:
        chunk = st.StateChunk(offset=offset, data=data, last=last)
        await self._call.write(st.TransferStateRequest(chunk=chunk))
        self.bytes_sent += len(data)

    async def _answer(self, wanted: str) -> st.TransferStateResponse:
        response = await self._call.read()
        if response is grpc.aio.EOF:
            raise StateError(f"the receiver ended the transfer; {wanted!r} was wanted")
        message: st.TransferStateResponse = response
        if message.WhichOneof("message") != wanted:
            raise StateError(f"the receiver answered {message.WhichOneof('message')!r}; {wanted!r} was wanted")
        return message


def _read_parts(pool: SlotPool, slot: int, parts: list[Part]) -> list[bytearray]:
    """Engine's thread."""
    return [pool.read_part(slot, part) for part in parts]


def _reachable(home: NewHome, peer: Peer) -> NewHome:
    """Return where players reach a session: where we reached the peer, if it listens everywhere and says no more."""
    host = home.address.rpartition(":")[0].strip("[]")
    return NewHome(peer.address, home.token) if host in _WILDCARDS else home


def _open_of(session: Session) -> ps.Open:
    """Return an Open that asks for what a session has now."""
    settings: Settings = session.settings
    spec = session.policy.spec
    sampling = Sampling(
        mode=SamplingMode.ARGMAX if settings.argmax else SamplingMode.SAMPLE,
        temperature=settings.temperature,
        mouse_decode=MouseDecode[settings.decode.upper()] if settings.decode else MouseDecode.DEFAULT,
    )
    return ps.Open(
        policy=spec.name,
        version=spec.version,
        version_policy=ps.VERSION_POLICY_FOLLOW if session.follow else ps.VERSION_POLICY_PINNED,
        pace=ps.PACE_LIVE if session.live else ps.PACE_LOCKSTEP,
        rate_hz=session.rate_hz,
        seed=session.slots[0].seed,
        sampling=sampling.to_proto(),
        instruction=settings.instruction,
        extras=Extras(log_prob=settings.log_prob, value=settings.value).to_proto(),
        consent=Consent(watch=settings.watch, record=settings.record).to_proto(),
        client=session.client,
        codecs=convert.codec_list(session.codecs),
        episode_id=session.slots[0].seen_episode,
    )


async def _half_close(call: Any) -> None:
    """Let the call end; how, does not matter any more."""
    with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError, TimeoutError):
        async with asyncio.timeout(_GOODBYE_S):
            await call.done_writing()
            await call.read()


async def _why(call: Any) -> PlayserveError:
    """Return how a call ended that was written to too late."""
    try:
        await call.read()
    except grpc.RpcError as error:
        return from_rpc_error(error)
    return StateError("the receiver ended the transfer")
