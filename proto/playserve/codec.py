"""Tensors to and from the wire. Owns every check of bytes that came from a network; actions are in `actions.py`.

:func:`encode` packs one array; :class:`Decoder`, built once a session, unpacks a step's inputs and refuses whatever
the policy's specs do not allow, before any byte is unpacked or any memory is taken for it. lz4 and simplejpeg are
optional: they are imported when a tensor needs them.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from playserve.actions import (
    Action,
    DesktopAction,
    action_from_proto,
    action_to_proto,
    clip_action,
    executed_from_proto,
)
from playserve.errors import (
    CodecNotNegotiatedError,
    DecodeError,
    DTypeMismatchError,
    FrameTooLargeError,
    InputMissingError,
    InputUnknownError,
    OutOfBoundsError,
    ShapeMismatchError,
    SizeMismatchError,
)
from playserve.specs import DTYPES, Codec, TensorSpec
from playserve.v1 import types_pb2 as pb

__all__ = [
    "DEFAULT_MAX_BYTES", "Action", "Array", "Decoder", "DesktopAction", "action_from_proto", "action_to_proto",
    "available_codecs", "clip_action", "decode_output", "encode", "executed_from_proto", "negotiate",
]  # fmt: skip

Array = npt.NDArray[Any]

#: Most bytes that the inputs of one message may unpack to, unless the server says otherwise.
DEFAULT_MAX_BYTES = 64 * 1024 * 1024

_MODULES = {Codec.LZ4: "lz4.block", Codec.JPEG: "simplejpeg"}
_WIRE_DTYPES: dict[np.dtype[Any], pb.DType.ValueType] = {np.dtype(name): value for name, value in DTYPES.items()}
_DTYPE_NAMES: dict[int, str] = {value: name for name, value in DTYPES.items()}
_RAW = int(Codec.RAW)
# An LZ4 block cannot hold more than 255 bytes a packed byte, so a larger claim is refused without taking memory.
_LZ4_MAX_RATIO = 255
# A baseline JPEG has at most one scan a component; each extra scan costs a pass over the image. Thumbnails in the
# metadata have scans too, hence the slack.
_JPEG_MAX_SCANS = 8


def available_codecs() -> tuple[Codec, ...]:
    """Return the codecs that this installation can use; RAW always."""
    return (Codec.RAW, *(codec for codec, module in _MODULES.items() if _installed(module)))


def negotiate(offered: Iterable[int], specs: Sequence[TensorSpec]) -> tuple[Codec, ...]:
    """Return what a server answers in Opened: RAW, and what it can unpack, an input takes and the client offers."""
    offers, wanted = set(offered), {codec for spec in specs for codec in spec.codecs}
    return tuple(c for c in available_codecs() if c is Codec.RAW or (c in offers and c in wanted))


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package of a dotted name is absent
        return False


def _module(codec: Codec) -> Any:
    try:
        return importlib.import_module(_MODULES[codec])
    except ModuleNotFoundError as error:
        raise CodecNotNegotiatedError(
            f"codec {codec.name} needs the package {error.name!r}, not installed here: pip install 'playserve[play]'"
        ) from error


def encode(array: Array, name: str, codec: Codec = Codec.RAW, *, quality: int = 90) -> pb.Tensor:
    """Return the wire message of one array.

    Args:
        array: Any shape, a dtype of :data:`playserve.specs.DTYPES`, any memory order.
        name: Name of the tensor spec.
        codec: How to pack it. JPEG takes uint8 [H, W, 3], [H, W, 1] or [H, W].
        quality: JPEG quality, 1..100; ignored for the others.
    """
    dtype = _WIRE_DTYPES.get(array.dtype)
    if dtype is None:
        array, dtype = _to_wire_dtype(array, name)
    if codec is Codec.RAW:
        data = array.tobytes()
    elif codec is Codec.LZ4:
        data = _module(codec).compress(array.tobytes(), store_size=False)
    elif codec is Codec.JPEG:
        data = _encode_jpeg(array, name, quality)
    else:
        raise CodecNotNegotiatedError(f"tensor {name!r}: codec {codec!r} is none of {[c.name for c in Codec]}")
    return pb.Tensor(name=name, dtype=dtype, shape=array.shape, codec=codec.value, data=data)


def _to_wire_dtype(array: Array, name: str) -> tuple[Array, pb.DType.ValueType]:
    dtype = _WIRE_DTYPES.get(array.dtype.newbyteorder("="))
    if dtype is None:
        raise DTypeMismatchError(f"tensor {name!r}: dtype {array.dtype} is none of {', '.join(DTYPES)}")
    return array.astype(array.dtype.newbyteorder("<")), dtype


def _jpeg_channels(dtype: str, shape: Sequence[int]) -> int:
    """Return 3 (RGB) or 1 (grey), or 0 where JPEG cannot hold such an array."""
    if dtype != "uint8" or len(shape) not in (2, 3):
        return 0
    channels = 1 if len(shape) == 2 else shape[2]
    return channels if channels in (1, 3) else 0


def _encode_jpeg(array: Array, name: str, quality: int) -> bytes:
    channels = _jpeg_channels(array.dtype.name, array.shape)
    if not channels:
        raise ShapeMismatchError(
            f"tensor {name!r}: JPEG takes uint8 [H, W, 3], [H, W, 1] or [H, W], not {array.dtype} {list(array.shape)}"
        )
    image = np.ascontiguousarray(array.reshape(*array.shape[:2], channels))
    grey = {"colorspace": "GRAY", "colorsubsampling": "Gray"}
    options = grey if channels == 1 else {"colorspace": "RGB", "colorsubsampling": "444"}
    data: bytes = _module(Codec.JPEG).encode_jpeg(image, quality=quality, **options)
    return data


class _Input:
    """One input as the decoder expects it, computed once."""

    __slots__ = (
        "closed", "codecs", "dtype", "is_bool", "jpeg_channels", "maximum", "minimum", "nbytes", "np_dtype", "shape",
        "shape_list", "spec", "zeros",
    )  # fmt: skip

    def __init__(self, spec: TensorSpec, allowed: Collection[int]) -> None:
        self.spec = spec
        self.dtype = int(DTYPES[spec.dtype])
        self.np_dtype = spec.numpy_dtype
        self.shape = spec.shape
        self.shape_list = list(spec.shape)
        self.closed = -1 not in spec.shape
        self.nbytes = math.prod(spec.shape) * self.np_dtype.itemsize if self.closed else -1
        self.jpeg_channels = _jpeg_channels(spec.dtype, spec.shape)
        self.codecs = frozenset({_RAW, *(int(c) for c in spec.codecs if c in allowed)})
        self.is_bool = spec.dtype == "bool"
        # A bound that the dtype cannot cross is not worth a pass over the elements.
        low, high = _range(self.np_dtype)
        self.minimum = spec.minimum if spec.minimum is not None and spec.minimum > low else None
        self.maximum = spec.maximum if spec.maximum is not None and spec.maximum < high else None
        self.zeros = np.zeros([max(dim, 1) for dim in spec.shape], self.np_dtype)
        self.zeros.flags.writeable = False


def _range(dtype: np.dtype[Any]) -> tuple[float, float]:
    if dtype.kind == "b":
        return 0, 1
    if dtype.kind == "f":
        return -math.inf, math.inf
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


class Decoder:
    """Unpacks the inputs of one session. Stateless after construction, so it may be shared by threads.

    Args:
        specs: The policy's inputs.
        allowed: Codecs that Opened listed; RAW is always allowed.
        max_bytes: Most bytes that the inputs of one message may unpack to.

    Every check raises a typed error that says what came and what was wanted: the name, then codec, dtype, shape and
    claimed size, all before a byte is unpacked; then the packed bytes; then the elements' bounds.
    """

    def __init__(
        self, specs: Sequence[TensorSpec], allowed: Collection[int] = (), max_bytes: int = DEFAULT_MAX_BYTES
    ) -> None:
        self._inputs = {spec.name: _Input(spec, allowed) for spec in specs}
        self._max_bytes = max_bytes

    def decode_step(self, tensors: Iterable[pb.Tensor]) -> dict[str, Array]:
        """Return one step's inputs by name, read-only; raw ones are views of the message's bytes."""
        arrays: dict[str, Array] = {}
        inputs, left = self._inputs, self._max_bytes
        for tensor in tensors:
            name = tensor.name
            wanted = inputs.get(name)
            if wanted is None or name in arrays:
                raise self._unknown(name, name in arrays)
            if tensor.codec == _RAW and tensor.dtype == wanted.dtype and tensor.shape == wanted.shape_list:
                left = _claim(wanted, wanted.nbytes, left, self._max_bytes)
                array = _raw(wanted, tensor.data, wanted.shape, wanted.nbytes)
            else:
                array, left = self._decode(tensor, wanted, (), left)
            if wanted.is_bool or wanted.minimum is not None or wanted.maximum is not None:
                _check_bounds(array, wanted)
            arrays[name] = array
        if len(arrays) != len(inputs):
            self._fill(arrays, None)
        return arrays

    def decode_rows(self, tensors: Iterable[pb.Tensor], n: int) -> dict[str, Array]:
        """Return the inputs of `n` rollout rows by name, each [n, *shape], read-only."""
        arrays: dict[str, Array] = {}
        left = self._max_bytes
        for tensor in tensors:
            name = tensor.name
            wanted = self._inputs.get(name)
            if wanted is None or name in arrays:
                raise self._unknown(name, name in arrays)
            array, left = self._decode(tensor, wanted, (n,), left)
            _check_bounds(array, wanted)
            arrays[name] = array
        if len(arrays) != len(self._inputs):
            self._fill(arrays, n)
        return arrays

    def _decode(self, tensor: pb.Tensor, wanted: _Input, lead: tuple[int, ...], left: int) -> tuple[Array, int]:
        """Return the array and how many bytes the rest of the message may still unpack to."""
        name, codec = wanted.spec.name, tensor.codec
        if codec not in wanted.codecs or (lead and codec == pb.CODEC_JPEG):
            raise CodecNotNegotiatedError(
                f"input {name!r}: packed as {_codec_name(codec)}; allowed here: "
                f"{', '.join(_codec_name(c) for c in sorted(wanted.codecs))}"
            )
        if tensor.dtype != wanted.dtype:
            came = _DTYPE_NAMES.get(tensor.dtype, f"DType {tensor.dtype}")
            raise DTypeMismatchError(f"input {name!r}: dtype {came}, wanted {wanted.spec.dtype}")
        shape, wanted_shape = tuple(tensor.shape), lead + wanted.shape
        if shape != wanted_shape and not _fits(shape, wanted_shape):
            raise ShapeMismatchError(f"input {name!r}: shape {_show(shape)}, wanted {_show(wanted_shape)}")
        nbytes = math.prod(shape) * wanted.np_dtype.itemsize
        left = _claim(wanted, nbytes, left, self._max_bytes)
        data = tensor.data  # protobuf copies the bytes at each access
        if codec == pb.CODEC_LZ4:
            data = _unpack_lz4(name, data, nbytes)
        elif codec == pb.CODEC_JPEG:
            return _unpack_jpeg(wanted, data, shape, self._max_bytes), left
        return _raw(wanted, data, shape, nbytes), left

    def _fill(self, arrays: dict[str, Array], n: int | None) -> None:
        for name, wanted in self._inputs.items():
            if name in arrays:
                continue
            if not wanted.spec.optional:
                raise InputMissingError(f"input {name!r} is missing; came: {sorted(arrays) or 'none'}")
            arrays[name] = wanted.zeros if n is None else np.broadcast_to(wanted.zeros, (n, *wanted.zeros.shape))

    def _unknown(self, name: str, repeated: bool) -> InputUnknownError:
        if repeated:
            return InputUnknownError(f"input {name!r} came twice")
        return InputUnknownError(f"input {name!r} is unknown; the policy takes {sorted(self._inputs)}")


def _codec_name(codec: int) -> str:
    try:
        return Codec(codec).name
    except ValueError:
        return f"Codec {codec}"


def _show(shape: Sequence[int]) -> str:
    dims = ", ".join(str(dim) for dim in shape[:8])
    return f"[{dims}, ... {len(shape)} dimensions]" if len(shape) > 8 else f"[{dims}]"


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(a == b or (b == -1 and a > 0) for a, b in zip(shape, wanted, strict=True))


def _claim(wanted: _Input, nbytes: int, left: int, max_bytes: int) -> int:
    if nbytes > left:
        raise FrameTooLargeError(
            f"input {wanted.spec.name!r}: unpacks to {nbytes} bytes; a message may unpack to {max_bytes}"
            + (f", of which {left} are left" if left != max_bytes else "")
        )
    return left - nbytes


def _raw(wanted: _Input, data: bytes, shape: tuple[int, ...], nbytes: int) -> Array:
    if len(data) != nbytes:
        raise SizeMismatchError(
            f"input {wanted.spec.name!r}: {len(data)} bytes, wanted {nbytes} for {wanted.spec.dtype} {_show(shape)}"
        )
    return np.ndarray(shape, wanted.np_dtype, data)


def _check_bounds(array: Array, wanted: _Input) -> None:
    """Raise OutOfBoundsError for an element outside the spec's bounds; NaN is outside of any."""
    if array.size == 0:
        return
    if wanted.is_bool:
        largest = int(array.view(np.uint8).max())
        if largest > 1:
            raise OutOfBoundsError(f"input {wanted.spec.name!r}: a bool of byte {largest}, wanted 0 or 1")
    low, high = wanted.minimum, wanted.maximum
    if low is not None and not (smallest := array.min()) >= low:
        raise OutOfBoundsError(f"input {wanted.spec.name!r}: smallest element {smallest}, wanted {low} or more")
    if high is not None and not (greatest := array.max()) <= high:
        raise OutOfBoundsError(f"input {wanted.spec.name!r}: largest element {greatest}, wanted {high} or less")


