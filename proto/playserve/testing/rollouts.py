"""One Rollout stream of the fake server."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import numpy as np

from playserve.codec import Array, Decoder, action_to_proto, encode, negotiate
from playserve.errors import (
    AlreadyOpenError,
    BadRowError,
    DrainingError,
    EpisodeReusedError,
    ExecutedUnknownError,
    MalformedMessageError,
    NotImplementedHereError,
    NotOpenError,
    PlayserveError,
    QueueFullError,
    to_status,
)
from playserve.settings import Extras, check_instruction
from playserve.specs import DiscreteActionSpec, PolicyKind
from playserve.testing.faults import Settings
from playserve.testing.play import Inbox
from playserve.testing.policies import FakePolicy, FakeReply
from playserve.testing.sessions import Memory, Table, check_executed, log_probs, read_sampling
from playserve.v1 import policy_service_pb2 as ps

__all__ = ["RolloutStream"]


class RolloutStream:
    """Serves one Rollout call.

    Args:
        table: Policies and slots.
        settings: Limits and faults of the server.
        requests: The call's request iterator, of bytes.
        context: The call.
    """

    def __init__(
        self, table: Table, settings: Settings, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> None:
        self._table, self._settings = table, settings
        self._inbox = Inbox(requests, ps.RolloutRequest, context)
        self._waiting: deque[Any] = deque()

    def end(self, error: PlayserveError) -> None:
        """End the stream with `error`, from any thread."""
        self._inbox.put(error)

    def responses(self) -> Iterator[ps.RolloutResponse]:
        """Yield every answer; a PlayserveError raised here ends the stream with its status."""
        _, first = self._inbox.get(self._settings.idle_timeout_s)
        if first is None:
            return
        if isinstance(first, PlayserveError):
            raise first
        if first.WhichOneof("message") != "open":
            raise NotOpenError(f"the first message is {first.WhichOneof('message') or 'empty'}, wanted open")
        if self._settings.draining:
            raise DrainingError("the server takes no new rollouts", retry_after_s=1.0)
        message = first.open
        policy = self._table.find(message.policy, message.version)
        if policy.spec.kind is PolicyKind.WORLD:
            raise NotImplementedHereError(f"policy {message.policy!r} is a world, and a row has no action for it")
        rows = Rows(policy, message, self._settings)
        self._table.take_slots(policy, message.num_envs)
        try:
            yield ps.RolloutResponse(opened=rows.opened(self._table))
            yield from self._serve(rows)
        finally:
            self._table.free_slots(policy, message.num_envs)

    def _serve(self, rows: Rows) -> Iterator[ps.RolloutResponse]:
        while True:
            if not self._waiting:
                self._waiting.append(self._inbox.get(self._settings.idle_timeout_s)[1])
            self._waiting.extend(item for _, item in self._inbox.drain())
            request = self._waiting.popleft()
            if request is None:
                return
            if isinstance(request, PlayserveError):
                raise request
            kind = request.WhichOneof("message")
            if kind == "close":
                return
            if kind == "ping":
                yield ps.RolloutResponse(pong=ps.Pong(nonce=request.ping.nonce))
                continue
            try:
                if kind == "open":
                    raise AlreadyOpenError("open came twice")
                if kind is None:
                    raise MalformedMessageError("a message without content")
                if self._settings.delay_s > 0:
                    time.sleep(self._settings.delay_s)
                    self._waiting.extend(item for _, item in self._inbox.drain())
                rows.mark_excess(request, [item for item in self._waiting if isinstance(item, ps.RolloutRequest)])
                yield from rows.step(request)
            except PlayserveError as error:
                yield ps.RolloutResponse(error=ps.RolloutError(status=to_status(error)))


class Rows:
    """The environments of one rollout."""

    def __init__(self, policy: FakePolicy, message: ps.RolloutOpen, settings: Settings) -> None:
        self._policy, self._settings = policy, settings
        self._sampling = read_sampling(message)
        self._extras = Extras.from_proto(message.extras)
        self._num_envs = message.num_envs
        self._codecs = negotiate(message.codecs, policy.spec.inputs)
        self._decoder = Decoder(policy.spec.inputs, self._codecs, settings.max_message_bytes)
        self._seed = message.seed if message.HasField("seed") else secrets.randbits(63)
        self._session_id = secrets.token_hex(8)
        self._memories: dict[int, Memory] = {}
        self._excess: set[tuple[int, int]] = set()

    def opened(self, table: Table) -> ps.RolloutOpened:
        """Return the answer to RolloutOpen."""
        return ps.RolloutOpened(
            session_id=self._session_id,
            policy=table.describe(self._policy),
            codecs=[codec.value for codec in self._codecs],
            max_message_bytes=self._settings.max_message_bytes,
            max_steps_in_flight=self._settings.max_steps_in_flight,
            seed=self._seed,
            idle_timeout_us=int(self._settings.idle_timeout_s * 1e6),
        )

    def mark_excess(self, head: ps.RolloutRequest, waiting: Sequence[ps.RolloutRequest]) -> None:
        """Remember which rows of which waiting messages are too many; they fail in their turn."""
        counts = dict.fromkeys(head.step.env_ids, 1)
        for request in waiting:
            for env_id in request.step.env_ids:
                if (id(request), env_id) in self._excess:
                    continue
                counts[env_id] = counts.get(env_id, 0) + 1
                if counts[env_id] > self._settings.max_steps_in_flight:
                    self._excess.add((id(request), env_id))

    def step(self, request: ps.RolloutRequest) -> Iterator[ps.RolloutResponse]:
        """Yield errors of rows, then the answers of the others; refuse the whole message by raising."""
        message = request.step
        excess = {env_id for env_id in message.env_ids if (id(request), env_id) in self._excess}
        self._excess.difference_update((id(request), env_id) for env_id in excess)
        env_ids, episode_ids, seeds = list(message.env_ids), list(message.episode_ids), list(message.episode_seeds)
        n, texts = len(env_ids), list(message.episode_instructions)
        if n == 0 or len(episode_ids) != n or not {len(seeds), len(texts)} <= {0, n}:
            raise BadRowError(
                f"{n} env ids, {len(episode_ids)} episode ids, {len(seeds)} seeds, {len(texts)} instructions; wanted "
                "as many of each, or no seeds and no instructions"
            )
        for text in set(texts):
            check_instruction(text)
        if len(set(env_ids)) != n or max(env_ids) >= self._num_envs:
            raise BadRowError(f"env ids {env_ids[:16]}, wanted different ones, 0..{self._num_envs - 1}")
        if odd := [row.env_id for row in message.executed if row.env_id >= self._num_envs]:
            raise BadRowError(f"executed names environments {odd[:16]}, wanted 0..{self._num_envs - 1}")
        inputs = self._decoder.decode_rows(message.inputs, n)
        executed = {row.env_id: row for row in message.executed}
        good: list[tuple[int, FakeReply]] = []
        for i, env_id in enumerate(env_ids):
            try:
                if env_id in excess:
                    raise QueueFullError(f"more than {self._settings.max_steps_in_flight} rows wait unanswered")
                row_inputs = {name: array[i] for name, array in inputs.items()}
                new = seeds[i] if seeds else None, texts[i] if texts else ""
                good.append((i, self._row(env_id, episode_ids[i], new, row_inputs, executed.pop(env_id, None))))
            except PlayserveError as error:
                yield ps.RolloutResponse(error=ps.RolloutError(env_id=env_id, status=to_status(error)))
        for env_id, row in executed.items():
            try:
                self._take_executed(env_id, row)
            except PlayserveError as error:
                yield ps.RolloutResponse(error=ps.RolloutError(env_id=env_id, status=to_status(error)))
        if good:
            yield ps.RolloutResponse(result=self._result(env_ids, episode_ids, good))

    def _take_executed(self, env_id: int, row: ps.RowExecuted) -> None:
        memory = self._memories.get(env_id)
        if memory is None:
            raise ExecutedUnknownError(f"executed names environment {env_id}, which has made no step")
        memory.tell(*check_executed(row, self._policy))

    def _row(
        self,
        env_id: int,
        episode_id: int,
        new: tuple[int | None, str],
        inputs: dict[str, Array],
        executed: ps.RowExecuted | None,
    ) -> FakeReply:
        """Play one row; `new` are seed and instruction of its episode, should that be new."""
        memory = self._memories.get(env_id)
        if memory is not None and episode_id < memory.episode_id:
            raise EpisodeReusedError(f"episode {episode_id}, wanted {memory.episode_id} or more")
        if executed is not None:
            self._take_executed(env_id, executed)
        if (fault := self._settings.take_row_failure(env_id)) is not None:
            raise fault
        if memory is None or episode_id > memory.episode_id:
            derived = (self._seed * 1_000_003 + episode_id) % 2**64
            memory = self._memories[env_id] = Memory(episode_id, derived if new[0] is None else new[0])
            memory.instruction = new[1]
        return memory.run(
            self._policy,
            inputs,
            session_id=self._session_id,
            sampling=self._sampling,
            extras=self._extras,
            instruction=memory.instruction,
            env_id=env_id,
        )

    def _result(
        self, env_ids: Sequence[int], episode_ids: Sequence[int], good: Sequence[tuple[int, FakeReply]]
    ) -> ps.RolloutResult:
        spec, replies = self._policy.spec, [reply for _, reply in good]
        result = ps.RolloutResult(
            env_ids=[env_ids[i] for i, _ in good],
            episode_ids=[episode_ids[i] for i, _ in good],
            outputs=[encode(np.stack([r.outputs[name] for r in replies]), name) for name in replies[0].outputs],
            log_probs=[sum(log_probs(reply, self._extras)) for reply in replies] if self._extras.log_prob else (),
            version=spec.version,
            times=ps.StepTimes(batch_size=len(good)),
        )
        if isinstance(spec.action, DiscreteActionSpec):
            result.action_indices.extend(action for r in replies for action in r.actions[:1] if isinstance(action, int))
        else:
            result.actions.extend(action_to_proto(r.actions[0], spec.action) for r in replies if r.actions)
        if self._extras.value and all(reply.value is not None for reply in replies):
            result.values.extend(reply.value for reply in replies if reply.value is not None)
        return result
