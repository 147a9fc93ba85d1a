"""What a policy takes and gives, as frozen dataclasses: the one source of the wire's specs and of the manifest's.

Each class has ``to_proto`` / ``from_proto`` for the wire; :class:`PolicySpec` also has ``to_json`` / ``from_json`` for
manifests, by way of protobuf's own JSON mapping.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf import json_format

from playserve.errors import BadSettingError
from playserve.v1 import types_pb2 as pb

__all__ = [
    "DTYPES", "ActionSpec", "Codec", "DesktopActionSpec", "DiscreteActionSpec", "GapMode", "GapRule", "ImageFormat",
    "Merge", "MouseDecode", "PolicyKind", "PolicySpec", "TensorSpec", "check_policy_name",
]  # fmt: skip

#: Wire dtype by numpy name.
DTYPES: dict[str, pb.DType.ValueType] = {
    "uint8": pb.DTYPE_UINT8,
    "int8": pb.DTYPE_INT8,
    "int16": pb.DTYPE_INT16,
    "int32": pb.DTYPE_INT32,
    "int64": pb.DTYPE_INT64,
    "float16": pb.DTYPE_FLOAT16,
    "float32": pb.DTYPE_FLOAT32,
    "bool": pb.DTYPE_BOOL,
}
_DTYPE_NAMES = {value: name for name, value in DTYPES.items()}
_POLICY_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


def check_policy_name(name: str) -> str:
    """Return `name` if it can name a policy or a version, else raise BadSettingError. It is safe as a file name."""
    if not _POLICY_NAME.fullmatch(name) or ".." in name:
        raise BadSettingError(
            f"name {name!r} is not 1 to 128 of the characters a-z 0-9 . _ - beginning with a letter or digit"
        )
    return name


class Codec(enum.IntEnum):
    """Packing of a tensor's bytes."""

    RAW = pb.CODEC_RAW
    LZ4 = pb.CODEC_LZ4
    JPEG = pb.CODEC_JPEG


_CODECS = frozenset(map(int, Codec))


class ImageFormat(enum.IntEnum):
    """Meaning of the channels of an image tensor."""

    NONE = pb.IMAGE_FORMAT_UNSPECIFIED
    RGB8 = pb.IMAGE_FORMAT_RGB8
    GRAY8 = pb.IMAGE_FORMAT_GRAY8
    GRAY8_STACK = pb.IMAGE_FORMAT_GRAY8_STACK


class Merge(enum.IntEnum):
    """How several waiting values of an input become one."""

    LATEST = pb.MERGE_LATEST
    SUM = pb.MERGE_SUM


class PolicyKind(enum.IntEnum):
    """Agent (observations to actions) or world (actions to observations)."""

    AGENT = pb.POLICY_KIND_AGENT
    WORLD = pb.POLICY_KIND_WORLD


