"""Between wire messages and the core's objects: the only module that knows both."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np

from playserve.actions import action_from_proto
from playserve.codec import DesktopAction, action_to_proto, decode_output, encode, executed_from_proto
from playserve.errors import BadActionError, PlayserveError, RateMismatchError, to_status
from playserve.settings import (
    Consent,
    Extras,
    MouseDecode,
    Sampling,
    SamplingMode,
    check_instruction,
    check_rate,
)
from playserve.specs import DesktopActionSpec
from playserve.v1 import policy_service_pb2 as ps
from playserve.v1 import types_pb2 as pb
from playserve_services.inference.catalog import LoadedPolicy
from playserve_services.inference.decoding import Executed
from playserve_services.inference.sessions import Answer, DroppedStep, Frame, Settings, Slot

__all__ = [
    "answer_of", "codec_list", "executed_action", "live_rate", "open_settings", "result_message", "rollout_message",
    "row_error", "sampling_settings", "step_error", "world_action",
]  # fmt: skip


def open_settings(
    sampling: pb.Sampling | None, extras: pb.Extras, instruction: str = "", consent: ps.Consent | None = None
) -> Settings:
    """Return the settings of an Open or RolloutOpen; raises BadSettingError."""
    wanted = Extras.from_proto(extras)
    allowed = Consent() if consent is None else Consent.from_proto(consent)
    return Settings(
        **({} if sampling is None else sampling_settings(sampling)),
        instruction=check_instruction(instruction),
        log_prob=wanted.log_prob,
        value=wanted.value,
        watch=allowed.watch,
        record=allowed.record,
    )


def sampling_settings(message: pb.Sampling) -> dict[str, Any]:
    """Return the fields of `Settings` that a Sampling message sets, all of them; raises BadSettingError."""
    drawn = Sampling.from_proto(message)
    decode = "" if drawn.mouse_decode is MouseDecode.DEFAULT else drawn.mouse_decode.name.lower()
    return {"temperature": drawn.temperature, "argmax": drawn.mode is SamplingMode.ARGMAX, "decode": decode}


def live_rate(policy: LoadedPolicy, rate_hz: float, live: bool) -> float:
    """Return the rate of a session; raises RateMismatchError when a live client's rate is not the policy's."""
    wanted = policy.spec.rate_hz
    rate_hz = check_rate(rate_hz)
    if live and wanted and rate_hz and abs(rate_hz - wanted) > 1e-3 * wanted:
        raise RateMismatchError(f"client rate {rate_hz:g} Hz; policy {policy.spec.name!r} was trained at {wanted:g} Hz")
    return rate_hz or wanted


def executed_action(policy: LoadedPolicy, action: pb.Action, source: pb.ActionSource.ValueType) -> Executed:
    """Return what was executed; None: unknown, or nothing where a choice of one among n has no name for that."""
    spec = policy.spec.action
    value = executed_from_proto(action, source, spec)
    if value is None:
        idle = source == pb.ACTION_SOURCE_NONE and isinstance(spec, DesktopActionSpec)
        return DesktopAction() if idle else None
    return (value,) if isinstance(value, int) else value


def world_action(policy: LoadedPolicy, action: pb.Action) -> Executed:
    """Return the action of a world's step.

    Raises:
        BadActionError: It is missing, or none of the policy's.
    """
    value = action_from_proto(action, policy.spec.action)
    return (value,) if isinstance(value, int) else value


def _microseconds(nanoseconds: int) -> int:
    return max(0, min(nanoseconds // 1000, 0xFFFFFFFF))


def _fill_times(times: ps.StepTimes, answer: Answer, now_ns: int) -> None:
    frame = answer.frame
    times.decode_us = _microseconds(frame.decode_ns)
    times.queue_us = _microseconds(answer.queue_ns - frame.decode_ns)
    times.compute_us = _microseconds(answer.compute_ns)
    times.total_us = _microseconds(now_ns - frame.arrived_ns)
    times.batch_size = answer.batch_size


def result_message(answer: Answer, now_ns: int) -> ps.PlayResponse:
    """Return the answer of a play session's step. It is built in place: a step has time for no copies."""
    frame = answer.frame
    response = ps.PlayResponse()
    message = response.result
    message.seq = frame.seq
    message.version = answer.version
    message.config_revision = frame.settings.revision
    message.capture_time_ns = frame.capture_time_ns
    message.episode_id = frame.episode_id
    _fill_times(message.times, answer, now_ns)
    if answer.decoded is None:
        if answer.action:  # else it is a world's
            message.actions.add().index = answer.action[0]
    else:
        message.actions.append(action_to_proto(answer.decoded, answer.slot.session.policy.spec.action))
    for name, array in answer.outputs.items():
        message.outputs.append(encode(array, name))
    if answer.log_prob is not None:
        message.log_prob.extend(answer.log_prob)
    if answer.value is not None:
        message.value = answer.value
    if answer.dropped:
        message.gap_ticks = min(sum(step.ticks for step in answer.dropped if not step.in_memory), 0xFFFFFFFF)
        for dropped in answer.dropped:
            message.dropped.add(seq=dropped.seq, reason=_reason(dropped), in_memory=dropped.in_memory)
    return response


