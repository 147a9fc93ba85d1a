"""Raw Play and Rollout calls, one message at a time: generated stubs and nothing of our client."""

from __future__ import annotations

import queue
from typing import Any, Self

import grpc
import numpy as np
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from playserve.codec import encode
from playserve.specs import Codec, TensorSpec
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb

__all__ = [
    "Play", "Rollout", "Stream", "comparable", "observation", "played", "reason_of", "retry_after_s", "status_of",
    "step_message", "world_action",
]  # fmt: skip

DOMAIN = "playserve.v1"
_END = object()
_TIMEOUT_S = 90.0


def status_of(error: grpc.RpcError) -> status_pb2.Status:
    """Return the rich status of an error; without one, its bare code and text."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(value)
    return status_pb2.Status(code=error.code().value[0], message=error.details() or "")


def reason_of(status: status_pb2.Status) -> str:
    """Return ErrorInfo.reason; the code's name in <> where there is none, which no documented error has."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            assert info.domain == DOMAIN
            return info.reason
    names = {code.value[0]: code.name for code in grpc.StatusCode}
    return f"<{names.get(status.code, status.code)}: {status.message}>"


def retry_after_s(status: status_pb2.Status) -> float | None:
    """Return the hint of RetryInfo, or None."""
    for detail in status.details:
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(retry):
            return retry.retry_delay.ToNanoseconds() / 1e9
    return None


def observation(spec: pb.PolicySpec, index: int, rows: int | None = None, codec: int = pb.CODEC_RAW) -> list[pb.Tensor]:
    """Return the inputs of the `index`-th step of the suite's game, the same for everybody."""
    tensors = []
    for wire in spec.inputs:
        tensor = TensorSpec.from_proto(wire)
        shape = tuple(dim if dim > 0 else 8 for dim in tensor.shape)
        rng = np.random.default_rng([index, len(shape)])
        low = 0 if tensor.minimum is None else tensor.minimum
        high = 255 if tensor.maximum is None else tensor.maximum
        array = rng.uniform(low, high, shape).astype(tensor.numpy_dtype)
        if rows is not None:
            array = np.stack([array] * rows)
        tensors.append(encode(array, tensor.name, Codec(codec)))
    return tensors


def step_message(spec: pb.PolicySpec, seq: int, **fields: Any) -> ps.Step:
    """Return a valid step: its observation is that of its seq; so is its action where the policy is a world."""
    fields.setdefault("inputs", observation(spec, seq))
    if spec.kind == pb.POLICY_KIND_WORLD:
        fields.setdefault("action", world_action(spec, seq))
    return ps.Step(seq=seq, **fields)


def world_action(spec: pb.PolicySpec, seq: int) -> pb.Action:
    """Return what is done in the `seq`-th step of the suite's world, the same for everybody."""
    rng = np.random.default_rng([seq, 7])
    if spec.action.WhichOneof("kind") == "discrete":
        return pb.Action(index=int(rng.integers(spec.action.discrete.n)))
    desktop = spec.action.desktop
    return pb.Action(
        desktop=pb.DesktopAction(
            keys=sorted(key for key in desktop.keys if rng.random() < 0.5),
            mouse_dx_px=float(np.round(rng.uniform(-1, 1) * desktop.max_mouse_px)),
        )
    )


def comparable(result: ps.StepResult) -> tuple[Any, ...]:
    """Return what two equal steps of equal sessions must agree on."""
    log_prob = [round(value, 4) for value in result.log_prob]
    value = round(result.value, 3) if result.HasField("value") else None
    shown = [(tensor.name, tuple(tensor.shape), tensor.data) for tensor in result.outputs]
    return (result.seq, [played(action) for action in result.actions], log_prob, value, result.episode_id, shown)


def played(action: pb.Action) -> Any:
    """Return an action as a value that can be compared."""
    if action.WhichOneof("kind") == "index":
        return action.index
    desktop = action.desktop
    motion = (round(desktop.mouse_dx_px, 3), round(desktop.mouse_dy_px, 3), round(desktop.scroll, 3))
    return tuple(desktop.keys), tuple(desktop.buttons), motion


