"""What a request asks for beside its tensors: which sequence, how it is sampled, how long it may wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2 as oip

from playserve.errors import BadSettingError

__all__ = ["Asked", "SequenceId", "read_parameters"]

#: A sequence is named by a number or a text; the number 7 and the text "7" are two sequences, as in Triton.
SequenceId = int | str

_MOST_ID_BYTES = 128  # as in Triton
_UINT64 = (1 << 64) - 1
_KINDS: Mapping[str, tuple[str, ...]] = {
    "sequence_id": ("int64_param", "uint64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("uint64_param", "int64_param"),
    "timeout": ("int64_param", "uint64_param"),
    "argmax": ("bool_param",),
    "triton_enable_empty_final_response": ("bool_param",),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """The parameters of one request.

    Attributes:
        sequence: Name of its sequence.
        start: Whether it begins the sequence.
        end: Whether it is the sequence's last.
        argmax: Take the most probable action, else draw.
        timeout_us: Microseconds that it may wait to be computed; 0: any time.
        marks_final: Whether the answer is to say that it is the last of its request; on a stream.
    """

    sequence: SequenceId
    start: bool
    end: bool
    argmax: bool
    timeout_us: int
    marks_final: bool


def read_parameters(request: oip.ModelInferRequest) -> Asked:
    """Return the parameters of a request.

    Raises:
        BadSettingError: One is unknown, of another type than it has, or outside of its range; or none names a sequence.
    """
    given: dict[str, Any] = {}
    for name, parameter in request.parameters.items():
        kinds = _KINDS.get(name)
        if kinds is None:
            raise BadSettingError(f"parameter {name!r} is unknown; there are {', '.join(sorted(_KINDS))}")
        kind = parameter.WhichOneof("parameter_choice")
        if kind not in kinds:
            raise BadSettingError(f"parameter {name!r} is a {kind or 'nothing'}, wanted {' or '.join(kinds)}")
        given[name] = getattr(parameter, kind)
    if given.get("priority"):
        raise BadSettingError(f"priority {given['priority']}: sequences have no priorities here; leave it out, or 0")
    timeout_us = given.get("timeout", 0)
    if timeout_us < 0:
        raise BadSettingError(f"timeout of {timeout_us} microseconds, wanted 0 (none) or more")
    return Asked(
        sequence=_sequence(request.model_name, given.get("sequence_id", 0)),
        start=given.get("sequence_start", False),
        end=given.get("sequence_end", False),
        argmax=given.get("argmax", False),
        timeout_us=timeout_us,
        marks_final=given.get("triton_enable_empty_final_response", False),
    )


def _sequence(model: str, value: SequenceId) -> SequenceId:
    if not value:
        raise BadSettingError(
            f"an inference request to model {model!r} must name its sequence: sequence_id, neither 0 nor empty"
        )
    if isinstance(value, int):
        return value & _UINT64  # a client's int64 that stands for a higher number
    size = len(value.encode())
    if size > _MOST_ID_BYTES:
        raise BadSettingError(f"a sequence_id of {size} bytes, wanted at most {_MOST_ID_BYTES}")
    return value
