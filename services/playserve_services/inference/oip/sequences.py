"""Sequences of callers, each a session of the core in lockstep with a slot of its own.

A sequence is named by its caller's principal and by what its requests say: model, version as written, sequence_id. So
nobody can touch another's, and one that began on an alias stays on the version that this pointed at. As in Triton, a
START within a sequence begins it anew, an END lets it go once that is answered, and a silent one is forgotten.

Requests to one sequence enter one after another: opening a session, loading its policy and embedding an instruction may
wait. Event loop's thread only.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from concurrent.futures import Executor
from dataclasses import dataclass, field

from tritonclient.grpc import service_pb2 as oip

from playserve.errors import BadSettingError, DrainingError, QueueFullError, SessionClosedError
from playserve.v1 import types_pb2 as pb
from playserve_services.auth.gate import Caller
from playserve_services.inference.access import hand_over
from playserve_services.inference.catalog import LoadedPolicy
from playserve_services.inference.core import InferenceCore, OpenRequest
from playserve_services.inference.decoding import refuse_world
from playserve_services.inference.embedding import embed
from playserve_services.inference.loader import PolicyLoader
from playserve_services.inference.oip.game import Coming, Game
from playserve_services.inference.oip.parameters import Asked, SequenceId
from playserve_services.inference.oip.statistics import Statistics
from playserve_services.inference.oip.tensors import TensorReader
from playserve_services.inference.sampling import derive_seed
from playserve_services.inference.sessions import Session, Settings

__all__ = ["Sequences"]

_CLIENT = pb.ClientInfo(name="open-inference-protocol")
_Key = tuple[str, str, str, SequenceId]


@dataclass(slots=True, eq=False)
class _Sequence:
    """A name that requests use: its game, and their turns."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    game: Game | None = None
    users: int = 0


class Sequences:
    """See the module's docstring.

    Args:
        core: Owns the sessions.
        loader: Finds policies.
        embedders: Threads that embed instructions.
        max_bytes: Most that the inputs of one request may hold.
    """

    def __init__(self, core: InferenceCore, loader: PolicyLoader, embedders: Executor, max_bytes: int) -> None:
        self._core, self._loader = core, loader
        self._embedders, self._max_bytes = embedders, max_bytes
        self._open: dict[_Key, _Sequence] = {}
        self.statistics = Statistics()

    def __len__(self) -> int:
        """Return how many names are in use."""
        return len(self._open)

    async def enter(self, caller: Caller, request: oip.ModelInferRequest, asked: Asked) -> Coming:
        """Let a frame enter its sequence; return its answer to come.

        Raises:
            PolicyNotFoundError, VersionNotFoundError: There is no such model.
            NotImplementedHereError: It is a world.
            InvalidRequestError: The request is wrong, or its sequence was not begun.
            DrainingError, NoFreeSlotError, QuotaExceededError: No sequence can be begun now.
            QueueFullError: Too many calls at once for one sequence.
            SessionEndedError: The sequence ended meanwhile.
        """
        key = (caller.name, request.model_name, request.model_version, asked.sequence)
        sequence = self._open.get(key)
        if sequence is None:
            if not asked.start:
                policy = await self._find(request, None)
                self._reader(policy).read(request)  # what is wrong with it comes first, as in Triton
                raise _not_begun(request, asked)
            sequence = self._open[key] = _Sequence()
        most = self._core.limits.max_steps_in_flight
        if sequence.users >= most:  # a stream waits with one request at a time
            raise QueueFullError(f"{most} requests wait to enter sequence {asked.sequence!r}, which is the most")
        sequence.users += 1
        try:
            async with sequence.turn:
                return await self._enter(key, sequence, caller, request, asked)
        finally:
            sequence.users -= 1
            self._forget(key, sequence)

    async def _enter(
        self, key: _Key, sequence: _Sequence, caller: Caller, request: oip.ModelInferRequest, asked: Asked
    ) -> Coming:
        arrived_ns, game = time.monotonic_ns(), sequence.game
        if asked.start:
            return await self._begin(key, sequence, caller, request, asked)
        if game is None or game.over or not game.playing:
            raise _not_begun(request, asked)
        inputs = game.reader.read(request)
        await self._prepare(game.session.policy, inputs.instruction)
        await game.room()
        if game.over:
            raise SessionClosedError("the sequence ended while the request waited")
        self._check(game.session, caller)
        return game.enter(asked, request.id, inputs, arrived_ns)

    async def _begin(
        self, key: _Key, sequence: _Sequence, caller: Caller, request: oip.ModelInferRequest, asked: Asked
    ) -> Coming:
        """Begin a sequence, for the first time or anew."""
        arrived_ns = time.monotonic_ns()
        if self._core.draining:
            raise DrainingError("this server is draining and begins no sequences", retry_after_s=5.0)
        policy = await self._find(request, _seed_of(asked.sequence))
        reader = self._reader(policy)
        inputs = reader.read(request)
        seed = _seed_of(asked.sequence) if inputs.seed is None else inputs.seed
        await self._prepare(policy, inputs.instruction)
        game = sequence.game
        if game is not None and not game.over and game.session.policy is policy:
            await game.room()
        if game is not None and not game.over and game.session.policy is policy:
            self._check(game.session, caller)
            game.begin(seed)
            return game.enter(asked, request.id, inputs, arrived_ns)
        if game is not None:
            self._core.close(game.session)  # of another version; what waits there is answered
        session = self._session(policy, caller, seed)
        sequence.game = game = Game(self._core, session, reader, self.statistics, lambda: self._forget(key, sequence))
        return game.enter(asked, request.id, inputs, arrived_ns)

    def _session(self, policy: LoadedPolicy, caller: Caller, seed: int) -> Session:
        asked = OpenRequest(
            policy=policy, principal=caller.name, caller=caller, settings=Settings(), seed=seed, client=_CLIENT
        )
        return self._core.open(asked)

    async def _find(self, request: oip.ModelInferRequest, seed: int | None) -> LoadedPolicy:
        name = request.model_name
        policy = await self._loader.acquire(name, self._core.catalog.choose(name, request.model_version, seed))
        refuse_world(policy.spec, "a request of this protocol has no action for it")
        return policy

    def _reader(self, policy: LoadedPolicy) -> TensorReader:
        return TensorReader(policy.spec, self._max_bytes)

    async def _prepare(self, policy: LoadedPolicy, instruction: str) -> None:
        if not policy.runtime.knows_instruction(instruction):
            await embed(policy, self._embedders, instruction)

    @staticmethod
    def _check(session: Session, caller: Caller) -> None:
        """Put a session under the key that its owner shows now."""
        if session.caller is None or session.caller.principal.key_id != caller.principal.key_id:
            hand_over(session, caller)

    def _forget(self, key: _Key, sequence: _Sequence) -> None:
        idle = not sequence.users and (sequence.game is None or sequence.game.session.ended)
        if idle and self._open.get(key) is sequence:
            del self._open[key]


def _seed_of(sequence: SequenceId) -> int:
    """Return the seed of a sequence that brings none: it follows from the name, as in the exported model."""
    if isinstance(sequence, str):
        sequence = int.from_bytes(hashlib.blake2b(sequence.encode(), digest_size=8).digest(), "little")
    return derive_seed(0, sequence)


def _not_begun(request: oip.ModelInferRequest, asked: Asked) -> BadSettingError:
    return BadSettingError(
        f"an inference request for sequence {asked.sequence!r} to model {request.model_name!r} must specify the START "
        "flag on the first request of the sequence; it never began, has ended, or was silent too long"
    )
