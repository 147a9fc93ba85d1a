"""Between the protocol's tensors and arrays: every request is checked here before a byte of it is believed.

A model of max_batch_size above 0 has a leading dimension of rows; a request of a sequence has one row.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc import service_pb2 as oip
from tritonclient.utils import triton_to_np_dtype

from playserve.codec import Decoder
from playserve.errors import (
    DTypeMismatchError,
    InputMissingError,
    InputUnknownError,
    NotImplementedHereError,
    OutOfBoundsError,
    ShapeMismatchError,
    SizeMismatchError,
)
from playserve.settings import MAX_INSTRUCTION_CHARS, check_instruction
from playserve.specs import DTYPES, DesktopActionSpec, PolicySpec, TensorSpec
from playserve.v1 import types_pb2 as pb
from playserve_services.inference.runtime import Array
from playserve_services.inference.sessions import Answer
from playserve_services.triton.sequence_config import ACTION, DESKTOP_ACTION, LOG_PROB, SEED, TEXT, triton_dtype
from playserve_services.triton.sequences import desktop_as_json

__all__ = ["Inputs", "TensorReader", "answer_message", "output_names"]

_MOST_TEXT_BYTES = 4 * MAX_INSTRUCTION_CHARS  # the most that UTF-8 needs
#: Typed contents that hold a data type.
_FIELDS: Mapping[str, str] = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the tensors of a request say.

    Attributes:
        arrays: The policy's inputs by name.
        instruction: Its text; "": none.
        seed: Of the sampling; None: it follows from the sequence's name.
        outputs: Names of the outputs that are wanted.
    """

    arrays: Mapping[str, Array]
    instruction: str
    seed: int | None
    outputs: Sequence[str]


def output_names(spec: PolicySpec) -> Sequence[str]:
    """Return the outputs of a policy, in their order."""
    desktop = isinstance(spec.action, DesktopActionSpec)
    return (ACTION, LOG_PROB, DESKTOP_ACTION) if desktop else (ACTION, LOG_PROB)