class Stream:
    """One bidirectional call. Every wait is bounded by the call's deadline."""

    request: type[Message]

    def __init__(self, method: Any, **first: Any) -> None:
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        if first:
            self.send(**first)
        self.call = method(iter(self._requests.get, _END), timeout=_TIMEOUT_S)

    def send(self, **message: Any) -> Self:
        """Send one message, given as the fields of its oneof."""
        self._requests.put(self.request(**message))
        return self

    def recv(self) -> Any:
        """Return the next answer; fail where the stream ends instead."""
        try:
            return next(self.call)
        except StopIteration:
            raise AssertionError("the stream ended with OK; an answer was expected") from None
        except grpc.RpcError as error:
            raise AssertionError(f"the stream ended with {reason_of(status_of(error))}; an answer was due") from error

    def half_close(self) -> Self:
        """Say that nothing more will be sent."""
        self._requests.put(_END)
        return self

    def cancel(self) -> None:
        """Drop the call, as a lost connection does."""
        self.call.cancel()
        self._requests.put(_END)

    def rest(self) -> tuple[list[Any], str]:
        """Return every answer to the end, and the reason of the end: "OK" or an error's reason."""
        answers: list[Any] = []
        try:
            answers.extend(self.call)
        except grpc.RpcError as error:
            self.status = status_of(error)
            self._requests.put(_END)
            return answers, reason_of(self.status)
        self._requests.put(_END)
        return answers, "OK"

    def ends(self) -> str:
        """Return the reason of the end, which must come next."""
        answers, reason = self.rest()
        assert not answers, f"answers before the end ({reason}): {answers}"
        return reason

    def close(self) -> str:
        """Send Close and return how the stream ended; harmless where it has ended."""
        self._requests.put(self.request(close=ps.Close(reason="the test is over")))
        self._requests.put(_END)
        return self.rest()[1]

    def error(self) -> Any:
        """Return the next answer's error, which must be one."""
        answer = self.recv()
        assert answer.WhichOneof("message") == "error", answer
        return answer.error

    def refuses(self) -> str:
        """Return the reason of the next answer, an in-band error."""
        return reason_of(self.error().status)

    def ping(self, nonce: int = 1) -> None:
        """Make sure that the stream lives: everything sent before is answered, or in the engine."""
        self.send(ping=ps.Ping(nonce=nonce))
        answer = self.recv()
        assert answer.pong.nonce == nonce, answer


class Play(Stream):
    """One Play call; `opened` is set by :meth:`open`."""

    request = ps.PlayRequest
    opened: ps.Opened

    @property
    def spec(self) -> pb.PolicySpec:
        """Spec of the policy in use."""
        return self.opened.policy

    def open(self) -> Self:
        """Read Opened."""
        answer = self.recv()
        assert answer.WhichOneof("message") == "opened", answer
        self.opened = answer.opened
        return self

    def result(self) -> ps.StepResult:
        """Return the next answer, which must be a result."""
        answer = self.recv()
        assert answer.WhichOneof("message") == "result", answer
        return answer.result

    def step(self, seq: int, **fields: Any) -> ps.StepResult:
        """Send a valid step and return its result."""
        self.send(step=step_message(self.spec, seq, **fields))
        result = self.result()
        assert result.seq == seq
        return result


class Rollout(Stream):
    """One Rollout call; `opened` is set by :meth:`open`."""

    request = ps.RolloutRequest
    opened: ps.RolloutOpened

    def open(self) -> Self:
        """Read RolloutOpened."""
        answer = self.recv()
        assert answer.WhichOneof("message") == "opened", answer
        self.opened = answer.opened
        return self

    def rows(self, env_ids: list[int], index: int, episode: int | list[int] = 1, **fields: Any) -> Self:
        """Send valid rows, all with the `index`-th observation."""
        episodes = [episode] * len(env_ids) if isinstance(episode, int) else episode
        fields.setdefault("inputs", observation(self.opened.policy, index, rows=len(env_ids)))
        return self.send(step=ps.RolloutStep(env_ids=env_ids, episode_ids=episodes, **fields))

    def actions(self, rows: int) -> dict[int, int]:
        """Read results until `rows` rows are answered; return the actions by environment."""
        actions: dict[int, int] = {}
        while len(actions) < rows:
            answer = self.recv()
            assert answer.WhichOneof("message") == "result", answer
            actions.update(zip(answer.result.env_ids, answer.result.action_indices, strict=True))
        return actions
