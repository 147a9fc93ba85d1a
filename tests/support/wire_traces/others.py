"""The rules of Rollout, of a state transfer, of a drain, and of a batch for Triton."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable
from typing import Any

from playserve.codec import Decoder, action_from_proto
from playserve.errors import PlayserveError
from playserve.specs import DiscreteActionSpec, PolicySpec
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import state_transfer_service_pb2 as st
from playserve.v1 import types_pb2 as pb
from wire_traces.play import PlayJudge
from wire_traces.rules import Judge, Scene, demand, reason_of

__all__ = ["JUDGES"]


class RolloutJudge:
    """Judges one Rollout call."""

    def __init__(self, scene: Scene) -> None:
        self._open: ps.RolloutOpen | None = None
        self._opened: ps.RolloutOpened | None = None
        self._waiting: dict[int, deque[int]] = {}
        self._episode: dict[int, int] = {}
        self._refusals: dict[int, str] = {}
        self._pings: deque[int] = deque()
        self._closed = False

    def up(self, message: ps.RolloutRequest) -> None:
        """Take a message of the evaluator."""
        kind = message.WhichOneof("message")
        if self._open is None:
            demand(kind == "open", f"the first message is {kind}, not open (NOT_OPEN)")
            self._open = message.open
            return
        demand(kind in ("step", "ping", "close"), f"{kind} in an open rollout")
        demand(self._opened is not None, f"{kind} before opened")
        demand(not self._closed, "nothing counts after close")
        if kind == "ping":
            self._pings.append(message.ping.nonce)
        elif kind == "close":
            self._closed = True
        else:
            self._step(message.step)

    def _step(self, step: ps.RolloutStep) -> None:
        assert self._open is not None
        rows = list(step.env_ids)
        demand(bool(rows), "a step without rows (BAD_ROW)")
        demand(len(set(rows)) == len(rows), "an environment twice (BAD_ROW)")
        demand(max(rows) < self._open.num_envs, "an environment that is not there (BAD_ROW)")
        demand(len(step.episode_ids) == len(rows), "columns differ in length (BAD_ROW)")
        demand(len(step.episode_seeds) in (0, len(rows)), "columns differ in length (BAD_ROW)")
        try:
            self._decoder.decode_rows(step.inputs, len(rows))
        except PlayserveError as error:
            demand(False, f"{error.reason}: {error}")
        for executed in step.executed:
            demand(executed.env_id in self._episode, f"executed of environment {executed.env_id}, which has no row")
            demand(executed.source != pb.ACTION_SOURCE_UNSPECIFIED, "executed without a source")
            if executed.source in (pb.ACTION_SOURCE_POLICY, pb.ACTION_SOURCE_HUMAN):
                action_from_proto(executed.action, self._spec.action)
        for env, episode in zip(rows, step.episode_ids, strict=True):
            if episode < self._episode.get(env, 0):
                self._refusals[env] = "EPISODE_REUSED"
                continue
            self._episode[env] = episode
            queue = self._waiting.setdefault(env, deque())
            queue.append(episode)
            if len(queue) > self._most:
                self._refusals[env] = "QUEUE_FULL"

    def down(self, message: ps.RolloutResponse) -> None:
        """Take a message to the evaluator."""
        kind = message.WhichOneof("message")
        demand(self._open is not None, f"{kind} before open")
        if self._opened is None:
            demand(kind == "opened", f"the first answer is {kind}, not opened")
            self._opened = message.opened
            self._spec = PolicySpec.from_proto(message.opened.policy)
            self._decoder = Decoder(self._spec.inputs, self._opened.codecs, self._opened.max_message_bytes)
            self._most = message.opened.max_steps_in_flight
            demand(self._spec.name == self._open.policy, "another policy")  # type: ignore[union-attr]
        elif kind == "pong":
            demand(bool(self._pings) and self._pings.popleft() == message.pong.nonce, "a pong without its ping")
        elif kind == "error":
            reason = reason_of(message.error.status)
            demand(message.error.HasField("env_id"), f"{reason} for a whole message that is as it should be")
            expected = self._refusals.pop(message.error.env_id, "")
            demand(reason == expected, f"{reason} for environment {message.error.env_id}, {expected or 'none'} is due")
        else:
            demand(kind == "result", f"{kind} came again")
            self._result(message.result)

    def _result(self, result: ps.RolloutResult) -> None:
        assert self._open is not None
        assert self._opened is not None
        n = len(result.env_ids)
        demand(n > 0 and len(set(result.env_ids)) == n == len(result.episode_ids), "columns differ in length")
        for env, episode in zip(result.env_ids, result.episode_ids, strict=True):
            queue = self._waiting.get(env)
            demand(bool(queue), f"a result for environment {env}, which has no row under way")
            assert queue is not None
            demand(queue.popleft() == episode, f"environment {env} is answered for episode {episode}, out of order")
        discrete = isinstance(self._spec.action, DiscreteActionSpec)
        demand((len(result.action_indices), len(result.actions)) == ((n, 0) if discrete else (0, n)), "actions")
        for index in result.action_indices:
            action_from_proto(pb.Action(index=index), self._spec.action)
        demand(bool(result.log_probs) == self._open.extras.log_prob, "log_probs are sent where they are asked for")
        demand(len(result.log_probs) in (0, n), "log_probs differ in length")
        demand(not result.values or (self._open.extras.value and len(result.values) == n), "values")
        demand(result.version == self._opened.policy.version, "a rollout changed its version")

    def end(self, code: str, reason: str) -> None:
        """Take the end of the stream."""
        if code == "OK":
            demand(self._closed, "OK without a close")
            waiting = sorted(env for env, queue in self._waiting.items() if queue)
            demand(not waiting and not self._refusals, f"rows of environments {waiting} were never answered")
            demand(not self._pings, "a ping without its pong")


class TransferJudge:
    """Judges one TransferState call."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._header: st.StateHeader | None = None
        self._accepted = self._whole = False
        self._data = bytearray()
        self._commit: st.StateCommit | None = None
        self._committed = False

    def up(self, message: st.TransferStateRequest) -> None:
        """Take a message of the replica that gives."""
        kind = message.WhichOneof("message")
        demand(self._commit is None, f"{kind} after commit")
        if self._header is None:
            demand(kind == "header", f"the first message is {kind}, not header")
            self._header = message.header
            known = [s for s in self._scene.sessions.values() if s.opened.session_id == message.header.session_id]
            demand(bool(known), "a session that is not here")
            policy = known[0].opened.policy
            theirs = (message.header.policy, message.header.version, message.header.state_layout)
            demand(theirs == (policy.name, policy.version, policy.state_layout), "another policy, version or layout")
        elif kind == "chunk":
            demand(self._accepted, "a chunk before accepted")
            if message.chunk.offset == 0:
                self._data.clear()
            demand(message.chunk.offset == len(self._data), f"a chunk at {message.chunk.offset}")
            self._data += message.chunk.data
            self._whole = message.chunk.last
            size = len(self._data)
            demand(not self._whole or size == self._header.state_bytes, f"an export of {size} bytes")
        else:
            demand(kind == "commit", f"{kind} came again")
            demand(self._whole, "a commit of half an export")
            digest = hashlib.sha256(self._data).digest()
            demand(message.commit.sha256 == digest, "the digest is not the export's (DATA_LOSS)")
            self._commit = message.commit

    def down(self, message: st.TransferStateResponse) -> None:
        """Take a message of the replica that takes."""
        kind = message.WhichOneof("message")
        if kind == "accepted":
            demand(self._header is not None and not self._accepted, "accepted out of turn")
            self._accepted = True
            return
        demand(kind == "committed" and self._commit is not None and not self._committed, f"{kind} out of turn")
        assert self._commit is not None
        assert self._header is not None
        self._committed = True
        place = (message.committed.address, self._header.session_id, self._commit.last_seq)
        demand(bool(place[0] and message.committed.resume_token), "committed without address or token")
        self._scene.committed[message.committed.resume_token] = place

    def end(self, code: str, reason: str) -> None:
        """Take the end of the stream."""
        demand(code != "OK" or self._committed, "OK without committed")