def _unpack_lz4(name: str, data: bytes, nbytes: int) -> bytes:
    if nbytes > len(data) * _LZ4_MAX_RATIO:
        raise SizeMismatchError(f"input {name!r}: {len(data)} bytes of LZ4 cannot hold the {nbytes} bytes claimed")
    block = _module(Codec.LZ4)
    try:
        unpacked: bytes = block.decompress(data, uncompressed_size=nbytes)
    except (block.LZ4BlockError, ValueError, OverflowError) as error:
        raise DecodeError(
            f"input {name!r}: {len(data)} bytes are no LZ4 block of {nbytes} bytes, or one of more ({error})"
        ) from error
    return unpacked


def _unpack_jpeg(wanted: _Input, data: bytes, shape: tuple[int, ...], max_bytes: int) -> Array:
    name, channels = wanted.spec.name, wanted.jpeg_channels or _jpeg_channels("uint8", shape)
    if not channels or wanted.spec.dtype != "uint8":
        raise ShapeMismatchError(f"input {name!r}: JPEG cannot hold {wanted.spec.dtype} {_show(shape)}")
    height, width = _jpeg_size(name, data)
    if height * width * channels > max_bytes:
        raise FrameTooLargeError(
            f"input {name!r}: a JPEG of {height} x {width}; a message may unpack to {max_bytes} bytes"
        )
    if (height, width) != shape[:2]:
        raise SizeMismatchError(f"input {name!r}: a JPEG of {height} x {width}, its shape says {shape[0]} x {shape[1]}")
    simplejpeg = _module(Codec.JPEG)
    try:
        image: Array = simplejpeg.decode_jpeg(data, colorspace="RGB" if channels == 3 else "GRAY")
    except Exception as error:  # whatever a C decoder says of bytes from a network is a decode error
        raise DecodeError(f"input {name!r}: {len(data)} bytes are no JPEG ({error})") from error
    image = image.reshape(shape)
    image.flags.writeable = False
    return image