def _reason(dropped: DroppedStep) -> ps.DropReason.ValueType:
    if dropped.shed:
        return ps.DROP_REASON_QUOTA
    return ps.DROP_REASON_STALE if dropped.stale else ps.DROP_REASON_SUPERSEDED


def answer_of(result: ps.StepResult, slot: Slot) -> Answer:
    """Return the answer that a play session of another server gave last, so that it can be given again.

    Raises:
        BadActionError, DecodeError, SizeMismatchError: It is none of the policy's.
    """
    policy = slot.session.policy
    actions = [action_from_proto(action, policy.spec.action) for action in result.actions]
    if not actions and not policy.is_world:
        raise BadActionError("an answer without an action")
    first = actions[0] if actions else None
    frame = Frame(
        seq=result.seq,
        episode_id=result.episode_id,
        inputs={},
        arrived_ns=time.monotonic_ns(),
        settings=Settings(revision=result.config_revision),
        capture_time_ns=result.capture_time_ns,
    )
    ticks = result.gap_ticks  # of all that are not in the memory: they are only ever told together
    dropped = []
    for step in result.dropped:
        shed, stale = step.reason == ps.DROP_REASON_QUOTA, step.reason == ps.DROP_REASON_STALE
        dropped.append(DroppedStep(step.seq, stale, step.in_memory, 0 if step.in_memory else ticks, shed))
        ticks = ticks if step.in_memory else 0
    return Answer(
        slot=slot,
        frame=frame,
        action=(first,) if isinstance(first, int) else (),
        log_prob=list(result.log_prob) or None,
        value=result.value if result.HasField("value") else None,
        outputs={tensor.name: decode_output(tensor) for tensor in result.outputs},
        version=result.version,
        dropped=dropped,
        queue_ns=0,
        compute_ns=0,
        batch_size=result.times.batch_size,
        decoded=None if isinstance(first, int) else first,
    )


def rollout_message(answers: Sequence[Answer], now_ns: int) -> ps.RolloutResponse:
    """Return the answers of one batch for one rollout stream."""
    first = answers[0]
    oldest = min(answers, key=lambda a: a.frame.arrived_ns)
    response = ps.RolloutResponse()
    result = response.result
    result.env_ids.extend([a.slot.row for a in answers])
    result.episode_ids.extend([a.frame.episode_id for a in answers])
    if first.decoded is None:
        result.action_indices.extend([a.action[0] for a in answers])
    else:
        spec = first.slot.session.policy.spec.action
        result.actions.extend([action_to_proto(a.decoded, spec) for a in answers if a.decoded is not None])
    result.version = first.version
    _fill_times(result.times, oldest, now_ns)
    if first.log_prob is not None:
        result.log_probs.extend(sum(a.log_prob or ()) for a in answers)
    if first.value is not None:
        result.values.extend(a.value if a.value is not None else 0.0 for a in answers)
    for name in first.outputs:
        result.outputs.append(encode(np.stack([a.outputs[name] for a in answers]), name))
    return response


def step_error(seq: int, error: PlayserveError) -> ps.PlayResponse:
    """Return the in-band error of one message of a play session."""
    return ps.PlayResponse(error=ps.StepError(seq=seq, status=to_status(error)))


def codec_list(codecs: Iterable[int]) -> list[pb.Codec.ValueType]:
    """Return the packings that Opened announces: raw always."""
    return [cast(pb.Codec.ValueType, codec) for codec in sorted({int(pb.CODEC_RAW), *codecs})]


def row_error(env_id: int | None, error: PlayserveError) -> ps.RolloutResponse:
    """Return the in-band error of one row, or of a whole message."""
    return ps.RolloutResponse(error=ps.RolloutError(env_id=env_id, status=to_status(error)))