class UnaryJudge:
    """Judges a call of one request and one response."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._request: Any = None
        self._response: Any = None

    def up(self, message: Any) -> None:
        """Take the request."""
        demand(self._request is None, "a second request")
        self._request = message

    def down(self, message: Any) -> None:
        """Take the response."""
        demand(self._request is not None and self._response is None, "a response out of turn")
        self._response = message

    def end(self, code: str, reason: str) -> None:
        """Take the end of the call."""
        demand(code != "OK" or self._response is not None, "OK without a response")


_BYTES = {"FP32": 4, "INT32": 4, "INT64": 8, "UINT64": 8, "BOOL": 1, "UINT8": 1}


class TritonJudge(UnaryJudge):
    """Judges one ModelInfer call: a batch of slots, and its answer."""

    def up(self, message: Any) -> None:
        """Take a batch."""
        super().up(message)
        tensors = _tensors(message.inputs, message.raw_input_contents)
        slots = [int.from_bytes(tensors["SLOT"][i : i + 4], "little") for i in range(0, len(tensors["SLOT"]), 4)]
        generations = _u64(tensors["GENERATION"])
        demand(len({tensor.shape[0] for tensor in message.inputs}) == 1, "inputs of several batch sizes")
        demand(len(set(slots)) == len(slots) and 0 not in slots, f"slots {slots}; 0 is scratch, and each appears once")
        for slot, generation, reset in zip(slots, generations, tensors["RESET"], strict=True):
            known = self._scene.generations.get(slot, 0)
            demand(generation % 2 == 1, f"slot {slot} of generation {generation}, which nobody owns")
            demand(generation >= known, f"slot {slot} of generation {generation} after {known}")
            if known and generation > known:
                demand(reset == 1, f"slot {slot} has a new owner and is not reset")
            self._scene.generations[slot] = generation

    def down(self, message: Any) -> None:
        """Take its answer."""
        super().down(message)
        request = self._request
        demand(message.id == request.id and message.model_name == request.model_name, "the answer to another batch")
        tensors = _tensors(message.outputs, message.raw_output_contents)
        asked = {tensor.name for tensor in request.outputs}
        demand(set(tensors) == asked, f"outputs {sorted(tensors)}, asked for {sorted(asked)}")
        rows = {tensor.shape[0] for tensor in message.outputs} | {request.inputs[0].shape[0]}
        demand(len(rows) == 1, "an answer of another batch size")
        sent = _tensors(request.inputs, request.raw_input_contents)
        demand(tensors["GENERATION"] == sent["GENERATION"], "the answer is for other generations")


def _u64(data: bytes) -> list[int]:
    return [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]


def _tensors(declared: Any, contents: Any) -> dict[str, bytes]:
    demand(len(declared) == len(contents), f"{len(declared)} tensors, {len(contents)} contents")
    for tensor, data in zip(declared, contents, strict=True):
        size = math.prod(tensor.shape) * _BYTES[tensor.datatype]
        demand(len(data) == size, f"{tensor.name}: {len(data)} bytes, wanted {size}")
    return {tensor.name: bytes(data) for tensor, data in zip(declared, contents, strict=True)}


#: Who judges the calls of which method.
JUDGES: dict[str, Callable[[Scene], Judge]] = {
    "playserve.v1.PolicyService/Play": PlayJudge,
    "playserve.v1.PolicyService/Rollout": RolloutJudge,
    "playserve.v1.StateTransferService/TransferState": TransferJudge,
    "playserve.v1.AdminService/Drain": UnaryJudge,
    "inference.GRPCInferenceService/ModelInfer": TritonJudge,
}