class TensorReader:
    """Reads the requests to one policy version.

    Args:
        spec: Of the version.
        max_bytes: Most that the inputs of one request may hold.
    """

    def __init__(self, spec: PolicySpec, max_bytes: int) -> None:
        self._own = {tensor.name: tensor for tensor in spec.inputs}
        self._outputs = output_names(spec)
        self._decoder = Decoder(spec.inputs, max_bytes=max_bytes)
        # Data type of each input, and its elements.
        self._kinds = {t.name: (triton_dtype(t.numpy_dtype), math.prod(t.shape)) for t in spec.inputs}
        self._kinds[SEED] = "UINT64", 1
        if spec.takes_instruction:
            self._kinds[TEXT] = "UINT8", _MOST_TEXT_BYTES

    def read(self, request: oip.ModelInferRequest) -> Inputs:
        """Return the inputs of a request; seed and instruction may be absent.

        Raises:
            InvalidRequestError: In one of its kinds: a tensor is missing, unknown, or not what the model takes.
            NotImplementedHereError: A tensor lies in shared memory, or an output is to be written there.
        """
        outputs = _check_outputs(request, self._outputs)
        names: set[str] = set()
        for tensor in request.inputs:
            self._check(tensor, names)
            names.add(tensor.name)
        if missing := self._own.keys() - names:
            raise InputMissingError(f"inputs {sorted(missing)} are missing; came: {sorted(names) or 'none'}")
        own: list[pb.Tensor] = []
        more: dict[str, tuple[Sequence[int], bytes]] = {}
        for tensor, data in zip(request.inputs, self._data(request), strict=True):
            if tensor.name in self._own:
                own.append(_on_our_wire(self._own[tensor.name], tensor, data))
            else:
                more[tensor.name] = tensor.shape[1:], data
        return Inputs(self._decoder.decode_step(own), _text(more.get(TEXT)), _seed(more.get(SEED)), outputs)

    def _check(self, tensor: oip.ModelInferRequest.InferInputTensor, seen: Collection[str]) -> None:
        """Raise unless an input's name, place, type and row are right."""
        name = tensor.name
        if name in seen:
            raise InputUnknownError(f"input {name!r} came twice")
        if name not in self._kinds:
            raise InputUnknownError(f"input {name!r} is unknown; there are {sorted(self._kinds)}")
        if tensor.parameters:
            raise NotImplementedHereError(
                f"input {name!r} has parameters {sorted(tensor.parameters)}; shared memory is not served, "
                "tensors travel in the request"
            )
        kind, _ = self._kinds[name]
        if tensor.datatype != kind:
            raise DTypeMismatchError(f"input {name!r}: data type {tensor.datatype!r}, wanted {kind!r}")
        if not tensor.shape or tensor.shape[0] != 1:
            raise ShapeMismatchError(
                f"input {name!r}: shape {list(tensor.shape)[:8]}, wanted a first dimension of 1: one row, the frame of "
                "one sequence"
            )

    def _data(self, request: oip.ModelInferRequest) -> Iterator[bytes]:
        """Yield the bytes of each input."""
        raw = request.raw_input_contents
        if raw and len(raw) != len(request.inputs):
            raise SizeMismatchError(f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs, wanted as many")
        for number, tensor in enumerate(request.inputs):
            if not raw:
                yield _contents(tensor, *self._kinds[tensor.name])
            elif tensor.HasField("contents"):
                raise SizeMismatchError(f"input {tensor.name!r} has contents beside raw_input_contents")
            else:
                yield raw[number]


def _on_our_wire(spec: TensorSpec, tensor: oip.ModelInferRequest.InferInputTensor, data: bytes) -> pb.Tensor:
    """Return an input without its row, as our codec checks it."""
    shape = list(tensor.shape)[1:]
    if not spec.shape and shape == [1]:
        shape = []  # Triton has no tensor without a dimension
    return pb.Tensor(name=tensor.name, dtype=DTYPES[spec.dtype], shape=shape, codec=pb.CODEC_RAW, data=data)


def _contents(tensor: oip.ModelInferRequest.InferInputTensor, kind: str, most: int) -> bytes:
    """Return the bytes of typed contents of at most so many elements."""
    field = _FIELDS.get(kind)
    if field is None:
        raise DTypeMismatchError(f"input {tensor.name!r}: {kind} travels in raw_input_contents only")
    given = getattr(tensor.contents, field)
    if len(given) > most:
        raise SizeMismatchError(f"input {tensor.name!r}: {len(given)} elements, wanted at most {most}")
    dtype = np.dtype(triton_to_np_dtype(kind))
    values = np.array(list(given))
    if dtype.kind in "iu" and values.size:
        info, low, high = np.iinfo(dtype), values.min(), values.max()
        if low < info.min or high > info.max:
            raise OutOfBoundsError(f"input {tensor.name!r}: elements from {low} to {high}, which {kind} cannot hold")
    return values.astype(dtype.newbyteorder("<")).tobytes()


def _text(given: tuple[Sequence[int], bytes] | None) -> str:
    if given is None:
        return ""
    shape, data = given
    if len(shape) != 1 or shape[0] != len(data):
        raise SizeMismatchError(f"input {TEXT!r}: {len(data)} bytes, wanted as many as its shape says: [1, bytes]")
    if len(data) > _MOST_TEXT_BYTES:
        raise SizeMismatchError(f"input {TEXT!r}: {len(data)} bytes, wanted at most {_MOST_TEXT_BYTES}")
    return check_instruction(data.decode(errors="replace"))


def _seed(given: tuple[Sequence[int], bytes] | None) -> int | None:
    if given is None:
        return None
    shape, data = given
    if list(shape) != [1]:
        raise ShapeMismatchError(f"input {SEED!r}: shape {[1, *shape][:8]}, wanted [1, 1]")
    if len(data) != 8:
        raise SizeMismatchError(f"input {SEED!r}: {len(data)} bytes, wanted 8")
    return int.from_bytes(data, "little")


def _check_outputs(request: oip.ModelInferRequest, has: Sequence[str]) -> Sequence[str]:
    """Return the names of the outputs that a request wants, in its order; all, if it names none."""
    if not request.outputs:
        return has
    names = []
    for output in request.outputs:
        if output.name not in has:
            raise InputUnknownError(f"output {output.name!r} is unknown; there are {list(has)}")
        if output.parameters:
            raise NotImplementedHereError(
                f"output {output.name!r} has parameters {sorted(output.parameters)}; outputs are sent whole, in the "
                "answer"
            )
        names.append(output.name)
    return names


def _output(name: str, answer: Answer) -> tuple[str, Array]:
    """Return the data type and the array of an output, without its row."""
    if name == LOG_PROB:
        return "FP32", np.array(answer.log_prob, "<f4")
    if name == DESKTOP_ACTION:
        assert answer.decoded is not None  # noqa: S101 - such policies decode every answer
        return "UINT8", desktop_as_json(answer.decoded)
    assert name == ACTION  # noqa: S101 - the names were checked
    return "INT64", np.array(answer.action, "<i8")


def answer_message(model: str, request_id: str, names: Sequence[str], answer: Answer) -> oip.ModelInferResponse:
    """Return the message of an answer, with the outputs that are wanted."""
    response = oip.ModelInferResponse(model_name=model, model_version=answer.version, id=request_id)
    for name in names:
        kind, array = _output(name, answer)
        response.outputs.add(name=name, datatype=kind, shape=(1, *array.shape))
        response.raw_output_contents.append(array.tobytes())
    return response