def _jpeg_size(name: str, data: bytes) -> tuple[int, int]:
    """Return (height, width) from the header of a baseline JPEG, without decoding it.

    Stricter than libjpeg: no filler between segments and nothing progressive, so that both read the same header and a
    small message cannot ask for thousands of passes over the image.
    """
    if data[:2] != b"\xff\xd8":
        raise DecodeError(f"input {name!r}: {len(data)} bytes that do not begin like a JPEG")
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0xC0, 0xC1) and at + 9 <= len(data):
            if data.count(b"\xff\xda") > _JPEG_MAX_SCANS:
                raise DecodeError(f"input {name!r}: a JPEG of more than {_JPEG_MAX_SCANS} scans")
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        if marker < 0xC0 or length < 2 or (0xC2 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            break
        at += 2 + length
    raise DecodeError(f"input {name!r}: {len(data)} bytes without the header of a baseline JPEG")


def decode_output(tensor: pb.Tensor) -> Array:
    """Return an output tensor of a server, which is raw: its own shape and dtype are believed, its size is checked."""
    name = _DTYPE_NAMES.get(tensor.dtype)
    if name is None or tensor.codec != pb.CODEC_RAW:
        raise DecodeError(f"output {tensor.name!r}: DType {tensor.dtype} packed as {_codec_name(tensor.codec)}")
    dtype, shape, data = np.dtype(name).newbyteorder("<"), tuple(tensor.shape), tensor.data
    if any(dim < 0 for dim in shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise SizeMismatchError(f"output {tensor.name!r}: {len(data)} bytes for {name} {_show(shape)}")
    return np.ndarray(shape, dtype, data)