class GapMode(enum.IntEnum):
    """What enters the memory when steps arrive faster than they are computed."""

    SKIP = pb.GAP_MODE_SKIP
    CATCH_UP = pb.GAP_MODE_CATCH_UP


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output tensor of a step.

    Attributes:
        name: Unique among the inputs (outputs) of the policy.
        dtype: numpy name, a key of :data:`DTYPES`.
        shape: Dimensions without batch; -1 is open.
        image_format: Meaning of the channels.
        resize_id: Resize that makes the image from a screen; empty: none prescribed.
        codecs: Packings accepted besides raw.
        minimum: Smallest legal value, or None.
        maximum: Largest legal value, or None.
        droppable: Whether the server may drop it for a newer step.
        merge: How waiting values merge.
        optional: Whether a step may leave it out (then it is zero).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    image_format: ImageFormat = ImageFormat.NONE
    resize_id: str = ""
    codecs: tuple[Codec, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    droppable: bool = True
    merge: Merge = Merge.LATEST
    optional: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"tensor {self.name!r}: dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if any(dim == 0 or dim < -1 for dim in self.shape):
            raise ValueError(f"tensor {self.name!r}: shape {self.shape} has a dimension neither positive nor -1")

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Element type as numpy knows it, little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    def to_proto(self) -> pb.TensorSpec:
        """Return the wire message."""
        return pb.TensorSpec(
            name=self.name,
            dtype=DTYPES[self.dtype],
            shape=self.shape,
            image_format=self.image_format.value,
            resize_id=self.resize_id,
            codecs=[codec.value for codec in self.codecs],
            minimum=self.minimum,
            maximum=self.maximum,
            droppable=self.droppable,
            merge=self.merge.value,
            optional=self.optional,
        )

    @classmethod
    def from_proto(cls, message: pb.TensorSpec) -> TensorSpec:
        """Return the spec of a wire message."""
        return cls(
            name=message.name,
            dtype=_DTYPE_NAMES.get(message.dtype, f"DType {message.dtype}"),
            shape=tuple(message.shape),
            image_format=ImageFormat(message.image_format),
            resize_id=message.resize_id,
            codecs=tuple(Codec(codec) for codec in message.codecs if codec in _CODECS),  # others: of a newer server
            minimum=message.minimum if message.HasField("minimum") else None,
            maximum=message.maximum if message.HasField("maximum") else None,
            droppable=message.droppable,
            merge=Merge(message.merge or pb.MERGE_LATEST),
            optional=message.optional,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscreteActionSpec:
    """One of `n` actions; `names` is empty or n long."""

    n: int
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"a discrete action set has at least 1 action, not {self.n}")
        if self.names and len(self.names) != self.n:
            raise ValueError(f"{len(self.names)} names for {self.n} actions")


class MouseDecode(enum.IntEnum):
    """How a coarse step of mouse motion becomes pixels; DEFAULT: as the policy does by itself."""

    DEFAULT = pb.MOUSE_DECODE_UNSPECIFIED
    MEAN = pb.MOUSE_DECODE_MEAN
    CONSERVATIVE = pb.MOUSE_DECODE_CONSERVATIVE
    TRUNCATED_NORMAL = pb.MOUSE_DECODE_TRUNCATED_NORMAL


@dataclass(frozen=True, slots=True, kw_only=True)
class DesktopActionSpec:
    """Held keys (W3C codes), held buttons, relative mouse motion in pixels, scroll.

    `mouse_decode` is what stands where a session does not say; DEFAULT: the policy knows no coarse steps of motion.
    """

    keys: tuple[str, ...]
    buttons: tuple[int, ...] = ()
    max_mouse_px: float = 0.0
    scroll: bool = False
    mouse_decode: MouseDecode = MouseDecode.DEFAULT


ActionSpec = DiscreteActionSpec | DesktopActionSpec


def _action_to_proto(spec: ActionSpec) -> pb.ActionSpec:
    if isinstance(spec, DiscreteActionSpec):
        return pb.ActionSpec(discrete=pb.DiscreteActionSpec(n=spec.n, names=spec.names))
    return pb.ActionSpec(
        desktop=pb.DesktopActionSpec(
            keys=spec.keys,
            buttons=spec.buttons,
            max_mouse_px=spec.max_mouse_px,
            scroll=spec.scroll,
            mouse_decode=spec.mouse_decode.value,
        )
    )


def _action_from_proto(message: pb.ActionSpec) -> ActionSpec:
    if message.WhichOneof("kind") == "discrete":
        return DiscreteActionSpec(n=message.discrete.n, names=tuple(message.discrete.names))
    desktop = message.desktop
    return DesktopActionSpec(
        keys=tuple(desktop.keys),
        buttons=tuple(desktop.buttons),
        max_mouse_px=desktop.max_mouse_px,
        scroll=desktop.scroll,
        mouse_decode=_mouse_decode(desktop.mouse_decode),
    )


def _mouse_decode(value: int) -> MouseDecode:
    known = {member.value for member in MouseDecode}
    return MouseDecode(value) if value in known else MouseDecode.DEFAULT  # a newer server's own way of decoding


@dataclass(frozen=True, slots=True, kw_only=True)
class GapRule:
    """Rule for steps that wait behind a newer one; `catch_up_frames` (at least 1) counts under CATCH_UP only."""

    mode: GapMode = GapMode.SKIP
    catch_up_frames: int = 1

    def __post_init__(self) -> None:
        if self.catch_up_frames < 1:
            raise ValueError(f"catch_up_frames is at least 1, not {self.catch_up_frames}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySpec:
    """Everything that a client must know about a policy version. Field by field as in types.proto.

    Attributes:
        name: See :func:`check_policy_name`.
        version: As published; empty before that.
        family: Model family.
        kind: Agent or world.
        inputs: Input tensors of one step.
        outputs: Output tensors of one step.
        action: The action set.
        rate_hz: Steps a second; 0: turn based.
        context_frames: Frames that can influence an answer; 1: memoryless; 0: unbounded.
        chunk_length: Most actions in one answer.
        gap_rule: Rule for waiting steps.
        takes_instruction: Whether an instruction changes behaviour.
        uses_executed_actions: Whether the last executed action is an input of the next step.
        environment: Environment protocol of the training data.
    """

    name: str
    family: str
    inputs: tuple[TensorSpec, ...]
    action: ActionSpec
    version: str = ""
    kind: PolicyKind = PolicyKind.AGENT
    outputs: tuple[TensorSpec, ...] = ()
    rate_hz: float = 0.0
    context_frames: int = 1
    chunk_length: int = 1
    gap_rule: GapRule = field(default_factory=GapRule)
    takes_instruction: bool = False
    uses_executed_actions: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.inputs]
        if len(set(names)) != len(names):
            raise ValueError(f"policy {self.name!r}: input names repeat: {names}")

    def to_proto(self) -> pb.PolicySpec:
        """Return the wire message; the server adds state layout, slots and aliases."""
        return pb.PolicySpec(
            name=self.name,
            version=self.version,
            family=self.family,
            kind=self.kind.value,
            inputs=[spec.to_proto() for spec in self.inputs],
            outputs=[spec.to_proto() for spec in self.outputs],
            action=_action_to_proto(self.action),
            rate_hz=self.rate_hz,
            context_frames=self.context_frames,
            chunk_length=self.chunk_length,
            gap_rule=pb.GapRule(mode=self.gap_rule.mode.value, catch_up_frames=self.gap_rule.catch_up_frames),
            takes_instruction=self.takes_instruction,
            uses_executed_actions=self.uses_executed_actions,
            environment=dict(self.environment),
        )

    @classmethod
    def from_proto(cls, message: pb.PolicySpec) -> PolicySpec:
        """Return the spec of a wire message; what only the server knows is left out."""
        return cls(
            name=message.name,
            version=message.version,
            family=message.family,
            kind=PolicyKind(message.kind),
            inputs=tuple(TensorSpec.from_proto(spec) for spec in message.inputs),
            outputs=tuple(TensorSpec.from_proto(spec) for spec in message.outputs),
            action=_action_from_proto(message.action),
            rate_hz=message.rate_hz,
            context_frames=message.context_frames,
            chunk_length=message.chunk_length,
            gap_rule=GapRule(
                mode=GapMode(message.gap_rule.mode or pb.GAP_MODE_SKIP),
                catch_up_frames=max(1, message.gap_rule.catch_up_frames),
            ),
            takes_instruction=message.takes_instruction,
            uses_executed_actions=message.uses_executed_actions,
            environment=dict(message.environment),
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value for a manifest."""
        result: dict[str, Any] = json_format.MessageToDict(self.to_proto(), preserving_proto_field_name=True)
        return result

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PolicySpec:
        """Return the spec of a manifest's JSON value; unknown keys raise json_format.ParseError."""
        return cls.from_proto(json_format.ParseDict(dict(value), pb.PolicySpec()))
